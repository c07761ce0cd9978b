"""What the compiled kernels are made of: vector code in the hot loops, streamed stores, no calls, no reference counts."""

import platform
import re

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from normkit.backends.numba_backend import compiling, kernels  # noqa: E402

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled with NUMBA_DISABLE_JIT=1")
x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86 assembly")


@pytest.fixture(scope="module", params=["float32", "float64"])
def compiled(request):
    """The serial rows kernel for a dtype: (dtype, assembly, LLVM)."""
    signature = compiling._signature(kernels.rows_serial.py_func, np.dtype(request.param), masked=False)
    kernels.rows_serial.compile(signature)
    assembly = kernels.rows_serial.inspect_asm(signature)
    return request.param, assembly, kernels.rows_serial.inspect_llvm(signature)


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
    import normkit as nk

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
