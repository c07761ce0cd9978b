"""What is said of degenerate statistics, in errors and by `explain`: why they are, of which sets, and the choices."""

from __future__ import annotations

import textwrap
from math import prod

import numpy as np

from normkit.masks import Degenerate
from normkit.problem import Array, Problem

WIDTH = 100  # of the text beside the labels; code is never broken
MOST_SETS = 4  # that a text names


def degenerate_text(problem: Problem) -> str:
    """The message of `DegenerateShapeError`: what is wrong, what it means, and the choices."""
    return "\n".join(
        [
            f"{problem.op}: x of shape {problem.shape} has 1 element for each mean and variance, expected more than 1",
            textwrap.indent(wrapped(f"reduced: {reduced(problem)}."), "  "),
            textwrap.indent(wrapped(why(problem)), "  "),
            "  Your choices:",
            textwrap.indent(choices(problem), "    "),
        ]
    )


def masked_text(problem: Problem, few: Degenerate) -> str:
    """The message of `DegenerateShapeError` where a mask leaves fewer than two elements of a set of statistics."""
    said = []
    if few.empty.any():
        said.append("Of no element there is no mean and no variance: the output would be NaN all over such a set.")
    if few.single.any():
        scale = f"scaled by 1 / sqrt(eps) = {problem.eps**-0.5:.4g}" if problem.eps else "lost as well"
        said.append(
            f"One element is its own mean and has variance 0: the output there would be {erased(problem, '')}, whatever it "
            f"holds, and what else lies in its set would be {scale}."
        )
    said.append("The other sets are not affected.")
    return "\n".join(
        [
            f"{problem.op}: mask leaves fewer than 2 elements of {number(problem, few)} of statistics, "
            "expected 2 or more of each",
            textwrap.indent(wrapped(f"reduced: {reduced(problem)}."), "  "),
            textwrap.indent(wrapped(f"left: {few_of(problem, few)}."), "  "),
            textwrap.indent(wrapped(" ".join(said)), "  "),
            "  Your choices:",
            textwrap.indent(masked_choices(problem), "    "),
        ]
    )


def number(problem: Problem, few: Degenerate) -> str:
    return f"{int(np.broadcast_to(few.either, problem.stats_shape).sum())} of the {prod(problem.stats_shape)} sets"


def few_of(problem: Problem, few: Degenerate) -> str:
    """What the mask leaves of which sets."""
    found = [("none", few.empty), ("one", few.single)]
    return "; ".join(f"{what} of {_some_sets(problem, where)}" for what, where in found if where.any())


def _some_sets(problem: Problem, where: Array) -> str:
    """Some sets as one would index x for them, and how many more there are."""
    where = np.broadcast_to(where, problem.stats_shape)
    where = where.get() if hasattr(where, "get") else where
    found = [
        ", ".join(":" if a in problem.axes else str(i) for a, i in enumerate(index)) for index in np.argwhere(where)[:MOST_SETS]
    ]
    more = int(where.sum()) - len(found)
    return " and ".join([", ".join(f"x[{index}]" for index in found), *([f"{more} more"] if more else [])])


def masked_choices(problem: Problem) -> str:
    """The choices, each with the code to type."""
    found = [
        ("pass x there as it is: x * weight + bias", "", "identity"),
        ("put the bias there, or 0 without one", "", "bias"),
    ]
    if problem.op == "instance_norm":
        if problem.shape[problem.affine_axes[0]] > 1:
            found.append(("normalize there over the channels of the instance", "", "layer_norm"))
        found.append(("use running statistics there, as gathered in training", "running_mean, running_var, ", "running"))
    return "\n".join(
        f"# {meaning}\nnk.{problem.op}({_x(problem)}, {running}{_axes_of(problem)}mask=mask, "
        f'policy=nk.FallbackPolicy(single_element="{answer}"))'
        for meaning, running, answer in found
    )


def _x(problem: Problem) -> str:
    return "x" if problem.batched else "x[np.newaxis]"


def _axes_of(problem: Problem) -> str:
    """The argument that says which axes, if these are not the ones without it."""
    if problem.op == "instance_norm":
        channel = problem.affine_axes[0]
        return "" if channel == 1 or not problem.batched else f"channel_axis={channel}, "
    if problem.axes == (len(problem.shape) - 1,):
        return ""
    return f"axis={problem.axes if len(problem.axes) > 1 else problem.axes[0]}, "


def reduced(problem: Problem) -> str:
    sizes = tuple(problem.shape[a] for a in problem.axes)
    if len(sizes) == 0:
        reduced = "no axis"
    elif len(sizes) == 1:
        reduced = f"axis {problem.axes[0]}, of size {sizes[0]}"
    else:
        reduced = f"axes {problem.axes}, of sizes {sizes}"
    sets, elements = prod(problem.stats_shape), "element" if problem.count == 1 else "elements"
    if problem.statistics == "given":
        return f"none: the statistics are the running ones, a pair for each of {prod(problem.affine_shape)} channels"
    return f"{reduced}: {sets} {'set' if sets == 1 else 'sets'} of statistics, each over {problem.count} {elements}"


def erased(problem: Problem, where: str) -> str:
    return f"{'0' if problem.bias is None else 'the bias'}{where}"


def why(problem: Problem) -> str:
    enough = list(problem.shape)
    if problem.axes:
        enough[problem.axes[-1]] = 2
    else:
        enough.append(2)
    raises = "torch raises for that reason; ONNX, Flax, MLX and Keras return the bias."
    if problem.op == "layer_norm":
        raises = "torch, ONNX, Flax, MLX and Keras return the bias all the same."
    return (
        "One element is its own mean and has variance 0. Nothing divides by zero (eps is inside the root),\n"
        f"but x - mean is 0: the output would be {erased(problem, ' everywhere')}, whatever x holds.\n"
        f"The input is silently erased. {raises}\n"
        f"More than one element is enough: {tuple(enough)} works."
    )


def choices(problem: Problem) -> str:
    """The choices, each with the code to type; all of it can be pasted into Python."""
    call = f"nk.{problem.op}({_x(problem)}, {_axes_of(problem)}policy=nk.FallbackPolicy(single_element={{}}))"
    found = [
        ("pass x as it is: x * weight + bias", call.format('"identity"')),
        ("take what the arithmetic gives, the bias, as ONNX does", call.format('"bias"')),
    ]
    if problem.op == "instance_norm":
        channels = problem.shape[problem.affine_axes[0]]
        if channels > 1:
            found.append(
                (
                    f"normalize over the {channels} channels of each instance: another function, not a fix",
                    call.format('"layer_norm"'),
                )
            )
        found += [
            (
                "use running statistics, as gathered in training",
                f"nk.instance_norm({_x(problem)}, running_mean, running_var, {_axes_of(problem)}use_input_stats=False)",
            ),
        ]
    found.append(("decide once, for all calls in a block", "with nk.using(policy=nk.FallbackPolicy.onnx()): ..."))
    text = "\n".join(f"# {meaning}\n{code}" for meaning, code in found)
    if problem.op == "instance_norm":
        text += "\n# or mend the model: normalize before the spatial axes are pooled to 1, or leave this layer out"
    return text


def wrapped(text: str) -> str:
    """Prose broken to lines of WIDTH; lines that fit, as those of code do, are left alone."""
    return "\n".join(
        line
        if len(line) <= WIDTH or line.startswith(("nk.", "with nk."))
        else textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )
