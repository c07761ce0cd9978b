"""On a busy machine: what a launch tells of its threads, and what the next calls make of it. Nothing here is timed."""

import os
import sys

import numpy as np
import pytest

import normkit as nk

pytest.importorskip("numba")
from normkit.backends.numba_backend import limits
from normkit.backends.numba_backend import threads as module
from normkit.backends.numba_backend.shares import LINE, TOOK, WAITED


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, unless it is told to go on; and a `sharing` that has seen no call."""

    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(module, "sharing", module._Sharing())
    monkeypatch.setattr(module, "available", lambda: 2)
    monkeypatch.setattr(module, "_may_launch", lambda: True)
    return clock


def launched(clock, seconds, waited):
    """A launch that takes so long, and of which the kernel says that a part of it was waited."""

    def kernel(n, taken):
        clock.now += seconds
        taken[TOOK], taken[WAITED] = 1_000_000, int(1_000_000 * waited / seconds)

    module.launch(kernel, 2, 1)


def threads_of_a_call():
    with module.sharing as n:
        return n


@pytest.mark.parametrize(
    ("seconds", "waited"),
    [
        (30e-6, 29e-6),  # too short to matter, whatever it was
        (0.4e-3, 0.39e-3),
        (1.2e-3, 0.05e-3),  # the last piece
        (100e-3, 3e-3),  # that of a large call takes longer
    ],
)
def test_a_launch_like_any_other_changes_nothing(clock, seconds, waited):
    launched(clock, seconds, waited)
    assert threads_of_a_call() == 2


@pytest.mark.parametrize(("seconds", "waited"), [(1e-3, 0.9e-3), (9e-3, 8e-3), (20e-3, 4e-3)])
def test_after_a_long_wait_calls_are_serial_for_a_while_then_try_again(clock, seconds, waited):
    launched(clock, seconds, waited)
    assert threads_of_a_call() == 1
    clock.now += 0.95 * module.REST * waited
    assert threads_of_a_call() == 1
    clock.now += 0.1 * module.REST * waited
    assert threads_of_a_call() == 2


def test_waiting_takes_a_twentieth_of_the_time_at_most(clock):
    """Beside a process that keeps every launch waiting for 8 ms."""
    began, waited = clock.now, 0.0
    while clock.now < began + 10:
        if threads_of_a_call() > 1:
            launched(clock, 8.1e-3, 8e-3)
            waited += 8e-3
        else:
            clock.now += 0.2e-3
    assert 0 < waited < 10 / module.REST + 8e-3


def test_sleeping_threads_are_woken_for_large_calls_only(clock):
    small, large = limits.WAKING_BYTES // 2, limits.WAKING_BYTES

    def threads_for(nbytes):
        with module.sharing as granted:
            return module.worthwhile(granted, nbytes)

    assert threads_for(small) == 1
    clock.now += module.AWAKE / 2
    assert threads_for(small) == 2  # one call after the other
    clock.now += module.AWAKE * 2
    assert threads_for(small) == 1
    clock.now += module.AWAKE * 2
    assert threads_for(large) == 2
    assert threads_for(limits.PARALLEL_BYTES - 1) == 1


@pytest.mark.parametrize(
    ("op", "shape", "options"),
    [
        ("layer_norm", (4096, 512), {}),
        ("layer_norm", (1, 1 << 20), {}),  # one row, shared
        ("layer_norm", (3, 1 << 19), {}),
        ("layer_norm", (8, 256, 1024), {"axis": 1}),
        ("instance_norm", (1, 512, 512, 8), {"channel_axis": -1}),  # one image, shared
        ("layer_norm", (4096, 512), {"mask": np.ones((4096, 512), bool)}),
    ],
)
def test_a_launch_tells_how_long_it_took_and_waited(op, shape, options, monkeypatch):
    if module.available() == 1:
        pytest.skip("one thread here")
    told = []
    launch = module.launch

    def watched(kernel, n, sweeps, *args):
        monkeypatch.setattr(module.np, "zeros", lambda *a: told.append(zeros(*a)) or told[-1])
        launch(kernel, n, sweeps, *args)
        monkeypatch.setattr(module.np, "zeros", zeros)

    zeros = np.zeros
    monkeypatch.setattr(module, "launch", watched)
    monkeypatch.setattr(module, "sharing", module._Sharing())  # rests from nothing
    monkeypatch.setattr(limits, "WAKING_BYTES", 0)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y = getattr(nk, op)(x, backend="numba", **options)
    with nk.using(threads=1):
        assert y.tobytes() == getattr(nk, op)(x, backend="numba", **options).tobytes()
    (taken,) = told
    assert len(taken) % LINE == 0
    assert 0 <= taken[WAITED] < taken[TOOK]


def test_calls_after_a_wait_have_the_same_bits(monkeypatch):
    monkeypatch.setattr(module, "sharing", module._Sharing())
    x = np.random.default_rng(0).normal(size=(4096, 1024)).astype(np.float32)
    before = nk.layer_norm(x, backend="numba")
    module.sharing.judge(1.0, 1.0)
    assert threads_of_a_call() == 1
    assert nk.layer_norm(x, backend="numba").tobytes() == before.tobytes()


GOMP = pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
LOADS = """
import os
from normkit.backends.numba_backend import threads
print(threads.layer(), os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), threads.SPINS)
"""


def spins(code, **environment):
    """What a process prints, and how often its GNU OpenMP says that it will look for work."""
    import subprocess

    names = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
    env = {k: v for k, v in os.environ.items() if k not in names} | environment | {"OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=120, capture_output=True, text=True, check=True)
    if not done.stdout.startswith("omp"):
        pytest.skip("Numba has another threading layer here")
    line = next(line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line)
    return done.stdout.split()[1:], line.partition("=")[2].strip(" '")


@GOMP
def test_openmp_is_told_to_spin_briefly_and_nobody_else_is():
    (spin_count, policy, ours), told = spins(LOADS)
    assert told == ours
    assert (spin_count, policy) == ("None", "None")  # not for children, nor for a copy of OpenMP that another package brings


@GOMP
def test_numba_does_not_load_openmp_before_us():
    code = "import normkit as nk; list(nk.get_backend('numba').warmup(['float32']))" + LOADS
    (_, _, ours), told = spins(code)
    assert told == ours


@GOMP
@pytest.mark.parametrize(("name", "value", "expected"), [("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "passive", "0")])
def test_what_the_user_says_of_spinning_counts(name, value, expected):
    (*values, _), told = spins(LOADS, **{name: value})
    assert value in values
    assert told == expected


ONCE = """
import sys, warnings
sys.modules["numba.np.ufunc.omppool"] = sys.modules["numba.np.ufunc.tbbpool"] = None  # as without libgomp and tbb
import numpy as np, normkit as nk
from normkit import threads
threads._granted, threads._looked = 2, float("inf")
x = np.ones((1024, 1024), np.float32)
"""


def test_one_thread_only_is_said_once(script):
    code = """
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    nk.layer_norm(x[:4])
    assert not told  # a small call
    nk.layer_norm(x); nk.layer_norm(x[:, ::2], axis=0); nk.layer_norm(x.T)
(warning,) = told
assert warning.category is nk.ThreadsWarning
assert warning.filename == "<string>", warning.filename
print(warning.message, nk.get_num_threads())
"""
    said = script(ONCE + code)
    assert "1 of 2 threads" in said
    assert "workqueue" in said
    assert "install" in said
    assert said.endswith(" 1")


def test_one_thread_only_may_be_an_error(script):
    code = """
try:
    nk.layer_norm(x)
except nk.ThreadsWarning as warning:
    print("raised")
from normkit.backends.numba_backend import threads
assert threads.sharing._running == []
assert nk.layer_norm(x).shape == x.shape  # said, once
"""
    assert script(ONCE + code) == "raised"


def test_who_wants_one_thread_is_told_nothing(script):
    assert script(ONCE + "nk.set_num_threads(1); nk.layer_norm(x); print('quiet')") == "quiet"


def test_the_cure_works(script):
    """pip install tbb: it is found where pip has put it, and used without a variable."""
    if not any(
        os.path.exists(os.path.join(sys.prefix, *p)) for p in (("lib", "libtbb.so.12"), ("Library", "bin", "tbb12.dll"))
    ):
        pytest.skip("pip install tbb")
    code = ONCE.replace('sys.modules["numba.np.ufunc.tbbpool"] = ', "") + "nk.layer_norm(x)\n"
    code += "from normkit.backends.numba_backend import threads; print(threads.layer(), threads.available())"
    assert script(code) == "tbb 2"
