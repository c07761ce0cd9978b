"""From a validated call to its result: the policy's answer to degenerate statistics, a backend, memory, statistics."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from normkit import answers
from normkit import policy as policies
from normkit.arguments import asked, flag
from normkit.callers import level_of_the_user
from normkit.degenerate import degenerate_text, masked_text
from normkit.dispatch import choose, loud, news, refusal, stepping_down
from normkit.errors import DegenerateShapeError, FallbackWarning, PolicyError, RunningStatsWarning
from normkit.masks import Degenerate, degenerate_sets
from normkit.overlap import may_share_memory, place
from normkit.plans import Plan, current, keepable
from normkit.policy import FallbackPolicy
from normkit.problem import Array, Backend, Operands, Problem, kind, native, of_kind
from normkit.registry import named
from normkit.validation import Call, Running

Prepared = Callable[[Operands], None]


def execute(call: Call, return_stats: bool, backend: str | None, policy: FallbackPolicy | None, arguments: Any = None) -> Any:
    """Run a validated call. Returns y, or (y, mean, rstd) if `return_stats`. With `arguments`, keeps the run for its like."""
    problem, operands, running = call
    return_stats = asked(problem.op, flag, problem.op, "return_stats", return_stats)
    table, ambient = current(), policies.ambient()
    policy = ambient.policy if policy is None else policies.checked(policy)
    name = ambient.backend if backend is None else named(backend)
    instead = prepared = None
    if problem.degenerate:
        answer = policy.answer(problem.op)
        if callable(answer):
            return _answered_by(answer, problem, operands, return_stats)
        problem, operands, running = _resolved(answer, call, degenerate_text)
        prepared = None if answer == "bias" and problem.masked else answers.prepared(answer, problem)
    if problem.masked and problem.statistics == "input" and (few := degenerate_sets(problem, operands.mask)) is not None:
        instead = _instead(Call(problem, operands, running), few, policy, name, return_stats)
    _give_statistics(problem, operands, running)
    engine = _engine(problem, policy, name)
    out = operands.out
    if return_stats or running is not None:
        _make_room(engine, problem, operands)
    y = _run(engine, problem, operands, prepared)
    if instead is not None:
        _put(y, instead.parts)
    if operands.out is (y if out is None else out) and keepable(arguments) and _silent(problem, policy, name):
        plan = _plan(engine, call, Call(problem, operands, running), out, return_stats, prepared)
        if plan is not None:
            table.keep(arguments, operands.x, plan)
    if running is not None and problem.statistics == "input":
        _update(running, operands.mean, operands.var, operands.mask, problem)
    if not return_stats:
        return y
    mean, rstd = _mean_and_rstd(problem, operands.mean, operands.var)
    if instead is not None and instead.mean is not None:
        _put(mean, [(instead.mean, instead.where)])
        _put(rstd, [(instead.rstd, instead.where)])
    return y, mean, rstd


class Instead(NamedTuple):
    """What the policy puts where a mask leaves too little of a set."""

    where: Array
    parts: list[tuple[Array, Array]]  # of y: values, and where they go
    mean: Array | None = None  # what they were normalized with; None: what is left itself
    rstd: Array | None = None


def _put(a: Array, parts: list[tuple[Array, Array]]) -> None:
    with np.errstate(all="ignore"):  # a bias may be wider than y
        for values, where in parts:
            np.copyto(a, values.astype(a.dtype), where=where)


def _engine(problem: Problem, policy: FallbackPolicy, name: str | None) -> Backend:
    choice = choose(problem, policy, name)
    if choice.backend is None or (loud(choice) and policy.on_fallback == "raise"):
        raise refusal(problem, policy, choice, name)
    if policy.on_fallback == "warn" and (told := news(choice)):
        warnings.warn(stepping_down(problem, policy, choice, told), FallbackWarning, stacklevel=level_of_the_user())
    return choice.backend


def _silent(problem: Problem, policy: FallbackPolicy, name: str | None) -> bool:
    """Whether nothing is to be said each time of the backend that runs."""
    return not (policy.on_fallback == "warn" and loud(choose(problem, policy, name)))


def _plan(
    engine: Backend, asked: Call, call: Call, out: Array | None, wants_stats: bool, prepared: Prepared | None
) -> Plan | None:
    """A plan for calls like this one: the backend's own, or the run itself.

    Not with both a mask and running statistics, nor where the policy's answer has done without these.
    """
    problem, like, running = call
    if running is not asked.running or (running is not None and problem.masked):
        return None
    if problem.family != "numpy" and like.mean is not None:
        return None
    run = _together(problem, like)
    again = getattr(engine, "replay", lambda *_: None)(run, like, out) if prepared is None else None
    if again is None and problem.family == "numpy" and not problem.masked:
        again = _again(engine, run, like, out, prepared or engine.prepare(run))
    return again if again is None or like.mean is None else _with_statistics(engine, call, wants_stats, again)


def _again(engine: Backend, problem: Problem, like: Operands, out: Array | None, prepared: Prepared) -> Plan:
    """A plan that runs the problem again, on NumPy arrays of the kinds of these."""
    kinds = [kind(a) for a in (like.x, like.weight, like.bias, out)]

    def again(
        x: Array, weight: Array, bias: Array, out: Array, mask: Array = None, mean: Array = None, var: Array = None
    ) -> Any:
        if not all(map(of_kind, (x, weight, bias, out), kinds)) or not (out is None or out.flags.writeable):
            return None
        return _run(engine, problem, Operands(x, weight, bias, out, mean, var), prepared)

    return again


def _with_statistics(engine: Backend, like: Call, wants_stats: bool, again: Plan) -> Plan:
    """A plan for calls that are given statistics, or want them, or both: for these it makes room each time."""
    problem, room, running = like.problem, engine.empty_stats, like.running
    kinds = [] if running is None else [kind(a) for a in (running.mean, running.var)]
    given, momentum, shape = problem.statistics == "given", 0.0 if running is None else running.momentum, problem.stats_shape
    updates, affine = running is not None and not given, problem.affine_shape

    def plan(
        x: Array, weight: Array, bias: Array, out: Array, mask: Array = None,
        running_mean: Array = None, running_var: Array = None,
    ) -> Any:  # fmt: skip
        if kinds and not (of_kind(running_mean, kinds[0]) and of_kind(running_var, kinds[1])):
            return None
        if updates and not _separate(running_mean, running_var, out):
            return None
        if not given:
            mean, var = room(shape), room(shape)
        elif kinds:
            mean, var = _as_stats(running_mean, affine), _as_stats(running_var, affine)
        else:
            mean, var = _unit(problem, x)
        y = again(x, weight, bias, out, mask, mean, var)
        if updates and y is not None:
            _update(Running(running_mean, running_var, momentum), mean, var, None, problem)
        return (y, *_mean_and_rstd(problem, mean, var)) if wants_stats and y is not None else y

    return plan


def _separate(mean: Array, var: Array, out: Array | None) -> bool:
    """Whether running arrays may be updated as they are: they can be written to, and lie apart from each other and from out."""
    others = [(mean, var)] if out is None else [(mean, var), (mean, out), (var, out)]
    return mean.flags.writeable and var.flags.writeable and not any(may_share_memory(*pair) for pair in others)


def _make_room(engine: Backend, problem: Problem, operands: Operands) -> None:
    """For the statistics of x, if those are the ones that are used."""
    if problem.statistics == "input":
        operands.mean, operands.var = (engine.empty_stats(problem.stats_shape) for _ in range(2))


def _run(engine: Backend, problem: Problem, operands: Operands, prepared: Prepared | None = None) -> Array:
    """Run on `operands.out`, on a new array, or by way of a temporary if out overlaps an operand other than as itself."""
    out = operands.out
    if out is None or _overlaps(out, operands):
        operands.out = engine.empty_like(operands.x)
    (prepared or engine.prepare(_together(problem, operands)))(operands)
    if out is None:
        return operands.out
    if operands.out is not out:
        out[...] = operands.out
    return out


def _together(problem: Problem, operands: Operands) -> Problem:
    """Single elements that are given the statistics of their channel are one set with those of the other instances.

    So they are columns, where they would be rows of one element each.
    """
    if problem.statistics == "input" or problem.count != 1 or operands.mean.shape != problem.affine_shape:
        return problem
    return replace(problem, axes=tuple(a for a in range(len(problem.shape)) if a not in problem.affine_axes))


def _overlaps(out: Array, operands: Operands) -> bool:
    """Whether writing `out` could change an operand before it is read. In place, element on element, is fine."""
    x = operands.x
    same = out is x or (place(out) == place(x) and out.strides == x.strides)
    others = [operands.weight, operands.bias, operands.mask, operands.mean, operands.var]
    others += [] if same else [x]
    return any(a is not None and may_share_memory(out, a) for a in others)


def _instead(call: Call, few: Degenerate, policy: FallbackPolicy, name: str | None, return_stats: bool) -> Instead:
    """What the policy puts where the mask leaves fewer than two elements: before the run, as out may lie over anything."""
    problem, operands, running = call
    answer, where = policy.answer(problem.op), few.either

    def text(problem: Problem) -> str:
        return masked_text(problem, few)

    operands = replace(operands, out=None)
    if callable(answer):
        return Instead(where, [(_answered_by(answer, problem, operands, return_stats), where)])
    prepared = answers.prepared(answer, problem)
    if answer == "bias":
        return Instead(where, _bias(problem, operands, few, prepared))
    other, operands, running = _resolved(answer, Call(problem, operands, running), text)
    still = degenerate_sets(other, operands.mask) if other.statistics == "input" else None
    if still is not None and (still.either & where).any():
        raise DegenerateShapeError(
            f"{text(problem)}\n  The policy's single_element={answer!r} finds fewer than two elements there as well."
        )
    _give_statistics(other, operands, running)
    engine = _engine(other, policy, name)
    if return_stats:
        _make_room(engine, other, operands)
    y = _run(engine, other, operands, prepared)
    return Instead(where, [(y, where)], *(_mean_and_rstd(other, operands.mean, operands.var) if return_stats else ()))


def _bias(problem: Problem, operands: Operands, few: Degenerate, prepared: Prepared | None) -> list[tuple[Array, Array]]:
    """The bias, and where it goes: all over the set. An element that is left alone gives what it gives without a mask."""
    bias = answers.shift(problem, operands)
    if prepared is None:
        return [(bias, few.either & ~operands.mask)]
    if not few.single.any():
        return [(bias, few.empty)]
    alone = replace(operands, out=np.empty_like(operands.x, native(operands.x.dtype)), mean=None, var=None)
    prepared(alone)
    return [(bias, few.either), (alone.out, few.single & operands.mask)]


def _resolved(answer: str, call: Call, text: Callable[[Problem], str]) -> Call:
    """The call that a policy's answer to degenerate statistics makes of one that has them; `text` says what is wrong."""
    problem, operands, running = call
    match answer:
        case "bias":
            return Call(problem, operands)  # the variance of one element is unknown: nothing to add to running statistics
        case "identity":
            operands.mean, operands.var = _unit(problem, operands.x)
            return Call(replace(problem, statistics="given", eps=0.0), operands)
        case "layer_norm" if problem.op == "instance_norm":
            axes = tuple(range(int(problem.batched), len(problem.shape)))
            over_channels = replace(problem, axes=axes)
            if over_channels.count > 1:
                return Call(over_channels, operands)
            why = "'layer_norm' goes over the channels of each instance, and there is one channel"
        case "running" if running is not None:
            return Call(replace(problem, statistics="given"), operands, running)
        case "running" if problem.op == "instance_norm":
            why = "'running' needs running_mean and running_var, and none were given"
        case "raise":
            raise DegenerateShapeError(text(problem))
        case _:
            why = f"{answer!r} is an answer for instance_norm, and has no meaning for {problem.op}"
    raise DegenerateShapeError(f"{text(problem)}\n  The policy's single_element={answer!r} cannot help: {why}.")


def _answered_by(answer: Any, problem: Problem, operands: Operands, return_stats: bool) -> Any:
    """The output that a policy's callable gives."""
    if return_stats:
        raise PolicyError(f"{problem.op}: return_stats=True, and the policy's callable gives an output without statistics")
    y = answer(replace(problem, operands=operands))
    if problem.family == "numpy":
        y = np.asarray(y)
    if tuple(y.shape) != problem.shape or not np.can_cast(y.dtype, problem.dtype, "same_kind"):
        raise PolicyError(
            f"{problem.op}: the policy's callable gave shape {tuple(y.shape)} of {y.dtype}, expected {problem.shape} of "
            f"{problem.dtype} = x"
        )
    if operands.out is None:
        return y.astype(native(problem.dtype))  # a copy: the callable may have given x itself
    operands.out[...] = y
    return operands.out


def _give_statistics(problem: Problem, operands: Operands, running: Running | None) -> None:
    """Hand over the running statistics where those are the ones to be used."""
    if problem.statistics == "given" and operands.mean is None:
        assert running is not None
        shape = problem.affine_shape
        operands.mean, operands.var = _as_stats(running.mean, shape), _as_stats(running.var, shape)


def _as_stats(statistic: Array, shape: tuple[int, ...]) -> Array:
    with np.errstate(all="ignore"):  # a signalling NaN is one NaN more
        return statistic.astype(np.float64).reshape(shape)


def _unit(problem: Problem, x: Array) -> tuple[Array, Array]:
    """Mean and variance that change nothing."""
    shape = tuple(n if a in problem.affine_axes else 1 for a, n in enumerate(problem.stats_shape))
    zero = answers.zeros((1,) * len(shape), x)
    return np.broadcast_to(zero, shape), np.broadcast_to(zero + 1, shape)  # one number each, however many channels


def _mean_and_rstd(problem: Problem, mean: Array, var: Array) -> tuple[Array, Array]:
    """Statistics as the caller sees them, of shape `stats_shape`. rstd of no variance and eps = 0 is 0, as it acts."""
    if problem.statistics == "given":
        mean, var = (np.broadcast_to(s, problem.stats_shape).copy() for s in (mean, var))
    with np.errstate(all="ignore"):
        std = np.sqrt(var + problem.eps)
        return mean, 1.0 / std if problem.eps > 0 else (std != 0) / np.where(std == 0, 1.0, std)


def _update(running: Running, mean: Array, var: Array, mask: Array | None, problem: Problem) -> None:
    """As torch: the mean over N of the instances' means and unbiased variances. One element or none says nothing."""
    channels, count, telling = running.mean.size, problem.count, mean.size // max(running.mean.size, 1)
    if channels == 0 or (mask is None and (count < 2 or telling == 0)):
        return
    with np.errstate(all="ignore"):
        if mask is not None:
            count = np.broadcast_to(mask, problem.shape).sum(axis=problem.axes, keepdims=True)
            mean, var, telling = np.where(count > 1, mean, 0), np.where(count > 1, var, 0), (count > 1).reshape(-1, channels)
            telling, count = telling.sum(axis=0), np.maximum(count, 2)
        unbiased, stored = var * (count / (count - 1)), []
        for name, old, statistic in (("running_mean", running.mean, mean), ("running_var", running.var, unbiased)):
            each = statistic.reshape(-1, channels)  # of an instance a row, whichever axis has the channels
            new = each[0] if each.shape[0] == 1 else each.sum(axis=0) / telling
            new = (1 - running.momentum) * old + running.momentum * new
            if mask is not None:
                new = np.where(telling > 0, new, old)
            old[...] = new
            stored.append((name, old, new))
    for name, old, new in stored:
        if isinstance(old, np.ndarray) and not np.isfinite(old).all():  # of a GPU's array, a look would wait for the device
            _tell_of_overflow(name, old, new, problem)


def _tell_of_overflow(name: str, stored: Array, exact: Array, problem: Problem) -> None:
    """Warn of a running statistic that was finite before it was rounded to its array's dtype; NaN and Inf of x are no news."""
    channels = int((np.isfinite(exact) & ~np.isfinite(stored)).sum())
    if channels:
        warnings.warn(
            f"{problem.op}: {name} has become infinite in {channels} of {stored.size} channels, as {stored.dtype.name} holds "
            f"nothing so large; normalized with it, they would be lost. Keep it in a wider dtype: "
            f"{name} = {name}.astype(np.float{32 if stored.dtype.itemsize < 4 else 64}) before such a call",
            RunningStatsWarning,
            stacklevel=level_of_the_user(),
        )
