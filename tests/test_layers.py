"""Layers mirror torch's: constructors, modes, running statistics, unbatched input, state dicts that load from checkpoints."""

import inspect
import json
import struct

import numpy as np
import oracle
import pytest
from numpy.testing import assert_array_equal

import normkit as nk

F32 = np.float32
SPATIAL = {nk.InstanceNorm1d: (7,), nk.InstanceNorm2d: (4, 5), nk.InstanceNorm3d: (2, 4, 3)}
instance_layers = pytest.mark.parametrize("kind", SPATIAL)


def values(*shape, dtype=F32):
    return np.random.default_rng(0).normal(3, 2, shape).astype(dtype)


# constructors


def test_layer_norm_constructor():
    layer = nk.LayerNorm(4)
    assert (layer.normalized_shape, layer.eps, layer.elementwise_affine, layer.training) == ((4,), 1e-5, True, True)
    assert_array_equal(layer.weight, np.ones(4, F32))
    assert_array_equal(layer.bias, np.zeros(4, F32))
    assert layer.weight.dtype == layer.bias.dtype == F32
    for shape in ((3, 4), [3, 4], (np.int64(3), 4)):
        assert nk.LayerNorm(shape).weight.shape == (3, 4)
    assert nk.LayerNorm(4, bias=False).bias is None
    plain = nk.LayerNorm(4, elementwise_affine=False)
    assert plain.weight is None
    assert plain.bias is None
    assert nk.LayerNorm(4, 1e-3, dtype=np.float64).weight.dtype == np.float64


@instance_layers
def test_instance_norm_constructor(kind):
    layer = kind(3)
    assert (layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats) == (
        3,
        1e-5,
        0.1,
        False,
        False,
    )
    assert layer.state_dict() == {}
    layer = kind(3, 1e-3, 0.2, True, True, np.float64)
    assert_array_equal(layer.running_mean, np.zeros(3))
    assert_array_equal(layer.running_var, np.ones(3))
    assert {name: array.dtype for name, array in layer.state_dict().items()} == {
        "weight": np.float64,
        "bias": np.float64,
        "running_mean": np.float64,
        "running_var": np.float64,
        "num_batches_tracked": np.int64,
    }


def test_instance_norm_without_a_bias():
    assert list(nk.InstanceNorm2d(3, affine=True, bias=False).state_dict()) == ["weight"]
    assert nk.InstanceNorm2d(3, bias=False).state_dict() == {}


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: nk.LayerNorm(()), nk.InputValueError, "normalized_shape is empty"),
        (lambda: nk.LayerNorm(-1), nk.InputValueError, "normalized_shape holds -1"),
        (lambda: nk.LayerNorm(4.0), nk.InputTypeError, "normalized_shape holds 4.0, expected an int"),
        (lambda: nk.LayerNorm("4"), nk.InputTypeError, "normalized_shape holds '4'"),
        (lambda: nk.LayerNorm(True), nk.InputTypeError, "normalized_shape holds True"),
        (lambda: nk.LayerNorm(None), nk.InputTypeError, "normalized_shape holds None"),
        (lambda: nk.LayerNorm(4, dtype=int), nk.InputTypeError, "LayerNorm: dtype is int64, expected one of float16"),
        (lambda: nk.InstanceNorm2d(3.0), nk.InputTypeError, "InstanceNorm2d: num_features holds 3.0"),
        (lambda: nk.InstanceNorm2d(-3), nk.InputValueError, "InstanceNorm2d: num_features holds -3"),
        (lambda: nk.InstanceNorm1d(3, dtype=complex), nk.InputTypeError, "InstanceNorm1d: dtype is complex128"),
    ],
)
def test_constructors_with_nonsense(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_repr_as_torch_has_it():
    assert repr(nk.LayerNorm((3, 4), eps=1e-3)) == "LayerNorm((3, 4), eps=0.001, elementwise_affine=True, bias=True)"
    expected = "InstanceNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=False)"
    assert repr(nk.InstanceNorm2d(3, affine=True)) == expected


def test_modes():
    layer = nk.InstanceNorm1d(3)
    assert layer.eval() is layer
    assert not layer.training
    assert layer.train() is layer
    assert layer.training
    assert not layer.train(False).training


# calls


def test_layer_norm_call(backend, assert_close, dtype):
    layer = nk.LayerNorm((3, 4), dtype=dtype)
    layer.weight[...], layer.bias[...] = values(3, 4), values(3, 4)[::-1]
    x = values(5, 3, 4, dtype=dtype)
    expected, mean, _ = oracle.layer_norm(x, (1, 2), layer.weight, layer.bias)
    assert_close(layer(x, backend=backend), expected)
    assert_close(layer.eval()(x, backend=backend), expected)
    y, m, _ = layer(x, return_stats=True, backend=backend)
    np.testing.assert_allclose(m, mean, rtol=1e-12)
    assert layer(x, out=x, backend=backend) is x
    assert_array_equal(x, y)


@instance_layers
@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_call(backend, assert_close, dtype, kind, affine):
    layer = kind(3, affine=affine, dtype=dtype)
    if affine:
        layer.weight[...], layer.bias[...] = [1, 2, 3], [4, 5, 6]
    x = values(2, 3, *SPATIAL[kind], dtype=dtype)
    expected = oracle.instance_norm(x, layer.weight, layer.bias)[0]
    assert_close(layer(x, backend=backend), expected)
    assert_close(layer.eval()(x, backend=backend), expected)  # untracked: statistics of the input in evaluation too


@instance_layers
def test_unbatched(backend, same_bits, kind):
    layer = kind(3, affine=True)
    x = values(3, *SPATIAL[kind])
    expected = layer(x[None], backend=backend)[0]
    same_bits(layer(x, backend=backend), expected)
    _, mean, rstd = layer(x, return_stats=True, backend=backend)
    assert mean.shape == rstd.shape == (3, *[1] * len(SPATIAL[kind]))
    out = np.empty_like(x)
    assert layer(x, out=out, backend=backend) is out
    same_bits(out, expected)
    mask = np.ones(x.shape, bool)
    np.testing.assert_allclose(layer(x, mask=mask, backend="numpy"), expected, atol=1e-6)
    with pytest.raises(nk.InputTypeError, match="out is a str"):
        layer(x, out="abc", backend=backend)
    with pytest.raises(nk.InputTypeError, match="mask is a list"):
        layer(x, mask=[True], backend=backend)
    assert layer(x, out=x, backend=backend) is x
    same_bits(x, expected)


def test_errors_about_unbatched_input_know_of_no_batch():
    layer, x = nk.InstanceNorm2d(3), np.ones((3, 1, 1), np.float32)
    with pytest.raises(nk.DegenerateShapeError, match=r"x of shape \(3, 1, 1\) has 1 element") as caught:
        layer(x)
    text = str(caught.value)
    assert "axes (1, 2), of sizes (1, 1): 3 sets" in text
    assert "(3, 1, 2) works" in text
    assert "(1, 3," not in text
    assert caught.value.__cause__ is None
    with nk.using(backend="numpy"):
        for code in (line.strip() for line in text.splitlines() if line.strip().startswith("nk.")):
            y = eval(code, {"nk": nk, "np": np, "x": x, "running_mean": np.zeros(3), "running_var": np.ones(3)})
            assert y.shape == (1, 3, 1, 1)
    wide = np.ones((3, 4, 5), np.float32)
    for options, kind, match in (
        ({"mask": np.ones((3, 4, 4), bool)}, nk.InputValueError, r"mask has shape \(3, 4, 4\), .* x.shape = \(3, 4, 5\)"),
        ({"out": np.ones((3, 4, 4), np.float32)}, nk.InputValueError, r"out has shape \(3, 4, 4\), expected \(3, 4, 5\)"),
        (
            {"mask": np.zeros((3, 1, 1), bool)},
            nk.DegenerateShapeError,
            r"3 of the 3 sets(?s:.)*none of x\[0, :, :\], x\[1, :, :\]",
        ),
        ({"backend": "cupy"}, nk.NoBackendError, r"on x: \(3, 4, 5\)"),
        ({"policy": "onnx"}, nk.PolicyError, "'onnx'"),
    ):
        with pytest.raises(kind, match=match):
            layer(wide, **options)
    with pytest.raises(nk.DegenerateShapeError, match=r"x of shape \(3, 1, 1\)(?s:.)*cannot help: 'running' needs"):
        layer(x, policy=nk.FallbackPolicy(single_element="running"))


@instance_layers
def test_errors_about_unbatched_input_are_those_of_its_shape(kind):
    layer, x = kind(3), np.ones((3, *[1] * len(SPATIAL[kind])), F32)
    with pytest.raises(nk.DegenerateShapeError) as error:
        layer(x)
    assert f"x of shape {x.shape} has" in str(error.value)
    with pytest.raises(nk.DegenerateShapeError) as error:
        layer(x[None])
    assert f"x of shape {x[None].shape} has" in str(error.value)
    seen = []
    with pytest.raises(nk.PolicyError) as error:  # what a callable is given has a batch
        layer(x, policy=nk.FallbackPolicy(single_element=lambda problem: seen.append(problem.shape)))
    assert seen == [(1, *x.shape)]
    assert error.value.__notes__ == [f"{kind.__name__} was given x of shape {x.shape}, unbatched, and adds a batch of size 1"]


@instance_layers
def test_unbatched_updates_running_statistics_as_a_batch_of_one(backend, kind):
    one, two = kind(3, track_running_stats=True), kind(3, track_running_stats=True)
    x = values(3, *SPATIAL[kind])
    one(x, backend=backend)
    two(x[None], backend=backend)
    assert_array_equal(one.running_mean, two.running_mean)
    assert_array_equal(one.running_var, two.running_var)


@instance_layers
def test_running_statistics(backend, assert_close, kind):
    layer = kind(3, momentum=0.3, track_running_stats=True, dtype=np.float64)
    mean, var = np.zeros(3), np.ones(3)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(seed, 2, (4, 3, *SPATIAL[kind]))
        assert_close(layer(x, backend=backend), oracle.instance_norm(x)[0])
        mean, var = oracle.running_after(x, mean, var, 0.3)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, var, rtol=1e-12)
    assert layer.num_batches_tracked == 0  # as torch: instance norm never counts
    assert_close(layer.eval()(x, backend=backend), oracle.instance_norm(x, running=(mean, var))[0])
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-12)  # evaluation changes nothing


def test_momentum_none_is_0_as_in_torch():
    layer = nk.InstanceNorm1d(3, momentum=None, track_running_stats=True)
    layer(values(2, 3, 4))
    assert_array_equal(layer.running_mean, np.zeros(3))


@instance_layers
def test_inputs_of_a_wrong_shape(kind):
    spatial, layer = SPATIAL[kind], kind(3, affine=True)
    for x in (values(3), values(1, 2, 3, *spatial), np.float32(3), np.ones((), F32)):
        with pytest.raises(nk.InputValueError, match=rf"{kind.__name__}: x has shape .*expected \(N, C, .*or unbatched \(C, "):
            layer(x)
    for x in (values(2, 4, *spatial), values(4, *spatial)):
        with pytest.raises(
            nk.InputValueError, match=f"{kind.__name__}: x has shape .* with 4 channels, expected num_features=3"
        ):
            layer(x)
    for x in (None, "abc", [[1.0]], 3.0):
        with pytest.raises(nk.InputTypeError, match="instance_norm: x is"):
            layer(x)
    with pytest.raises(nk.InputTypeError, match="int64"):
        layer(np.ones((2, 3, *spatial), np.int64))
    with pytest.raises(nk.InputTypeError, match="masked array"):
        layer(np.ma.masked_array(values(3, *spatial)))


def test_layer_norm_inputs_of_a_wrong_shape():
    with pytest.raises(nk.InputValueError, match=r"layer_norm: normalized_shape is \(4,\), expected the trailing sizes of x"):
        nk.LayerNorm(4)(values(3, 5))


def test_a_bad_eps_is_found_at_the_call():
    with pytest.raises(nk.InputValueError, match="eps is -1"):
        nk.LayerNorm(4, eps=-1)(values(3, 4))


def test_a_layers_own_policy_and_that_of_a_call(backend):
    x, identity = values(2, 3, 1), nk.FallbackPolicy(single_element="identity")
    layer = nk.InstanceNorm1d(3, policy=identity)
    assert_array_equal(layer(x, backend=backend), x)
    assert not layer(x, backend=backend, policy=nk.FallbackPolicy.onnx()).any()
    with pytest.raises(nk.DegenerateShapeError):
        nk.InstanceNorm1d(3)(x, backend=backend)
    with pytest.raises(nk.DegenerateShapeError):
        nk.LayerNorm(1, policy=nk.FallbackPolicy.strict())(x, backend=backend)
    with pytest.raises(nk.PolicyError, match="policy is 'onnx'"):
        nk.LayerNorm(1, policy="onnx")


def test_layers_name_their_options():
    for layer in (nk.LayerNorm(4), nk.InstanceNorm1d(3)):
        assert list(inspect.signature(layer).parameters) == ["x", "mask", "out", "return_stats", "backend", "policy"]
        with pytest.raises(TypeError, match="unexpected keyword argument 'axis'"):
            layer(values(2, 3, 4), axis=1)


# state


def test_state_dict_names_and_shapes_are_torchs():
    assert {n: a.shape for n, a in nk.LayerNorm((3, 4)).state_dict().items()} == {"weight": (3, 4), "bias": (3, 4)}
    assert list(nk.LayerNorm(4, bias=False).state_dict("norm.")) == ["norm.weight"]
    assert {n: a.shape for n, a in nk.InstanceNorm2d(3, affine=True, track_running_stats=True).state_dict().items()} == {
        "weight": (3,),
        "bias": (3,),
        "running_mean": (3,),
        "running_var": (3,),
        "num_batches_tracked": (),
    }


def test_state_dict_holds_the_arrays_themselves():
    layer = nk.LayerNorm(4)
    layer.state_dict()["weight"][0] = 7
    assert layer.weight[0] == 7


CHECKPOINT = {  # as torch saves a model with these two layers
    "encoder.norm.weight": values(4),
    "encoder.norm.bias": values(4)[::-1].copy(),
    "decoder.inorm.weight": values(3),
    "decoder.inorm.bias": values(3) + 1,
    "decoder.inorm.running_mean": values(3) + 2,
    "decoder.inorm.running_var": values(3) ** 2,
    "decoder.inorm.num_batches_tracked": np.array(0, np.int64),
    "decoder.linear.weight": values(3, 4),
}


def save_npz(path):
    np.savez(path, **CHECKPOINT)
    return np.load(path)


def save_safetensors(path):
    """The format by hand: the length of a JSON header, the header, the bytes."""
    header, data = {}, b""
    kinds = {"float32": "F32", "int64": "I64"}
    for name, array in CHECKPOINT.items():
        start, data = len(data), data + array.tobytes()
        header[name] = {"dtype": kinds[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    raw = path.read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    names = {kind: name for name, kind in kinds.items()}
    entries = json.loads(raw[8 : 8 + n])
    body = raw[8 + n :]
    return {
        name: np.frombuffer(body[slice(*e["data_offsets"])], names[e["dtype"]]).reshape(e["shape"])
        for name, e in entries.items()
    }


@pytest.mark.parametrize("save", [save_npz, save_safetensors])
def test_loading_a_checkpoint(tmp_path, save):
    state = save(tmp_path / "model.npz")
    norm, inorm = nk.LayerNorm(4), nk.InstanceNorm2d(3, affine=True, track_running_stats=True)
    weight = norm.weight
    norm.load_state_dict(state, prefix="encoder.norm.")
    inorm.load_state_dict(state, prefix="decoder.inorm.")
    assert norm.weight is weight  # copied into the layer's own arrays
    for layer, prefix in ((norm, "encoder.norm."), (inorm, "decoder.inorm.")):
        for name, array in layer.state_dict(prefix).items():
            assert_array_equal(array, CHECKPOINT[name])
            assert not np.may_share_memory(array, CHECKPOINT[name])


def test_a_file_that_safetensors_wrote(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(CHECKPOINT, tmp_path / "model.safetensors")
    layer = nk.LayerNorm(4)
    layer.load_state_dict(numpy.load_file(tmp_path / "model.safetensors"), prefix="encoder.norm.")
    assert_array_equal(layer.weight, CHECKPOINT["encoder.norm.weight"])


def test_there_and_back():
    one, two = (nk.InstanceNorm1d(3, affine=True, track_running_stats=True) for _ in range(2))
    one(values(2, 3, 4))
    one.weight[...] = 3
    two.load_state_dict(one.state_dict("a."), prefix="a.")
    for name, array in one.state_dict().items():
        assert_array_equal(two.state_dict()[name], array)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"bias": None}, nk.InputValueError, r"lacks \['bias'\]"),
        ({"extra": np.ones(3)}, nk.InputValueError, r"unexpected \['extra'\].*strict=False"),
        ({"running_var": np.ones(4)}, nk.InputValueError, r"running_var has shape \(4,\), expected \(3,\)"),
        ({"running_var": np.ones((3, 1))}, nk.InputValueError, r"running_var has shape \(3, 1\)"),
        ({"running_var": 1.0}, nk.InputValueError, r"running_var has shape \(\)"),
        ({"running_var": np.array(["a", "b", "c"])}, nk.InputTypeError, "running_var has dtype <U1, which float32 cannot hold"),
        ({"running_var": np.array([1, None, "c"])}, nk.InputTypeError, "running_var has dtype object"),
        ({"running_var": np.ones(3, complex)}, nk.InputTypeError, "running_var has dtype complex128"),
        ({"num_batches_tracked": np.array(0.5)}, nk.InputTypeError, "num_batches_tracked has dtype float64"),
    ],
)
def test_loading_fails_as_a_whole(change, kind, message):
    layer = nk.InstanceNorm1d(3, affine=True, track_running_stats=True)
    before = {name: array.copy() for name, array in layer.state_dict().items()}
    state = {name: array + 5 for name, array in layer.state_dict().items()} | change
    with pytest.raises(kind, match=message) as error:
        layer.load_state_dict({name: array for name, array in state.items() if array is not None})
    assert "InstanceNorm1d(3," in str(error.value)
    for name, array in layer.state_dict().items():
        assert_array_equal(array, before[name])


def test_loading_what_fits():
    layer = nk.LayerNorm(3)
    layer.load_state_dict({"weight": np.full(3, 7.0), "extra": np.ones(9)}, strict=False)
    assert_array_equal(layer.weight, [7, 7, 7])
    assert_array_equal(layer.bias, [0, 0, 0])
    with pytest.raises(nk.InputValueError, match=r"weight has shape \(4,\)"):
        layer.load_state_dict({"weight": np.ones(4)}, strict=False)


def test_loading_keeps_the_layers_dtype():
    layer = nk.LayerNorm(3, dtype=np.float64)
    layer.load_state_dict({"weight": np.full(3, 7, np.float16), "bias": np.arange(3)})
    assert layer.weight.dtype == layer.bias.dtype == np.float64
    assert_array_equal(layer.bias, [0, 1, 2])
