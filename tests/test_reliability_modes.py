"""The suite once more with every memory access checked: compiled with bounds checks, and without the compiler."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import CHECK

pytest.importorskip("numba")

# What reaches the kernels. The rest tests the core, which no mode changes, or counts what is compiled.
SUITE = ["accuracy", "functional", "halves", "kernels", "laws", "layers", "layouts_laws", "masks", "oracle", "policy"]


@pytest.mark.parametrize("mode", ["NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"])
def test_right_results(script, mode):
    calls = "check_all(calls=[('layer_norm', (4, 64)), ('layer_norm', (3, 77)), ('instance_norm', (2, 3, 9, 5))])"
    assert script(CHECK + calls + "; print('done')", timeout=300, **{mode: 1}) == "done"


OUTSIDE = """
from normkit.backends.numba_backend.compiling import kernel
from normkit.backends.numba_backend import kernels
x = np.ones(64, np.float32)
shape = np.zeros(32, np.int64)
shape[kernels.ROWS], shape[kernels.RUNS], shape[kernels.INNER], shape[kernels.PERIOD] = 1, LENGTH, 1, 1
shape[kernels.X_ROWS + 2] = shape[kernels.OUT_ROWS + 2] = LENGTH
mean = np.zeros(1)
kernel("rows_serial", x.dtype)(x, np.empty_like(x), None, np.ones(LENGTH, "f"), np.zeros(LENGTH, "f"), mean, mean, shape, 1e-5)
print("done")
"""


def test_the_bounds_check_sees_a_row_that_is_too_long():
    """What the mode is worth: kernels that are told of one element too many."""
    outcomes = {}
    for row in (64, 65):
        for mode in ("NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"):
            command = [sys.executable, "-c", CHECK + OUTSIDE.replace("LENGTH", str(row))]
            done = subprocess.run(command, env=os.environ | {mode: "1"}, capture_output=True, text=True, timeout=300)
            outcomes[row, mode] = done.returncode, done.stderr
    for mode in ("NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"):
        assert outcomes[64, mode][0] == 0, outcomes[64, mode]
    assert outcomes[65, "NUMBA_BOUNDSCHECK"][0] in (-signal.SIGILL, -signal.SIGTRAP)
    assert "AssertionError" in outcomes[65, "NUMBA_DISABLE_JIT"][1]


@pytest.mark.hostile
@pytest.mark.parametrize("mode", ["NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"])
def test_the_suite(mode):
    tests = Path(__file__).parent
    files = [tests / f"test_{name}.py" for name in SUITE]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not hostile", *files]
    done = subprocess.run(command, env=os.environ | {mode: "1"}, cwd=tests.parent, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.hostile
def test_any_arguments_with_bounds_checks():
    fuzz = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, fuzz, "20000000", "5000"]
    done = subprocess.run(command, env=os.environ | {"NUMBA_BOUNDSCHECK": "1"}, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
