"""Which backend runs a problem: a pure function of the problem, the policy, and what is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from normkit import policy as policies
from normkit.errors import NoBackendError
from normkit.policy import FallbackPolicy
from normkit.problem import Backend, Problem
from normkit.registry import DEPENDENCIES, Missing, family_names, family_of, find
from normkit.threads import look

_told: set[str] = set()


class Skipped(NamedTuple):
    """A candidate that will not run the problem, and every reason why."""

    name: str
    reasons: list[str]
    quiet: bool


class Choice(NamedTuple):
    """The backend that runs, if any does, and the candidates before it."""

    backend: Backend | None
    skipped: list[Skipped]


def choose(
    problem: Problem,
    policy: FallbackPolicy,
    name: str | None = None,
    lookup: Callable[[str], Backend | Missing] = find,
) -> Choice:
    """The first candidate without a reason against it. A `name` is an order: it is the only candidate."""
    skipped = []
    for candidate in [name] if name is not None else _candidates(problem, policy):
        backend = lookup(candidate)
        if isinstance(backend, Missing):
            skipped.append(Skipped(candidate, [backend.reason], backend.quiet))
        elif backend.family != problem.family:
            if name is not None:
                reason = f"takes {backend.family} arrays, and never moves an array of {problem.family}"
                skipped.append(Skipped(candidate, [reason], quiet=False))
        elif reasons := backend.why_not(problem):
            skipped.append(Skipped(candidate, reasons, quiet=False))
        else:
            return Choice(backend, skipped)
    return Choice(None, skipped)


def _candidates(problem: Problem, policy: FallbackPolicy) -> list[str]:
    """The policy's order, less what is known to take other arrays; every backend for these arrays if nothing is left."""
    return [n for n in policy.order if family_of(n) in (problem.family, None)] or family_names(problem.family)


def loud(choice: Choice) -> list[Skipped]:
    """The candidates that were passed over although they are installed."""
    return [s for s in choice.skipped if not s.quiet]


def refusal(problem: Problem, policy: FallbackPolicy, choice: Choice, name: str | None) -> NoBackendError:
    """The error that lists every candidate with its reasons."""
    return NoBackendError(
        f"no backend can run {headline(problem)}\n{reasons(choice.skipped, problem)}\n{_source(policy, name)}"
    )


def news(choice: Choice) -> list[Skipped]:
    """What to warn of: every refusal; and that a dependency of normkit cannot be had at all, once in a process."""
    found = []
    for skipped in choice.skipped:
        if skipped.name in DEPENDENCIES and isinstance(find(skipped.name), Missing):
            if skipped.name not in _told:
                _told.add(skipped.name)
                found.append(skipped)
        elif not skipped.quiet:
            found.append(skipped)
    return found


def stepping_down(problem: Problem, policy: FallbackPolicy, choice: Choice, skipped: list[Skipped] | None = None) -> str:
    """What to say when a refusing backend is passed over for the next."""
    assert choice.backend is not None
    why = reasons(loud(choice) if skipped is None else skipped, problem)
    return f"{headline(problem)} runs on {choice.backend.name!r}\n{why}\n{_source(policy, None)}"


def headline(problem: Problem) -> str:
    """The op and what it was given, in one line."""
    return f"{problem.op} on x: {problem.shape} {problem.dtype.name} {problem.family} array"


def reasons(skipped: list[Skipped], problem: Problem) -> str:
    """One line a reason, each under its backend's name."""
    if not skipped:
        return f"  no backend takes {problem.family} arrays; nk.backends() lists what is here"
    return "\n".join(f"  {s.name}: {reason}" for s in skipped for reason in s.reasons)


def _source(policy: FallbackPolicy, name: str | None) -> str:
    if name is not None:
        return f"  asked for: backend={name!r}, which is an order; backend=None lets the policy choose"
    return f"  policy: order={policy.order!r}, on_fallback={policy.on_fallback!r}"


def get_num_threads() -> int:
    """Threads that a large call uses here.

    As many as `using` or `set_num_threads` has set, or else as this process is granted: the cores of its CPU affinity, no more
    than its cgroup's CPU quota, than NUMBA_NUM_THREADS, and than OMP_NUM_THREADS; 1 in a worker of torch's DataLoader. But no
    more than the backend that would take the call can use: NumPy's uses 1, and so does Numba's in a forked child, and where
    Numba has no threading layer that bears several threads. A call may use fewer: a small one does, and so does one beside
    other calls, or when other processes have just had the cores.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.get_num_threads() >= 1
    True
    """
    look()
    ambient = policies.ambient()
    for name in ambient.policy.order if ambient.backend is None else (ambient.backend,):
        backend = find(name)
        if not isinstance(backend, Missing) and backend.family == "numpy":
            return int(getattr(backend, "threads", lambda: 1)())
    return 1
