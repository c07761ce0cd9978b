"""A run as a picture: one line per case, one mark per contender, the ratio of times on a log axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from normkit.bench.contenders import CONTENDERS
from normkit.bench.results import CaseResult, Run

WIDTH = 9.0  # inches: 900 pixels at 100 dpi, the width of a README
ORDER = {"floor": 2, "peer": 3, "normkit": 4}  # what covers what
MARKS = {
    "streaming copy": ("|", "#555555"),
    "layout copy": ("|", "#e8590c"),
    "np.copy": ("|", "#bbbbbb"),
    "normkit out=": ("D", "#0b7a3b"),
    "normkit": ("D", "#3fbf6f"),
    "normkit, one thread": ("D", "#b2f2bb"),
    "torch": ("o", "#d9480f"),
    "torch, memory kept": ("o", "#ffa94d"),
    "ONNX Runtime": ("s", "#1c7ed6"),
    "OpenVINO": ("^", "#7048e8"),
    "JAX": ("v", "#c2255c"),
    "Keras on NumPy": ("P", "#868e96"),
    "NumPy": ("X", "#212529"),
}


def draw(run: Run, file: Path) -> None:
    """Write the picture; the ending of the name says in which format."""
    from matplotlib.figure import Figure

    results = run.finished
    figure = Figure(figsize=(WIDTH, 1.7 + 0.34 * len(results)), layout="constrained")
    axes = figure.subplots()
    for row, result in enumerate(results):
        axes.axhline(row, color="#eeeeee", zorder=0)
        _draw_case(axes, run, result, row)
    _decorate(axes, run, results)
    handles = [_handle(name) for name in run.names]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=10)
    figure.savefig(file, dpi=200 if file.suffix == ".png" else "figure")


def _draw_case(axes: Any, run: Run, result: CaseResult, row: int) -> None:
    for name in result.timed:
        marker, colour = MARKS[name]
        floor = CONTENDERS[name].kind == "floor"
        size = {"s": 150 if floor else 46, "linewidths": 2.5 if floor else 0.7}
        edge = {} if floor else {"edgecolors": "white"}
        axes.scatter(
            result.ratio(name, run.base), row, marker=marker, color=colour, zorder=ORDER[CONTENDERS[name].kind], **size, **edge
        )


def _decorate(axes: Any, run: Run, results: list[CaseResult]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.axvline(1, color="#3fbf6f", linewidth=1, zorder=1)
    axes.grid(axis="x", which="both", color="#f1f3f5", zorder=0)
    axes.set_yticks(range(len(results)), [_label(result) for result in results], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlabel(f"time / {run.base}'s  (log axis; right of the line is slower)\n{_machine(run)}", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _label(result: CaseResult) -> str:
    case = result.case
    sizes = "x".join(map(str, case.shape))
    return " ".join([case.op, sizes, *case.options])


def _machine(run: Run) -> str:
    return f"{run.machine.get('cpu', '?')}, {run.machine.get('cores', '?')} cores"


def _handle(name: str) -> Any:
    from matplotlib.lines import Line2D

    marker, colour = MARKS[name]
    floor = CONTENDERS[name].kind == "floor"
    edges = {"markeredgecolor": colour, "markeredgewidth": 2.5, "markersize": 11} if floor else {"markersize": 7}
    label = f"{name} (floor)" if floor else name
    return Line2D([], [], linestyle="", marker=marker, color=colour, label=label, **edges)
