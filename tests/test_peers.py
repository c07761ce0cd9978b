"""Against torch, where it is installed: the same arguments give the same numbers, the same errors, the same state."""

import numpy as np
import pytest

import normkit as nk

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(3, 2, shape).astype(np.float32)


def t(array):
    return None if array is None else torch.from_numpy(array.copy())


def close(a, b):
    np.testing.assert_allclose(a, b.detach().numpy(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("shape", "normalized"), [((5, 7), (7,)), ((2, 3, 4), (3, 4)), ((2, 3, 4), (2, 3, 4)), ((0, 3), (3,))])
@pytest.mark.parametrize("affine", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm(run, shape, normalized, affine, eps):
    x = values(*shape)
    weight, bias = (values(*normalized, seed=i) if there else None for i, there in enumerate(affine))
    close(run("layer_norm", x, normalized, weight, bias, eps), F.layer_norm(t(x), normalized, t(weight), t(bias), eps))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 4, 5), (1, 3, 2)])
@pytest.mark.parametrize("use_input_stats", [True, False])
def test_instance_norm(run, shape, use_input_stats):
    x, weight, bias = values(*shape), values(3, seed=1), values(3, seed=2)
    mean, var = values(3, seed=3), values(3, seed=4) ** 2
    theirs = [t(mean), t(var), t(weight), t(bias), use_input_stats, 0.3, 1e-3]
    close(run("instance_norm", x, mean, var, weight, bias, use_input_stats, 0.3, 1e-3), F.instance_norm(t(x), *theirs))
    close(mean, theirs[0])
    close(var, theirs[1])


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 1), (4, 3)])
def test_where_torch_raises_so_do_we(run, shape):
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        F.instance_norm(t(values(*shape)))
    with pytest.raises(nk.DegenerateShapeError):
        run("instance_norm", values(*shape))


def test_layer_norm_over_one_element_gives_the_bias_as_in_torch(run):
    x, bias = values(4, 1), np.array([0.5], np.float32)
    close(run("layer_norm", x, (1,), None, bias), F.layer_norm(t(x), (1,), None, t(bias)))


SPATIAL = {"InstanceNorm1d": (7,), "InstanceNorm2d": (4, 5), "InstanceNorm3d": (2, 4, 3)}


@pytest.mark.parametrize("name", SPATIAL)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("track", [False, True])
def test_instance_norm_layers(name, affine, track):
    theirs = getattr(torch.nn, name)(3, affine=affine, track_running_stats=track)
    ours = getattr(nk, name)(3, affine=affine, track_running_stats=track)
    assert repr(ours) == repr(theirs)
    if affine:
        with torch.no_grad():
            theirs.weight.copy_(t(values(3, seed=5)))
            theirs.bias.copy_(t(values(3, seed=6)))
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()}
    ours.load_state_dict(state)
    for seed in range(2):
        x = values(2, 3, *SPATIAL[name], seed=seed)
        close(ours(x), theirs(t(x)))
        close(ours(x[0]), theirs(t(x[0])))  # unbatched
    close(ours.eval()(x), theirs.eval()(t(x)))
    for key, value in theirs.state_dict().items():
        close(ours.state_dict()[key], value)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}])
def test_layer_norm_layer(options):
    theirs, ours = torch.nn.LayerNorm((3, 4), **options), nk.LayerNorm((3, 4), **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    x = values(5, 3, 4)
    close(ours(x), theirs(t(x)))


def test_instance_norm_layer_without_a_bias():
    theirs, ours = (kind(3, affine=True, bias=False) for kind in (torch.nn.InstanceNorm1d, nk.InstanceNorm1d))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)


def test_momentum_none():
    theirs, ours = (kind(3, momentum=None, track_running_stats=True) for kind in (torch.nn.InstanceNorm1d, nk.InstanceNorm1d))
    x = values(2, 3, 4)
    close(ours(x), theirs(t(x)))
    close(ours.running_mean, theirs.running_mean)
