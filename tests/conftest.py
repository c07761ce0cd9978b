"""What the tests share: backends, dtypes, memory layouts, one table of tolerances, and how to run a fresh interpreter."""

import atexit
import dataclasses
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import hypothesis
import numpy as np
import pytest

import normkit as nk
from normkit import validation
from normkit.plans import forget
from normkit.registry import BUILT_IN, Missing, find

# Few examples, the same ones in every run: the laws are about arithmetic, and one that fails here must fail everywhere.
hypothesis.settings.register_profile("normkit", max_examples=25, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("normkit")

# Kernels are compiled once a run, for this process, its workers and all that they start; never into the user's own cache.
OUTERMOST = "NORMKIT_CACHE_DIR" not in os.environ
if OUTERMOST:
    os.environ["NORMKIT_CACHE_DIR"] = tempfile.mkdtemp(prefix="normkit-tests-")
    atexit.register(shutil.rmtree, os.environ["NORMKIT_CACHE_DIR"], ignore_errors=True)

# What a test needs is compiled when it needs it, so that it is known what has run: see test_hostile_cold.py
os.environ.setdefault("NORMKIT_BACKGROUND", "0")

# To compile is half of a whole run, and keeps one core busy. Another one begins with what the tests come to later.
AHEAD = """
import sys
import numpy as np
import normkit.backends.numba_backend.compiling as compiling
if "bfloat16" in sys.argv:
    import ml_dtypes
for name in ("columns", "masked_rows", "masked_columns"):
    for dtype in sys.argv[1:]:
        for how in ("serial", "parallel", "split"):
            compiling.kernel(f"{name}_{how}", np.dtype(dtype))
"""


def pytest_collection_finish(session):
    if OUTERMOST and len(session.items) > 1000 and (os.cpu_count() or 1) > 1 and "NUMBA_DISABLE_JIT" not in os.environ:
        dtypes = ["float32", "float64", "float16", *["bfloat16"] * (importlib.util.find_spec("ml_dtypes") is not None)]
        ahead = subprocess.Popen([sys.executable, "-c", AHEAD, *dtypes], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(ahead.wait)
        atexit.register(ahead.kill)  # first, as what is registered last


# In the background a shell has SIGINT ignored, and children inherit that: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

NUMPY_FAMILY = [name for name, entry in BUILT_IN.items() if entry.family == "numpy"]

# Largest error of an output of unit variance, absolute and relative. float32 and float64: "Figures to hold" in docs/design.md.
# float16 and bfloat16 are held to one unit in the last place, from the bits of their significands.
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}
SIGNIFICAND = {"float16": (10, -14), "bfloat16": (7, -126)}  # stored bits, smallest normal exponent


@pytest.fixture(scope="session", params=[name for name in NUMPY_FAMILY if not isinstance(find(name), Missing)])
def backend(request):
    """The name of each built-in backend for NumPy arrays. That none is missing here is a test of its own (test_registry)."""
    return request.param


@pytest.fixture(scope="session", params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(scope="session")
def run(backend):
    """Call an op on the backend. One that refuses must say why, and then the policy must find another that serves."""

    def run(op, x, *args, policy=None, **options):
        try:
            return getattr(nk, op)(x, *args, backend=backend, policy=policy, **options)
        except nk.NoBackendError as error:
            refusal = str(error)
        asked = {k: v for k, v in options.items() if k != "return_stats"}
        reasons = nk.get_backend(backend).why_not(getattr(validation, op)(x, *args, **asked).problem)
        assert reasons, f"{backend} refused without a reason: {refusal}"
        assert all(f"{backend}: {reason}" in refusal for reason in reasons)
        wish = dataclasses.replace(policy or nk.FallbackPolicy(), order=(backend, "numpy"), on_fallback="warn")
        with pytest.warns(nk.FallbackWarning, match=backend):
            return getattr(nk, op)(x, *args, policy=wish, **options)

    return run


def unaligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)[1:].view()
    there = np.frombuffer(raw.data, x.dtype, x.size).reshape(x.shape)
    there[...] = x
    return there


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def sliced(x):
    wide = np.full(tuple(2 * n for n in x.shape), 99, x.dtype)
    wide[tuple(slice(None, None, 2) for _ in x.shape)] = x
    return wide[tuple(slice(None, None, 2) for _ in x.shape)]


LAYOUTS = {
    "C": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "sliced": sliced,
    "transposed": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1) if x.ndim > 1 else x,
    "negative_stride": lambda x: np.ascontiguousarray(np.flip(x))[(slice(None, None, -1),) * x.ndim],
    "zero_stride": lambda x: np.broadcast_to(x[:1], x.shape),
    "zero_stride_inside": lambda x: np.broadcast_to(x[..., :1], x.shape),
    "unaligned": unaligned,
    "read_only": read_only,
    "byte_swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "empty": lambda x: x[:0],
}


@pytest.fixture(scope="session", params=LAYOUTS)
def layout(request):
    """A function that puts an array's values in some memory layout (a stride of 0 repeats some, empty drops them all)."""
    return LAYOUTS[request.param]


@pytest.fixture(scope="session")
def assert_close():
    """Compare with an oracle's float64 numbers, to the tolerance of the result's own dtype."""

    def assert_close(actual, expected):
        name = actual.dtype.name
        assert actual.shape == expected.shape
        if name in TOLERANCE:
            np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[name], atol=TOLERANCE[name], equal_nan=True)
            return
        bits, smallest = SIGNIFICAND[name]
        rounded = np.asarray(expected).astype(actual.dtype).astype(np.float64)
        exponent = np.maximum(np.frexp(rounded)[1] - 1, smallest)
        off = np.abs(actual.astype(np.float64) - rounded)
        same = (actual.astype(np.float64) == rounded) | (np.isnan(rounded) & np.isnan(actual.astype(np.float64)))
        assert np.all(same | (off <= np.ldexp(1.0, exponent - bits)))

    return assert_close


@pytest.fixture(scope="session")
def same_bits():
    """Equal to the bit, NaN and signed zeros and byte order included."""

    def same_bits(a, b):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()

    return same_bits


@pytest.fixture(scope="session")
def script():
    """Run code in a fresh interpreter where warnings are errors; returns what it printed."""

    def script(code, cwd=None, timeout=300, **environment):
        env = os.environ | {k: str(v) for k, v in environment.items()}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return script


@pytest.fixture
def threads():
    """`set_num_threads`, put back afterwards."""
    yield nk.set_num_threads
    nk.set_num_threads(None)


@pytest.fixture
def fresh_plans():
    """Nothing has been planned before the test, nor is it afterwards."""
    forget()
    yield
    forget()
