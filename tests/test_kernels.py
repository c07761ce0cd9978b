"""What the compiled kernels are made of: vector code in the hot loops, streamed stores, no calls, no reference counts."""

import platform
import re

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from normkit.backends.numba_backend import compiling, limits, row_kernels, shares  # noqa: E402

import normkit as nk  # noqa: E402
from normkit.bench.cases import np_dtype  # noqa: E402

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86 assembly")


@pytest.fixture(scope="module", params=["float32", "float64"])
def compiled(request):
    """The serial rows kernel for a dtype: (dtype, assembly, LLVM)."""
    signature = compiling._signature(row_kernels.rows_serial.py_func, np.dtype(request.param), masked=False)
    row_kernels.rows_serial.compile(signature)
    assembly = row_kernels.rows_serial.inspect_asm(signature)
    return request.param, assembly, row_kernels.rows_serial.inspect_llvm(signature)


def instructions(assembly):
    return re.findall(r"^\t([a-z]\w+)", assembly, re.MULTILINE)


@x86
def test_the_hot_loops_are_vector_code(compiled):
    dtype, assembly, _ = compiled
    seen = instructions(assembly)
    assert any(re.fullmatch(r"vfmadd\d+pd", name) for name in seen), "sums of squares are packed float64"
    if dtype == "float32":
        assert "vcvtps2pd" in seen, "float32 is widened in vectors"
        assert any(re.fullmatch(r"vfmadd\d+ps", name) for name in seen), "the apply is packed float32"


@x86
def test_large_outputs_are_streamed(compiled):
    dtype, assembly, _ = compiled
    assert {"float32": "vmovntps", "float64": "vmovntpd"}[dtype] in instructions(assembly)


@x86
def test_the_next_row_is_fetched(compiled):
    assert any(name.startswith("prefetch") for name in instructions(compiled[1]))


def test_no_reference_is_counted(compiled):
    assert "NRT_incref" not in compiled[2], "an atomic per helper call costs more than a row of 32"


def test_no_function_is_called_in_a_loop(compiled):
    body = compiled[2].split("define ")[1]
    called = set(re.findall(r"call [^@\n]*@([\w.]+)\(", body))
    assert {name for name in called if not name.startswith("llvm.")} <= set(), "sqrt and fma are instructions"


def moments(x):
    """(mean, variance) as the engine takes them of one row."""
    _, mean, rstd = nk.layer_norm(x[None], eps=0.0, return_stats=True, backend="numba")
    return mean.item(), rstd.item() ** -2


@pytest.mark.parametrize("n", [2, 15, 16, 17, 4095, 4096, 4097, 3 * 4096 + 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_of_every_kind_of_end(n, dtype):
    """Parts of lanes, parts of blocks: each element counts once."""
    x = (np.arange(n) % 7).astype(dtype) + 1000
    mean, var = moments(x)
    exact = np.asarray(x, np.longdouble)
    assert mean == pytest.approx(float(exact.mean()), rel=1e-15)
    assert var == pytest.approx(float(exact.var()), rel=1e-13)


@pytest.mark.parametrize("where", [0, 1, 4095, 4096, -1])
def test_an_outlier_that_is_first_or_last_of_a_block(where):
    """The first element of a block is its shift: the worst it can be."""
    x = np.random.default_rng(0).standard_normal(10_000)
    x[where] = 1e9
    _, var = moments(x)
    assert var == pytest.approx(float(np.asarray(x, np.longdouble).var()), rel=1e-13)
    x32 = x.astype(np.float32)
    _, var = moments(x32)
    assert var == pytest.approx(float(np.asarray(x32, np.longdouble).var()), rel=1e-10)


@pytest.mark.parametrize("n", [1, 15, 16, 31, 32, 100, 128, 256, 500, 1000, 3001, 4096])
@pytest.mark.parametrize("rows", [1, 5, 15, 16, 17, 50])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_rows_of_one_block_have_the_bits_of_columns(n, rows, kind):
    """Such rows are taken a few at a time, columns are not; what one row holds is no matter to the others."""
    dtype = np_dtype(kind).type
    x = np.random.default_rng(n).standard_normal((rows, n)).astype(dtype)
    big, small = (6e4, 1e-7) if dtype is np.float16 else (3e37, 1e-40)
    for r, extreme in enumerate([big, small, np.nan, np.inf, 0, -0.0, 1]):
        with np.errstate(all="ignore"):
            x[7 * r % rows] *= dtype(extreme)
    x[-1] = 5
    weight, bias = np.linspace(-2, 3, n).astype(dtype), np.linspace(1, 2, n).astype(dtype)
    columns = nk.layer_norm(np.asfortranarray(x), n, weight, bias, backend="numba")
    together = nk.layer_norm(x, n, weight, bias, backend="numba")
    assert together.tobytes() == np.ascontiguousarray(columns).tobytes()
    for start in {0, rows // 2, rows - 1}:
        assert nk.layer_norm(x[start:], n, weight, bias, backend="numba").tobytes() == together[start:].tobytes()


@pytest.mark.parametrize("gap", [-2048, -64, -4, 0, 4, 60, 64, 68, 1024, 2044, 2048])
@pytest.mark.parametrize("shape", [(40, 32), (7, 100), (3, 5000), (1, 4_200_000)])
def test_out_anywhere_in_its_page(gap, shape, monkeypatch):
    """Which way a row is gone through depends on where out lies; the bits do not. The largest case is streamed."""
    monkeypatch.setattr(limits, "STREAM_BYTES", 1 << 24)
    x = placed(shape, 2048)
    x[...] = np.random.default_rng(0).standard_normal(shape, np.float32)
    out = placed(shape, 2048 + gap)
    right = nk.layer_norm(x, backend="numba")
    assert nk.layer_norm(x, out=out, backend="numba") is out
    assert out.tobytes() == right.tobytes()


@pytest.mark.parametrize("place", [0, 8, 16, 56, 64, 2056])
@pytest.mark.parametrize("shape", [(3, 32), (16, 32), (36, 16), (37, 7), (40, 100), (21, 256), (5, 300), (40, 700)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_streamed_to_wherever_out_lies(place, shape, dtype, monkeypatch):
    """What is streamed begins at a cache line: short rows that do not are put together, or in vectors across two."""
    rows, n = shape
    rng = np.random.default_rng(0)
    x, memory = placed(shape, 2048, dtype), placed((rows * n + 64,), place, dtype)  # so out leads x, or does not
    x[...] = rng.standard_normal(shape) * rng.uniform(0.1, 10, (rows, 1)) + rng.uniform(-9, 9, (rows, 1))
    out = memory[32 : 32 + x.size].reshape(shape)
    of_element = np.linspace(1, 2, n, dtype=dtype), np.linspace(-3, 3, n, dtype=dtype)
    of_row = np.linspace(1, 2, rows, dtype=dtype), np.linspace(-3, 3, rows, dtype=dtype)

    def normalized(out=None):
        yield nk.layer_norm(x, n, *of_element, out=out, backend="numba")
        out = None if out is None else out[None]
        yield nk.instance_norm(x[None], None, None, *of_row, out=out, backend="numba")

    right = [y.tobytes() for y in normalized()]
    monkeypatch.setattr(limits, "STREAM_BYTES", 0)
    memory[...] = 7
    assert [y.tobytes() for y in normalized(out)] == right
    assert (memory[:32] == 7).all()
    assert (memory[32 + x.size :] == 7).all()


@pytest.mark.parametrize("place", [0, 16, 48, 2056])
@pytest.mark.parametrize(
    "shape",
    [(3, 40, 256), (5, 1, 32), (2, 37, 600), (3, 301, 3), (2, 5000, 64), (3, 41, 72), (2, 9, 201), (4, 40, 8), (3, 5, 17)],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_columns_streamed_to_wherever_out_lies(place, shape, dtype, monkeypatch):
    """The line that two rows share is written once, with both, and tiles side by side begin with a line of out."""
    outer, length, lanes = shape
    rng = np.random.default_rng(0)
    x, memory = placed(shape, 2048, dtype), placed((outer * length * lanes + 64,), place, dtype)
    x[...] = rng.standard_normal(shape) * rng.uniform(0.1, 10, (outer, 1, lanes)) + rng.uniform(-9, 9, (outer, 1, lanes))
    x[-1, :, -1] = 1e9 if dtype == np.float64 else 6e4  # normalized in float64 where it can be
    x[-1, 0, -1] -= 64
    out = memory[32 : 32 + x.size].reshape(shape)
    of_lane = np.linspace(1, 2, lanes, dtype=dtype), np.linspace(-3, 3, lanes, dtype=dtype)
    of_row = np.linspace(1, 2, length, dtype=dtype), np.linspace(-3, 3, length, dtype=dtype)

    def by_lane(x, out=None):
        how = {"channel_axis": -1, "out": out, "backend": "numba", "policy": nk.FallbackPolicy.onnx()}
        return nk.instance_norm(x, weight=of_lane[0], bias=of_lane[1], **how)

    def by_row(x, out=None):
        return nk.layer_norm(x, None, *of_row, axis=1, out=out, backend="numba")

    right = {normalized: normalized(x).tobytes() for normalized in (by_lane, by_row)}
    monkeypatch.setattr(limits, "STREAM_BYTES", 0)
    monkeypatch.setattr(limits, "PARALLEL_BYTES", 0)
    for normalized, expected in right.items():
        memory[...] = 7
        assert normalized(x, out).tobytes() == expected
        out[...] = x
        assert normalized(out, out).tobytes() == expected
        assert (memory[:32] == 7).all()
        assert (memory[32 + x.size :] == 7).all()


@pytest.mark.parametrize("shape", [(2000, 768), (300, 5001), (90, 17_000)])
def test_an_output_a_little_larger_than_the_last_cache_is_streamed_in_part(shape, monkeypatch):
    """It is kept and streamed by turns, wherever a row ends; the bits are the same."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    n, memory = shape[1], placed((x.size + 64,), 52)
    right = nk.layer_norm(x, n, backend="numba")
    memory[...] = 7
    out = memory[32 : 32 + x.size].reshape(shape)
    monkeypatch.setattr(limits, "STREAM_BYTES", 4 << 20)
    assert 0 < limits.streamed_share(x.nbytes, n, 0, 4) < 16
    nk.layer_norm(x, n, out=out, backend="numba")
    assert out.tobytes() == right.tobytes()
    assert (memory[:32] == 7).all()
    assert (memory[32 + x.size :] == 7).all()
    assert limits.streamed_share((4 << 20) - 1, n, 0, 4) == 0
    assert limits.streamed_share(8 << 20, n, 0, 4) == limits.streamed_share(x.nbytes, n, 16, 4) == 16
    assert limits.streamed_share(x.nbytes, 1 << 16, 0, 4) == limits.streamed_share(x.nbytes, n, 0, 2) == 16


@pytest.mark.parametrize("n", [40, 64, 300, 1000, 4096, 5000, 12_289])
@pytest.mark.parametrize("rows", [1, 2, 5, 14, 83])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_has_the_bits_that_it_has_alone(n, rows, dtype, monkeypatch):
    """Streamed, a row is normalized between the blocks of the next one: in place, with a mask, with gaps, on any threads."""
    x = np.random.default_rng(n).normal(1, 2, (rows, n)).astype(dtype)
    x[-1, n // 2] = np.nan
    mask = np.random.default_rng(rows).random((rows, n)) < 0.8
    weight, bias = np.linspace(-2, 3, n, dtype=dtype), np.linspace(1, 2, n, dtype=dtype)

    def rows_of(x, mask=None, out=None):
        return nk.layer_norm(x, n, weight, bias, mask=mask, out=out, backend="numba")

    alone = [rows_of(x[r : r + 1]).tobytes() for r in range(rows)]
    alone_masked = [rows_of(x[r : r + 1], mask[r : r + 1]).tobytes() for r in range(rows)]
    monkeypatch.setattr(limits, "STREAM_BYTES", 0)
    monkeypatch.setattr(limits, "PARALLEL_BYTES", 0)
    for shape in (x, np.repeat(x, 2, axis=0)[::2], x[::-1].copy()[::-1]):
        assert [row.tobytes() for row in rows_of(shape)] == alone
        assert [row.tobytes() for row in rows_of(shape, mask)] == alone_masked
    again = x.copy()
    assert [row.tobytes() for row in rows_of(again, out=again)] == alone
    again = x.copy()
    assert [row.tobytes() for row in rows_of(again, mask, out=again)] == alone_masked


@pytest.mark.parametrize("shape", [(40, 17, 100), (7, 300, 80), (9, 4100, 272), (3, 9000, 16), (2, 20_000, 40), (3, 12_300, 4)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_column_has_the_bits_that_it_has_as_a_row(shape, dtype, monkeypatch):
    """In tiles that are streamed, split or taken 16 rows as one: in place, with a mask, given statistics, on any threads."""
    rng = np.random.default_rng(sum(shape))
    x = rng.normal(1, 2, shape).astype(dtype)
    x[-1, shape[1] // 2, 0] = np.nan
    x[0, :, 1] += 1000  # is summed again
    mask = rng.random(shape) < 0.8
    weight, bias = np.linspace(-2, 3, shape[-1], dtype=dtype), np.linspace(1, 2, shape[-1], dtype=dtype)

    def normalized(x, **how):
        return nk.instance_norm(x, weight=weight, bias=bias, backend="numba", **how)

    def first(a):
        return np.ascontiguousarray(a.swapaxes(1, 2))

    right, *statistics = normalized(first(x), return_stats=True)
    masked = normalized(first(x), mask=first(mask))
    mean, var = np.linspace(0, 1, shape[-1]), np.linspace(1, 2, shape[-1])
    known = {"running_mean": mean, "running_var": var, "use_input_stats": False}
    given = normalized(first(x), **known)
    monkeypatch.setattr(limits, "STREAM_BYTES", 0)
    monkeypatch.setattr(limits, "PARALLEL_BYTES", 0)
    y, *again = normalized(x, channel_axis=-1, return_stats=True)
    assert first(y).tobytes() == right.tobytes()
    assert [a.tobytes() for a in again] == [a.tobytes() for a in statistics]
    assert first(normalized(x, channel_axis=-1, mask=mask)).tobytes() == masked.tobytes()
    assert first(normalized(x, channel_axis=-1, **known)).tobytes() == given.tobytes()
    for how, expected in (({}, right), ({"mask": mask}, masked)):
        again = x.copy()
        normalized(again, channel_axis=-1, out=again, **how)
        assert first(again).tobytes() == expected.tobytes()


def placed(shape, place, dtype=np.float32):
    """An array that starts so many bytes after a page does."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 8192, np.uint8)
    start = (place - memory.ctypes.data) % 4096
    return memory[start : start + size].view(dtype).reshape(shape)


@numba.njit
def piece(n, taken, sweep, c, chunks):
    return shares.next_piece(n, taken, sweep, c, chunks)


@pytest.mark.parametrize("n", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("chunks", [1, 2, 3, 8])
def test_threads_help_each_other_and_do_each_thing_once(n, chunks):
    taken, rng = np.zeros(2 * chunks * shares.LINE, np.int64), np.random.default_rng(n)
    for sweep in range(2):
        done = []
        awake = set(rng.choice(chunks, max(1, chunks // 2), replace=False).tolist())  # the others never start
        while awake:
            c = int(rng.choice(sorted(awake)))
            start, stop = piece(n, taken, sweep, c, chunks)
            done.extend(range(start, stop))
            if start == stop:
                assert start == n
                awake.remove(c)
        assert sorted(done) == list(range(n))


def test_a_thread_begins_with_its_own_share():
    taken = np.zeros(4 * shares.LINE, np.int64)
    assert [piece(6400, taken, 0, c, 4) for c in (2, 0, 3, 2)] == [(3200, 3300), (0, 100), (4800, 4900), (3300, 3400)]
