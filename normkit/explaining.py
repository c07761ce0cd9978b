"""What a call would do and why: axes, sizes, statistics, backend, fallbacks. Errors use its text on degenerate statistics."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from normkit import policy as policies
from normkit import validation
from normkit.arguments import guarded, shown
from normkit.degenerate import choices, erased, few_of, masked_choices, number, reduced, why, wrapped
from normkit.dispatch import choose, loud
from normkit.errors import InputTypeError, InputValueError, UnknownBackendError
from normkit.masks import degenerate_sets
from normkit.policy import FallbackPolicy
from normkit.problem import Array, Backend, Columns, Problem, Rows
from normkit.registry import Missing, family_names, find

VALIDATE: dict[str, Callable[..., validation.Call]] = {
    "layer_norm": validation.layer_norm,
    "instance_norm": validation.instance_norm,
}


class Explanation(NamedTuple):
    """The answer of `explain`: a title and lines of (what, text). Prints as text, and as a table in a notebook."""

    title: str
    lines: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        width = max(len(what) for what, _ in self.lines) + 2
        indent = "\n" + " " * (width + 2)
        return "\n".join(
            [self.title, *(f"  {what:<{width}}{wrapped(text).replace(chr(10), indent)}" for what, text in self.lines)]
        )

    def _repr_html_(self) -> str:
        from html import escape

        cell = "text-align: left; vertical-align: top; padding: 0.2em 0.8em 0.2em 0"
        rows = "".join(
            f'<tr><th style="{cell}">{escape(what)}</th><td style="{cell}">'
            f'<pre style="margin: 0; white-space: pre-wrap">{escape(text)}</pre></td></tr>'
            for what, text in self.lines
        )
        caption = f'<caption style="text-align: left"><strong>{escape(self.title)}</strong></caption>'
        return f"<table>{caption}{rows}</table>"


def explain(
    op: str,
    x: Any,
    *args: Any,
    dtype: Any = np.float32,
    backend: str | None = None,
    policy: FallbackPolicy | None = None,
    **kwargs: Any,
) -> Explanation:
    """Say what a call would do and why, without doing it.

    Parameters
    ----------
    op : {"layer_norm", "instance_norm"}
        The op.
    x : array or tuple of int
        The input, or its shape.
    *args, **kwargs
        The other arguments of the op. Of `mask`, its shape will do as well.
    dtype : dtype
        That of x, if x is a shape.
    backend, policy
        As in the op.

    Returns
    -------
    Explanation
        Which axes are reduced, how many elements share statistics, what weight and bias apply to, which backend would
        run and why the others would not, and what the policy would do. Prints as text, and as a table in a notebook.

    Raises
    ------
    InputTypeError, InputValueError
        As the op: an argument does not fit.

    Examples
    --------
    >>> import normkit as nk
    >>> print(nk.explain("layer_norm", (8, 512), backend="numpy"))
    layer_norm on x: (8, 512) float32
      reduced  axis 1, of size 512: 8 sets of statistics, each over 512 elements
      affine   no weight, no bias; each would have shape (512,), one for each element of a set
      layout   any: x is copied as a whole to float64, in which plain NumPy takes one step after another
      backend  numpy, as asked for
               numba could too
      single   does not arise: more than one element shares statistics
    """
    op = _named(op)
    kwargs.pop("return_stats", None)
    if issubclass(type(kwargs.get("mask")), tuple):
        kwargs["mask"] = _described("mask", kwargs["mask"], np.bool_)
    call = VALIDATE[op](_described("x", x, dtype), *args, **kwargs)
    return explanation(call.problem, backend, policy, call.running is not None, call.operands.mask)


def explanation(
    problem: Problem, name: str | None = None, policy: FallbackPolicy | None = None, running: bool = False, mask: Array = None
) -> Explanation:
    """Explain a validated problem, and its mask if that is at hand."""
    ambient = policies.ambient()
    policy = ambient.policy if policy is None else policies.checked(policy)
    name = ambient.backend if name is None else name
    lines = [
        ("reduced", reduced(problem)),
        ("affine", _affine(problem)),
        ("layout", _layout(problem, _chosen(problem, policy, name))),
        ("backend", _backend(problem, policy, name)),
        ("single", _single(problem, policy, running)),
    ]
    if problem.degenerate:
        lines += [("why", why(problem)), ("choices", choices(problem))]
    elif problem.masked and problem.statistics == "input":
        known = mask is not None and not isinstance(mask, validation.ShapeOnly)
        few = degenerate_sets(problem, mask) if known else None
        if few is not None:
            lines.append(("choices", masked_choices(problem)))
            lines.insert(-2, ("mask", f"leaves fewer than 2 elements of {number(problem, few)}: {few_of(problem, few)}"))
        elif known:
            lines[-1] = ("mask", "leaves 2 elements or more of each set, so the policy is not asked")
        else:
            lines.insert(-1, ("mask", "statistics are those of the elements where it is True; all are normalized"))
    return Explanation(f"{problem.op} on x: {problem.shape} {problem.dtype.name}", tuple(lines))


@guarded("explain")
def _named(op: Any) -> str:
    if not isinstance(op, str) or op not in VALIDATE:
        raise InputValueError(f"explain: op is {shown(op)}, expected one of {list(VALIDATE)}")
    return op


@guarded("explain")
def _described(name: str, x: Any, dtype: Any) -> Any:
    """x itself, or a stand-in for an array of that shape."""
    if not isinstance(x, tuple | list):
        return x
    try:
        shape = tuple(map(operator.index, x))
    except TypeError:
        shape = (-1,)
    if not all(0 <= n < 2**63 for n in shape):
        raise InputTypeError(f"explain: {name} is {shown(x)}, expected an array or a shape, as (128, 512, 1, 1)")
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError):
        raise InputTypeError(f"explain: dtype is {shown(dtype)}, expected one of {', '.join(validation.FLOATS)}") from None
    return validation.ShapeOnly(shape, kind)


def _affine(problem: Problem) -> str:
    shape = tuple(problem.shape[a] for a in problem.affine_axes)
    unit = "each channel" if problem.op == "instance_norm" else "each element of a set"
    if problem.weight is None and problem.bias is None:
        return f"no weight, no bias; each would have shape {shape}, one for {unit}"
    parts = [
        f"{name} ({dtype.name})" if dtype is not None else f"no {name}"
        for name, dtype in (("weight", problem.weight), ("bias", problem.bias))
    ]
    return f"{', '.join(parts)}: shape {shape}, one for {unit}"


def _chosen(problem: Problem, policy: FallbackPolicy, name: str | None) -> Backend | None:
    """The backend that would run, if there is one."""
    try:
        return choose(problem, policy, name).backend
    except UnknownBackendError:
        return None


def _layout(problem: Problem, backend: Backend | None) -> str:
    how = getattr(backend, "describe_layout", lambda problem: None)(problem)
    if isinstance(how, str):
        return how
    match problem.layout:
        case Rows(rows, runs, inner):
            n = runs * inner
            view = f"rows: x viewed as {rows} rows of {n} {'element' if n == 1 else 'neighbours'}"
        case Columns(outer, length, lanes):
            view = f"columns: x viewed as {outer} blocks of {length} x {lanes}, statistics down each of {lanes} lanes"
        case None:
            view = "interleaved: the reduced axes are not neighbours, and no view makes them so"
    if problem.contiguous:
        return f"{view}, nothing is copied"
    return f"{view}, if it were C-contiguous; it is strided"


def _backend(problem: Problem, policy: FallbackPolicy, name: str | None) -> str:
    try:
        choice = choose(problem, policy, name)
    except UnknownBackendError as error:
        return f"none: {error}"
    asked = "as asked for" if name is not None else f"by the policy's order {policy.order!r}"
    if choice.backend is None:
        lines = [f"none can run it, {asked}"]
    else:
        lines = [f"{choice.backend.name}, {asked}"]
        if loud(choice) and policy.on_fallback == "raise":
            lines = [f"none: {choice.backend.name} could, but the policy says on_fallback='raise'"]
    lines += [f"not {s.name}: {reason}" for s in choice.skipped for reason in s.reasons]
    tried = {s.name for s in choice.skipped} | {choice.backend.name if choice.backend else ""}
    for other in family_names(problem.family):
        if other not in tried:
            backend = find(other)
            why = [backend.reason] if isinstance(backend, Missing) else backend.why_not(problem)
            lines.append(f"{other} could too" if not why else f"not {other}: {'; '.join(why)}")
    return "\n".join(lines)


def _single(problem: Problem, policy: FallbackPolicy, running: bool) -> str:
    if problem.statistics == "given":
        return "does not arise"
    if problem.count == 0:
        return "does not arise: x is empty, and so is the output"
    if not problem.degenerate and not problem.masked:
        return "does not arise: more than one element shares statistics"
    where, there = ("", " everywhere") if problem.degenerate else ("where the mask leaves fewer than 2 elements of a set, ", "")
    answer = policy.answer(problem.op)
    if callable(answer):
        return f"{where}the policy calls {getattr(answer, '__name__', repr(answer))}(problem)"
    does = {
        "raise": "raises DegenerateShapeError",
        "bias": f"returns {erased(problem, there)}",
        "identity": "returns x * weight + bias",
        "layer_norm": "normalizes over the channels of each instance",
        "running": "uses the running statistics" + ("" if running else ", which this call lacks: it raises"),
    }
    return f"{where}the policy's single_element={answer!r} {does[answer]}"
