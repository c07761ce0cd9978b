"""What bounds the memory of a process: the machine, its control groups, its own limits."""

import os
import sys

import pytest

import normkit as nk
from normkit import control_groups, memory_limits

MiB = 1 << 20
NONE_V1 = "9223372036854771712\n"
MACHINE = {"/proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\nHugePages_Total:   0\n"}
GROUP = "/proc/self/cgroup"


def v2(folder="", limit="max", used=0, cached=0, high="max"):
    folder = f"/sys/fs/cgroup{folder}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {cached}\n",
    }


def v1(folder="", limit=NONE_V1, used=0, cached=0):
    folder = f"/sys/fs/cgroup/memory{folder}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"inactive_file 7\ntotal_inactive_file {cached}\n",
    }


@pytest.fixture
def groups(monkeypatch):
    """(granted, left) of each control group in an imagined system."""

    def groups(files):
        monkeypatch.setattr(control_groups, "text", lambda path: files.get(path, ""))
        monkeypatch.setattr(memory_limits, "text", control_groups.text)
        return [(s.granted, s.left) for s in memory_limits.scopes() if s.name == "control group"]

    return groups


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        (v2(), []),
        (v2(limit=600, used=100), [(600, 500)]),  # a container: its own group is all that it sees
        (v2(limit=600, used=500, cached=300), [(600, 400)]),
        (v2(limit=600, used=700), [(600, 0)]),
        (v2(limit=600, high=500, used=100), [(500, 400)]),
        (v2(limit="max", high=500, used=100), [(500, 400)]),
        ({GROUP: "0::/a/b\n"} | v2("/a", 900, 100) | v2("/a/b", 600, 50), [(600, 550), (900, 800)]),
        ({GROUP: "0::/a/b\n"} | v2("/a/b") | v2("", 600, 50), [(600, 550)]),
        ({GROUP: "0::/../../c\n"} | v2("/c", 600, 50), [(600, 550)]),
        (v1(), []),
        (v1(limit=600, used=500, cached=300), [(600, 400)]),
        ({GROUP: "4:memory:/docker/x\n1:cpu:/y\n"} | v1(limit=600, used=50), [(600, 550)]),  # the container's, at the root
        ({GROUP: "4:memory:/a/b\n"} | v1("/a/b", 300, 50) | v1("/a", 600, 100) | v1(), [(300, 250), (600, 500)]),
        ({"/sys/fs/cgroup/memory.max": "600\n"}, []),  # what is in use is not told: nothing is known
        ({"/sys/fs/cgroup/memory.max": "nonsense\n"}, []),
    ],
)
def test_control_groups(groups, files, expected):
    assert groups(MACHINE | files) == expected


def test_the_machine(groups):
    groups(MACHINE)
    machine = memory_limits.scopes()[0]
    assert machine == ("machine", 16_000_000 * 1024, 8_000_000 * 1024)


def test_a_machine_that_says_nothing(groups, monkeypatch):
    groups({})
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name], raising=False)
    assert memory_limits.scopes()[0] == ("machine", 4096_000, 4096_000)
    monkeypatch.delattr(os, "sysconf")
    assert [s for s in memory_limits.scopes() if s.name == "machine"] == []
    assert nk.get_cache_limit() >= 0


def test_this_machine():
    for scope in memory_limits.scopes():
        assert 0 <= scope.left <= scope.granted, scope


# A loop over growing batches, as far as NumPy alone would come with it, and a little less. Nothing else is kept.
GROWING = """
import sys
import numpy as np, normkit as nk
from normkit import pool

def grow(most):
    # every batch is larger than the last one, so that no block of the pool serves again
    done = 0
    for rows in range(1000, most // 4096, 1500):
        x = np.ones((rows, 1024), np.float32)
        y = nk.layer_norm(x, backend="numba")
        assert y[-1, -1] == 0
        done += 1
        del x, y
    return done

nk.layer_norm(np.ones((4, 64), np.float32), backend="numba")
nk.set_num_threads(1)
nk.layer_norm(np.ones((40000, 64), np.float32), backend="numba")
nk.empty_cache()
"""
BOUNDED = (
    GROWING
    + """
import os, resource
def field(i):
    with open("/proc/self/statm") as file:
        return int(file.read().split()[i]) * os.sysconf("SC_PAGE_SIZE")
which = WHICH
limit = field({"RLIMIT_AS": 0, "RLIMIT_DATA": 5}[which]) + (360 << 20)
resource.setrlimit(getattr(resource, which), (limit, limit))
pool._look = pool._Look()  # as if this were the first large call
assert nk.get_cache_limit() <= limit // 8
assert grow(150 << 20) > 20  # of 360 MiB 300 are the last batch and its output: what is kept has to go
print("done")
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sets limits")
@pytest.mark.parametrize("which", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_growing_batches_within_a_limit_of_the_process(script, which):
    assert script(BOUNDED.replace("WHICH", repr(which))) == "done"


@pytest.fixture
def memory_group(tmp_path):
    """A real control group of 600 MiB, where the system lets us make one: the file to write a process's number to."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = f"{root}/normkit-test-{os.getpid()}"
        try:
            os.mkdir(folder)
        except OSError:
            continue
        try:
            with open(f"{folder}/{limit}", "w") as file:
                file.write(str(600 * MiB))
        except OSError:
            os.rmdir(folder)
            continue
        yield f"{folder}/cgroup.procs"
        os.rmdir(folder)
        return
    pytest.skip("this system lets nobody make a control group for memory")


@pytest.mark.hostile
def test_growing_batches_within_a_control_group(script, memory_group):
    """300 MiB of live data in 600: a pool that takes the machine's memory for its limit is killed here."""
    code = f"open({memory_group!r}, 'w').write('0')\n" + GROWING
    more = f"assert nk.get_cache_limit() == {600 * MiB // 8}; assert grow(170 << 20) > 20; print('done')"
    assert script(code + more) == "done"
