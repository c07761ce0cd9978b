"""Children of every kind compute right results, and nothing hangs: fork, a fork's fork, pools, a fork amid a compilation."""

import os
import sys

import pytest
from hostile import CHECK, FORK

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def test_a_child_of_a_parent_that_ran_in_parallel(script):
    done = script(
        FORK + "check_all(); wait(child(lambda: check_all(seed=1))); check_all(seed=2)\n"
        "wait(child(lambda: check_all('float64')))  # kernels that the parent has not loaded\n"
        "print('done')"
    )
    assert done == "done"


def test_a_grandchild(script):
    assert script(FORK + "check_all(); wait(child(lambda: (check_all(), wait(child(check_all))))); print('done')") == "done"


def test_a_child_of_a_parent_that_had_only_loaded_a_parallel_kernel(script):
    code = """
from normkit.backends.numba_backend.compiling import kernel
kernel("rows_parallel", np.dtype("float32"))
wait(child(check_all))
print("done")
"""
    assert script(FORK + code) == "done"


def test_a_child_that_is_the_first_to_use_normkit(script):
    assert script(FORK + "wait(child(check_all)); check_all(); wait(child(check_all)); print('done')") == "done"


def test_a_forked_child_has_one_thread_and_the_same_bits(script):
    code = """
import hashlib
def bits():
    return hashlib.sha256(b"".join(check(*call).tobytes() for call in CALLS)).hexdigest()
ours = bits()
def work():
    from normkit.backends.numba_backend import threads
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    assert threads.available() == nk.get_num_threads() == 1
    assert "forked" in nk.get_backend("numba").describe()["threading layer"]
    assert bits() == ours
    assert before == 1 and (not os.path.isdir("/proc/self/task") or len(os.listdir("/proc/self/task")) == 1)
wait(child(work))
print("done")
"""
    assert script(FORK + code) == "done"


def test_a_pool_of_forked_processes(script):
    code = """
import multiprocessing
check_all()
with multiprocessing.get_context("fork").Pool(3) as pool:
    pool.starmap_async(check, [(op, shape, "float32", seed) for seed in range(3) for op, shape in CALLS]).get(60)
print("done")
"""
    assert script(FORK + code) == "done"


SPAWNED = (
    CHECK
    + """
import multiprocessing
if __name__ == "__main__":
    check_all()
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        pool.starmap_async(check, [(op, shape, "float32", seed) for seed in range(2) for op, shape in CALLS]).get(60)
    print("done")
"""
)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_of_processes_of_their_own(script, tmp_path, method):
    path = tmp_path / "main.py"
    path.write_text(SPAWNED.replace("{method!r}", repr(method)))
    assert (
        script(f"import runpy, sys; sys.argv = [{str(path)!r}]; runpy.run_path({str(path)!r}, run_name='__main__')") == "done"
    )


COMPILING = """
def compile_one():
    check("layer_norm", (4, 64), "float64")

def fork_after(seconds):
    thread = threading.Thread(target=compile_one)
    thread.start()
    time.sleep(seconds)
    pid = child(lambda: check("layer_norm", (4, 64), "float32"))
    thread.join()
    wait(pid)
"""


def test_a_fork_while_another_thread_compiles(script):
    code = "import normkit.backends.numba_backend\nfork_after(0.3)\nprint('done')"
    assert script(FORK + COMPILING + code, timeout=300, NORMKIT_CACHE=0) == "done"


def test_a_fork_while_another_thread_imports_the_backend(script):
    assert script(FORK + COMPILING + "fork_after(0.05); print('done')") == "done"


@pytest.mark.hostile
@pytest.mark.parametrize("seconds", [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0])
def test_a_fork_at_any_moment_of_a_compilation(script, seconds):
    assert script(FORK + COMPILING + f"fork_after({seconds}); print('done')", timeout=300, NORMKIT_CACHE=0) == "done"


@pytest.mark.hostile
def test_forks_while_sixteen_threads_call(script):
    code = """
stop = threading.Event()
def work(seed):
    while not stop.is_set():
        check_all(seed=seed)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
for thread in threads: thread.start()
for seed in range(60):
    wait(child(lambda: check_all(seed=seed)))
stop.set()
for thread in threads: thread.join()
print("done")
"""
    assert script(FORK + code, timeout=600) == "done"


def test_a_fork_does_not_keep_an_import_from_logging(script):
    """The fork waits for the import; it must not hold meanwhile what the import needs."""
    code = """
import logging
from normkit import registry
begun = threading.Event()
def importing():
    with registry._lock:
        begun.set()
        time.sleep(0.3)  # the fork waits by now
        logging.getLogger("somebody new")
thread = threading.Thread(target=importing, daemon=True)
thread.start()
begun.wait()
wait(child(lambda: check("layer_norm", (4, 64), backend="numpy")))
print("done")
"""
    assert script(FORK + code) == "done"


@pytest.mark.hostile
@pytest.mark.parametrize("seconds", [0, 0.03, 0.06, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7])
def test_a_fork_at_any_moment_of_the_import(script, seconds):
    assert script(FORK + COMPILING + f"fork_after({seconds}); print('done')") == "done"


def test_forks_on_two_threads_at_once(script):
    """Who lets go of the locks must not let go of them for the other, who takes them at that moment."""
    code = """
from normkit import forks

class Slow:
    def __init__(self):
        self.lock = threading.RLock()
    def acquire(self, **options):
        time.sleep(0.05)
        return self.lock.acquire(**options)
    def release(self):
        self.lock.release()
        time.sleep(0.02)  # the other thread has it now, and waits for the next

forks._locks[:0] = Slow(), Slow()
failures, sys.unraisablehook = [], lambda failure: failures.append(failure.exc_value)
def work():
    for _ in range(10):
        wait(child(lambda: check("layer_norm", (4, 64), backend="numpy")))
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
assert all(lock.acquire(timeout=1) for lock in forks._locks)
print("done")
"""
    assert script(FORK + code) == "done"


@pytest.mark.hostile
def test_forks_on_four_threads_while_another_compiles(script):
    code = """
sys.setswitchinterval(1e-5)
def work(seed):
    for _ in range(25):
        wait(child(lambda: check("layer_norm", (4, 64), seed=seed)))
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)] + [threading.Thread(target=check_all)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done")
"""
    assert script(FORK + code, timeout=600) == "done"


def test_workers_of_a_torch_data_loader(script):
    pytest.importorskip("torch")
    code = """
import torch

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, i):
        return torch.from_numpy(check(*CALLS[i % len(CALLS)], seed=i)).flatten()[:64].clone()

check_all()
torch.ones(1 << 20).sum()
for workers in (0, 2):
    loader = torch.utils.data.DataLoader(Images(), batch_size=3, num_workers=workers, timeout=60 if workers else 0)
    assert len(list(loader)) == 4
print("done")
"""
    assert script(FORK + "warnings.simplefilter('ignore')\n" + code, timeout=300) == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
def test_what_it_is_that_a_child_is_spared(script):
    """Numba's own parallel kernels, in a child of a process that has run one: the process is killed, or hangs."""
    code = """
import numba
@numba.njit(parallel=True)
def total(x):
    s = 0.0
    for i in numba.prange(x.size):
        s += x[i]
    return s
total(np.ones(100))
if numba.threading_layer() == "omp":
    pid = os.fork()
    if pid == 0:
        os.close(2)
        total(np.ones(100))
        os._exit(0)
    time.sleep(2)
    done, status = os.waitpid(pid, os.WNOHANG)
    assert not done or status != 0
    if not done:
        os.kill(pid, signal.SIGKILL)
print("done")
"""
    assert script(FORK + code) == "done"
