"""`normkit bench --busy`: what a call takes beside another process that keeps a core busy, and beside another pool in its own.

The median hides what a busy machine does to a call: one in a hundred that waits 8 ms for a thread without a core. So
here the mean and the 95th percentile count, over those of one thread of normkit that nobody disturbed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median

from normkit.bench.cases import Case, make_inputs
from normkit.bench.contenders import CONTENDERS, ONE_THREAD
from normkit.bench.report import seconds_text
from normkit.bench.runner import Process, roomy_folder
from normkit.bench.sampling import CASES, WAYS, Way, another
from normkit.bench.worker import write_inputs

NAMES = ("normkit", ONE_THREAD, "NumPy", "torch", "ONNX Runtime")
SECONDS, ROUNDS = 0.3, 3
PRODUCT = "layer_norm/32x24x384"
PRODUCTS = tuple(Way(f"each on a matrix product of {name}'s", product=name) for name in ("numpy", "torch"))
STATES = ("quiet", "busy")

# seconds of each round: by case and way, contender, state and what is counted
Times = dict[tuple[str, str], dict[str, dict[str, dict[str, list[float]]]]]


def main(case_specs: list[str] | None, names: list[str], rounds: int | None, file: Path | None) -> int:
    """Run the command. Returns the exit code."""
    present = [name for name in names if not CONTENDERS[name].missing]
    plays = [(Case.parse(spec), way) for spec in case_specs or CASES for way in WAYS]
    plays += [] if case_specs else [(Case.parse(PRODUCT), way) for way in PRODUCTS]
    times: Times = {}
    try:
        with _processes(present) as processes, tempfile.TemporaryDirectory(dir=roomy_folder()) as folder:
            for case, way in plays:
                _play(case, way, processes, Path(folder), times, rounds or ROUNDS)
                print("\n".join(_table(case, way, times[case.title, way.title])), flush=True)
    except KeyboardInterrupt:
        return 130
    finally:
        if file is not None:
            named = {f"{case}, {way}": found for (case, way), found in times.items()}
            file.write_text(json.dumps(named, indent=1), encoding="utf-8")
    return 0


@contextmanager
def _processes(names: list[str]) -> Iterator[dict[str, Process]]:
    processes = {name: Process(name) for name in names}
    try:
        for process in processes.values():
            process.introduce()
        yield processes
    finally:
        for process in processes.values():
            process.close()


def _play(case: Case, way: Way, processes: dict[str, Process], folder: Path, times: Times, rounds: int) -> None:
    """All contenders, alone and beside another process, in turns, so many rounds."""
    write_inputs(make_inputs(case), folder)
    found = times.setdefault((case.title, way.title), {})
    able = []
    for name, process in processes.items():
        with process.turn():
            answer = process.ask(do="prepare", case=case.spec, folder=str(folder), product=way.product)
        if "unsupported" not in answer:
            able.append(name)
            found[name] = {state: {} for state in STATES}
    order = Random(0)
    for _ in range(rounds):
        for state in STATES:
            with another(state == "busy"):
                for name in order.sample(able, len(able)):
                    with processes[name].turn():
                        answer = processes[name].ask(do="sample", seconds=SECONDS, pause=way.pause)
                    for what, seconds in answer.items():
                        found[name][state].setdefault(what, []).append(seconds)


def _table(case: Case, way: Way, found: dict[str, dict[str, dict[str, list[float]]]]) -> list[str]:
    """One case in one way, in 80 columns."""
    base = {what: median(seconds) for what, seconds in found.get(ONE_THREAD, {}).get("quiet", {}).items()}
    lines = ["", f"{case.title}, {way.title}"]
    if base:
        lines.append(
            f"  over the mean of one thread undisturbed, {seconds_text(base['mean'])}, and its p95, {seconds_text(base['p95'])}"
        )
    lines.append(f"  {'':<20}{'quiet: mean':>14}{'p95':>9}{'beside one: mean':>20}{'p95':>9}")
    for name, states in found.items():
        cells = []
        for state in STATES:
            for what in ("mean", "p95"):
                seconds = median(states[state][what])
                cells.append(f"{seconds / base[what]:.2f}x" if base else seconds_text(seconds))
        lines.append(f"  {name:<20}{cells[0]:>14}{cells[1]:>9}{cells[2]:>20}{cells[3]:>9}")
    return lines
