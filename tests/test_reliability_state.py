"""State that threads and tasks share, and interrupts: nobody sees another's setting, and Ctrl-C leaves everything usable."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile import CHECK

import normkit as nk
from normkit import registry

# --- who sees what


def test_using_is_isolated_between_many_threads_and_tasks():
    policies = [nk.FallbackPolicy(single_element=answer) for answer in ("bias", "identity", "raise")]
    x = np.full((2, 3, 1, 1), 7, np.float32)

    def outcome():
        try:
            return float(nk.instance_norm(x).flat[0])
        except nk.DegenerateShapeError:
            return None

    async def task(i):
        for _ in range(20):
            with nk.using(policy=policies[i % 3]):
                await asyncio.sleep(0)
                assert outcome() == (0.0, 7.0, None)[i % 3]
            await asyncio.sleep(0)
            assert outcome() is None

    async def tasks():
        await asyncio.gather(*(task(i) for i in range(12)))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(lambda: asyncio.run(tasks())) for _ in range(4)]:
            done.result(60)


class Stand:
    """A backend that does nothing."""

    family = "numpy"

    def __init__(self, name):
        self.name = name

    def why_not(self, problem):
        return []

    def prepare(self, problem):
        return lambda operands: operands.out.fill(1)

    def empty_like(self, x):
        return np.empty_like(x)

    def empty_stats(self, shape):
        return np.empty(shape)

    def describe(self):
        return {}


def test_the_registry_survives_concurrent_registration():
    names = [f"stand-{i}" for i in range(40)]

    def work(own):
        for name in own:
            nk.register_backend(Stand(name))
            assert nk.get_backend(name).name == name
            assert {"numpy", name} <= {info.name for info in nk.backends()}
            assert (nk.layer_norm(np.ones((2, 4), np.float32), backend=name) == 1).all()

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, [names[i::4] for i in range(4)], timeout=60))
        assert set(names) <= set(registry.names())
    finally:
        for name in names:
            registry._forget(name)


def test_an_out_that_threads_share_holds_parts_of_each(script):
    """Which is the caller's affair: no more is promised than that every element is from one of the calls."""
    code = """
from concurrent.futures import ThreadPoolExecutor
rng = np.random.default_rng(0)
for op, shape in CALLS:
    inputs = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
    results = [getattr(nk, op)(x) for x in inputs]
    out = np.empty(shape, np.float32)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            list(pool.map(lambda x: getattr(nk, op)(x, out=out), inputs))
            assert np.any([out == y for y in results], axis=0).all()
print("done")
"""
    assert script(CHECK + code) == "done"


def test_settings_under_fire(threads):
    """Threads and the pool's limit are set while others call: right results throughout."""
    x = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    expected = nk.layer_norm(x).tobytes()
    stop, limit = threading.Event(), nk.get_cache_limit()

    def fiddle():
        while not stop.is_set():
            threads(1)
            nk.set_cache_limit(0)
            threads(2)
            nk.set_cache_limit(limit)
            nk.empty_cache()

    with ThreadPoolExecutor(5) as pool:
        fiddling = pool.submit(fiddle)
        try:
            assert set(pool.map(lambda _: nk.layer_norm(x).tobytes(), range(200), timeout=60)) == {expected}
        finally:
            stop.set()
        fiddling.result(60)
    nk.set_cache_limit(limit)


# --- Ctrl-C

INTERRUPTED = (
    CHECK
    + """
def interrupted(work, seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()  # after 0 seconds the signal may come before this returns
        work()
        timer.join()
        time.sleep(0.01)
        return False
    except KeyboardInterrupt:
        return True
    finally:
        try:
            timer.join()
        except KeyboardInterrupt:
            pass
"""
)
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@posix
def test_ctrl_c_during_a_compilation(script):
    code = """
import normkit.backends.numba_backend
start = time.monotonic()
assert interrupted(lambda: check("layer_norm", (4, 64)), 0.3)
assert time.monotonic() - start < 5
check("layer_norm", (4, 64))
print("done")
"""
    assert script(INTERRUPTED + code, timeout=300, NORMKIT_CACHE=0) == "done"


def test_a_call_that_ctrl_c_has_cut_short_does_not_slow_the_next():
    threads = pytest.importorskip("normkit.backends.numba_backend.threads")
    with threads.sharing as n:
        pass
    threads.sharing.__enter__()  # and never left
    with threads.sharing as after:
        assert after == n
    assert threads.sharing._running == []


@posix
def test_ctrl_c_during_long_calls(script):
    code = """
x = np.random.default_rng(0).normal(size=(1 << 13, 1 << 10)).astype(np.float32)
check_all()
def work():
    while True:
        nk.layer_norm(x, backend="numba")
for seconds in (0.05, 0.11, 0.17, 0.23, 0.3):
    assert interrupted(work, seconds)
    check_all()
from normkit.backends.numba_backend import threads
assert threads.sharing._running == []
assert threads.available() == nk.get_num_threads() or threads.layer() not in threads.PARALLEL_LAYERS
print("done")
"""
    assert script(INTERRUPTED + code) == "done"


@posix
@pytest.mark.hostile
@pytest.mark.parametrize("seconds", np.round(np.linspace(0.0, 0.6, 13), 3).tolist())
def test_ctrl_c_while_the_backend_is_imported(script, seconds):
    code = f"""
interrupted(lambda: check("layer_norm", (4, 64)), {seconds})
check("layer_norm", (4, 64))
print("done")
"""
    assert script(INTERRUPTED + code) == "done"


@posix
@pytest.mark.hostile
@pytest.mark.parametrize("seconds", np.round(np.linspace(0.1, 4, 14), 3).tolist())
def test_ctrl_c_at_any_moment_of_a_compilation(script, seconds):
    code = f"""
interrupted(check_all, {seconds})
check_all()
print("done")
"""
    assert script(INTERRUPTED + code, timeout=300, NORMKIT_CACHE=0) == "done"
