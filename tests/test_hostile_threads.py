"""Many Python threads at once, on every threading layer: right results, no abort, no more threads than promised.

The rule: a call has more than one thread only while no other large call runs in this process.
"""

import os
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest
from hostile import CHECK

numba = pytest.importorskip("numba")

THREADS = (
    CHECK
    + """
def together(works):
    failures = []
    barrier = threading.Barrier(len(works))
    def run(work):
        barrier.wait()
        try:
            work()
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads: thread.start()
    for thread in threads: thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures: raise failures[0]

def os_threads():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0

at_first = os_threads()  # NumPy's own among them

def workers():
    return os_threads() - at_first
"""
)

SIXTEEN = """
import numba
from normkit.backends.numba_backend import threads
threads.layer()  # finds a tbb from pip for Numba, which the next line launches
before = numba.get_num_threads()
def work(seed):
    own = numba.get_num_threads()
    for dtype in DTYPES:
        for turn in range(TURNS):
            check_all(dtype, seed + turn)
            assert numba.get_num_threads() == own
warnings.simplefilter("ignore", nk.ThreadsWarning)  # of workqueue
together([lambda seed=seed: work(seed) for seed in range(16)])
check_all()
assert workers() <= threads.TEAMS * (numba.config.NUMBA_NUM_THREADS - 1), workers()  # of workqueue, which Numba has started
assert numba.get_num_threads() == before
print(threads.layer(), threads.available())
"""


def has_tbb():
    return find_spec("tbb") is not None or any(
        Path(sys.prefix, place).exists() for place in ("lib/libtbb.so.12", "lib/libtbb.12.dylib", "Library/bin/tbb12.dll")
    )


def test_sixteen_threads_on_first_use(script):
    code = SIXTEEN.replace("DTYPES", "['float32']").replace("TURNS", "2")
    name, _ = script(THREADS + code, timeout=300).split()
    assert name in ("omp", "tbb", "workqueue")


def test_sixteen_threads_on_workqueue(script):
    code = SIXTEEN.replace("DTYPES", "['float32']").replace("TURNS", "2")
    assert script(THREADS + code, timeout=300, NUMBA_THREADING_LAYER="workqueue") == "workqueue 1"


@pytest.mark.hostile
@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_sixteen_threads_that_compile_everything(script, layer):
    if layer == "tbb" and not has_tbb():
        pytest.skip("pip install tbb")
    if layer == "omp" and find_spec("numba.np.ufunc.omppool") is None:
        pytest.skip("this Numba has no OpenMP layer")
    code = SIXTEEN.replace("DTYPES", "['float32', 'float64', 'float16']").replace("TURNS", "5")
    name, available = script(THREADS + code, timeout=900, NUMBA_THREADING_LAYER=layer, NORMKIT_CACHE=0).split()
    assert name == layer
    assert int(available) >= 1


def test_tbb_from_pip_is_found(script):
    if not has_tbb():
        pytest.skip("pip install tbb")
    code = "check_all(); from normkit.backends.numba_backend import threads; print(threads.layer())"
    assert script(CHECK + code, NUMBA_THREADING_LAYER="tbb") == "tbb"


def test_without_libgomp_it_is_serial_and_says_so(script):
    code = """
sys.modules["numba.np.ufunc.omppool"] = None  # importing it fails, as without libgomp
sys.modules["numba.np.ufunc.tbbpool"] = None
warnings.simplefilter("ignore", nk.ThreadsWarning)
together([check_all] * 4)
print(nk.get_backend("numba").describe()["threading layer"])
"""
    assert "install libgomp" in script(THREADS + code) if sys.platform == "linux" else True


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
def test_a_libgomp_that_does_not_load(script, tmp_path):
    """As the dynamic linker has it, which finds this one first."""
    for name in ("libgomp.so.1", "libgomp.so.1.0.0"):
        (tmp_path / name).write_bytes(b"")
    code = """
warnings.simplefilter("ignore", nk.ThreadsWarning)
together([check_all] * 4)
print(nk.get_backend("numba").describe()["threading layer"])
"""
    said = script(THREADS + code, LD_LIBRARY_PATH=tmp_path, NUMBA_THREADING_LAYER_PRIORITY="omp workqueue tbb")
    assert "install libgomp" in said


def test_an_unknown_layer_is_serial(script):
    code = "warnings.simplefilter('ignore', nk.ThreadsWarning); check_all(); print('done')"
    assert script(CHECK + code, NUMBA_THREADING_LAYER="nonsense") == "done"


@pytest.mark.skipif(sysconfig.get_config_var("Py_GIL_DISABLED") == 1, reason="counts under the GIL")
def test_threads_that_call_all_the_time_share_the_cores(script):
    """8 workers of an executor: a call launches only while it is alone, so no more threads are busy than call."""
    code = """
from concurrent.futures import ThreadPoolExecutor
from normkit.backends.numba_backend import limits, threads
limits.WAKING_BYTES = 0  # small calls, too, wake threads that sleep
check_all()
launches, launch = [], threads.launch
def counted(kernel, n, *args):
    launches.append(len(threads.sharing._running))
    launch(kernel, n, *args)
threads.launch = counted
check_all()
alone = len(launches)
x = np.random.default_rng(0).normal(size=(4096, 512)).astype(np.float32)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda i: nk.layer_norm(x, backend="numba"), range(400)))
assert threads.sharing._running == []
print(alone, len(launches) - alone)
"""
    alone, crowded = map(int, script(THREADS + code).split())
    import normkit as nk

    if nk.get_num_threads() > 1 and nk.get_backend("numba").describe()["threading layer"] in ("omp", "tbb"):
        assert alone >= 3
        assert crowded < 200  # of 400


def test_only_a_few_threads_may_ever_launch_on_openmp(script):
    """GNU OpenMP keeps a team for each thread that has launched, for as long as that thread lives."""
    code = """
from normkit.backends.numba_backend import threads
go, done = threading.Event(), threading.Barrier(13)
def work():
    done.wait()
    with threads.sharing as n:
        counts.append(n)
    done.wait()
    go.wait()
counts, one_at_a_time = [], threading.Lock()
def in_turn():
    with one_at_a_time, threads.sharing as n:
        counts.append(n)
    done.wait()
workers = [threading.Thread(target=in_turn) for _ in range(12)]
for worker in workers: worker.start()
done.wait()
for worker in workers: worker.join()
print(threads.layer(), nk.get_num_threads(), sum(n > 1 for n in counts))
del worker, workers
import gc; gc.collect()
with threads.sharing as n:
    print(n)
"""
    first, last = script(THREADS + code).splitlines()
    layer, granted, parallel = first.split()
    if layer == "omp" and int(granted) > 1:
        assert int(parallel) == 4
        assert int(last) > 1  # threads that have ended count no longer


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS"])
def test_one_thread_where_the_environment_says_so(script, variable):
    code = """
check_all()
from normkit.backends.numba_backend import threads
print(threads.available(), workers())
"""
    available, running = script(THREADS + code, **{variable: 1}).split()
    assert available == "1"
    assert running == "0"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_one_thread_where_the_affinity_says_so(script):
    code = """
check_all()
from normkit.backends.numba_backend import threads
print(nk.get_num_threads(), threads.available(), workers())
"""
    assert script("import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])" + THREADS + code) == "1 1 0"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_an_affinity_that_changes_is_noticed(script):
    code = """
check_all()
from normkit import threads as setting
from normkit.backends.numba_backend import threads
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cores[:1])
setting.RENEWED = 0
print(threads.available())
check_all()
os.sched_setaffinity(0, cores)
print(nk.get_num_threads() == min(len(cores), threads.available()))
"""
    assert script(THREADS + code).split() == ["1", "True"]


@pytest.mark.hostile
def test_one_thread_where_a_control_group_says_so(script):
    """A real group with a quota, where the system lets us make one."""
    v1, v2 = Path("/sys/fs/cgroup/cpu/normkit-test"), Path("/sys/fs/cgroup/normkit-test")
    place, quota = (v1, ("cpu.cfs_quota_us", "100000")) if v1.parent.is_dir() else (v2, ("cpu.max", "100000 100000"))
    try:
        place.mkdir()
    except OSError:
        pytest.skip("this system lets nobody make a control group")
    try:
        try:
            (place / quota[0]).write_text(quota[1])
        except OSError:
            pytest.skip("this system's control groups have no quota")
        joins = f"with open('{place}/cgroup.procs', 'w') as file: file.write('0')\n"
        assert script(joins + CHECK + "check_all(); print(nk.get_num_threads())") == "1"
    finally:
        place.rmdir()


def test_a_dask_worker(script):
    pytest.importorskip("dask.array")
    code = """
import dask.array as da
check_all()
before = workers()
x = np.random.default_rng(0).normal(size=(64, 256, 64)).astype(np.float32)
y = da.from_array(x, chunks=(4, 256, 64)).map_blocks(lambda block: nk.layer_norm(block, backend="numba")).compute(num_workers=8)
assert y.tobytes() == nk.layer_norm(x).tobytes()
assert workers() <= before + 8 + 3 * (nk.get_num_threads() - 1), workers()  # dask's own, and teams of three more threads
print("done")
"""
    assert script(THREADS + code) == "done"


BUFFERED = """
import atexit
large = np.random.default_rng(0).normal(3, 2, (1024, 2, 1024)).astype(np.float32)
ways = [  # rows that fit in a buffer, and one that does not
    (large[..., ::2], {}), (large.astype(">f4"), {}), (large.swapaxes(0, 1), {"axis": (0, 2)}),
    (large[..., ::-1], {"axis": (0, 1, 2)}), (large[..., ::2], {"mask": large[:, :1, :1] > 3}),
]
def buffered():
    for x, options in ways:
        assert "copied" in dict(nk.explain("layer_norm", x, backend="numba", **options).lines)["layout"]
        y = nk.layer_norm(x, backend="numba", **options)
        plain = nk.layer_norm(x.astype("f4", "C"), backend="numba", **options)
        assert y.tobytes() == plain.tobytes()
    print("right")
"""


def test_buffered_layouts_when_the_interpreter_ends(script):
    """From then on Python starts no threads."""
    assert script(CHECK + BUFFERED + "buffered(); import concurrent.futures; atexit.register(buffered)") == "right\nright"


def test_buffered_layouts_where_python_may_start_no_thread(script):
    code = """
def refused(self): raise RuntimeError("can't start new thread")
threading.Thread.start = refused
buffered()
"""
    assert script(CHECK + BUFFERED + code) == "right"


@pytest.mark.hostile
def test_many_threads_that_come_and_go(script):
    code = """
check_all()
for round in range(40):
    together([lambda: check("layer_norm", (2048, 256))] * 8)
from normkit.backends.numba_backend import threads
time.sleep(0.5)
assert workers() <= threads.TEAMS * (nk.get_num_threads() - 1), workers()
print("done")
"""
    assert script(THREADS + code, timeout=600) == "done"
