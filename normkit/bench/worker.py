"""The process of one contender: reads commands as lines of JSON, answers in kind, and is stopped while others are measured.

Whatever a peer raises ends this process; the runner reports its last words and starts another for the next case.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from normkit.bench.cases import Case, Inputs, base_shape, np_dtype, view_inputs
from normkit.bench.contenders import CONTENDERS, Call, Contender, UnsupportedCase, in_turns
from normkit.bench.sampling import sample_call

SHORTEST = 200e-6  # seconds of a timed batch of calls: thousands of times the clock's resolution


class Worker:
    """Answers commands about one contender."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.call: Call | None = None
        self.xs: list[Any] = []

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what a command says."""
        match command["do"]:
            case "versions":
                return {"versions": self.contender.versions()}
            case "prepare":
                return self._prepare(Case.parse(command["case"]), Path(command["folder"]), command.get("product", ""))
            case "time":
                assert self.call is not None
                return {"seconds": time_call(in_turns(self.call.run, self.xs), command["seconds"])}
            case "sample":
                assert self.call is not None
                return sample_call(in_turns(self.call.run, self.xs), command["seconds"], command["pause"])
            case "result":
                return self._result(Path(command["file"]), np_dtype(command["dtype"]))
            case unknown:
                raise ValueError(f"unknown command {unknown!r}")

    def _prepare(self, case: Case, folder: Path, product: str) -> dict[str, Any]:
        self.call, self.xs = None, []
        gc.collect()
        try:
            inputs = read_inputs(case, folder)
            self.call = after_product(self.contender.prepare(case, inputs), product, inputs.x)
        except UnsupportedCase as refusal:
            return {"unsupported": str(refusal)}
        others = (read_inputs(case, folder) for _ in range(case.alike - 1))
        self.xs = [self.call.own(i.x) for i in (inputs, *others)]
        self.call.run(self.xs[0])  # compiles
        return {"note": self.call.note}

    def _result(self, file: Path, dtype: np.dtype[Any]) -> dict[str, Any]:
        assert self.call is not None
        y = np.asarray(self.call.to_numpy(self.call.run(self.xs[0])))
        if y.dtype != dtype:
            return {"wrong": f"returns {y.dtype}, not {dtype}"}
        np.ascontiguousarray(y).view(np.uint8).tofile(file)
        return {"shape": y.shape}


def time_call(run: Callable[[], Any], seconds: float) -> float:
    """Seconds per call: the median of batches that fill the time, after calls that warm caches and wake threads."""
    start = perf_counter()
    last = _once(run)
    while perf_counter() - start < min(seconds / 4, 0.02):
        last = _once(run)
    calls = max(1, int(SHORTEST / last))
    samples: list[float] = []
    start = perf_counter()
    while perf_counter() - start + last / 2 < seconds or not samples:
        begin = perf_counter()
        for _ in range(calls):
            run()
        samples.append((perf_counter() - begin) / calls)
    return median(samples)


def after_product(call: Call, package: str, x: Any) -> Call:
    """The call on the product of its x and a matrix, by that package, whose pool of threads lives in this process then.

    Only of contenders that take NumPy's arrays: others bring a pool of their own.
    """
    if not package:
        return call
    if find_spec(package) is None:
        raise UnsupportedCase(f"{package} is not installed")
    if call.own(x) is not x:
        raise UnsupportedCase("takes no NumPy array")
    matrix = np.eye(x.shape[-1], dtype=x.dtype)
    if package == "numpy":
        return call._replace(run=lambda x: call.run(x @ matrix))
    import torch

    right = torch.from_numpy(matrix)
    return call._replace(run=lambda x: call.run((torch.from_numpy(x) @ right).numpy()))


def _once(run: Any) -> float:
    start = perf_counter()
    run()
    return max(perf_counter() - start, 1e-9)


def write_inputs(inputs: Inputs, folder: Path) -> None:
    """Leave the arrays where `read_inputs` finds them."""
    for name in ("base", "weight", "bias", "mask"):
        array = getattr(inputs, name)
        if array is not None:
            array.view(np.uint8).tofile(folder / name)


def read_inputs(case: Case, folder: Path) -> Inputs:
    """The arrays in memory of this process's own, allocated by NumPy as a user's would be."""
    dtype = np_dtype(case.dtype)
    base = np.fromfile(folder / "base", dtype).reshape(base_shape(case))
    weight, bias = np.fromfile(folder / "weight", dtype), np.fromfile(folder / "bias", dtype)
    mask = np.fromfile(folder / "mask", bool).reshape(case.shape) if case.mask else None
    return view_inputs(case, base, weight, bias, mask)


def die_with_parent() -> None:
    """Linux: a stopped process would not notice that its parent is gone, and stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(name: str) -> None:
    """Serve until the runner closes the pipe. What libraries print goes to stderr."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(CONTENDERS[name])
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
