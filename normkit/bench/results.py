"""What a run found, and what can be said about it: times, ratios inside a round, errors; kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import exp, log
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from normkit.bench.cases import Case
from normkit.bench.contenders import CONTENDERS


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
    """What a contender did in one case: seconds per call for each round, and how far its result was off."""

    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    ulps: float | None = None  # of half types only
    note: str = ""
    failure: str = ""

    @property
    def time(self) -> float:
        """Median over the rounds."""
        return median(self.seconds)


@dataclass
class CaseResult:
    """The scores of one case, by contender."""

    case: Case
    scores: dict[str, Score]
    disturbed: int = 0  # turns during which other processes had part of the cores

    @property
    def timed(self) -> dict[str, Score]:
        """Those who finished every round that was played."""
        rounds = max((len(score.seconds) for score in self.scores.values()), default=0)
        return {name: s for name, s in self.scores.items() if not s.failure and s.seconds and len(s.seconds) >= rounds - 1}

    def ratios(self, name: str, base: str) -> list[float]:
        """Time of one over time of the other, round by round."""
        pairs = zip(self.scores[name].seconds, self.scores[base].seconds, strict=False)
        return [mine / other for mine, other in pairs]

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
            score["time"] = result.scores[name].time
            score["ratio"], score["spread"] = result.ratio(name, self.base), result.spread(name, self.base)
        return score

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """A run from what `to_json` gave."""
        fields = ("seconds", "error", "ulps", "note", "failure")
        run = cls(data["machine"], Settings(**data["settings"]), data["base"], data["versions"], data["left_out"])
        run.interrupted = data["interrupted"]
        for entry in data["cases"]:
            scores = {n: Score(**{f: s[f] for f in fields}) for n, s in entry["contenders"].items()}
            run.results.append(CaseResult(Case.parse(entry["case"]), scores, entry.get("disturbed", 0)))
        return run

    def dumps(self) -> str:
        """JSON text."""
        return json.dumps(self.to_json(), indent=1)

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(self.dumps() + "\n")

    @classmethod
    def load(cls, file: Path) -> Run:
        """Read what `save` wrote."""
        try:
            return cls.from_json(json.loads(file.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a result that --json wrote: {type(error).__name__} {error}") from None


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))
