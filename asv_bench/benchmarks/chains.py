"""Do calls in a network cost what one alone does? Each takes the output of another, or a sum with it; others run between."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from .common import Prepared
from .network import NORMS, Network, Norm, Timed, formula, normed

SHAPES = {"1x18x384": (1, 18, 384), "1x126x384": (1, 126, 384), "4x126x384": (4, 126, 384)}


class Chain(Prepared):
    """The norms of a pass: their time, that over as many calls on one x, and NumPy's formula in the same places over theirs."""

    version = "1"
    params = (list(SHAPES), ["own_output", "kept_outputs", "sums", "products"])
    param_names = ("shape", "outputs")

    def make(self, shape: str, outputs: str) -> None:
        network = Network(SHAPES[shape])
        self.once, self.alone = getattr(network, outputs), network.alone
        for norm in (normed, formula):
            self.once(norm)

    def track_seconds(self, shape: str, outputs: str) -> float:
        return self._median([(self.once, normed)])[0] / NORMS

    def track_over_isolated(self, shape: str, outputs: str) -> float:
        chained, alone = self._median([(self.once, normed), (self.alone, normed)])
        return chained / alone

    def track_numpy_over_normkit(self, shape: str, outputs: str) -> float:
        ours, numpys = self._median([(self.once, normed), (self.once, formula)])
        return numpys / ours

    track_seconds.unit = "seconds"  # type: ignore[attr-defined]
    track_over_isolated.unit = "of the isolated call's time"  # type: ignore[attr-defined]
    track_numpy_over_normkit.unit = "times as fast as NumPy's formula"  # type: ignore[attr-defined]

    def _median(self, contenders: list[tuple[Callable[[Norm], None], Norm]], rounds: int = 25) -> list[float]:
        """Seconds in the norms of a pass, of contenders that take turns."""
        seconds: list[list[float]] = [[] for _ in contenders]
        for _ in range(rounds):
            for (run, norm), times in zip(contenders, seconds, strict=True):
                timed = Timed(norm)
                run(timed)
                times.append(timed.seconds)
        return [median(times) for times in seconds]
