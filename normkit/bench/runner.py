"""Runs contenders against each other: a process each, in turns, round by round; the ratio of two is taken inside a round.

While one runs, all the others are stopped (SIGSTOP), so that each keeps the threads and the spinning that it ships with and
yet disturbs nobody. Where there is no SIGSTOP the others merely wait.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import numpy as np

from normkit.bench.cases import make_inputs, np_dtype
from normkit.bench.contenders import CONTENDERS
from normkit.bench.cores import core_distance
from normkit.bench.machine import done_between, work_of_others
from normkit.bench.oracle import Oracle
from normkit.bench.results import CaseResult, Score, Settings
from normkit.bench.worker import write_inputs

PATIENCE = 300.0  # seconds that a contender may take for one answer
ATTEMPTS = 3  # at a turn that others disturb
QUIET = 0.05  # of one core: what other processes may use during a turn


class ContenderFailed(Exception):
    """The contender's process died or went silent; the message is its last words."""


class Process:
    """A contender's process, and the conversation with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "normkit.bench.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, **CONTENDERS[name].environment},
            start_new_session=True,  # Ctrl-C is for the runner
        )
        self.pid = self._child.pid

    def introduce(self) -> dict[str, str]:
        """Let it import what it needs, then stop it. Returns versions."""
        versions: dict[str, str] = self.ask(do="versions")["versions"]
        self.stop()
        return versions

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for the answer."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(command).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise ContenderFailed(self._last_words()) from None
        if sys.platform != "win32" and not select.select([self._child.stdout], [], [], PATIENCE)[0]:
            raise ContenderFailed(f"no answer for {PATIENCE:.0f} s")
        line = self._child.stdout.readline()
        if not line:
            raise ContenderFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    @contextmanager
    def turn(self) -> Iterator[Process]:
        """Awake inside, stopped outside."""
        self._signal("SIGCONT")
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop every thread of it, and wait until that is so."""
        self._signal("SIGSTOP")
        if hasattr(os, "waitid") and self._child.poll() is None:
            os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._words):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a command was still in the buffer
                    pipe.close()

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self._child.poll() is None:
            self._child.send_signal(getattr(signal, name))

    def _last_words(self) -> str:
        code = self._child.wait()
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else f"ended with code {code}"


class Match:
    """All contenders of a sweep. Use as a context: leaving it ends their processes."""

    def __init__(self, names: list[str], settings: Settings, sweep: int = 0) -> None:
        self.settings = settings
        self.names = names
        self.versions: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self._processes: dict[str, Process] = {}
        self._order = Random(sweep)
        self._retries = 0  # of the case being played
        self._distance: float | None = None  # of two cores, after the last turn

    def __enter__(self) -> Match:
        self._folder = Path(tempfile.mkdtemp(prefix="normkit-bench-", dir=roomy_folder()))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        """Start them all at once: their imports take seconds each."""
        for name in self.names:
            self._processes[name] = Process(name)
        for name in self.names:
            try:
                self.versions |= self._processes[name].introduce()
            except ContenderFailed as failure:
                self.left_out[name] = f"cannot be imported: {failure}"
                self._processes.pop(name).close()

    def play(self, result: CaseResult, advance: Callable[[str], None]) -> None:
        """Measure one case into `result`, and check who is new there; `advance` is told whose turn is over."""
        inputs = make_inputs(result.case)
        write_inputs(inputs, self._folder)
        new = [name for name in self._processes if name not in result.scores]
        result.scores.update({name: Score() for name in new})
        for name in self._able(result):
            score = result.scores[name]
            answer = self._ask(name, score, do="prepare", case=result.case.spec, folder=str(self._folder))
            score.note, score.failure = answer.get("note", ""), score.failure or answer.get("unsupported", "")
            advance(name)
        self._retries = self.settings.rounds * len(self._processes) // 2
        self._distance = core_distance()
        for _ in range(self.settings.rounds):
            names = self._able(result)
            for name in self._order.sample(names, len(names)):
                self._take_turn(name, result)
                advance(name)
        if new:
            oracle = Oracle(result.case, inputs)
            for name in self._able(result):
                if name in new:
                    self._check(name, result.scores[name], oracle, inputs.x)
                    advance(name)

    def _able(self, result: CaseResult) -> list[str]:
        """Those who have not failed in a case."""
        return [name for name in self._processes if not result.scores[name].failure]

    def _take_turn(self, name: str, result: CaseResult) -> None:
        """Time one contender. If other processes had part of the cores meanwhile, try again, up to half of a case's turns."""
        for _ in range(ATTEMPTS):
            own, start = {os.getpid(), self._processes[name].pid}, perf_counter()
            before = work_of_others(own)
            answer = self._ask(name, result.scores[name], do="time", seconds=self.settings.seconds)
            disturbance = done_between(before, work_of_others(own)) / (perf_counter() - start)
            if disturbance <= QUIET or not self._retries:
                break
            self._retries -= 1
        if answer:
            earlier, self._distance = self._distance, core_distance()
            result.scores[name].seconds.append(answer["seconds"])
            result.scores[name].distances.append(max(filter(None, (earlier, self._distance)), default=None))
            result.disturbed += disturbance > QUIET

    def _check(self, name: str, score: Score, oracle: Oracle, x: Any) -> None:
        file, case = self._folder / "result", oracle.case
        answer = self._ask(name, score, do="result", file=str(file), dtype=case.dtype)
        if not answer:
            return
        if "wrong" in answer or tuple(answer["shape"]) != case.shape:
            score.failure = answer.get("wrong") or f"returns the shape {answer['shape']}"
            return
        y = np.fromfile(file, np_dtype(case.dtype)).reshape(case.shape)
        if CONTENDERS[name].kind == "floor":
            score.failure = "" if np.array_equal(y, x) else "copies wrongly"
            return
        score.error = oracle.max_error(y)
        if case.dtype in ("float16", "bfloat16"):
            score.ulps = oracle.max_ulps(y)

    def _ask(self, name: str, score: Score, **command: Any) -> dict[str, Any]:
        """The answer; empty if the contender failed, which its score then says. A new process takes its place."""
        process = self._processes[name]
        try:
            with process.turn():
                return process.ask(**command)
        except ContenderFailed as failure:
            score.failure = str(failure)
            process.close()
            self._processes[name] = Process(name)
            self._processes[name].introduce()
            return {}


def roomy_folder() -> str:
    """Shared memory if a gigabyte is free there, else the folder for temporary files."""
    shared = "/dev/shm"
    if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 2 << 30:
        return shared
    return tempfile.gettempdir()
