"""A call that recurs gives what the first one gave, and whatever would change the answer changes the key."""

import weakref

import numpy as np
import pytest
from normkit.backends.numba_backend import limits

import normkit as nk
from normkit import plans
from normkit.plans import forget

pytestmark = pytest.mark.usefixtures("fresh_plans")


def kept():
    return plans.current().plans


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def test_the_second_call_is_planned_and_the_same(x):
    first = nk.layer_norm(x, backend="numba")
    assert len(kept()) == 1
    assert (nk.layer_norm(x, backend="numba") == first).all()
    np.testing.assert_allclose(nk.layer_norm(x * 3 + 1, backend="numba"), nk.layer_norm(x * 3 + 1, backend="numpy"), atol=1e-6)


def test_every_argument_counts(x):
    weight = np.arange(8, dtype=np.float32)
    calls = [
        {},
        {"eps": 0.5},
        {"weight": weight},
        {"bias": weight},
        {"weight": weight, "bias": weight[::-1].copy()},
        {"weight": weight[::-1]},
        {"weight": weight.astype(np.float64)},
        {"normalized_shape": (4, 8)},
    ]
    for options in calls * 2:
        got = nk.layer_norm(x, backend="numba", **options)
        np.testing.assert_allclose(got, nk.layer_norm(x, backend="numpy", **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64"])
def test_parameters_of_another_dtype_are_planned_too(x, dtype):
    x = x.astype(np.float16)
    weight, bias = np.arange(8).astype(dtype), np.full(8, 1e300 if dtype == "float64" else 3).astype(dtype)
    expected = nk.layer_norm(x, weight=weight, bias=bias, backend="numba")
    assert len(kept()) == 1
    for _ in range(2):
        np.testing.assert_array_equal(nk.layer_norm(x, weight=weight, bias=bias, backend="numba"), expected)
    assert len(kept()) == 1
    np.testing.assert_allclose(expected, nk.layer_norm(x, weight=weight, bias=bias, backend="numpy"), rtol=1e-3)
    assert len(next(iter(kept().values()))) == 1
    weight[:] = 0  # a plan holds none of its arrays
    assert (nk.layer_norm(x, weight=weight, backend="numba") == 0).all()


def test_wrong_arguments_still_raise_after_right_ones(x):
    weight = np.ones(8, np.float32)
    for _ in range(2):
        nk.layer_norm(x, weight=weight)
    with pytest.raises(nk.InputValueError, match="weight has shape"):
        nk.layer_norm(x, weight=np.ones(9, np.float32))
    with pytest.raises(nk.InputTypeError, match="int32"):
        nk.layer_norm(x.view(np.int32), weight=weight)
    with pytest.raises(nk.InputTypeError, match="masked"):
        nk.layer_norm(np.ma.masked_array(x), weight=weight)
    with pytest.raises(nk.InputTypeError, match="masked"):
        nk.layer_norm(x, weight=np.ma.masked_array(weight))


def test_an_out_is_looked_at_each_time(x):
    out = np.empty_like(x)
    expected = nk.layer_norm(x)
    for _ in range(2):
        assert nk.layer_norm(x, out=out) is out
        assert (out == expected).all()
    out.flags.writeable = False
    with pytest.raises(nk.InputValueError, match="read-only"):
        nk.layer_norm(x, out=out)
    wide = np.zeros((5, 8), np.float32)
    wide[:4] = x
    nk.layer_norm(wide[:4], out=wide[1:])  # overlaps: by way of a temporary
    assert (wide[1:] == expected).all()
    again = x.copy()
    assert nk.layer_norm(again, out=again) is again
    assert (again == expected).all()


def test_the_ambient_policy_counts():
    x = np.ones((2, 3, 1, 1), np.float32)
    with nk.using(policy=nk.FallbackPolicy.onnx()):
        for _ in range(2):
            assert not nk.instance_norm(x).any()
    for _ in range(2):
        with pytest.raises(nk.DegenerateShapeError):
            nk.instance_norm(x)


def test_the_table_is_bounded(x):
    for i in range(1100):
        nk.layer_norm(x, eps=1e-5 + i * 1e-9)
    assert 0 < len(kept()) <= 1024


def test_a_list_is_as_good_as_a_tuple(x, monkeypatch):
    expected = nk.layer_norm(x, [8])
    monkeypatch.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
    np.testing.assert_array_equal(nk.layer_norm(x, (8,)), expected)
    np.testing.assert_array_equal(nk.layer_norm(x, [8]), expected)


def test_shapes_that_take_turns_keep_their_plans(x, monkeypatch):
    """The plan that took the last call is asked first; when it declines, the one for that shape is found again."""
    arrays = [x, x[:3], x[:, :4].copy(), x[:1]]
    expected = [nk.layer_norm(a, backend="numba") for a in arrays]
    assert (len(kept()), len(plans.current().latest)) == (4, 1)
    monkeypatch.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
    for _ in range(3):
        for a, y in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(nk.layer_norm(a, backend="numba"), y)


def test_more_kinds_of_arrays_than_are_kept(x):
    """Under one key: each of them is answered right, again and again."""
    weights = [
        None,
        np.arange(8, dtype=np.float32),
        np.arange(16, dtype=np.float32)[::2],
        np.arange(8.0),
        np.arange(8, dtype="f2"),
    ]
    weights.append(weights[1].astype(">f4"))
    for weight in weights * 3:
        for given in (x, x.astype(np.float64), x[::-1], np.asfortranarray(x)):
            got = nk.layer_norm(given, (8,), weight, backend="numba")
            assert got.dtype == given.dtype
            np.testing.assert_allclose(got, nk.layer_norm(given, (8,), weight, backend="numpy"), rtol=1e-5, atol=1e-6)
    assert all(len(some) <= 4 for some in kept().values())


class Shaped:
    """Something with the shape of an array and nothing else."""

    shape = (4, 8)


def test_a_thing_that_only_has_a_shape(x):
    nk.layer_norm(x)
    with pytest.raises(nk.InputTypeError):
        nk.layer_norm(Shaped())


@pytest.mark.parametrize("compiled", [True, False])
def test_what_counts_as_alike(x, compiled, monkeypatch):
    """The compiled look at arrays and Python's agree."""
    guard = pytest.importorskip("normkit.backends.numba_backend.guard")
    monkeypatch.setattr(guard, "readable", lambda readable=guard.readable: compiled and readable())
    weight = np.ones(8, np.float32)
    alike, known, _kinds = guard.recognizer(x, weight, None, None)
    assert alike(x.copy(), weight * 2, None, None, known)
    lookalike = x.view(type("Sub", (np.ndarray,), {}))
    for other in (
        x[:3],
        x[::-1],
        x.astype("f8"),
        x.view("i4"),
        x.astype(">f4"),
        x[None],
        lookalike,
        None,
        1,
        "x",
        [1],
        Shaped(),
    ):
        assert not alike(other, weight, None, None, known)
        assert not alike(x, other, None, None, known)
        assert not alike(x, weight, other if other is not None else x, None, known)
        assert not alike(x, weight, None, other if other is not None else x, known)
    whole = np.zeros((6, 8), np.float32)
    alike, known, _kinds = guard.recognizer(x, weight, None, whole[:4])
    assert alike(x, weight, None, whole[:4], known)
    assert alike(x, weight, None, x, known)  # in place
    assert alike(whole[2:], weight, None, whole[2:], known)
    assert not alike(whole[2:], weight, None, whole[:4], known)
    assert not alike(whole[:4], weight, None, whole[1:5], known)
    assert not alike(x, whole[1], None, whole[:4], known)
    whole.flags.writeable = False
    assert not alike(x, weight, None, whole[:4], known)


@pytest.mark.parametrize("compiled", [True, False])
def test_what_counts_as_apart(compiled, monkeypatch):
    """Arrays with gaps reach as far as their last element, or from their last one on; only element on element is in place."""
    guard = pytest.importorskip("normkit.backends.numba_backend.guard")
    monkeypatch.setattr(guard, "readable", lambda readable=guard.readable: compiled and readable())
    whole = np.zeros((20, 8), np.float32)

    def apart(x, out, weight=None):
        alike, known, _kinds = guard.recognizer(x, weight, None, out)
        return alike(x, weight, None, out, known)

    assert apart(whole[:7:2], whole[7:11])
    assert not apart(whole[:7:2], whole[6:10])
    assert not apart(whole[:7:2], whole[1:8:2])  # between each other's rows: more than a look at where they begin and end
    assert apart(whole[:7:2], whole[:7:2])
    assert not apart(whole[:7:2], whole[:4])
    assert not apart(whole[:4], whole[:7:2])
    assert apart(whole[3::-1], whole[4:8])
    assert not apart(whole[4:0:-1], whole[4:8])
    assert apart(whole[4:0:-1], whole[5:9])
    assert not apart(whole[4:0:-1], whole[1:5])
    assert apart(whole[8:12], whole[7:3:-1])
    assert not apart(whole[7:11], whole[7:3:-1])
    square = whole.ravel()[:64].reshape(8, 8)
    assert not apart(square.T, square)
    assert apart(square.T, square.T)
    assert not apart(whole[8:12], whole[:4], weight=whole[0:16:2, 3][:8])
    assert apart(whole[:4], whole[16:20], weight=whole[0:16:2, 3])


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (3, 300, 4), (1, 40, 70), (2, 9000, 64)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_channels_last_is_planned_too(shape, dtype, monkeypatch):
    """With any weight and bias, in place and into an out; the plan gives the bits of the first call, and holds no array."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, shape).astype(dtype), rng.normal(-3, 1, shape).astype(dtype)
    parameters = [rng.standard_normal(shape[-1]).astype(d) for d in (dtype, "float32", "float64")]
    parameters += [np.repeat(parameters[0], 2)[::2], None]
    pairs = [(weight, bias) for weight in parameters for bias in (parameters[0], None)]

    def normalized(x, weight, bias, out=None):
        return nk.instance_norm(x, weight=weight, bias=bias, channel_axis=-1, out=out, backend="numba")

    for weight, bias in pairs:
        forget()
        expected = normalized(x, weight, bias).copy(), normalized(y.copy(), weight, bias).copy()
        out, again = np.empty_like(x), x.copy()
        assert normalized(x, weight, bias, out) is out
        assert normalized(again, weight, bias, again) is again
        assert out.tobytes() == again.tobytes() == expected[0].tobytes()
        with monkeypatch.context() as patched:
            patched.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
            for a, right in ((x, expected[0]), (y, expected[1])):
                assert normalized(a, weight, bias).tobytes() == right.tobytes()
                assert normalized(a, weight, bias, out).tobytes() == right.tobytes()
        forget()
        assert normalized(y, weight, bias).tobytes() == expected[1].tobytes()  # without a plan


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 300, 4), (2, 4, 3, 5), (4, 4, 4)])
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_axis_is_planned_too(shape, axis, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, shape).astype(dtype), rng.normal(-3, 1, shape).astype(dtype)
    weight, bias = rng.standard_normal((2, shape[axis])).astype(dtype)
    for parameters in ((weight, bias), (weight.astype(np.float64), None), (None, bias), (None, None)):
        forget()

        def normalized(x, parameters=parameters, out=None):
            return nk.layer_norm(x, None, *parameters, axis=axis, out=out, backend="numba")

        expected = normalized(x), normalized(y)
        np.testing.assert_allclose(expected[0], nk.layer_norm(x, None, *parameters, axis=axis, backend="numpy"), atol=4e-3)
        with monkeypatch.context() as patched:
            patched.setattr("normkit.functional.execute", None)
            for a, right in ((x, expected[0]), (y, expected[1])):
                assert normalized(a).tobytes() == right.tobytes()
        forget()
        assert normalized(y).tobytes() == expected[1].tobytes()
    with pytest.raises(nk.InputValueError, match="weight has shape"):
        nk.layer_norm(x, weight=np.ones(99, dtype), axis=axis, backend="numba")
    with pytest.raises(nk.InputValueError, match="both normalized_shape and axis"):
        nk.layer_norm(x, shape[-1], axis=axis, backend="numba")


def test_channels_last_is_looked_at_each_time():
    x = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    expected = nk.instance_norm(x, channel_axis=-1)
    wide = np.zeros((3, 6, 4), np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(nk.instance_norm(x, channel_axis=-1), expected)
        wide[:2] = x
        nk.instance_norm(wide[:2], channel_axis=-1, out=wide[1:])  # overlaps: by way of a temporary
        np.testing.assert_array_equal(wide[1:], expected)
    with pytest.raises(nk.InputValueError, match="weight has shape"):
        nk.instance_norm(x, weight=np.ones(5, np.float32), channel_axis=-1)
    for other in (np.asfortranarray(x), x[:, ::2], x[::-1], x.swapaxes(0, 1), x.astype(">f4")):
        got, right = (nk.instance_norm(other, channel_axis=-1, backend=name) for name in ("numba", "numpy"))
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)


VIEWS = {
    "every second row": lambda a: a[::2],
    "backwards": lambda a: a[::-1],
    "part of each row": lambda a: a[..., 2:],
    "turned channels": lambda a: a[:, ::-1],
    "part of the channels": lambda a: a[:, 1:],
    "one row again and again": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(6, 4, 40), (5, 3, 9), (9, 2, 5000)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_with_gaps_are_planned_too(view, shape, dtype, monkeypatch):
    """Of a plan, the bits are those of the first call and of contiguous rows, on one thread or two, streamed or not."""
    rng = np.random.default_rng(0)
    x, y = (VIEWS[view](rng.normal(m, 2, shape).astype(dtype)) for m in (1, -3))

    def channels(weight, bias, x=x):
        return nk.instance_norm(x, weight=weight, bias=bias, backend="numba")

    def last(weight, bias, x=x):
        return nk.layer_norm(x, x.shape[-1], weight, bias, backend="numba")

    for normalized, size in ((channels, x.shape[1]), (last, x.shape[-1])):
        weight, bias = rng.standard_normal((2, size)).astype(dtype)
        for pair in ((weight, bias), (weight.astype(np.float64), None), (None, np.repeat(bias, 2)[::2]), (None, None)):
            forget()
            expected = normalized(*pair), normalized(*pair, y)
            assert expected[0].tobytes() == normalized(*pair, x.copy()).tobytes()
            normalized(*pair)  # the plan of the copies was the latest
            with monkeypatch.context() as patched:
                patched.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
                for a, right in ((x, expected[0]), (y, expected[1])):
                    assert normalized(*pair, a).tobytes() == right.tobytes()
            with monkeypatch.context() as patched:
                patched.setattr(limits, "STREAM_BYTES", 0)
                patched.setattr(limits, "PARALLEL_BYTES", 0)
                forget()
                for _ in range(2):
                    assert normalized(*pair).tobytes() == expected[0].tobytes()


def test_an_out_that_begins_where_rows_with_gaps_begin():
    whole = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    expected = nk.layer_norm(whole[::2].copy(), backend="numba")
    for _ in range(2):
        nk.layer_norm(whole[::2], backend="numba")
        again = whole.copy()
        np.testing.assert_array_equal(nk.layer_norm(again[::2], out=again[:4], backend="numba"), expected)
        again = whole.copy()
        np.testing.assert_array_equal(nk.layer_norm(again[::2], out=again[::2], backend="numba"), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gaps_in_x_and_in_out_are_planned_too(channels_last, dtype, monkeypatch):
    """With the bits of the first call; what overlaps goes by way of a temporary each time."""
    rng = np.random.default_rng(0)
    whole, other = rng.standard_normal((2, 8, 20, 32)).astype(dtype)
    weight, bias = rng.standard_normal((2, 32)).astype(dtype)

    def normalized(x, out=None):
        if channels_last:
            return nk.instance_norm(x, weight=weight, bias=bias, channel_axis=-1, out=out, backend="numba")
        return nk.layer_norm(x, 32, weight, bias, out=out, backend="numba")

    for gaps in (np.s_[::2], np.s_[:, ::2], np.s_[::-1, 1:-1]):
        x, y = whole[gaps], other[gaps]
        expected = [normalized(a.copy()) for a in (x, y)]
        for place in (None, np.empty(x.shape, dtype), np.zeros_like(whole)[gaps], x):
            forget()
            for _ in range(2):  # the first one makes the plan
                again = whole.copy()[gaps]
                out = again if place is x else place
                assert normalized(again, out).tobytes() == expected[0].tobytes()
            with monkeypatch.context() as patched:
                patched.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
                again = other.copy()[gaps]
                out = again if place is x else place
                result = normalized(again, out)
                assert result.tobytes() == expected[1].tobytes()
                assert out is None or result is out
    wide = np.zeros((9, 20, 32), dtype)
    for _ in range(3):
        wide[:8] = whole
        np.testing.assert_array_equal(normalized(wide[:8:2], wide[1::2]), normalized(whole[::2]))
        wide[:8] = whole
        np.testing.assert_array_equal(normalized(wide[:8:2], wide[:4]), normalized(whole[::2]))


LYING = {
    "C": np.array,
    "Fortran": np.asfortranarray,
    "swapped": lambda a: a.astype(">f4"),
    "transposed": lambda a: a.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "gaps": lambda a: a.copy()[:, ::-2],
}


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("return_stats", [False, True])
@pytest.mark.parametrize("lying", LYING.values(), ids=LYING)
def test_a_run_is_a_plan_too(lying, return_stats, backend, monkeypatch):
    """Where it has none of its own: other layouts, and calls that want the statistics."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((2, 12)).astype(np.float32)
    several = rng.standard_normal((2, 5, 7, 12)).astype(np.float32)
    x, other, in_place = lying(several[0]), lying(several[1]), lying(several[1])

    def normalized(x, out=None, weight=weight, **options):
        return nk.layer_norm(x, 12, weight, bias, out=out, return_stats=return_stats, backend=backend, **options)

    def same(result, expected):
        for a, b in zip(result, expected, strict=True) if return_stats else [(result, expected)]:
            np.testing.assert_array_equal(a, b)

    first = (lambda result: result[0]) if return_stats else np.asarray
    expected = normalized(other)
    forget()
    out = np.empty_like(x)
    normalized(x)
    normalized(x, out)
    normalized(x, x)
    with monkeypatch.context() as patched:
        patched.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
        same(normalized(other), expected)
        same(normalized(other, out), expected)
        assert first(normalized(other)).strides == first(expected).strides  # the memory order of x
        same(normalized(in_place, in_place), expected)
        wide = np.float64
        for change in ({"weight": weight.astype(wide)}, {"eps": 1e-3}, {"x": other[:, :3]}, {"x": other.astype(wide)}):
            with pytest.raises(TypeError):
                normalized(**{"x": other, **change})
        out.flags.writeable = False
        with pytest.raises(nk.InputValueError, match="read-only"):
            normalized(other, out)
    wide = np.zeros((6, *x.shape[1:]), x.dtype)
    for _ in range(3):  # overlaps: by way of a temporary each time
        wide[:5] = other
        normalized(wide[:5], wide[1:])
        np.testing.assert_array_equal(wide[1:], first(expected))
    gone = weakref.ref(held := lying(rng.standard_normal((5, 7, 12)).astype(np.float32)))
    forget()
    normalized(held)
    del held
    assert gone() is None


@pytest.mark.parametrize("mask_shape", [(6, 4, 40), (6, 1, 40), (40,)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_masks_are_planned_too(mask_shape, dtype, monkeypatch):
    """Of a plan, the bits are those of the first call; what is masked does not matter, and NaN elsewhere is not mistaken."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, (2, 6, 4, 40)).astype(dtype)
    mask, other = rng.random((2, *mask_shape)) < 0.7
    y[np.broadcast_to(~mask, y.shape)] = np.nan
    y[2, 1, np.broadcast_to(mask, y.shape)[2, 1]] = np.nan
    weight, bias = rng.standard_normal((2, 40)).astype(dtype)

    def normalized(x, mask, out=None):
        return nk.layer_norm(x, 40, weight, bias, mask=mask, out=out, backend="numba")

    forget()
    expected = [normalized(*pair) for pair in ((x, mask), (y, mask), (x, other))]
    assert np.isfinite(expected[0]).all()
    assert np.isnan(np.delete(expected[1].reshape(24, 40), 9, 0)).sum() == np.isnan(np.delete(y.reshape(24, 40), 9, 0)).sum()
    normalized(x, mask, np.empty_like(x))
    monkeypatch.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
    for pair, right in zip(((x, mask), (y, mask), (x, other)), expected, strict=True):
        np.testing.assert_array_equal(normalized(*pair), right)
        np.testing.assert_array_equal(normalized(*pair, np.empty_like(x)), right)
        in_place = pair[0].copy()
        np.testing.assert_array_equal(normalized(in_place, pair[1], in_place), right)


@pytest.mark.parametrize("shape", [(40, 30), (2, 9000)])  # rows of either thread, and blocks of a row
def test_a_plan_with_a_mask_shares_the_work(shape, monkeypatch):
    rng = np.random.default_rng(0)
    x, mask, none = rng.standard_normal(shape).astype(np.float32), rng.random(shape) < 0.7, np.zeros(shape, bool)
    policy = nk.FallbackPolicy(single_element="raise")
    expected = nk.layer_norm(x, mask=mask, backend="numba")
    monkeypatch.setattr(limits, "STREAM_BYTES", 0)
    monkeypatch.setattr(limits, "PARALLEL_BYTES", 0)
    forget()
    for _ in range(2):
        np.testing.assert_array_equal(nk.layer_norm(x, mask=mask, policy=policy, backend="numba"), expected)
    with pytest.raises(nk.DegenerateShapeError, match=f" {shape[0]} of the {shape[0]} sets"):
        nk.layer_norm(x, mask=none, policy=policy, backend="numba")


@pytest.mark.parametrize("policy", ["raise", "bias"])
def test_a_plan_leaves_a_set_without_elements_to_the_policy(policy):
    x, mask = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32), np.ones((3, 40), bool)
    none = mask.copy()
    none[1] = False
    arguments = {"bias": np.full(40, 7, np.float32), "policy": nk.FallbackPolicy(single_element=policy), "backend": "numba"}
    for out in (None, x.copy()):
        for _ in range(2):
            nk.layer_norm(x, 40, mask=mask, out=out, **arguments)
        held = None if out is None else out.copy()
        for _ in range(2):
            if policy == "raise":
                with pytest.raises(nk.DegenerateShapeError, match="mask"):
                    nk.layer_norm(x, 40, mask=none, out=out, **arguments)
                assert out is None or (out == held).all()
            else:
                y = nk.layer_norm(x, 40, mask=none, out=out, **arguments)
                assert (y[1] == 7).all()
                np.testing.assert_array_equal(y[::2], nk.layer_norm(x, 40, mask=mask, **arguments)[::2])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_plan_knows_an_element_left_alone_wherever_it_is(dtype):
    x, mask = np.random.default_rng(0).normal(3, 2, (3, 9000)).astype(dtype), np.ones((3, 9000), bool)
    policy = nk.FallbackPolicy(single_element="raise")
    for _ in range(2):
        nk.layer_norm(x, mask=mask, policy=policy, backend="numba")
    mask[1] = False
    for at in (0, 1, 7, 8, 15, 16, 100, 4095, 4096, 8191, 8192, 8999):
        for value in (x[1, at], 0, 1e-7, 6e4):
            x[1, at], mask[1, at] = value, True
            with pytest.raises(nk.DegenerateShapeError, match=r"one of x\[1, :\]\."):
                nk.layer_norm(x, mask=mask, policy=policy, backend="numba")
            mask[1, at] = False


def test_a_mask_is_looked_at_each_time():
    x, mask = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32), np.arange(64).reshape(4, 16) % 3 > 0
    for _ in range(2):
        nk.layer_norm(x, mask=mask, backend="numba")
    for wrong, error in ((mask.tolist(), nk.InputTypeError), (mask.astype(int), nk.InputTypeError), (mask[:3], ValueError)):
        with pytest.raises(error):
            nk.layer_norm(x, mask=wrong, backend="numba")
    for other in (np.asfortranarray(mask), mask[::-1], np.repeat(mask, 2, 1)[:, ::2], mask[:1], mask[0]):
        got, right = (nk.layer_norm(x, mask=other, backend=name) for name in ("numba", "numpy"))
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)
    out = np.zeros((4, 16), np.float32)
    over = out.view(np.bool_)[:, :16]
    for _ in range(2):  # an out that lies over the mask
        out[...] = 0
        over[...] = mask
        np.testing.assert_array_equal(
            nk.layer_norm(x, mask=over, out=out, backend="numba"), nk.layer_norm(x, mask=mask, backend="numba")
        )
