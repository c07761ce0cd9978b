"""The cases of this checkout, whichever revision of normkit is installed, and a call that is compiled and warm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from time import perf_counter
from typing import Any

BATCH = 2e-3  # seconds of calls in one sample
SLOW_BYTES = 5_000_000  # beyond it the reference backend is a matter of seconds and gigabytes


def _bench_of_checkout(name: str) -> Any:
    package = "normkit_bench_of_checkout"
    if package not in sys.modules:
        folder = Path(__file__).parents[2] / "normkit" / "bench"
        spec = spec_from_file_location(package, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return import_module(f"{package}.{name}")


cases = _bench_of_checkout("cases")
contenders = _bench_of_checkout("contenders")
floors = _bench_of_checkout("floors")
oracle = _bench_of_checkout("oracle")
sampling = _bench_of_checkout("sampling")


def prepare(spec: str, backend: str | None = None, alike: int | None = None, **extra: Any) -> tuple[Any, Callable[[], Any]]:
    """The inputs of a case and a call on them, or in turns on some that are alike. Skips what the backend should not run."""
    import normkit as nk

    case = cases.Case.parse(spec)
    if backend == "numpy" and case.nbytes > SLOW_BYTES:
        raise NotImplementedError(f"{spec} on the reference backend takes too long")
    inputs = cases.make_inputs(case)
    arguments: Mapping[str, Any] = extra if backend is None else {**extra, "backend": backend}
    call = contenders.normkit_call(case, inputs, arguments)
    run = contenders.in_turns(call, [inputs.x, *(inputs.base.copy()[:: case.step] for _ in range(1, alike or case.alike))])
    try:
        run()
    except nk.NoBackendError as refusal:
        raise NotImplementedError(str(refusal)) from None
    return inputs, run


def calls_per_sample(run: Callable[[], Any]) -> int:
    """How often to call so that a sample lasts long enough for the clock."""
    fastest = min(_seconds(run) for _ in range(5))
    return max(1, min(1000, int(BATCH / fastest)))


def _seconds(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


class Prepared:
    """Keeps what setup has made: asv repeats setup before every sample, and it must then cost nothing."""

    _made_for: tuple[Any, ...] | None = None

    def setup(self, *params: Any) -> None:
        """Compile and warm, once for each set of parameters."""
        if self._made_for != params:
            self.make(*params)
            self._made_for = params

    def make(self, *params: Any) -> None:
        """Set the attributes that the benchmark uses."""
        raise NotImplementedError
