"""What a run found, and what can be said about it: times, ratios inside a round, errors; kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from math import exp, inf, log
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from normkit.bench.cases import Case
from normkit.bench.contenders import CONTENDERS

APART = 2.0  # cores are apart if a line takes this many times as long as between near ones


@dataclass(frozen=True)
class Settings:
    """How long to look: rounds of each sweep, seconds of a contender's turn in a round, and sweeps over all cases.

    A sweep has new processes, and so new memory: what differs between two runs should differ between two sweeps.
    """

    rounds: int = 5
    seconds: float = 0.05
    sweeps: int = 1


@dataclass
class Score:
    """What a contender did in one case: seconds per call for each round, and how far its result was off.

    `distances` of two cores, in seconds (see `cores.py`), are the longer of those before and after each round, where known.
    """

    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    ulps: float | None = None  # of half types only
    note: str = ""
    failure: str = ""
    distances: list[float | None] = field(default_factory=list)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Score:
        """What `Run.to_json` made of one."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data or f.name != "distances"})


@dataclass
class CaseResult:
    """The scores of one case, by contender. Rounds in which cores were at most `near` apart count, or all if there are none."""

    case: Case
    scores: dict[str, Score]
    disturbed: int = 0  # turns during which other processes had part of the cores
    near: float = inf

    @property
    def timed(self) -> dict[str, Score]:
        """Those who finished every round that was played."""
        rounds = max((len(score.seconds) for score in self.scores.values()), default=0)
        return {name: s for name, s in self.scores.items() if not s.failure and s.seconds and len(s.seconds) >= rounds - 1}

    def rounds(self, *names: str) -> list[int]:
        """The rounds that count for these contenders."""
        return self.near_rounds(*names) or list(range(min(len(self.scores[name].seconds) for name in names)))

    def near_rounds(self, *names: str) -> list[int]:
        """The rounds in which the cores were near each other in the turns of all of these."""
        scores = [self.scores[name] for name in names]
        played = range(min(len(score.seconds) for score in scores))
        return [i for i in played if all(d <= self.near for score in scores for d in score.distances[i : i + 1] if d)]

    def time(self, name: str) -> float:
        """Median over the rounds."""
        return median(self.scores[name].seconds[i] for i in self.rounds(name))

    def ratios(self, name: str, base: str) -> list[float]:
        """Time of one over time of the other, round by round."""
        mine, other = self.scores[name].seconds, self.scores[base].seconds
        return [mine[i] / other[i] for i in self.rounds(name, base)]

    def ratio(self, name: str, base: str) -> float:
        """Median of the ratios inside the rounds."""
        return median(self.ratios(name, base))

    def spread(self, name: str, base: str) -> float:
        """Half the interquartile range of those ratios, relative to their median; 0 from a single round."""
        ratios = self.ratios(name, base)
        if len(ratios) < 2:
            return 0.0
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return (high - low) / 2 / median(ratios)


@dataclass
class Run:
    """One run of the command. `base` is whom the ratios are taken against."""

    machine: dict[str, str]
    settings: Settings
    base: str
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    results: list[CaseResult] = field(default_factory=list)
    interrupted: bool = False

    def result(self, case: Case) -> CaseResult:
        """That of a case, which is new if there is none yet."""
        found = next((result for result in self.results if result.case == case), None)
        if found is None:
            found = CaseResult(case, {})
            self.results.append(found)
        return found

    @property
    def distances(self) -> list[float]:
        """Of two cores, in every turn."""
        return [d for result in self.results for score in result.scores.values() for d in score.distances if d]

    @property
    def distance(self) -> float:
        """Of near cores, in seconds: that in the nearest tenth of the turns, or infinite if it is not known."""
        distances = sorted(self.distances)
        return distances[len(distances) // 10] if distances else inf

    @property
    def near(self) -> float:
        """Seconds up to which cores are near each other."""
        return APART * self.distance

    def settle(self) -> None:
        """Let the rounds count in which the cores were near."""
        near = self.near
        for result in self.results:
            result.near = near

    @property
    def unsettled(self) -> list[CaseResult]:
        """The cases of which less than half of the rounds asked for count."""
        asked = self.settings.sweeps * self.settings.rounds
        return [r for r in self.finished if any(2 * len(r.near_rounds(name, self.base)) < asked for name in r.timed)]

    @property
    def finished(self) -> list[CaseResult]:
        """The cases in which there is something to compare."""
        return [result for result in self.results if self.base in result.timed]

    @property
    def lost(self) -> list[CaseResult]:
        """The cases in which the base failed."""
        return [result for result in self.results if self.base in result.scores and result.scores[self.base].failure]

    @property
    def names(self) -> list[str]:
        """The contenders that appear, in the order of their table."""
        present = {name for result in self.finished for name in result.timed}
        return [name for name in CONTENDERS if name in present]

    def peers(self, result: CaseResult) -> dict[str, float]:
        """Ratios of the peers that finished a case."""
        names = [name for name in result.timed if CONTENDERS[name].kind == "peer"]
        return {name: result.ratio(name, self.base) for name in names}

    def best_peers(self) -> list[float]:
        """The ratio of the quickest peer of each case."""
        return [min(peers.values()) for result in self.finished if (peers := self.peers(result))]

    def to_json(self) -> dict[str, Any]:
        """Everything, as `from_json` reads it."""
        cases = [
            {
                "case": r.case.spec,
                "bytes": r.case.nbytes,
                "disturbed": r.disturbed,
                "contenders": {n: self._score(r, n) for n in r.scores},
            }
            for r in self.results
        ]
        head = {name: getattr(self, name) for name in ("machine", "base", "versions", "left_out", "interrupted")}
        return {**head, "settings": asdict(self.settings), "cases": cases}

    def _score(self, result: CaseResult, name: str) -> dict[str, Any]:
        score = asdict(result.scores[name])
        if name in result.timed and self.base in result.timed:
            score["time"] = result.time(name)
            score["ratio"], score["spread"] = result.ratio(name, self.base), result.spread(name, self.base)
        return score

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """A run from what `to_json` gave."""
        run = cls(data["machine"], Settings(**data["settings"]), data["base"], data["versions"], data["left_out"])
        run.interrupted = data["interrupted"]
        for entry in data["cases"]:
            scores = {name: Score.from_json(score) for name, score in entry["contenders"].items()}
            run.results.append(CaseResult(Case.parse(entry["case"]), scores, entry.get("disturbed", 0)))
        run.settle()
        return run

    def dumps(self) -> str:
        """JSON text."""
        return json.dumps(self.to_json(), indent=1)

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(self.dumps() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Run:
        """Read what `save` wrote."""
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a result that --json wrote: {type(error).__name__} {error}") from None


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))
