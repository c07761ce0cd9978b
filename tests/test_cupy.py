"""Who gets the GPU backend, what is said where there is no GPU, and what `normkit doctor` shows. No GPU needed."""

import argparse
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from normkit.backends import cupy_backend

import normkit as nk
from normkit import execute, overlap, registry, validation
from normkit.bench import cli


@pytest.fixture
def anew(monkeypatch):
    """Look for the backend anew, with this as the module cupy."""

    def anew(module):
        monkeypatch.setitem(sys.modules, "cupy", module)
        monkeypatch.delitem(registry._found, "cupy", raising=False)
        return registry.find("cupy")

    yield anew
    registry._forget("cupy")


@pytest.fixture
def usable(monkeypatch):
    """A backend on the stand-in for CuPy, without a compiler."""
    monkeypatch.setitem(registry._found, "cupy", cupy_backend.CupyBackend(fake_cupy.module()))


def without_gpu(error):
    def fail(*_):
        raise error

    module = fake_cupy.module()
    module.zeros = fail
    return module


def test_importing_normkit_imports_no_cupy(script):
    call = "nk.layer_norm(np.ones((2, 3), np.float32), backend='numpy')"
    assert script(f"import sys, normkit as nk, numpy as np; {call}; print('cupy' in sys.modules)") == "False"


def test_not_installed(anew):
    found = anew(None)  # what an import finds where sys.modules holds None
    assert isinstance(found, registry.Missing)
    assert "normkit[cuda12]" in found.reason
    with pytest.raises(nk.NoBackendError, match=r"normkit\[cuda12\]"):
        nk.layer_norm(np.ones((2, 3), np.float32), backend="cupy")


@pytest.mark.parametrize(
    "error",
    [
        fake_cupy.CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient"),
        fake_cupy.OutOfMemoryError("Out of memory"),
        fake_cupy.CompileException("nvrtc: error"),
        OSError("libnvrtc.so.12: cannot open shared object file"),
    ],
)
def test_usable_means_that_an_allocation_works(anew, error):
    found = anew(without_gpu(error))
    assert isinstance(found, registry.Missing)
    assert not found.quiet
    assert f"no GPU can be used: {error}" in found.reason
    (line,) = [info for info in nk.backends() if info.name == "cupy"]
    assert (line.family, line.usable) == ("cupy", False)


def test_the_verdict_is_kept(anew):
    asked = []
    module = fake_cupy.module()
    zeros = module.zeros
    module.zeros = lambda n: asked.append(n) or zeros(n)
    first = anew(module)
    assert isinstance(first, cupy_backend.CupyBackend)
    assert registry.find("cupy") is first
    assert asked == [1]


@pytest.mark.usefixtures("usable")
def test_a_numpy_array_never_goes_to_the_gpu(script):
    x = np.ones((2, 3), np.float32)
    with pytest.raises(nk.NoBackendError, match="cupy: takes cupy arrays, and never moves an array of numpy"):
        nk.layer_norm(x, backend="cupy")
    assert type(nk.layer_norm(x, policy=nk.FallbackPolicy(order=("cupy", "numpy")))) is np.ndarray
    assert "cupy" not in repr(nk.explain("layer_norm", x)).replace("cupy could", "cupy")


@pytest.mark.usefixtures("usable")
def test_a_cupy_array_never_comes_back():
    x = fake_cupy.array(np.ones((2, 3), np.float32))
    for name in ("numpy", "numba"):
        with pytest.raises(nk.NoBackendError, match=f"{name}: takes numpy arrays, and never moves an array of cupy"):
            nk.layer_norm(x, backend=name)
    assert "cupy, by the policy's order" in repr(nk.explain("layer_norm", x))
    with pytest.raises(nk.InputTypeError, match="weight is an array of numpy, expected cupy as x"):
        nk.layer_norm(x, weight=np.ones(3, np.float32))


def test_a_cupy_array_without_a_gpu_says_why(anew):
    anew(without_gpu(fake_cupy.CUDARuntimeError("no driver")))
    x = fake_cupy.array(np.ones((2, 3), np.float32))
    with pytest.raises(
        nk.NoBackendError, match=r"(?s)layer_norm on x: \(2, 3\) float32 cupy array.*no GPU can be used: no driver"
    ):
        nk.layer_norm(x)


def test_masked_and_empty_arrays_need_no_kernel(usable):
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    mask = x > -0.5
    y = nk.layer_norm(fake_cupy.array(x), mask=fake_cupy.array(mask))
    np.testing.assert_allclose(y.get(), nk.layer_norm(x, mask=mask, backend="numpy"), rtol=1e-6, atol=1e-6)
    assert nk.layer_norm(fake_cupy.array(x[:0])).shape == (0, 6)


def test_the_policy_is_asked_about_masks(usable):
    """No kernel is needed: an element that is left alone, and a set of which nothing is."""
    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    mask = np.arange(6) < np.array([[6, 6, 0], [1, 6, 2]])[..., np.newaxis]
    on_gpu, mask_there = fake_cupy.array(x), fake_cupy.array(mask)
    with pytest.raises(nk.DegenerateShapeError, match=r"(?s)2 of the 6 sets.*none of x\[0, 2, :\]; one of x\[1, 0, :\]"):
        nk.instance_norm(on_gpu, mask=mask_there)
    for answer in ("bias", lambda problem: problem.x * 2):
        options = {"policy": nk.FallbackPolicy(single_element=answer), "return_stats": answer == "bias"}
        got, right = nk.instance_norm(on_gpu, mask=mask_there, **options), nk.instance_norm(x, mask=mask, **options)
        for a, b in zip(got, right, strict=True) if answer == "bias" else [(got, right)]:
            np.testing.assert_allclose(a.get(), b, rtol=1e-6, atol=1e-6)


def test_doctor_shows_device_memory_driver_and_version(usable):
    described = nk.get_backend("cupy").describe()
    assert described == {
        "version": "14.0.0",
        "device": "Emulated, compute capability 9.0",
        "memory": "4.0 GiB, 3.0 GiB free",
        "driver": "CUDA 12.4; CuPy uses CUDA 12.9",
    }


def test_kernels_are_part_of_the_package():
    assert "__global__" in cupy_backend.engine.source()
    assert isinstance(SimpleNamespace(backend=cupy_backend.CupyBackend(fake_cupy.module())).backend, nk.Backend)


@pytest.fixture
def without_a_gpu(monkeypatch):
    monkeypatch.setitem(registry._found, "cupy", registry.Missing("no GPU can be used: no driver", quiet=False))


@pytest.mark.usefixtures("without_a_gpu")
def test_the_benchmark_says_why_it_does_not_run(capsys):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert cli.main(parser.parse_args(["--gpu"])) == 2
    assert "no GPU can be used: no driver" in capsys.readouterr().out


@pytest.mark.usefixtures("without_a_gpu")
def test_the_regression_suite_skips_without_a_gpu():
    forward = runpy.run_path(str(Path(__file__).parents[1] / "asv_bench" / "gpu" / "benchmarks" / "forward.py"))
    with pytest.raises(NotImplementedError, match="no driver"):
        forward["Forward"]().setup(forward["Forward"].params[0])
    with pytest.raises(NotImplementedError, match="no driver"):
        forward["Launch"]().setup()


def test_a_real_cupy_array_has_what_the_core_asks_of_it():
    """CuPy's own class, on an address that nobody follows: no driver is asked."""
    cupy = pytest.importorskip("cupy", reason="needs CuPy (no GPU)")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    memory = cupy.cuda.UnownedMemory(1 << 40, 4096, None, 0)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        x = cupy.ndarray((4, 6), dtype, cupy.cuda.MemoryPointer(memory, 0))
        problem, operands, _ = validation.layer_norm(x, weight=x[0], axis=1, out=x)
        assert (problem.family, problem.dtype, problem.contiguous) == ("cupy", np.dtype(dtype), True)
        assert operands.weight.flags.c_contiguous
        assert overlap.place(x) == (1 << 40, np.dtype(dtype))
        assert execute._overlaps(x, operands)
        operands.weight = None
        assert not execute._overlaps(x, operands)
        assert x[1:].data.ptr - x.data.ptr == 6 * x.dtype.itemsize
        assert not x.transpose(1, 0).flags.c_contiguous
        assert x.device == x[1:].device
    assert all(hasattr(cupy, name) for name in vars(fake_cupy.module()))
