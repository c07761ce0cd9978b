"""Outputs that are normalized again, as in a network: they bear NumPy's own dtypes, and equal dtypes are one kind."""

import io
import pickle

import numpy as np
import pytest
from conftest import LAYOUTS

import normkit as nk
from normkit.plans import current, forget

ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


def calls(x):
    """Ways to call, each of which makes an output of its own."""
    yield nk.layer_norm(x)
    yield nk.layer_norm(x, axis=0)
    yield nk.layer_norm(x, axis=(0, 1))
    yield nk.layer_norm(x, return_stats=True)[0]
    yield nk.layer_norm(x, mask=np.ones(x.shape, bool))
    yield nk.instance_norm(x)
    yield nk.instance_norm(x, channel_axis=-1)
    for answer in ("bias", "identity", lambda problem: problem.x):
        yield nk.instance_norm(x[:, :, :1], policy=nk.FallbackPolicy(single_element=answer))


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_bear_numpys_own_dtypes(dtype, layout, backend):
    x = LAYOUTS[layout](np.random.default_rng(0).normal(3, 2, (3, 4, 8)).astype(dtype))
    with nk.using(backend=backend):
        for _ in range(2):  # the second time by a plan
            assert [y.dtype is dtype for y in calls(x)] == [True] * 10


def pickled(x):
    return pickle.loads(pickle.dumps(x))


def saved(x):
    file = io.BytesIO()
    np.save(file, x)
    file.seek(0)
    return np.load(file)


FOREIGN = {
    "pickled": pickled,
    "a pickled dtype": lambda x: x.view(pickled(x.dtype)),
    "new": lambda x: x.view(x.dtype.newbyteorder("=")),
    "named": lambda x: x.view(x.dtype.newbyteorder("<")),
    "with metadata": lambda x: x.view(np.dtype(x.dtype, metadata={"unit": "m"})) if x.dtype.kind == "f" else x,
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("foreign", FOREIGN)
def test_equal_dtypes_are_one_kind(foreign, dtype, compiled, monkeypatch):
    guard = pytest.importorskip("normkit.backends.numba_backend.guard")
    monkeypatch.setattr(guard, "readable", lambda readable=guard.readable: compiled and readable())
    x, weight = np.random.default_rng(0).normal(3, 2, (4, 8)).astype(dtype), np.arange(8).astype(dtype)
    expected = nk.layer_norm(x, 8, weight)
    monkeypatch.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
    y = nk.layer_norm(FOREIGN[foreign](x), 8, FOREIGN[foreign](weight))
    assert y.dtype is dtype
    assert y.tobytes() == expected.tobytes()


def test_every_dtype_of_swapped_bytes_is_one_kind_and_no_other(monkeypatch):
    x, weight = np.random.default_rng(0).normal(3, 2, (4, 8)).astype(np.float32), np.arange(8, dtype=">f4")
    expected = nk.layer_norm(x, 8, weight)
    for other in (weight.view("<f4"), weight.view(">i4"), weight.view(np.int32), weight.view("V4")):
        with pytest.raises((nk.InputTypeError, AssertionError)):
            np.testing.assert_array_equal(nk.layer_norm(x, 8, other), expected)
    monkeypatch.setattr("normkit.functional.execute", None)
    assert np.dtype(">f4") is not weight.dtype
    np.testing.assert_array_equal(nk.layer_norm(x, 8, np.arange(8, dtype=">f4")), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chain_has_one_plan(dtype):
    h = np.random.default_rng(0).normal(3, 2, (4, 8)).astype(dtype)
    weight = np.linspace(0.5, 2, 8).astype(dtype)
    for _ in range(6):
        h = h + nk.layer_norm(h, 8, weight)
        h = nk.layer_norm(h, 8, weight)
    assert [len(kept) for kept in current().plans.values()] == [1]
