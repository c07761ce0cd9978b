"""Calls on any memory layout, with or without a mask: the arrays as the kernels take them, or by way of a buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normkit.masks import degenerate_sets
from normkit.problem import Operands, Problem, kind, of_kind

from . import columns, kernels, layouts, limits, tiles
from .guard import repeating
from .launches import launcher, tell_limits
from .layouts import ColumnsPlan, RowsPlan
from .objects import flat
from .sets import Sets, rows_shape

MASK_BYTES = 1 << 20  # no more of a mask is copied at once
PART_BYTES = 1 << 18  # a part of a call is at least so large: some ten times what a call costs


def run(problem: Problem, operands: Operands) -> None:
    """Normalize x wherever it lies."""
    x, out = operands.x, operands.out
    if x.size == 0:
        if operands.mean is not None and problem.statistics == "input":
            operands.mean[...] = operands.var[...] = np.nan
        return
    mask = None
    if operands.mask is not None and problem.statistics == "input":
        mask = np.broadcast_to(operands.mask, x.shape)
    plan = planned(problem, out, mask)
    if plan is None and (axis := _outermost(problem, operands)) is not None:
        for i in range(x.shape[axis]):
            run(*_part(problem, operands, axis, i))
        return
    if plan is None and mask is not None and planned(problem, out, None) is not None:
        if x.size <= MASK_BYTES:
            mask = np.empty_like(x, np.bool_, subok=False)  # as x lies
            mask[...] = operands.mask
            plan = planned(problem, out, mask)
        elif kept := [a for a in range(x.ndim) if a not in problem.axes and x.shape[a] > 1]:
            axis = max(kept, key=lambda a: abs(x.strides[a]))
            many = max(1, MASK_BYTES * x.shape[axis] // x.size)
            for i in range(0, x.shape[axis], many):
                run(*_part(problem, operands, axis, i, many))
            return
    if isinstance(plan, RowsPlan):
        _rows(problem, plan, operands, mask)
    elif isinstance(plan, ColumnsPlan):
        columns.run(problem, plan, operands, mask)
    else:
        tiles.run(problem, operands, mask)


def _outermost(problem: Problem, operands: Operands) -> int | None:
    """An axis along which the parts of a call can be taken where they lie, if they are large enough to be taken alone."""
    x = operands.x
    kept = [a for a in range(x.ndim) if a not in problem.axes and x.shape[a] > 1]
    if not kept:
        return None
    axis = max(kept, key=lambda a: abs(x.strides[a]))
    if x.nbytes // x.shape[axis] < PART_BYTES:
        return None
    part, arrays = _part(problem, operands, axis, 0)
    mask = None if arrays.mask is None else np.broadcast_to(arrays.mask, arrays.x.shape)
    return None if planned(part, arrays.out, mask) is None else axis


def _part(problem: Problem, operands: Operands, axis: int, i: int, many: int = 1) -> tuple[Problem, Operands]:
    """The part of a call that has index i and so many along a kept axis."""

    def part(a: NDArray[Any] | None, axis: int = axis) -> Any:
        return a if a is None or a.shape[axis] == 1 else a[(slice(None),) * axis + (slice(i, i + many),)]

    x, mask = part(operands.x), operands.mask
    if mask is not None:
        mask = part(mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape))
    weight, bias = operands.weight, operands.bias
    if axis in problem.affine_axes:
        weight, bias = (part(p, problem.affine_axes.index(axis)) for p in (weight, bias))
    arrays = Operands(x, weight, bias, part(operands.out), part(operands.mean), part(operands.var), mask)
    return replace(problem, shape=x.shape, strides=x.strides), arrays


def planned(problem: Problem, out: NDArray[Any], mask: NDArray[Any] | None) -> RowsPlan | ColumnsPlan | None:
    """How x, out and mask can be taken where they lie; None if they cannot."""
    if not out.dtype.isnative:
        return None
    return layouts.of(problem, out.strides, None if mask is None else mask.strides)


def replay(problem: Problem, operands: Operands, given_out: NDArray[Any] | None) -> Callable[..., Any] | None:
    """What repeats a run on rows with gaps or a mask, see `normkit.plans`; None of anything else.

    Nor if the output is new and its axes do not lie in order, or the statistics are wanted and their sets do not.
    """
    x, out = operands.x, operands.out
    if x.size == 0:
        return None
    mask = None if operands.mask is None else np.broadcast_to(operands.mask, x.shape)
    plan = planned(problem, out, mask)
    if not isinstance(plan, RowsPlan) or (given_out is None and not out.flags.c_contiguous):
        return None
    sets, given = Sets(problem, plan.order), [p for p in (operands.weight, operands.bias) if p is not None]
    size = prod(problem.affine_shape) if given else 1
    if given and not sets.as_given(size):
        return None
    if operands.mean is not None and not (sets.given or sets.in_order):
        return None
    shape = _shape(problem, plan, sets, size, operands)
    launch = launcher(problem, sets.number, masked=mask is not None)

    def run(x: Any, out: Any, weight: Any, bias: Any, mask: Any, mean: Any, var: Any) -> None:
        mean, var = sets.handed(mean, var)
        launch(flat(x), flat(out), None if mask is None else flat(mask), weight, bias, mean, var, shape, problem.eps)

    again = repeating(operands, given_out, sets.parameter, size, run)
    if mask is None or again is None:
        return again
    shape[kernels.WANTED] = 1
    return _masked(problem, operands.mask, again)


def _masked(problem: Problem, like: NDArray[Any], again: Callable[..., Any]) -> Callable[..., Any]:
    """`again` with a mask. It declines one that leaves fewer than two elements of some set: then the policy has its say.

    The kernel tells, by a variance of NaN or 0; only if `out` would be lost, the mask is looked at before.
    """
    sort, sets = kind(like), prod(problem.stats_shape)

    def masked(x: Any, weight: Any, bias: Any, out: Any, mask: Any, mean: Any = None, var: Any = None) -> Any:
        if not of_kind(mask, sort):
            return None
        if out is not None and (np.may_share_memory(out, mask) or degenerate_sets(problem, mask) is not None):
            return None
        if mean is None:
            mean, var = np.empty(sets), np.empty(sets)
        full = mask if mask.shape == problem.shape else np.broadcast_to(mask, problem.shape)
        y = again(x, weight, bias, out, full, mean, var)
        unsure = y is not None and out is None and not (var > 0).all()
        return None if unsure and degenerate_sets(problem, mask) is not None else y

    return masked


def _rows(problem: Problem, plan: RowsPlan, operands: Operands, mask: NDArray[Any] | None) -> None:
    sets = Sets(problem, plan.order)
    mean, var = sets.statistics(operands)
    weight, bias = sets.parameters(operands)
    shape = _shape(problem, plan, sets, weight.size, operands)
    x, out, flags = flat(operands.x), flat(operands.out), None if mask is None else flat(mask)
    launcher(problem, sets.number, masked=mask is not None)(x, out, flags, weight, bias, mean, var, shape, problem.eps)
    sets.keep(operands, mean, var)


def _shape(problem: Problem, plan: RowsPlan, sets: Sets, weights: int, operands: Operands) -> NDArray[np.int64]:
    """What the kernels are told."""
    shape = rows_shape(sets, sets.number, operands)
    shape[kernels.PERIOD] = 1 if sets.apart else weights
    runs, inner = shape[[kernels.RUNS, kernels.INNER]].tolist()
    tell_limits(shape, problem, plan.x[2], 0 if operands.mask is not None else limits.rows_at_once(problem, runs, inner))
    for at, quad in ((kernels.X_ROWS, plan.x), (kernels.OUT_ROWS, plan.out), (kernels.M_ROWS, plan.mask)):
        shape[at : at + 4] = quad
    shape[kernels.M_STEP] = plan.mask_step
    return shape


def describe(problem: Problem) -> str:
    """How x is taken, what is copied, and why."""
    plan = layouts.of(problem, layouts.output(problem.shape, problem.strides, problem.dtype.itemsize))
    match plan:
        case RowsPlan():
            view = f"rows: x viewed as {prod(problem.stats_shape)} rows of {problem.count} neighbours"
            return f"{view}, where they lie; nothing is copied"
        case ColumnsPlan(_, outer, length, lanes):
            view = f"columns: x viewed as {outer} blocks of {length} x {lanes}, statistics down each of {lanes} lanes"
            return f"{view}, where they lie; nothing is copied"
    x = layouts.memory(problem.shape, problem.strides, problem.dtype.itemsize)
    if not problem.dtype.isnative:
        why = "x is not in the byte order of this machine"
    elif x is None:
        why = "its strides are not whole numbers of elements"
    elif 1 not in map(abs, x.steps):
        why = "no axis of x is contiguous"
    else:
        why = "no view of x makes rows or columns of the sets, with the elements of each in order"
    return f"copied, in blocks of {tiles.TILE_BYTES >> 10} KiB that stay in cache: {why}"
