"""What is measured: the one list of ops, shapes, dtypes and layouts, for the side-by-side run and for asv.

A case is a short text, such as ``layer_norm/64x197x768`` or ``instance_norm/8x64x64x256/channel_axis=-1/float16``, so that
a process, a command line and a results file can all name it. This file imports nothing of normkit: asv loads it beside
whichever revision is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from math import prod
from typing import Any, NamedTuple

import numpy as np

OPS = ("layer_norm", "instance_norm")
DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = 1e-5
LARGE = 8 << 20  # bytes of an input that would be in part in cache if it were always the same, and sometimes not
TOGETHER = 256 << 20  # bytes of inputs that take turns: far more than a cache that others use as well


@dataclass(frozen=True)
class Case:
    """One call to measure. `data` is how x is filled: normal, offset=1e4, outlier=3e19 or constant=1234."""

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    axis: int = -1  # of layer_norm
    channel_axis: int = 1  # of instance_norm
    mask: bool = False
    step: int = 1  # x is every step-th row of a larger array
    data: str = "normal"

    @classmethod
    def parse(cls, spec: str) -> Case:
        """The case that a text describes.

        >>> Case.parse("layer_norm/512x768/float16")
        Case(op='layer_norm', shape=(512, 768), dtype='float16', axis=-1, channel_axis=1, mask=False, step=1, data='normal')
        """
        op, _, rest = spec.partition("/")
        sizes, *options = rest.split("/")
        if op not in OPS or not all(n.isdecimal() for n in sizes.split("x")):
            raise ValueError(f"case {spec!r}: expected OP/SIZES[/OPTION...], such as layer_norm/64x197x768/float16")
        fields: dict[str, Any] = {}
        for option in options:
            key, _, value = option.partition("=")
            if option in DTYPES:
                fields["dtype"] = option
            elif option == "mask":
                fields["mask"] = True
            elif key in ("axis", "channel_axis", "step"):
                fields[key] = int(value)
            elif key in ("offset", "outlier", "constant"):
                fields["data"] = f"{key}={float(value):g}"
            else:
                raise ValueError(f"case {spec!r}: unknown option {option!r}")
        return cls(op, tuple(int(n) for n in sizes.split("x")), **fields)

    @property
    def spec(self) -> str:
        """The text that `parse` reads."""
        return "/".join([self.op, "x".join(map(str, self.shape)), *self.options])

    @property
    def options(self) -> list[str]:
        """What is unusual about the case."""
        chosen = [
            (self.dtype, self.dtype != "float32"),
            (f"axis={self.axis}", self.axis != -1),
            (f"channel_axis={self.channel_axis}", self.channel_axis != 1),
            ("mask", self.mask),
            (f"step={self.step}", self.step != 1),
            (self.data, self.data != "normal"),
        ]
        return [text for text, unusual in chosen if unusual]

    @property
    def title(self) -> str:
        """For people: layer_norm (64, 197, 768) float16."""
        return " ".join([self.op, str(self.shape), *self.options])

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes that share statistics."""
        if self.op == "layer_norm":
            return (self.axis % len(self.shape),)
        return tuple(a for a in range(1, len(self.shape)) if a != self.affine_axis)

    @property
    def affine_axis(self) -> int:
        """The axis that weight and bias run along."""
        return (self.axis if self.op == "layer_norm" else self.channel_axis) % len(self.shape)

    @property
    def affine_shape(self) -> tuple[int, ...]:
        """The shape in which weight and bias broadcast against x."""
        return tuple(n if a == self.affine_axis else 1 for a, n in enumerate(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the output, which are those of the input."""
        return prod(self.shape) * np_dtype(self.dtype).itemsize

    @property
    def alike(self) -> int:
        """How many inputs take turns, so that a large one comes from memory, as a new one does."""
        return 1 if self.nbytes < LARGE else max(2, -(-TOGETHER // self.nbytes))


class Inputs(NamedTuple):
    """The arrays of a case. `x` is `base` or a view of it; weight and bias are 1-d."""

    base: np.ndarray[Any, Any]
    x: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any] | None


def np_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """The arrays of a case, the same ones every time."""
    rng = np.random.default_rng(seed)
    dtype = np_dtype(case.dtype)
    base = _fill(case, rng).astype(dtype, copy=False)
    features = case.shape[case.affine_axis]
    weight = (1 + 0.1 * rng.standard_normal(features)).astype(dtype)
    bias = (0.1 * rng.standard_normal(features)).astype(dtype)
    mask = rng.random(case.shape) < 0.75 if case.mask else None
    return view_inputs(case, base, weight, bias, mask)


def view_inputs(case: Case, base: Any, weight: Any, bias: Any, mask: Any) -> Inputs:
    """Inputs around arrays that exist."""
    return Inputs(base, base[:: case.step], weight, bias, mask)


def base_shape(case: Case) -> tuple[int, ...]:
    """The shape of the array that x is a view of."""
    return (case.shape[0] * case.step, *case.shape[1:])


def _fill(case: Case, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    wide = np.float64 if case.dtype == "float64" else np.float32
    kind, _, value = case.data.partition("=")
    if kind == "constant":
        return np.full(base_shape(case), float(value), wide)
    x = rng.standard_normal(base_shape(case), wide)
    if kind == "offset":
        x += wide(value)
    if kind == "outlier":
        x.reshape(-1)[:: prod(case.shape[a] for a in case.axes)] = value  # one in each row
    return x


STANDARD = (
    "layer_norm/1x64",
    "layer_norm/1x4096",
    "layer_norm/32x768",
    "layer_norm/512x768",
    "layer_norm/64x197x768",
    "layer_norm/2048x4096",
    "layer_norm/16384x4096",
    "layer_norm/1000000x32",
    "layer_norm/1x33554432",
    "instance_norm/1x3x8x8",
    "instance_norm/2x320x6x6x6",
    "instance_norm/8x256x64x64",
    "instance_norm/16x512x2000",
    "instance_norm/4x64x256x256",
    "instance_norm/2x32x64x128x128",
    "instance_norm/1x3x2160x3840",
)
GROUPS: dict[str, tuple[str, ...]] = {
    "quick": (
        "layer_norm/1x64",
        "layer_norm/512x768",
        "layer_norm/64x197x768",
        "instance_norm/1x3x8x8",
        "instance_norm/2x320x6x6x6",
        "instance_norm/8x256x64x64",
    ),
    "standard": STANDARD,
    "float64": (
        "layer_norm/1x64/float64",
        "layer_norm/512x768/float64",
        "layer_norm/64x197x768/float64",
        "instance_norm/8x256x64x64/float64",
        "instance_norm/2x32x64x128x128/float64",
    ),
    "layouts": (
        "layer_norm/4096x1024",
        "layer_norm/4096x1024/float16",
        "layer_norm/4096x1024/bfloat16",
        "layer_norm/16384x4096",
        "layer_norm/16384x4096/float16",
        "layer_norm/16384x4096/bfloat16",
        "layer_norm/12608x768",
        "layer_norm/12608x768/step=2",
        "layer_norm/12608x768/mask",
        "layer_norm/8x256x64x64/axis=1",
        "instance_norm/8x256x64x64",
        "instance_norm/8x256x64x64/float16",
        "instance_norm/8x256x64x64/mask",
        "instance_norm/8x64x64x256/channel_axis=-1",
        "instance_norm/2x32x64x128x128",
        "instance_norm/2x64x128x128x32/channel_axis=-1",
    ),
    "few": (  # elements in each set: what is done once for a set is most of the work
        "layer_norm/2x1000000/axis=0",
        "layer_norm/4x500000/axis=0",
        "layer_norm/16x3x256x256/axis=1",
        "layer_norm/16x3x256x256/float16/axis=1",
        "layer_norm/1000000x1",
        "layer_norm/1000000x2",
        "layer_norm/1080x1920x3",
        "layer_norm/1080x1920x3/float16",
        "layer_norm/400000x5",
        "layer_norm/250000x8",
    ),
    "hard": (
        "layer_norm/512x768/offset=10000",
        "layer_norm/512x768/offset=1e+06",
        "layer_norm/512x768/outlier=3e+19",
        "layer_norm/512x768/constant=1234",
        "instance_norm/1x1x4096x4096/offset=100",
        "instance_norm/1x4x128x128/offset=10000",
    ),
}

# The plain case that has the same elements: what does the layout or the dtype cost?
PLAIN = {
    "layer_norm/4096x1024/float16": "layer_norm/4096x1024",
    "layer_norm/4096x1024/bfloat16": "layer_norm/4096x1024",
    "layer_norm/16384x4096/float16": "layer_norm/16384x4096",
    "layer_norm/16384x4096/bfloat16": "layer_norm/16384x4096",
    "layer_norm/12608x768/step=2": "layer_norm/12608x768",
    "layer_norm/12608x768/mask": "layer_norm/12608x768",
    "instance_norm/8x256x64x64/float16": "instance_norm/8x256x64x64",
    "instance_norm/8x256x64x64/mask": "instance_norm/8x256x64x64",
    "instance_norm/8x64x64x256/channel_axis=-1": "instance_norm/8x256x64x64",
    "instance_norm/2x64x128x128x32/channel_axis=-1": "instance_norm/2x32x64x128x128",
}


def select(patterns: Iterable[str]) -> list[Case]:
    """The cases that groups, specs or patterns with * name, each once."""
    known = list(dict.fromkeys(spec for group in GROUPS.values() for spec in group))
    specs: list[str] = []
    for pattern in patterns:
        matches = GROUPS.get(pattern) or [spec for spec in known if fnmatch(spec, pattern)]
        if not matches and "*" in pattern:
            raise ValueError(f"no case matches {pattern!r}")
        specs += matches or [pattern]
    return list(dict.fromkeys(Case.parse(spec) for spec in specs))
