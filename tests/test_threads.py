"""How many threads a call may use: the setting, and what the machine grants."""

import os
import re
import sys
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

import normkit as nk
from normkit import control_groups
from normkit import threads as module
from normkit.policy import ambient


@pytest.fixture
def granted(monkeypatch):
    """`granted()` in an imagined process: so many cores, such control groups, such variables."""

    def granted(cores=8, files=None, **variables):
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)

        monkeypatch.setattr(control_groups, "text", lambda path: (files or {}).get(str(path), ""))
        module.look()
        return module.granted()

    yield granted
    monkeypatch.undo()
    module.look()


V2, V2_A, GROUP = "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/a/cpu.max", "/proc/self/cgroup"
V1_A_QUOTA, V1_A_PERIOD = "/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/a/cpu.cfs_period_us"
V1_QUOTA, V1_PERIOD = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({V2: "max 100000\n"}, 8),
        ({V2: "200000 100000\n"}, 2),
        ({V2: "150000 100000\n"}, 2),  # part of a core is worth a thread
        ({V2: "50000 100000\n"}, 1),
        ({V2: "1000 100000\n"}, 1),
        ({V2: "9900000 100000\n"}, 8),
        ({V2: "100000 0\n"}, 8),
        ({V2: ""}, 8),
        ({V2: "nonsense\n"}, 8),
        ({V2: "some nonsense\n"}, 8),
        ({V1_QUOTA: "300000\n", V1_PERIOD: "100000\n"}, 3),
        ({V1_QUOTA: "-1\n", V1_PERIOD: "100000\n"}, 8),
        ({V1_QUOTA: "300000\n"}, 8),
        ({V2: "400000 100000\n", V1_QUOTA: "100000\n", V1_PERIOD: "100000\n"}, 4),
        ({GROUP: "0::/a/b\n", V2_A: "300000 100000\n"}, 3),  # as systemd's CPUQuota, seen from the same namespace
        ({GROUP: "0::/a/b\n", V2_A: "300000 100000\n", V2: "200000 100000\n"}, 2),
        ({GROUP: "0::/a/b\n", V2: "max 100000\n"}, 8),
        ({GROUP: "0::/../a\n", V2_A: "300000 100000\n"}, 3),
        ({GROUP: "0::/\n", V2: "200000 100000\n"}, 2),
        ({GROUP: "1:cpu:/a\n", V2_A: "100000 100000\n"}, 8),
        ({GROUP: "2:cpu,cpuacct:/a\n1:cpuset:/b\n0::/\n", V1_A_QUOTA: "300000\n", V1_A_PERIOD: "100000\n"}, 3),
        ({GROUP: "2:cpuset:/a\n1:cpu:/b\n", V1_A_QUOTA: "300000\n", V1_A_PERIOD: "100000\n"}, 8),
        ({GROUP: "nonsense\n", V2: "200000 100000\n"}, 2),
    ],
)
def test_control_groups(granted, files, expected):
    assert granted(files=files) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": " 5 "}, 5),
        ({"OMP_NUM_THREADS": "100"}, 8),
        ({"OMP_NUM_THREADS": ""}, 8),
        ({"OMP_NUM_THREADS": "0"}, 8),
        ({"OMP_NUM_THREADS": "-2"}, 8),
        ({"OMP_NUM_THREADS": "many"}, 8),
        ({"NUMBA_NUM_THREADS": "2"}, 2),
        ({"NUMBA_NUM_THREADS": "6", "OMP_NUM_THREADS": "4"}, 4),
    ],
)
def test_variables(granted, variables, expected):
    assert granted(**variables) == expected


def test_affinity(granted):
    assert granted(cores=3) == 3
    assert granted(cores=1, OMP_NUM_THREADS="4") == 1


def test_where_there_is_no_affinity(granted, monkeypatch):
    granted()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for cores, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        module.look()
        assert module.granted() == expected


def test_what_is_granted_may_change(granted, monkeypatch):
    assert granted(cores=4) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    later = module.monotonic() + 2 * module.RENEWED
    monkeypatch.setattr(module, "monotonic", lambda: later)
    assert module.granted() == 1


def test_it_is_not_looked_up_for_each_call(granted, monkeypatch):
    assert granted(cores=4) == 4
    monkeypatch.setattr(module, "look", lambda: pytest.fail("looked again"))
    assert [module.granted() for _ in range(3)] == [4, 4, 4]


def test_one_in_a_worker_of_torch(granted, monkeypatch):
    worker = SimpleNamespace(get_worker_info=lambda: None)
    monkeypatch.setitem(sys.modules, "torch.utils.data", worker)
    assert granted() == 8
    worker.get_worker_info = lambda: SimpleNamespace(id=0)
    assert granted() == 1


def test_get_and_set(threads):
    usable = nk.get_num_threads()
    assert 1 <= usable <= module.granted()
    threads(1)
    assert nk.get_num_threads() == 1
    threads(10_000)
    assert nk.get_num_threads() == usable  # more than granted is taken as granted
    threads(None)
    assert nk.get_num_threads() == usable


def test_a_backend_that_uses_one_is_believed(monkeypatch):
    with nk.using(backend="numpy"):
        assert nk.get_num_threads() == 1
    with nk.using(policy=nk.FallbackPolicy(order=("numpy", "numba"))):
        assert nk.get_num_threads() == 1
    monkeypatch.setattr(nk.get_backend("numba"), "threads", lambda: 7)
    assert nk.get_num_threads() == 7


@pytest.fixture
def eight(monkeypatch):
    """A machine that grants eight cores."""
    monkeypatch.setattr(module, "_granted", 8)
    monkeypatch.setattr(module, "_looked", float("inf"))


def test_using_sets_it_for_a_block(threads, eight):
    threads(6)
    with nk.using(threads=3):
        assert module.wished() == 3
        with nk.using(threads=np.int64(1), policy=nk.FallbackPolicy.onnx()):
            assert module.wished() == 1
            with nk.using(policy=nk.FallbackPolicy.onnx()):
                assert module.wished() == 1
        assert module.wished() == 3
        with nk.using(threads=10_000):
            assert module.wished() == 8
    assert module.wished() == 6


def test_using_is_of_one_thread_or_task(eight):
    seen = []
    with nk.using(threads=2):
        thread = Thread(target=lambda: seen.append(module.wished()))
        thread.start()
        thread.join(10)
        seen.append(module.wished())
    assert seen == [8, 2]


def test_using_threads_alone_keeps_the_plans():
    outside = ambient()
    with nk.using(threads=1):
        assert ambient() is outside


@pytest.mark.parametrize(("n", "kind"), [(0, nk.InputValueError), (2.0, nk.InputTypeError), (True, nk.InputTypeError)])
def test_using_nonsense(n, kind):
    with pytest.raises(kind, match=rf"using: threads is {re.escape(repr(n))}, expected"), nk.using(threads=n):
        pass
    assert module.block.get() is None


@pytest.mark.parametrize(
    ("n", "kind"),
    [
        (0, nk.InputValueError),
        (-1, nk.InputValueError),
        (2.0, nk.InputTypeError),
        ("2", nk.InputTypeError),
        (True, nk.InputTypeError),
        ([2], nk.InputTypeError),
        (np.inf, nk.InputTypeError),
    ],
)
def test_nonsense(threads, n, kind):
    before = nk.get_num_threads()
    with pytest.raises(kind, match=rf"set_num_threads: n is {re.escape(repr(n))}, expected") as error:
        threads(n)
    assert "None" in str(error.value)
    assert nk.get_num_threads() == before


def test_the_setting_is_that_of_the_process(threads):
    seen = []
    threads(1)
    thread = Thread(target=lambda: seen.append(nk.get_num_threads()))
    thread.start()
    thread.join(10)
    assert seen == [1]


def test_calls_from_many_threads_at_once(script):
    """Eight Python threads, each with calls of its own, on every backend: the right numbers, and the process lives."""
    script("""
import threading, numpy as np, normkit as nk
x = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
for backend in [info.name for info in nk.backends() if info.usable and info.family == "numpy"]:
    expected, wrong = nk.layer_norm(x, backend=backend), []
    def work():
        for _ in range(10):
            if nk.layer_norm(x, backend=backend).tobytes() != expected.tobytes():
                wrong.append(backend)
    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong, wrong
""")
