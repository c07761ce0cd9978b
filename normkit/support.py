"""What each backend serves, as a table made from what it says itself: `python -m normkit.support README.md` renews it there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from normkit import validation
from normkit.problem import Problem
from normkit.registry import find
from normkit.validation import Call

BACKENDS = ("numba", "numpy")
BEGIN, END = "<!-- support: begin -->\n", "<!-- support: end -->\n"


def cases() -> Iterator[tuple[str, Call]]:
    """What a user may have, in words, and as a validated call."""
    import ml_dtypes

    layer, instance = validation.layer_norm, validation.instance_norm
    x = np.sin(np.arange(4 * 6 * 8 * 10, dtype=np.float32)).reshape(4, 6, 8, 10)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        yield np.dtype(dtype).name, layer(x.astype(dtype))
    yield "half `x` with weight and bias of float32", layer(x.astype(np.float16), weight=x[0, 0, 0], bias=x[0, 0, 0])
    yield "`instance_norm`, channels first", instance(x)
    yield "`instance_norm`, channels last: `channel_axis=-1`", instance(x, channel_axis=-1)
    yield "`layer_norm` over the channels of (N, C, H, W): `axis=1`", layer(x, axis=1)
    yield "`layer_norm` over all but some axes: `axis=(0, 2)`", layer(x, axis=(0, 2))
    yield "running statistics for those of `x`", instance(x, running_mean=x[0, :, 0, 0], running_var=x[0, :, 0, 0],
                                                          use_input_stats=False)  # fmt: skip
    yield "`mask=`", layer(x, mask=np.ones((4, 1, 1, 10), bool))
    yield "every second row: `x[:, ::2]`", layer(x[:, ::2])
    yield "a crop of an image, channels last: `x[:, 1:-1, 1:-1]`", instance(x[:, 1:-1, 1:-1], channel_axis=-1)
    yield "a crop of an image, channels first: `x[:, :, 1:-1, 1:-1]`", instance(x[:, :, 1:-1, 1:-1])
    yield "transposed, Fortran order: `x.T`", layer(x.T)
    yield "rows backwards: `x[::-1]`", layer(x[::-1])
    yield "elements backwards, or with gaps: `x[..., ::-1]`", layer(x[..., ::-1])
    yield "repeated: `np.broadcast_to`", layer(np.broadcast_to(x[0], x.shape))
    yield "another byte order", layer(x.astype(x.dtype.newbyteorder()))
    yield "more than 2**31 elements", layer(validation.ShapeOnly((1 << 20, 1 << 12), np.dtype(np.float32)))


def table() -> str:
    """The table in Markdown: yes, or how, or why not."""
    lines = [f"| | {' | '.join(BACKENDS)} |", "|---" * (1 + len(BACKENDS)) + "|"]
    for what, call in cases():
        lines.append(f"| {what} | {' | '.join(_served(find(name), call.problem) for name in BACKENDS)} |")
    return "\n".join(lines) + "\n"


def _served(backend: Any, problem: Problem) -> str:
    if why_not := backend.why_not(problem):
        return f"no: {'; '.join(why_not)}"
    how = getattr(backend, "describe_layout", lambda problem: None)(problem) or ""
    return "yes, by way of a small buffer" if "copied, in blocks" in how else "yes"


def renewed(text: str) -> str:
    """A text with the table between its marks made anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
