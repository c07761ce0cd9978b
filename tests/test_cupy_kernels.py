"""The CUDA kernels, run on an emulated device: the same source, the same launches, bit for bit the same arithmetic."""

import itertools
import re
from functools import partial

import fake_cupy
import numpy as np
import oracle
import pytest
from normkit.backends.cupy_backend import CupyBackend, engine

import normkit as nk
from normkit import plans, registry

pytestmark = pytest.mark.skipif(fake_cupy.GXX is None, reason="needs g++ to run the kernels on the CPU")

ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = ["float16", "bfloat16", "float32", "float64"]
EPS32 = 2.0**-23
KERNELS = engine.source()


@pytest.fixture(scope="module")
def compiler(request):
    return fake_cupy.Compiler(request.config.cache.mkdir("cuda_on_cpu"))


@pytest.fixture(autouse=True)
def device(compiler, monkeypatch):
    """`cupy` on the emulated device, as the backend that takes these arrays."""
    compiler.order = 0
    compiler.launched = []
    plans.forget()  # they hold kernels
    monkeypatch.setitem(registry._found, "cupy", CupyBackend(fake_cupy.module(compiler)))
    return compiler


def to_device(a):
    return None if a is None else fake_cupy.array(a)


def call(op, x, *args, **options):
    """Run on the emulated device; NumPy in, NumPy out."""
    options = {k: to_device(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    y = getattr(nk, op)(to_device(x), *args, **options)
    return tuple(a.get() for a in y) if isinstance(y, tuple) else y.get()


class on_cpu:
    """The same ops on the NumPy backend, which the oracle has checked."""

    layer_norm = staticmethod(partial(nk.layer_norm, backend="numpy"))
    instance_norm = staticmethod(partial(nk.instance_norm, backend="numpy"))


def noise(shape, dtype, seed=0, offset=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + offset).astype(dtype)


def numpy_dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def check(actual, x, expected, scale=1.0):
    """To the figures of docs/design.md."""
    wanted = expected.astype(np.float64)
    off = np.abs(actual.astype(np.float64) - wanted)
    match x.dtype.name:
        case "float32":
            assert np.nanmax(off, initial=0) <= 1e-6 * scale
        case "float64":
            assert np.nanmax(off, initial=0) <= 1e-13 * scale
        case name:
            ulp = 2.0**-10 if name == "float16" else 2.0**-7
            assert np.all(np.isnan(wanted) | (off <= ulp * np.maximum(np.abs(wanted), 2.0**-14)))
    assert np.array_equal(np.isnan(actual.astype(np.float64)), np.isnan(wanted))


# Lengths on both sides of every limit of launch.py, of odd and even widths: one vector, a warp, a block, all registers.
LENGTHS = [1, 2, 3, 4, 7, 8, 16, 31, 64, 100, 257, 512, 768, 1000, 1023, 2050]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_rows(length, dtype):
    x = noise((5, length), numpy_dtype(dtype), length)
    weight, bias = noise(length, np.float32, 1), noise(length, np.float32, 2)
    y, mean, rstd = call("layer_norm", x, weight=weight, bias=bias, return_stats=True)
    expected, *stats = on_cpu.layer_norm(x.astype(np.float64), weight=weight, bias=bias, return_stats=True)
    check(y, x, expected, scale=8)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    for got, wanted in zip((mean, rstd), stats, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    check(call("layer_norm", x), x, on_cpu.layer_norm(x.astype(np.float64)))


@pytest.mark.parametrize(
    ("dtype", "length", "kernel"),
    [
        ("float32", 5000, "rows<float, float, 8, 0, false>"),
        ("float32", 10001, "rows<float, float, 16, 0, true>"),
        ("bfloat16", 32768, "rows<bf16, bf16, 16, 0, false>"),
        ("float32", 20001, "rows_in_2<float, float, 16, true>"),
        ("float32", 65536, "rows_in_4<float, float, 16, false>"),
        ("float16", 260003, "rows_in_8<f16, f16, 16, true>"),
        ("float64", 65536, "rows_in_8<double, double, 16, false>"),
        ("float32", 131073, "rows<float, float, 4, 2, true>"),
        ("float32", 300000, "rows<float, float, 4, 2, false>"),
        ("bfloat16", 600001, "rows<bf16, bf16, 4, 2, true>"),
    ],
)
def test_long_rows(dtype, length, kernel, device):
    x = noise((2, length), numpy_dtype(dtype), 3)
    y, mean, rstd = call("layer_norm", x, return_stats=True)
    assert device.launched[-1] == kernel
    expected, *stats = on_cpu.layer_norm(x.astype(np.float64), return_stats=True)
    check(y, x, expected)
    for got, wanted in zip((mean, rstd), stats, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        *((2, 3, 1), (2, 5, 3), (1, 4, 8), (3, 64, 16), (2, 33, 5), (2, 7, 40), (1, 300, 24), (1, 1000, 3), (5, 2, 4)),
        *((3, 70, 12), (2, 40, 6), (1, 1030, 16)),
    ],
)
def test_columns(shape, dtype):
    x = noise(shape, numpy_dtype(dtype), 4)
    weight, bias = noise(shape[-1], x.dtype, 1), noise(shape[-1], x.dtype, 2)
    options = {"weight": weight, "bias": bias, "channel_axis": -1, "return_stats": True}
    y, mean, rstd = call("instance_norm", x, **options)
    wide = {k: v.astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    expected, *stats = on_cpu.instance_norm(x.astype(np.float64), **wide)
    check(y, x, expected, scale=8)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    for got, wanted in zip((mean, rstd), stats, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    weight, bias = noise(shape[1], np.float32, 1), noise(shape[1], np.float32, 2)
    if shape[2] > 1:
        y = call("layer_norm", x, axis=1, weight=weight, bias=bias)
        check(y, x, on_cpu.layer_norm(x.astype(np.float64), axis=1, weight=weight, bias=bias), scale=8)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *(("float32", (2, 6000, 40)), ("bfloat16", (1, 6001, 9)), ("float64", (2, 9000, 2))),
        *(("float32", (2, 9000, 3)), ("float16", (3, 4104, 3)), ("bfloat16", (2, 2120, 20))),
    ],
)
def test_long_columns(dtype, shape, device):
    x = noise(shape, numpy_dtype(dtype), 5)
    weight, bias = noise(shape[2], np.float32, 1), noise(shape[2], np.float32, 2)
    options = {"channel_axis": -1, "return_stats": True}
    y, *stats = call("instance_norm", x, weight=weight, bias=bias, **options)
    assert [name.partition("<")[0] for name in device.launched] == ["columns", "merge", "columns"]
    expected, *wanted = on_cpu.instance_norm(x.astype(np.float64), weight=weight, bias=bias, **options)
    check(y, x, expected, scale=8)
    for one, other in zip(stats, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    weight, bias = noise(shape[1], np.float32, 1), noise(shape[1], np.float32, 2)
    y = call("layer_norm", x, axis=1, weight=weight, bias=bias)
    check(y, x, on_cpu.layer_norm(x.astype(np.float64), axis=1, weight=weight, bias=bias), scale=8)


@pytest.mark.parametrize("shape", [(2, 300, 8), (1, 6000, 3), (1, 6000, 8)])
def test_the_first_places_of_columns_may_be_far_off(shape):
    """A border of zeros around numbers near 1000: threads and chunks that begin with them guess badly."""
    x = noise(shape, np.float32, 5, 1e3)
    x[:, : shape[1] // 9] = 0
    y, mean, rstd = call("layer_norm", x, axis=1, return_stats=True)
    expected, *stats = on_cpu.layer_norm(x.astype(np.float64), axis=1, return_stats=True)
    check(y, x, expected)
    for got, wanted in zip((mean, rstd), stats, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=5e-7)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 4, 8, 8), (3, 2, 1000), (2, 2, 20001)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_instance_norm_channels_first(shape, dtype):
    x = noise(shape, numpy_dtype(dtype), 6)
    weight, bias = noise(shape[1], np.float32, 1), noise(shape[1], np.float32, 2)
    y = call("instance_norm", x, weight=weight, bias=bias)
    check(y, x, on_cpu.instance_norm(x.astype(np.float64), weight=weight, bias=bias), scale=8)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(4, 768), (3, 1001), (2, 8192), (1, 65536), (1, 200001)])
def test_offsets_cost_nothing(shape, offset):
    x = noise(shape, np.float32, 7, offset)
    check(call("layer_norm", x), x, on_cpu.layer_norm(x.astype(np.longdouble).astype(np.float64)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(4, 768), (3, 1001), (2, 8192), (1, 40000)])
def test_halves_are_summed_around_a_guess(shape, dtype):
    """The mean of four elements in front; a bad one is found out, and those rows are taken over again."""
    x = noise(shape, numpy_dtype(dtype), 7, 30.0)
    x[0, : shape[1] // 2] = 1.5
    x[-1, :4] = -3e4
    check(call("layer_norm", x), x, on_cpu.layer_norm(x.astype(np.float64)))
    x[-1, :4] = 3e4
    expected = call("layer_norm", x)
    check(expected, x, on_cpu.layer_norm(x.astype(np.float64)))
    assert np.array_equal(call("layer_norm", x[:1]), expected[:1])  # with and without a neighbour that is taken over again


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("first", [0.0, 3e3, -4e19, 1e30])
def test_an_outlier_in_front(axis, first):
    """The shift by the first element is then a bad guess, which the second sweep mends; its square leaves float32."""
    x = noise((2, 300, 4) if axis == 1 else (2, 4, 300), np.float32, 8, 1e3)
    x[(0, 0, 0)] = first
    y = call("layer_norm", x, axis=axis)
    expected = on_cpu.layer_norm(x.astype(np.float64), axis=axis)
    np.testing.assert_allclose(y, expected, rtol=4 * EPS32, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1e15, 1e25, 1e38])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("axis", [1, 2])
def test_scale_does_not_matter_without_eps(axis, scale, dtype):
    x = (np.random.default_rng(9).uniform(-3, 3, (2, 12, 12)) * scale).astype(numpy_dtype(dtype))
    y = call("layer_norm", x, axis=axis, eps=0.0)
    with np.errstate(all="ignore"):
        check(y, x, on_cpu.layer_norm(x.astype(np.float64), axis=axis, eps=0.0))


@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-5, 1e300])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_has_no_variance(axis, eps, dtype):
    x = np.full((2, 12, 100), 1234.0, numpy_dtype(dtype))
    y, mean, _ = call("layer_norm", x, axis=axis, eps=eps, return_stats=True)
    assert np.all(y.astype(np.float64) == 0)
    assert np.all(mean == x.astype(np.float64)[0, 0, 0])


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_values_stay_in_their_own_set(axis, bad, dtype):
    x = noise((2, 8, 40), dtype, 10)
    clean = call("layer_norm", x, axis=axis)
    x[1, 3, 5] = bad
    y = call("layer_norm", x, axis=axis)
    spoilt = np.zeros(x.shape, bool)
    spoilt[(1, 3) if axis == 2 else (1, slice(None), 5)] = True
    assert np.all(np.isnan(y[spoilt]))
    assert np.array_equal(y[~spoilt], clean[~spoilt])


BITS = [("layer_norm", (3, 100)), ("layer_norm", (3, 1001)), ("layer_norm", (2, 35001)), ("layer_norm", (2, 131075))]


@pytest.mark.parametrize(("op", "shape"), [*BITS, ("instance_norm", (3, 50, 6)), ("instance_norm", (2, 4100, 3))])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bits_hang_on_the_row_alone(op, shape, dtype, device):
    """Not on the order in which threads run, on other rows, on where x and out lie, or on writing in place."""
    options = {"channel_axis": -1} if op == "instance_norm" else {}
    x = noise(shape, dtype, 11)
    expected = call(op, x, **options)
    for order in (1, 2):
        device.order = order
        assert np.array_equal(call(op, x, **options), expected)
    device.order = 0
    assert np.array_equal(call(op, x[1:], **options), expected[1:])
    for shift in (1, 2, 3, 5) if x.size < 10000 else (3,):
        lying = [fake_cupy.empty(x.size + 16, x.dtype) for _ in range(2)]
        moved = lying[0][shift : shift + x.size].reshape(x.shape)
        out = lying[1][shift + 2 : shift + 2 + x.size].reshape(x.shape)
        moved[...] = to_device(x)
        assert np.array_equal(getattr(nk, op)(moved, **options).get(), expected)
        assert getattr(nk, op)(moved, out=out, **options) is out
        assert np.array_equal(out.get(), expected)
        assert getattr(nk, op)(moved, out=moved, **options) is moved
        assert np.array_equal(moved.get(), expected)


def test_each_row_has_the_bits_of_its_values():
    """Rows of an odd width lie differently between 16-byte boundaries, and give the same all the same."""
    row = noise(1001, np.float32, 12)
    y = call("layer_norm", np.stack([row] * 9))
    assert all(np.array_equal(y[0], other) for other in y)


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("masked", [False, True])
def test_against_the_oracle(axis, dtype, masked):
    x = noise((3, 4, 5), dtype, 13)
    axes = axis if isinstance(axis, tuple) else (axis,)
    shape = tuple(x.shape[a] for a in axes)
    weight, bias = noise(shape, np.float64, 1), noise(shape, np.float32, 2)
    mask = None
    if masked:
        mask = np.random.default_rng(3).random((3, 4, 5)) > 0.3
        mask[:2] = mask[:, :2] = mask[..., :2] = True  # two of each set are left: fewer are a matter of the policy
    expected, mean, rstd = oracle.layer_norm(x, axes, weight, bias, mask=mask)
    options = {"mask": mask} if masked else {}
    with np.errstate(all="ignore"):
        y, *stats = call("layer_norm", x, axis=axis, weight=weight, bias=bias, return_stats=True, **options)
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    for got, wanted in zip((y, *stats), (expected, mean, rstd), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_running_statistics(channel_axis, dtype):
    x = noise((2, 6, 6, 6), dtype, 14, offset=3)
    running = [noise(6, np.float32, 1), np.abs(noise(6, np.float32, 2))]
    on_device = [to_device(r) for r in running]
    nk.instance_norm(to_device(x), *on_device, channel_axis=channel_axis)
    on_cpu.instance_norm(x, *running, channel_axis=channel_axis)
    for got, wanted in zip(on_device, running, strict=True):
        np.testing.assert_allclose(got.get(), wanted, rtol=1e-6, atol=1e-6)
    y = nk.instance_norm(to_device(x), *on_device, use_input_stats=False, channel_axis=channel_axis).get()
    check(y, x, on_cpu.instance_norm(x.astype(np.float64), *running, use_input_stats=False, channel_axis=channel_axis), scale=8)


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_given_statistics_at_the_ends_of_the_range(channel_axis):
    x = noise((2, 6, 5, 6), np.float32, 15)
    x[0, 0, 0, :2] = np.inf, -np.inf
    mean = np.array([0, 1e30, -3e38, 1, 2, 3.0])
    var = np.array([1, 1e-60, 1e60, 0, 1e-310, np.inf])
    with np.errstate(all="ignore"):
        options = {"use_input_stats": False, "channel_axis": channel_axis, "eps": 0.0}
        y = call("instance_norm", x, running_mean=mean, running_var=var, **options)
        expected = on_cpu.instance_norm(x.astype(np.float64), mean, var, **options).astype(np.float32)
    finite = np.isfinite(x)
    np.testing.assert_allclose(y[finite], expected[finite], rtol=1e-6, atol=1e-6)
    assert np.array_equal(y[0, 0, 0, :2][:1], expected[0, 0, 0, :1])


@pytest.mark.parametrize("answer", ["bias", "identity", "layer_norm", lambda problem: problem.x])
def test_single_elements(answer):
    x = noise((2, 3, 1, 1), np.float32, 16)
    policy = nk.FallbackPolicy(single_element=answer)
    y = call("instance_norm", x, policy=policy)
    np.testing.assert_allclose(y, on_cpu.instance_norm(x, policy=policy), rtol=1e-6, atol=1e-6)
    with pytest.raises(nk.DegenerateShapeError):
        call("instance_norm", x)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing(shape):
    y, mean, rstd = call("layer_norm", np.empty(shape, np.float32), return_stats=True)
    assert y.shape == shape
    assert mean.shape == rstd.shape == (shape[0], 1)
    assert np.all(np.isnan(mean))


@pytest.mark.parametrize(
    "view", [lambda a: a[:, ::2], lambda a: a[::-1], lambda a: a.transpose(0, 2, 1), lambda a: a[:, :, :3]]
)
def test_layouts(view, same_bits):
    x = noise((4, 6, 5), np.float32, 17)
    y = nk.layer_norm(view(to_device(x)))
    same_bits(y.get(), call("layer_norm", np.ascontiguousarray(view(x))))
    out = view(to_device(np.zeros_like(x)))
    nk.layer_norm(view(to_device(x)), out=out)
    same_bits(out.get(), y.get())


def test_out_that_overlaps_x():
    memory = to_device(noise(105, np.float32, 18))
    x, out = memory[:100].reshape(10, 10), memory[5:].reshape(10, 10)
    expected = call("layer_norm", x.get())
    nk.layer_norm(x, out=out)
    assert np.array_equal(out.get(), expected)


@pytest.mark.parametrize("given", ["weight", "bias"])
@pytest.mark.parametrize("shape", [(3, 40), (3, 41), (2, 9000)])
def test_a_weight_or_a_bias_alone(shape, given):
    x, parameter = noise(shape, np.float32, 19), noise(shape[1], np.float32, 20)
    y = call("layer_norm", x, **{given: parameter})
    check(y, x, on_cpu.layer_norm(x.astype(np.float64), **{given: parameter.astype(np.float64)}), scale=8)


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
@pytest.mark.parametrize("parameters", [(), ("weight",), ("weight", "bias")])
def test_calls_that_recur_have_plans(op, parameters, device):
    """With the same bits, and no plan for what it was not made for."""
    x = to_device(noise((3, 5, 40), np.float32, 21))
    options = {p: to_device(noise(40 if op == "layer_norm" else 5, np.float32, n)) for n, p in enumerate(parameters)}
    run = partial(getattr(nk, op), **options)
    expected = run(x).get()
    assert len(plans.current().latest) == 1
    (made,) = plans.current().latest.values()
    assert np.array_equal(made(x, *(options.get(p) for p in ("weight", "bias")), None).get(), expected)
    assert np.array_equal(run(x).get(), expected)
    other = fake_cupy.ndarray(x.inside, device=1)
    moved = fake_cupy.empty(604, np.float32)[1:601].reshape(3, 5, 40)
    moved[...] = x
    wide = to_device(x.get().astype(np.float64))
    for declined in (other, moved, wide, x[:2], x.transpose(0, 2, 1), x.get()):
        assert made(declined, *(options.get(p) for p in ("weight", "bias")), None) is None
    assert np.array_equal(run(moved).get(), expected)
    assert np.array_equal(run(x[:2]).get(), expected[:2])
    for p, a in options.items():
        assert made(x, *({**options, p: a.astype(np.float64)}.get(q) for q in ("weight", "bias")), None) is None
        assert made(x, *({**options, p: None}.get(q) for q in ("weight", "bias")), None) is None
    out = fake_cupy.empty(x.shape, x.dtype)
    for _ in range(2):
        assert run(x, out=out) is out
        assert np.array_equal(out.get(), expected)
    memory = fake_cupy.empty(1300, np.float32)
    near, over = memory[:600].reshape(x.shape), memory[40:640].reshape(x.shape)  # which overlap
    near[...] = x
    assert np.array_equal(run(near, out=over).get(), expected)
    before = len(device.launched)
    assert run(x, out=x) is x
    assert np.array_equal(x.get(), expected)
    assert len(device.launched) == before + 1


def test_operands_on_other_devices_are_refused():
    x, weight = to_device(noise((2, 4), np.float32)), fake_cupy.ndarray(np.ones(4, np.float32), device=1)
    with pytest.raises(nk.InputValueError, match="weight is on <CUDA Device 1>, expected <CUDA Device 0> as x"):
        nk.layer_norm(x, weight=weight)


@pytest.mark.parametrize("error", [fake_cupy.OutOfMemoryError, fake_cupy.CUDADriverError, fake_cupy.CompileException])
def test_errors_of_cuda_surface_and_say_where_from(error, monkeypatch):
    def fail(**_):
        raise error("as the driver says")

    cupy = fake_cupy.module()
    cupy.RawModule = fail
    monkeypatch.setitem(registry._found, "cupy", CupyBackend(cupy))
    with pytest.raises(error, match="as the driver says") as caught:
        nk.layer_norm(to_device(noise((2, 4), np.float32)))
    assert caught.value.__notes__ == ["in normkit, layer_norm of x: (2, 4) float32, on the backend 'cupy'"]


BARRIERS = [m.start() for m in re.finditer(r"(?<=  )(?:block_sync\(\)|group_sync\(group\));", KERNELS)] + [
    KERNELS.rindex("cluster_wait();")  # the wait before that for blocks to begin shows on a GPU alone
]


@pytest.mark.hostile
@pytest.mark.parametrize("place", range(len(BARRIERS)))
def test_a_barrier_left_out_is_noticed(place, device, monkeypatch):
    """The emulated device is worth its name only if it shows the races that a GPU would have."""
    text = KERNELS[: BARRIERS[place]] + "//" + KERNELS[BARRIERS[place] :]
    monkeypatch.setattr(engine, "source", lambda: text)
    shapes = [((3, 1001), {}), ((2, 4096), {}), ((1, 35001), {}), ((2, 60, 8), {"axis": 1}), ((1, 300, 5), {"axis": 1})]
    wrong = 0
    for order, (shape, options), far in itertools.product(range(3), shapes, (0, 1e30)):
        device.order = order
        x = noise(shape, np.float32, 20)
        x.flat[9] += far  # which takes the way of what leaves float's range
        try:
            y = call("layer_norm", x, **options)
            wrong += not np.allclose(y, on_cpu.layer_norm(x.astype(np.float64), **options), atol=2e-6)
        except AssertionError:  # threads that wait for ever
            wrong += 1
    assert wrong


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_keeps_the_sign_of_zero(dtype):
    x = np.tile(np.array([-0.0, 0.0, 1.5, -2.0], np.float32), (20, 1)).astype(dtype)
    identity = nk.FallbackPolicy(single_element="identity")
    for weight in (None, np.ones(4, np.float32)):
        assert call("instance_norm", x[..., None], weight=weight, policy=identity).tobytes() == x.tobytes()
