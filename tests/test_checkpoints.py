"""What `load_state_dict` takes, refuses and returns: checkpoints of torch, of old libraries, of whole models, in all dtypes."""

import re
from collections import OrderedDict

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import normkit as nk

F32 = np.float32


def tracked(**options):
    return nk.InstanceNorm1d(3, affine=True, track_running_stats=True, **options)


def model(*prefixes, features=4, **more):
    """A checkpoint of a whole model, with a norm layer after each prefix, and a linear layer beside it."""
    state = OrderedDict(more)
    for n, prefix in enumerate(prefixes):
        state |= {f"{prefix}weight": np.full(features, n + 2, F32), f"{prefix}bias": np.full(features, n, F32)}
        state |= {f"{prefix[:-1]}_linear.weight": np.ones((9, 9), F32), f"{prefix[:-1]}_linear.bias": np.ones(9, F32)}
    return state


# all or nothing


def test_a_state_of_the_layers_own_views_is_read_before_it_is_written():
    layer = nk.LayerNorm(2)
    layer.weight[...], layer.bias[...] = 3, 5
    state = layer.state_dict()
    layer.load_state_dict({"weight": state["bias"], "bias": state["weight"]})
    assert_array_equal(layer.weight, [5, 5])
    assert_array_equal(layer.bias, [3, 3])
    layer = nk.LayerNorm(3)
    layer.weight[...] = [1, 2, 3]
    layer.load_state_dict({"weight": layer.weight[::-1], "bias": layer.weight})
    assert_array_equal(layer.weight, [3, 2, 1])
    assert_array_equal(layer.bias, [1, 2, 3])


class Breaks:
    """A tensor that its library cannot hand over."""

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad")


@pytest.mark.parametrize(
    ("last", "kind", "message"),
    [
        (np.ones(4), nk.InputValueError, r"running_var has shape \(4,\)"),
        (np.full(3, 1e39), nk.InputValueError, r"running_var holds 1e\+39, expected numbers that float32 .* dtype=np.float64"),
        (np.array(["a"] * 3), nk.InputTypeError, "running_var has dtype <U1"),
        (Breaks(), nk.InputTypeError, "running_var is a .*Breaks that cannot become an array: .*requires grad"),
        ([[1], [2, 3]], nk.InputTypeError, "running_var is a list that cannot become an array"),
    ],
)
def test_what_fails_halfway_leaves_all_as_it_was(last, kind, message):
    layer = tracked()
    before = {name: array.copy() for name, array in layer.state_dict().items()}
    state = {name: array + 5 for name, array in before.items()} | {"running_var": last}
    with pytest.raises(kind, match=message):
        layer.load_state_dict(state)
    for name, array in layer.state_dict().items():
        assert_array_equal(array, before[name])


def test_an_array_of_the_layer_that_cannot_be_written():
    layer = nk.LayerNorm(3)
    layer.bias.flags.writeable = False
    with pytest.raises(nk.InputValueError, match=r"its bias is read-only.*layer\.bias = layer\.bias\.copy\(\)"):
        layer.load_state_dict({"weight": np.full(3, 7.0), "bias": np.ones(3)})
    assert_array_equal(layer.weight, [1, 1, 1])
    layer.bias = layer.bias.copy()
    layer.load_state_dict({"weight": np.full(3, 7.0), "bias": np.ones(3)})
    layer.weight = [1.0, 2.0, 3.0]
    with pytest.raises(nk.InputTypeError, match="its weight is a list, expected a NumPy array to copy to"):
        layer.load_state_dict({"weight": np.full(3, 7.0), "bias": np.ones(3)})


# dtypes


@pytest.mark.parametrize("have", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("want", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_into_every_other(have, want):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    have, want = (np.dtype(getattr(ml_dtypes, name, name)) for name in (have, want))
    layer = nk.LayerNorm(3, dtype=want)
    layer.load_state_dict({"weight": np.array([1, -0.5, np.inf], have), "bias": np.array([0, 96, np.nan], have)})
    assert layer.weight.dtype == want
    assert_array_equal(layer.weight.astype(float), [1, -0.5, np.inf])
    assert_array_equal(layer.bias.astype(float), [0, 96, np.nan])


@pytest.mark.parametrize(("want", "holds"), [("float16", 65504), ("float32", 3.4e38)])
def test_numbers_that_the_layer_cannot_hold(want, holds):
    layer = nk.LayerNorm(3, dtype=want)
    layer.load_state_dict({"weight": np.full(3, holds), "bias": np.zeros(3)})
    with pytest.raises(nk.InputValueError, match=f"weight holds .*, expected numbers that {want} can hold") as error:
        layer.load_state_dict({"weight": np.full(3, holds * 2), "bias": np.zeros(3)})
    wider = nk.LayerNorm(3, dtype=eval(re.search(r"dtype=(np\.float\d\d)", str(error.value))[1]))
    wider.load_state_dict({"weight": np.full(3, holds * 2), "bias": np.zeros(3)})
    np.testing.assert_allclose(wider.weight, holds * 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("into", ["its own", "float32"])
def test_a_file_of_a_layers_own_state(tmp_path, dtype, into):
    """NumPy's files keep bfloat16 as two bytes of no kind."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    layer, other = tracked(dtype=dtype), tracked(dtype=dtype if into == "its own" else F32)
    layer.weight[...], layer.bias[...] = [1.5, -2, 96], [0, 0.25, np.nan]
    layer.running_mean[...], layer.running_var[...], layer.num_batches_tracked[...] = 7, [1, 2, 3], 9
    np.savez(tmp_path / "layer.npz", **layer.state_dict())
    with np.load(tmp_path / "layer.npz") as file:
        assert repr(other.load_state_dict(file)) == "<All keys matched successfully>"
    for name, array in layer.state_dict().items():
        assert_array_equal(other.state_dict()[name].astype(float), array.astype(float))


def test_a_scalar_of_a_file():
    """A parameter of no axes keeps its shape."""
    layer = tracked()
    layer.load_state_dict(layer.state_dict() | {"num_batches_tracked": np.array(4, np.int32)})
    assert layer.num_batches_tracked == 4
    assert layer.num_batches_tracked.shape == ()
    assert layer.num_batches_tracked.dtype == np.int64


def test_no_dtype_is_float32_as_in_torch():
    assert nk.LayerNorm(3, dtype=None).weight.dtype == np.float32
    assert nk.InstanceNorm2d(3, affine=True, dtype=None).weight.dtype == np.float32


# names


def test_what_is_returned_is_as_torchs():
    layer = nk.LayerNorm(3)
    result = layer.load_state_dict({"n.weight": np.full(3, 7.0), "n.extra": np.ones(9), "other": 1}, strict=False, prefix="n.")
    missing, unexpected = result
    assert missing == result.missing_keys == ["n.bias"]
    assert unexpected == result.unexpected_keys == ["n.extra"]
    assert repr(result) == "IncompatibleKeys(missing_keys=['n.bias'], unexpected_keys=['n.extra'])"
    assert_array_equal(layer.weight, [7, 7, 7])
    assert repr(layer.load_state_dict(layer.state_dict())) == "<All keys matched successfully>"
    assert layer.load_state_dict(layer.state_dict()) == ([], [])


def test_num_batches_tracked_may_be_absent():
    layer = tracked()
    layer.num_batches_tracked[...] = 5
    state = {name: array + 2 for name, array in tracked().state_dict().items() if name != "num_batches_tracked"}
    assert layer.load_state_dict(state) == ([], [])
    assert layer.num_batches_tracked == 5
    assert_array_equal(layer.running_var, [3, 3, 3])
    assert layer.load_state_dict({}, strict=False).missing_keys == ["weight", "bias", "running_mean", "running_var"]


def test_gamma_and_beta():
    layer = nk.LayerNorm(3)
    state = {"LayerNorm.gamma": np.full(3, 7.0), "LayerNorm.beta": np.full(3, 8.0)}
    assert layer.load_state_dict(state, prefix="LayerNorm.") == ([], [])
    assert_array_equal(layer.weight, [7, 7, 7])
    assert_array_equal(layer.bias, [8, 8, 8])
    both = {"weight": np.ones(3), "gamma": np.zeros(3), "bias": np.ones(3)}
    with pytest.raises(nk.InputValueError, match=r"unexpected \['gamma'\]"):
        layer.load_state_dict(both)
    with pytest.raises(nk.InputValueError, match=r"prefix='LayerNorm\.'"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("prefix", ["encoder.norm1.", "encoder.norm1"])
def test_a_prefix_with_and_without_its_dot(prefix):
    layer = nk.LayerNorm(4)
    assert layer.load_state_dict(model("encoder.norm1.", "encoder.norm12."), prefix=prefix) == ([], [])
    assert_array_equal(layer.weight, [2] * 4)
    assert layer.load_state_dict({"aweight": np.full(4, 9), "abias": np.ones(4)}, prefix="a") == ([], [])  # as it stands


def test_a_forgotten_prefix_is_shown():
    state = model(*(f"encoder.layers.{n}.norm." for n in range(200)))
    layer = nk.LayerNorm(4)
    with pytest.raises(nk.InputValueError) as error:
        layer.load_state_dict(state)
    text = str(error.value)
    assert len(text) < 1000
    assert text.startswith(
        "LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True): state has none of ['bias', 'weight']"
    )
    assert "and 190 more" in text
    assert "linear" not in text  # whose shapes are others
    (cure,) = re.findall(r"prefix='[^']*'(?= takes)", text)
    layer.load_state_dict(state, **eval(f"dict({cure})"))
    assert (layer.weight > 1).all()


def test_a_prefix_with_a_slip():
    state = model("decoder.norm1.", "encoder.norm1.", "encoder.norm2.", "head.")
    with pytest.raises(nk.InputValueError, match=r"prefix='encoder\.norm1\.' takes those of the first"):
        nk.LayerNorm(4).load_state_dict(state, prefix="encodr.norm1.")


def test_a_prefix_of_a_file(tmp_path):
    np.savez(tmp_path / "model.npz", **model("encoder.norm1.", "encoder.norm2."))
    with np.load(tmp_path / "model.npz") as state, pytest.raises(nk.InputValueError, match=r"prefix='encoder\.norm2\.' takes"):
        nk.LayerNorm(4).load_state_dict(state, prefix="encoder.norms2")


def test_a_state_of_something_else():
    """No prefix would help: the names are counted, not all of them shown."""
    with pytest.raises(nk.InputValueError, match=r"lacks \['bias', 'weight'\] and has unexpected \[.*\] and 990 more") as error:
        nk.LayerNorm(4).load_state_dict({f"layer{n}.kernel": np.ones(4) for n in range(1000)})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("layer", "extra", "cure"),
    [
        (nk.InstanceNorm1d(3, affine=True), ["running_mean", "running_var"], "track_running_stats=True"),
        (
            nk.InstanceNorm1d(3, affine=True),
            ["running_mean", "running_var", "num_batches_tracked"],
            "track_running_stats=True",
        ),
        (nk.InstanceNorm1d(3, track_running_stats=True), ["weight", "bias"], "affine=True"),
        (nk.InstanceNorm1d(3), ["weight", "bias", "running_mean", "running_var"], "affine=True, track_running_stats=True"),
        (nk.InstanceNorm1d(3, affine=True, bias=False), ["bias"], "bias=True"),
        (nk.LayerNorm(3, bias=False), ["bias"], "bias=True"),
        (nk.LayerNorm(3, elementwise_affine=False), ["weight", "bias"], "elementwise_affine=True"),
    ],
)
def test_what_a_layer_was_made_without(layer, extra, cure):
    """The cure is a layer that has it, never to drop what is there."""
    state = {
        name: np.asarray(array) + 1
        for name, array in tracked().state_dict().items()
        if name in extra or name in layer.state_dict()
    }
    with pytest.raises(nk.InputValueError, match=f"a layer that has them is made with {cure}$") as error:
        layer.load_state_dict(state)
    assert "strict" not in str(error.value)
    had = {name: True for name in ("affine", "track_running_stats", "elementwise_affine") if getattr(layer, name, False)}
    made = had | eval(f"dict({cure})")
    other = type(layer)(3, **made)
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    assert set(extra) <= other.state_dict().keys()
