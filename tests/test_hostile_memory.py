"""Memory: the pool never hands out what is in use, nothing grows, and a failed allocation leaves everything usable."""

import sys

import pytest
from hostile import CHECK

# Outputs are kept in every way there is to keep memory alive, for random times, while others ask for memory of the same size.
HAMMER = (
    CHECK
    + """
import ctypes, gc, io, pickle, random, weakref
from normkit import pool

class Node:
    pass

class Wrapper:
    def __init__(self, y):
        self.y, self.__array_interface__ = y, y.__array_interface__

def as_cycle(y):
    node = Node()
    node.me, node.y = node, y
    return lambda node=node: node.y

WAYS = {
    "itself": lambda y: lambda: y,
    "a slice": lambda y: (lambda v: lambda: v)(y[1:, 3:-3]),
    "a view of a view": lambda y: (lambda v: lambda: v)(y[::2].T[5:].reshape(-1)[:100].view(np.uint32)),
    "a memoryview": lambda y: (lambda v: lambda: np.asarray(v))(memoryview(y)),
    "an array interface": lambda y: (lambda v: lambda: v)(np.asarray(Wrapper(y))),
    "ctypes": lambda y: (lambda v: lambda: np.ctypeslib.as_array(v))((ctypes.c_float * y.size).from_buffer(y)),
    "frombuffer": lambda y: (lambda v: lambda: v)(np.frombuffer(y, np.uint8)),
    "dlpack": lambda y: (lambda v: lambda: v)(np.from_dlpack(y)),
    "a cycle": as_cycle,
    "a weak reference": lambda y: (lambda kept, ref: lambda: ref() if ref() is not None else kept)(y, weakref.ref(y)),
    "a pickle": lambda y: (lambda v: lambda: v)(pickle.loads(pickle.dumps(y))),
    "a pickle without copies": lambda y: pickled(y),
    "an iterator": lambda y: (lambda v: lambda: v.base)(y.flat),
    "a broadcast": lambda y: (lambda v: lambda: v)(np.broadcast_to(y, (2, *y.shape))),
    "an out": lambda y: (lambda v: lambda: v)(np.multiply(y, 1, out=y)),
}

def pickled(y):
    buffers = []
    data = pickle.dumps(y, protocol=5, buffer_callback=buffers.append)
    v = pickle.loads(data, buffers=buffers)
    return lambda: v

rng = np.random.default_rng(0)
X = [rng.normal(size=(rows, 256)).astype(np.float32) for rows in (300, 301, 600) for _ in range(3)]
EXPECTED = [nk.layer_norm(x, backend="numpy") for x in X]

def fingerprint(array):
    return hash(np.ascontiguousarray(array).tobytes())

def hammer(seed, rounds):
    choice = random.Random(seed)
    kept = []
    for _ in range(rounds):
        i = choice.randrange(len(X))
        y = nk.layer_norm(X[i], backend="numba")
        assert abs(y - EXPECTED[i]).max() < 1e-5
        way = choice.choice(list(WAYS))
        get = WAYS[way](y)
        kept.append((way, get, fingerprint(get())))
        del y, get
        while len(kept) > choice.randrange(12):
            way, get, print_ = kept.pop(choice.randrange(len(kept)))
            assert fingerprint(get()) == print_, way
            del get
        if choice.random() < 0.05:
            gc.collect()
        if choice.random() < 0.02:
            nk.empty_cache()
        if choice.random() < 0.1:
            y = nk.layer_norm(X[i], backend="numba")
            assert nk.layer_norm(X[i], out=y, backend="numba") is y
            del y
    for way, get, print_ in kept:
        assert fingerprint(get()) == print_, way

def hammers(threads, rounds):
    failures = []
    def run(seed):
        try:
            hammer(seed, rounds)
        except BaseException as error:
            failures.append(error)
    running = [threading.Thread(target=run, args=(seed,)) for seed in range(threads)]
    for thread in running: thread.start()
    for thread in running: thread.join(500)
    assert not any(thread.is_alive() for thread in running), "a thread hangs"
    if failures: raise failures[0]
"""
)


def test_the_pool_never_hands_out_what_is_in_use(script):
    code = """
hammers(4, 100)
assert not pool._counted or pool.held() > 0
nk.empty_cache()
assert pool.held() == 0
print("done")
"""
    assert script(HAMMER + code) == "done"


@pytest.mark.hostile
def test_the_pool_for_longer(script):
    assert script(HAMMER + "hammers(16, 2000); print('done')", timeout=900) == "done"


def test_dead_outputs_are_reused(script):
    code = """
if not pool._counted: print("done"); sys.exit()
places = {nk.layer_norm(X[0], backend="numba").ctypes.data for _ in range(20)}
assert len(places) <= 2, places
print("done")
"""
    assert script(HAMMER + code) == "done"


def test_a_call_from_a_finalizer_or_a_signal_handler(script):
    """They run in the midst of anything, the pool's own work included."""
    code = """
calls = []
class Dying:
    def __init__(self): self.me = self
    def __del__(self): calls.append(fingerprint(nk.layer_norm(X[0], backend="numba")))
def handler(*_):
    calls.append(fingerprint(nk.layer_norm(X[0], backend="numba")))
    Dying()
    signal.setitimer(signal.ITIMER_REAL, 0.01)  # only now: on a slow machine handlers would interrupt one another without end
expected = fingerprint(nk.layer_norm(X[0], backend="numba"))
if hasattr(signal, "setitimer"):
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
gc.set_threshold(1, 1, 1)
kept = []
for i in range(150):
    Dying()
    y = nk.layer_norm(X[0], backend="numba")
    kept.append(y)
    del kept[:-3]
    assert all(fingerprint(k) == expected for k in kept)
gc.set_threshold(700, 10, 10)
if hasattr(signal, "setitimer"):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
assert len(calls) > 100 and set(calls) == {expected}
print("done")
"""
    assert script(HAMMER + code) == "done"


GROWTH = (
    CHECK
    + """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def calls(n):
    rng = np.random.default_rng(0)
    shapes = (1, 64), (3, 7), (2, 3, 5, 5)
    arrays = [rng.normal(size=shape).astype(dtype) for dtype in ("float32", "float64") for shape in shapes]
    big = rng.normal(size=(300, 256)).astype(np.float32)
    weight, mask = np.ones(64, np.float32), np.ones((3, 7), bool)
    for i in range(n):
        x = arrays[i % len(arrays)]
        nk.layer_norm(x, backend="numba")
        if i % 50 == 0:
            nk.layer_norm(arrays[0], 64, weight, weight, return_stats=True)
            nk.layer_norm(arrays[1], mask=mask, policy=nk.FallbackPolicy(on_fallback="ignore"))
            nk.instance_norm(arrays[2])
            nk.layer_norm(rng.normal(size=(1 + i // 50 % 3000, 8)).astype(np.float32))  # ever new shapes
            nk.layer_norm(big)
            try:
                nk.layer_norm(x, 99)
            except nk.InputValueError:
                pass

calls(WARM)
before = resident()
calls(N)
print((resident() - before) / 2**20)
"""
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_nothing_grows(script):
    assert float(script(GROWTH.replace("WARM", "10_000").replace("(N)", "(10_000)"))) < 2


@linux
@pytest.mark.hostile
def test_nothing_grows_over_a_million_calls(script):
    assert float(script(GROWTH.replace("WARM", "200_000").replace("(N)", "(1_000_000)"), timeout=900)) < 2


@linux
def test_a_failed_allocation_leaves_everything_usable(script):
    code = """
import resource
from normkit import pool
check_all()
x = np.random.default_rng(0).normal(size=(100_000, 256)).astype(np.float32)  # 100 MB
wide = np.broadcast_to(x[:1], (4_000_000, 256))  # 4 GB, of which only a row is in memory
nk.layer_norm(x)
nk.empty_cache()
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
failed = 0
for turn in range(5):
    for name in ("numba", "numpy", None):
        try:
            nk.layer_norm(wide, backend=name, policy=nk.FallbackPolicy(on_fallback="ignore"))
        except MemoryError:
            failed += 1
        except nk.NoBackendError:
            pass
    check_all(seed=turn)
    kept = []
    try:
        while True:
            kept.append(nk.layer_norm(x))
    except MemoryError:
        assert kept
    y = kept.pop()
    assert nk.layer_norm(x, out=y) is y and abs(y[:99].std() - 1) < 1e-2
    del kept, y
assert failed >= 5, failed
assert len(pool._blocks) < 10
print("done")
"""
    assert script(CHECK + code) == "done"
