"""The whole matrix on a real GPU. Skips, saying why, where there is none."""

from functools import partial

import numpy as np
import oracle
import pytest

import normkit as nk
from normkit import registry

found = registry.find("cupy")
why = found.reason if isinstance(found, registry.Missing) else ""
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(why), reason=f"no GPU: {why}")]
if not why:
    import cupy

ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = ["float16", "bfloat16", "float32", "float64"]
LAYOUTS = {
    "C": lambda a: a,
    "fortran": lambda a: cupy.asfortranarray(a),
    "sliced": lambda a: cupy.repeat(a, 2, axis=-1)[..., ::2],
    "transposed": lambda a: cupy.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
    "negative_stride": lambda a: cupy.ascontiguousarray(a[::-1])[::-1],
    "zero_stride": lambda a: cupy.broadcast_to(a[:1], a.shape),
    "unaligned": lambda a: cupy.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape),
    "empty": lambda a: a[:0],
}
LENGTHS = [1, 2, 3, 8, 33, 100, 768, 1000, 1023, 4096, 5000, 16384, 16387, 20001, 65536, 100000, 131073, 600001]


def noise(shape, dtype, seed=0, offset=0.0):
    values = np.random.default_rng(seed).standard_normal(shape) + offset
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def check(y, expected, dtype):
    """To the figures of docs/design.md, relative where the output is not of unit variance."""
    rtol = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-6, "float64": 1e-12}[dtype]
    atol = {"float16": 2.0**-20, "bfloat16": 2.0**-20, "float32": 2e-6, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(y.get().astype(np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_rows(length, dtype):
    x, weight, bias = (noise(shape, dtype, n) for n, shape in enumerate([(3, length), length, length]))
    y = nk.layer_norm(cupy.asarray(x), weight=cupy.asarray(weight), bias=cupy.asarray(bias))
    wide = (a.astype(np.float64) for a in (x, weight, bias))
    x64, w64, b64 = wide
    check(y, nk.layer_norm(x64, weight=w64, bias=b64, backend="numpy"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 4, 64, 64), (1, 3, 1000, 3), (4, 300, 17, 2), (3, 32, 40, 96)])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_instance_norm(shape, channel_axis, dtype):
    x, weight, bias = noise(shape, dtype), noise(shape[channel_axis], dtype, 1), noise(shape[channel_axis], dtype, 2)
    options = {"channel_axis": channel_axis}
    y = nk.instance_norm(cupy.asarray(x), weight=cupy.asarray(weight), bias=cupy.asarray(bias), **options)
    x64, w64, b64 = (a.astype(np.float64) for a in (x, weight, bias))
    check(y, nk.instance_norm(x64, weight=w64, bias=b64, backend="numpy", **options), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_oracle(layout, axis, masked, dtype):
    x = LAYOUTS[layout](cupy.asarray(noise((3, 4, 5), dtype)))
    host = x.get()
    axes = axis if isinstance(axis, tuple) else (axis,)
    weight = noise(tuple(host.shape[a] for a in axes), "float32", 1)
    mask = None
    if masked:
        mask = np.random.default_rng(2).random(host.shape) > 0.3
        mask[:1] = mask[:, 0] = mask[..., 0] = True  # no set is empty: that is a matter of the policy
    options = {} if mask is None else {"mask": cupy.asarray(mask)}
    y = nk.layer_norm(x, axis=axis, weight=cupy.asarray(weight), **options)
    check(y, oracle.layer_norm(host, axes, weight, mask=mask)[0], dtype)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_offsets_cost_nothing(offset):
    for shape in ((64, 768), (8, 16384), (2, 300000)):
        x = noise(shape, "float32", 3, offset)
        check(nk.layer_norm(cupy.asarray(x)), nk.layer_norm(x.astype(np.float64), backend="numpy"), "float32")


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7, 1000), 1), ((7, 1001), 1), ((3, 40000), 1), ((2, 300001), 1), ((5, 30, 24), 1), ((5, 700, 9), 1), ((3, 9000, 8), 1)],
)
def test_bits_do_not_hang_on_stream_neighbours_or_place(shape, axis):
    x = cupy.asarray(noise(shape, "float32", 4))
    layer_norm = partial(nk.layer_norm, axis=axis)
    expected = layer_norm(x)
    cupy.cuda.get_current_stream().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        busy = cupy.ones((2048, 2048), cupy.float32)
        for _ in range(4):
            busy = busy @ busy
        on_stream = layer_norm(x)
        stream.synchronize()
    assert bool((on_stream == expected).all())
    assert bool((layer_norm(x[1:]) == expected[1:]).all())
    moved = cupy.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(shape)
    assert bool((layer_norm(moved) == expected).all())
    for _ in range(3):  # the second call has a plan
        assert bool((layer_norm(x) == expected).all())
    out = cupy.empty_like(x)
    for _ in range(3):
        assert layer_norm(x, out=out) is out
        assert bool((out == expected).all())
    assert layer_norm(x, out=x) is x
    assert bool((x == expected).all())


def test_running_statistics():
    x, running = noise((4, 6, 8, 8), "float32"), [np.zeros(6, np.float32), np.ones(6, np.float32)]
    on_device = [cupy.asarray(r) for r in running]
    nk.instance_norm(cupy.asarray(x), *on_device)
    nk.instance_norm(x, *running, backend="numpy")
    for got, wanted in zip(on_device, running, strict=True):
        np.testing.assert_allclose(got.get(), wanted, rtol=1e-6, atol=1e-6)
    y = nk.instance_norm(cupy.asarray(x), *on_device, use_input_stats=False)
    wide = nk.instance_norm(x.astype(np.float64), *running, use_input_stats=False, backend="numpy")
    check(y, wide, "float32")


@pytest.mark.parametrize("answer", ["bias", "identity", "layer_norm", lambda problem: problem.x])
def test_single_elements(answer):
    x = noise((2, 3, 1, 1), "float32")
    policy = nk.FallbackPolicy(single_element=answer)
    y = nk.instance_norm(cupy.asarray(x), policy=policy)
    np.testing.assert_allclose(y.get(), nk.instance_norm(x, policy=policy), rtol=1e-6, atol=1e-6)


def test_more_than_2_31_elements():
    free, _ = cupy.cuda.Device().mem_info
    if free < 10 * 2**30:
        pytest.skip("needs 10 GiB of free device memory")
    rows = 2**31 // 1000 + 10
    x = cupy.zeros((rows, 1000), cupy.float16)
    x[-1] = cupy.asarray(noise(1000, "float16"))
    nk.layer_norm(x, out=x)
    assert not bool(x[-2].any())
    check(x[-1], nk.layer_norm(noise((1, 1000), "float16").astype(np.float64), backend="numpy")[0], "float16")


def test_out_of_memory_says_where():
    _, total = cupy.cuda.Device().mem_info
    x = cupy.broadcast_to(cupy.zeros((1, 1024), cupy.float32), (total // 1024, 1024))
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError) as caught:
        nk.layer_norm(x)
    assert f"of x: {x.shape} float32, on the backend 'cupy'" in caught.value.__notes__[0]


def test_the_benchmark_checks_and_times():
    from normkit.bench import gpu

    for op, shape in (("layer_norm", (256, 1000)), ("instance_norm", (2, 30, 30, 24))):
        case = gpu.Case(op, shape, "bfloat16", -1)
        scores = list(gpu.play(cupy, case, [c for c in gpu.CONTENDERS if not c.needs]))
        assert all(s.seconds > 0 for s in scores)
