"""One answer for every layout: where elements lie, how they are stored and cut up does not show in the bits."""

import math
import os

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from normkit.backends.numba_backend import limits, tiles

import normkit as nk

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
ONNX = nk.FallbackPolicy.onnx()  # one element is not what is tested here


@st.composite
def strided(draw, x):
    """x, somewhere else: axes in another order, with gaps, backwards, at an odd address, bytes swapped."""
    order = draw(st.permutations(range(x.ndim)))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, -1, -3]), min_size=x.ndim, max_size=x.ndim))
    margins = draw(st.lists(st.integers(0, 2), min_size=x.ndim, max_size=x.ndim))
    dtype = x.dtype.newbyteorder() if draw(st.integers(0, 4)) == 0 else x.dtype
    sizes = [abs(steps[a]) * x.shape[a] + 2 * margins[a] for a in order]
    offset = draw(st.sampled_from([0, 0, x.itemsize, 1]))
    raw = np.zeros(math.prod(sizes) * x.itemsize + offset, np.uint8)[offset:]
    wide = np.ndarray(sizes, dtype, raw.data).transpose(np.argsort(order))
    there = wide[tuple(slice(m, m + abs(s) * n, abs(s)) for m, s, n in zip(margins, steps, x.shape, strict=True))]
    there = there[tuple(slice(None, None, -1 if s < 0 else 1) for s in steps)]
    there[...] = x
    if draw(st.booleans()):
        there.flags.writeable = False
    return there


@st.composite
def calls(draw):
    """(op, a C-contiguous x, options)"""
    shape = [*draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)), draw(st.sampled_from([2, 5, 16, 33, 70]))]
    shape = tuple(draw(st.permutations(shape)))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.normal(3, 1, shape).astype(dtype)
    parameter = draw(st.sampled_from(DTYPES))
    if len(shape) > 2 and draw(st.booleans()):
        channel = draw(st.integers(1, x.ndim - 1))
        op, options, sizes = "instance_norm", {"channel_axis": channel}, (shape[channel],)
    else:
        axes = draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, unique=True))
        op, options, sizes = "layer_norm", {"axis": tuple(axes)}, tuple(shape[a] for a in axes)
    for name in draw(st.sets(st.sampled_from(["weight", "bias"]))):
        options[name] = rng.normal(size=sizes).astype(parameter)
    if draw(st.integers(0, 2)) == 0:
        options["mask"] = rng.random([draw(st.sampled_from([1, n])) for n in shape]) > 0.3
    return op, x, options


def run(op, x, *args, **options):
    return getattr(nk, op)(x, *args, backend="numba", policy=ONNX, return_stats=True, **options)


@pytest.fixture(params=[1 << 18, 1 << 15], ids=["large buffers", "small buffers"])
def buffers(request, monkeypatch):
    """Rows that are larger than a buffer pass through it piece by piece: make that happen with small ones."""
    monkeypatch.setattr(tiles, "TILE_BYTES", request.param)


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=150)
def test_the_layout_does_not_show_in_the_bits(same_bits, data):
    op, x, options = data.draw(calls())
    there = data.draw(strided(x))
    out = data.draw(st.none() | strided(np.zeros_like(x)))
    if out is not None and not out.flags.writeable:
        out = out.copy(order="K")
    expected = run(op, x, **options)
    actual = run(op, there, out=out, **options)
    for a, b in zip(expected, actual, strict=True):
        same_bits(a, b.astype(b.dtype.newbyteorder("=")))
    assert np.array_equal(there, x)  # still


@hypothesis.given(data=st.data())
def test_in_place_in_any_layout(same_bits, data):
    op, x, options = data.draw(calls())
    there = data.draw(strided(x))
    there = there if there.flags.writeable else there.copy(order="K")
    expected = run(op, x, **options)[0]
    assert run(op, there, out=there, **options)[0] is there
    same_bits(expected, there.astype(x.dtype))


@hypothesis.given(data=st.data())
def test_the_output_lies_as_the_input(data):
    x = np.zeros(data.draw(st.tuples(*[st.integers(2, 5)] * 4)), np.float32)
    there = x.transpose(data.draw(st.permutations(range(4))))
    assert nk.layer_norm(there, backend="numba").strides == there.strides
    assert nk.instance_norm(there, backend="numba").strides == there.strides


@hypothesis.given(data=st.data())
def test_channels_last_is_channels_first_transposed(same_bits, data):
    channels = st.sampled_from([2, 3, 16, 17, 65, 130])
    shape = data.draw(st.tuples(st.integers(1, 3), channels, st.integers(1, 9), st.integers(2, 40)))
    dtype = data.draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = rng.normal(3, 1, shape).astype(dtype)
    weight, bias = rng.normal(size=(2, shape[1])).astype(np.float32)
    first = run("instance_norm", x, weight=weight, bias=bias)
    last = run("instance_norm", np.ascontiguousarray(np.moveaxis(x, 1, -1)), weight=weight, bias=bias, channel_axis=-1)
    for a, b in zip(first, last, strict=True):
        same_bits(np.ascontiguousarray(np.moveaxis(a, 1, -1)), b)
    for a, b in zip(run("instance_norm", x), run("layer_norm", x, axis=(2, 3)), strict=True):
        same_bits(a, b)


# shapes that take every way through the kernels: short and long columns, few and many lanes, one tile and several, blocks


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 15, 16, 17, 48, 64, 65, 130, 1100])
@pytest.mark.parametrize("length", [2, 15, 17, 255, 300, 4095, 4097, 9000])
def test_every_kind_of_column(same_bits, threads, lanes, length):
    if lanes * length > 300_000:
        pytest.skip("the same ways as a smaller one")
    for dtype in DTYPES:
        x = np.random.default_rng(lanes).normal(3, 1, (2, length, lanes)).astype(dtype)
        rows = nk.layer_norm(np.ascontiguousarray(x.transpose(0, 2, 1)), backend="numba")
        expected = np.ascontiguousarray(rows.transpose(0, 2, 1))
        for n in (1, 2):
            threads(n)
            same_bits(nk.layer_norm(x, axis=1, backend="numba"), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 11, 16, 17])
def test_sets_of_a_few_elements(same_bits, dtype, n):
    """Sixteen are normalized in the lanes of one vector, rows or columns, unless one of them needs float64 or is the last."""
    rng = np.random.default_rng(n)
    x = rng.normal(3, 2, (99, n))
    x[5] += 1e4
    x[20] = 7
    x[40] *= 1e30 if dtype.itemsize > 2 else 1
    x[50] *= 1e-34
    x = x.astype(dtype)
    x[60, 0], x[70, -1] = np.inf, np.nan
    weight, bias = rng.normal(size=(2, n)).astype(np.float32)
    wide = np.zeros((99, 2 * n + 3), dtype)
    wide[:, 2 : n + 2] = x
    for options in ({}, {"weight": weight, "bias": bias, "eps": 0}):
        one_by_one = [run("layer_norm", x[i : i + 1], **options) for i in range(99)]
        expected = [canonical(np.concatenate(parts)) for parts in zip(*one_by_one, strict=True)]
        for there in (x, x[::-1].copy()[::-1], wide[:, 2 : n + 2]):
            for a, b in zip(run("layer_norm", there, **options), expected, strict=True):
                same_bits(canonical(a), b)
        for a, b in zip(run("layer_norm", x.T.copy(), axis=0, **options), expected, strict=True):
            same_bits(canonical(a.T), b)
        outer = x.reshape(3, 33, n).swapaxes(1, 2).copy()
        same_bits(canonical(run("layer_norm", outer, axis=1, **options)[0].swapaxes(1, 2).reshape(99, n)), expected[0])
        same_bits(canonical(run("layer_norm", x.copy(), out=(y := np.empty_like(x)), **options)[0]), expected[0])
        assert run("layer_norm", y, out=y, **options)[0] is y
    groups = x[:96].reshape(32, 3, n)
    weight, bias = rng.normal(size=(2, 3)).astype(np.float32)
    options = {"weight": weight, "bias": bias}
    first = run("instance_norm", groups, **options)[0]
    last = run("instance_norm", groups.swapaxes(1, 2).copy(), channel_axis=-1, **options)[0]
    same_bits(canonical(last.swapaxes(1, 2)), canonical(first))
    alone = [run("instance_norm", groups[i : i + 1], **options)[0] for i in range(32)]
    same_bits(canonical(np.concatenate(alone)), canonical(first))


def canonical(a):
    """With one NaN in place of any."""
    return np.where(np.isnan(a), a.dtype.type(np.nan), np.ascontiguousarray(a))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lanes", [3, 8, 16, 48, 272])
def test_columns_are_streamed_to_wherever_out_lies(same_bits, monkeypatch, dtype, lanes):
    """Vectors that are streamed begin at a cache line, so the first and last ones of a row may be parts."""
    x = np.random.default_rng(lanes).normal(3, 1, (2, 400, lanes)).astype(dtype)
    options = {"axis": 1, "backend": "numba"}
    for more in ({}, {"weight": np.linspace(1, 2, 400)}):
        monkeypatch.setattr(limits, "STREAM_BYTES", 1 << 60)
        expected = nk.layer_norm(x, **options, **more)
        monkeypatch.setattr(limits, "STREAM_BYTES", 0)
        for offset in (0, 1, 2 * x.itemsize, 16, 32, 60):
            raw = np.zeros(x.nbytes + 128, np.uint8)
            out = np.ndarray(x.shape, dtype, raw[-raw.ctypes.data % 64 + offset :].data)
            same_bits(nk.layer_norm(x, out=out, **options, **more), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_of_a_column_on_several_threads(same_bits, threads, dtype):
    x = np.random.default_rng(0).normal(3, 1, (1, 30_000, 3)).astype(dtype)
    mask = np.random.default_rng(1).random((1, 30_000, 1)) > 0.5
    mask[0, :9000] = False
    for options in ({}, {"mask": mask}, {"weight": np.ones(30_000, np.float32)}):
        results = []
        for n in (1, 2):
            threads(n)
            results.append(nk.layer_norm(x, axis=1, backend="numba", **options))
        same_bits(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [1e30, -1e-35, np.inf, np.nan])
def test_a_column_that_needs_float64_among_others(same_bits, dtype, bad):
    x = np.random.default_rng(0).normal(0, 1, (2, 40, 37)).astype(dtype)
    with np.errstate(over="ignore"):
        x[0, :, 3] *= np.asarray(bad).astype(dtype)
        x[1, 5, 20] = np.asarray(bad).astype(dtype)
    for options in ({}, {"weight": np.linspace(-2, 2, 40), "bias": np.ones(40)}):
        rows = nk.layer_norm(np.ascontiguousarray(x.transpose(0, 2, 1)), backend="numba", eps=0, **options)
        y = nk.layer_norm(x, axis=1, backend="numba", eps=0, **options)
        nan = np.isnan(y)
        np.testing.assert_array_equal(nan, np.isnan(rows.transpose(0, 2, 1)))
        same_bits(np.where(nan, y.dtype.type(0), y), np.where(nan, y.dtype.type(0), rows.transpose(0, 2, 1)))


@pytest.mark.usefixtures("buffers")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", [None, (1, 1, 200, 250), (1, 3, 1, 250)])
def test_a_row_larger_than_a_buffer(same_bits, mask, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, (1, 3, 200, 250)).astype(dtype)
    options = {"weight": np.float32([1, 2, 3]), "mask": None if mask is None else rng.random(mask) > 0.5}
    expected = run("instance_norm", x, **options)
    for there in (
        np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
        x.astype(x.dtype.newbyteorder()),
        np.repeat(x, 2, 3)[..., ::2],
    ):
        for a, b in zip(expected, run("instance_norm", there, **options), strict=True):
            same_bits(a, b)
    there = np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)
    given = run("instance_norm", there, np.zeros(3), np.ones(3), options["weight"], use_input_stats=False)[0]
    same_bits(given, run("instance_norm", x, np.zeros(3), np.ones(3), options["weight"], use_input_stats=False)[0])


def test_a_mask_that_lies_otherwise_than_x(same_bits):
    """It is copied, a part at a time, to lie as x does; where there are no parts, x passes through a buffer with it."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, (7, 5, 256, 256)).astype(np.float32)
    mask = rng.random(x.shape[::-1]).T > 0.3
    for options in ({}, {"axis": (2, 3), "weight": rng.normal(size=(256, 256))}, {"axis": 1}, {"axis": (0, 1, 2, 3)}):
        for a, b in zip(
            run("layer_norm", x, mask=mask.copy(), **options), run("layer_norm", x, mask=mask, **options), strict=True
        ):
            same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_parts_are_taken_one_by_one(same_bits, dtype):
    """Three kept axes with gaps between: a kernel counts along two, so the parts along the third are calls of their own."""
    rng = np.random.default_rng(0)
    wide = rng.normal(3, 1, (4, 18, 60, 70)).astype(dtype)
    x, mask = wide[::2, ::3, ::2], rng.random((2, 1, 30, 70)) > 0.3
    for options in ({}, {"mask": mask}, {"axis": 3, "weight": rng.normal(size=70)}, {"axis": 2, "mask": mask}):
        for a, b in zip(run("layer_norm", x.copy(), **options), run("layer_norm", x, **options), strict=True):
            same_bits(a, b)


def test_a_mask_of_which_the_beginnings_say_nothing(same_bits):
    """Most masks are settled by a look at the first elements of each set; these are not."""
    x = np.random.default_rng(0).normal(3, 1, (5, 90)).astype(np.float32)
    mask = np.zeros((5, 90), bool)
    mask[:, 40:] = True
    same_bits(run("layer_norm", x, mask=mask)[1], run("layer_norm", x[:, 40:].copy())[1])
    mask[3] = False
    y, mean, _ = run("layer_norm", x, mask=mask, bias=np.full(90, 7, np.float32))
    assert (y[3] == 7).all()
    assert np.isnan(mean.ravel()).tolist() == [False, False, False, True, False]


@hypothesis.given(data=st.data())
def test_boxes_cover_a_stretch_in_order(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    number = np.arange(math.prod(shape)).reshape(shape)
    start = data.draw(st.integers(0, number.size - 1))
    stop = data.draw(st.integers(start + 1, number.size))
    found = [number[box].ravel() for box in tiles.boxes(shape, start, stop)]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(start, stop))
    assert len(found) <= 2 * len(shape)


@pytest.mark.parametrize(
    ("x", "lies"),
    [
        (np.empty((4, 6, 8), np.float32)[::2], "nothing is copied"),
        (np.empty((4, 6, 8), np.float32)[::2, ::-2], "nothing is copied"),
        (np.empty((4, 6, 8), np.float32)[:, :, :5], "nothing is copied"),
        (np.empty((4, 6, 8), np.float32).transpose(1, 0, 2), "nothing is copied"),
        (np.empty((4, 6, 8), np.float32).T, "nothing is copied"),
        (np.broadcast_to(np.empty(8, np.float32), (4, 6, 8)), "nothing is copied"),
        (np.empty((4, 6, 8), np.float32)[..., ::2], "copied, in blocks"),
        (np.empty((4, 6, 8), ">f4"), "copied, in blocks"),
    ],
)
def test_what_is_copied(x, lies):
    assert lies in dict(nk.explain("layer_norm", x, backend="numba").lines)["layout"]


@pytest.mark.skipif(bool(os.environ.get("NUMBA_DISABLE_JIT")), reason="plain NumPy, for debugging, makes its lanes anew")
def test_memory_stays_at_the_output(script):
    """Of every layout and with a mask: no more is allocated than the output, blocks and some kilobytes."""
    code = """
import numpy as np, tracemalloc, normkit as nk
x = np.ones((2, 1024, 2, 1024), np.float32)
for x, options in (
    (x, {}), (x, {"axis": 1}), (x.T, {}), (x[..., ::2], {}), (x.astype(">f4"), {}), (x.swapaxes(2, 3), {"axis": (1, 2)}),
    (x, {"axis": (0, 2)}), (x, {"mask": np.ones((2, 1, 2, 1024), bool)}),
    (x, {"axis": 1, "mask": np.ones((2, 1024, 2, 1), bool)}), (x, {"mask": np.ones(x.shape[::-1], bool).T}),
    (x, {"axis": (0, 1, 2, 3), "mask": np.ones(x.shape[::-1], bool).T}), (x[::2], {}), (x[:, :, :, 1:], {"axis": (1, 2)}),
    (np.broadcast_to(x[:1], x.shape), {}), (x[:, ::-1, :, ::-1], {}), (x.astype(np.float16), {"axis": 1}),
):
    out = nk.layer_norm(x, **options)
    tracemalloc.start()
    nk.layer_norm(x, out=out, **options)
    assert tracemalloc.get_traced_memory()[1] < 4e6, (x.strides, options, tracemalloc.get_traced_memory())
    tracemalloc.stop()
"""
    script(code)


@pytest.mark.hostile
def test_more_than_2_to_the_31_elements():
    """float16: 4.3 GB. Row 1 ends past what 32 bits can count, and is checked against a call of its own."""
    x = np.ones((2, (1 << 30) + 24), np.float16)
    x[:, ::2] = 3
    x[1, -5:] = 2
    alone = nk.layer_norm(x[1].copy(), backend="numba")
    y, mean, _ = nk.layer_norm(x, out=x, backend="numba", return_stats=True)
    assert y is x
    assert (x[1] == alone).all()
    np.testing.assert_allclose(mean.ravel(), 2, atol=1e-6)
    del y, alone
    lanes = x.reshape(-1, 8)
    lanes[...] = 1
    lanes[-4:] = 5
    y, mean, _ = nk.layer_norm(lanes, axis=0, out=lanes, backend="numba", return_stats=True)
    np.testing.assert_allclose(mean, 1 + 16 / len(lanes), rtol=1e-12)
    assert (y[-4:] > 100).all()
    assert (y[:-4] < 0).all()


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
@pytest.mark.parametrize("inner", [192, 224, 48])
def test_rows_of_few_lanes_in_bundles(lanes, inner):
    """What is taken as one row must not reach over the end of a bundle, wherever a span or a block of 4096 ends."""
    x = np.random.default_rng(0).standard_normal((90, 4, inner, lanes), np.float32)
    y = nk.layer_norm(x, axis=(0, 2), backend="numba")
    rows = np.ascontiguousarray(x.transpose(1, 3, 0, 2)).reshape(4 * lanes, -1)
    expected = nk.layer_norm(rows, backend="numba").reshape(4, lanes, 90, inner).transpose(2, 0, 3, 1)
    assert np.ascontiguousarray(y).tobytes() == np.ascontiguousarray(expected).tobytes()
