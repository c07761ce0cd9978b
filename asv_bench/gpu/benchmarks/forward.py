"""Device time and launch time of the ops, as `normkit bench --gpu` takes them."""

from __future__ import annotations

from typing import Any

import normkit as nk
from normkit.bench import gpu

NAMES = {str(case): case for case in gpu.CASES}
NORMKIT = next(c for c in gpu.CONTENDERS if c.name == "normkit")


def usable_cupy() -> Any:
    """CuPy, if it has a GPU; else asv skips the benchmark."""
    try:
        nk.get_backend("cupy")
    except nk.NoBackendError as error:
        raise NotImplementedError(str(error)) from None
    import cupy

    return cupy


class Forward:
    """One op on one array, its result checked."""

    params = tuple(NAMES)
    param_names = ("case",)
    version = "1"

    def setup(self, name: str) -> None:
        self.cupy = usable_cupy()
        self.case = NAMES[name]

    def track_device_time(self, name: str) -> float:
        (score,) = gpu.play(self.cupy, self.case, [NORMKIT])
        return score.seconds

    track_device_time.unit = "seconds"  # type: ignore[attr-defined]


class Launch:
    """What a call costs the CPU."""

    version = "1"

    def setup(self) -> None:
        self.cupy = usable_cupy()

    def track_launch_time(self) -> float:
        return gpu.launch_seconds(self.cupy, NORMKIT)

    track_launch_time.unit = "seconds"  # type: ignore[attr-defined]
