"""Every asv benchmark runs once on its smallest parameters, and none is of a kind that asv would ignore without a word."""

from __future__ import annotations

import inspect
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("asv_runner")
from asv_runner.benchmarks import benchmark_types
from asv_runner.discovery import disc_benchmarks, disc_modules

SUITE = Path(__file__).parents[1] / "asv_bench" / "benchmarks"
HOOKS = {"setup", "setup_cache", "teardown", "make"}


@pytest.fixture(autouse=True, scope="module")
def suite_on_path():
    """asv imports the suite as `benchmarks`."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == SUITE.name]:
        del sys.modules[name]
    sys.path.remove(str(SUITE.parent))


sys.path.insert(0, str(SUITE.parent))
BENCHMARKS = {benchmark.name: benchmark for benchmark in disc_benchmarks(str(SUITE))}
HELPERS = {"benchmarks.common", "benchmarks.network"}  # they hold no benchmarks
CLASSES = [
    item
    for module in disc_modules(SUITE.name)
    for item in vars(module).values()
    if inspect.isclass(item) and item.__module__ == module.__name__ and module.__name__ not in HELPERS
]


def test_suite_is_found():
    assert {"forward", "overhead", "scaling", "memory", "startup", "accuracy"} <= {n.split(".")[0] for n in BENCHMARKS}


def ignored(cls):
    """Public methods that asv takes for no benchmark, since their names begin with none of its prefixes."""
    public = [name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_") and name not in HOOKS]
    return [name for name in public if not any(kind.name_regex.match(name) for kind in benchmark_types)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_method_is_silently_ignored(cls):
    assert ignored(cls) == [], f"rename, or begin with an underscore, these of {cls.__name__}"


def test_ignored_methods_are_noticed():
    methods = dict.fromkeys(["time_a", "peakmem_b", "track_c", "timing_d", "setup", "_helper"], lambda self: None)
    assert ignored(type("Sample", (), methods)) == ["timing_d"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs_on_its_smallest_parameters(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.version == "1" or benchmark.version.isdecimal(), "pin the version, or history is lost with every edit"
    for params in product(*benchmark._params):
        benchmark._current_params = params
        if not benchmark.do_setup():  # True: this combination is skipped
            break
    else:
        pytest.skip("no backend here can run it")
    try:
        result = once(benchmark, params)
    finally:
        benchmark.do_teardown()
    if benchmark.type == "track":
        assert result >= 0


def once(benchmark, params):
    """One call; a statement for a new process is run in one."""
    if type(benchmark).__name__ == "TimerawBenchmark":
        return benchmark._get_timer(*params).timeit(1)
    return benchmark.func(*params)
