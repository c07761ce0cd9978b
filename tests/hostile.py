"""What scripts of the hostile tests begin with: calls of every size and kind, each checked against the formula in float64."""

CHECK = """
import os, signal, sys, threading, time, warnings
import numpy as np, normkit as nk
np.random  # NumPy imports it on first use; a fork amid that would hang the child, with or without normkit

# op, shape: small; several rows on all threads; one row split over all threads; channels of an image
CALLS = [("layer_norm", (4, 64)), ("layer_norm", (2048, 256)), ("layer_norm", (1, 1 << 18)), ("instance_norm", (2, 9, 160, 99))]

def check(op, shape, dtype="float32", seed=0, backend="numba", **options):
    x = np.random.default_rng(seed).normal(seed, 2, shape).astype(dtype)
    before = x.tobytes()
    y = getattr(nk, op)(x, backend=backend, **options)
    axes = (-1,) if op == "layer_norm" else tuple(range(2, len(shape)))
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    worst = abs(y - expected).max()
    assert worst < {2: 4e-3, 4: 2e-6, 8: 1e-12}[x.itemsize], (op, shape, dtype, worst)
    assert x.tobytes() == before
    return y

def check_all(dtype="float32", seed=0, calls=CALLS):
    for op, shape in calls:
        check(op, shape, dtype, seed)
"""

# Children by os.fork; each must end by itself, well, and in time.
FORK = (
    CHECK
    + """
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forking with threads about: that is what is tested here

def child(work, seconds=60):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def wait(pid, seconds=100):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status}"
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the child hangs")
"""
)
