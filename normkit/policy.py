"""The fallback policy: what to do with degenerate statistics, and with a backend that cannot serve a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal, get_args

from normkit.arguments import guarded, shown
from normkit.errors import PolicyError
from normkit.plans import MOST, UNKNOWN
from normkit.problem import Problem
from normkit.registry import known
from normkit.threads import block
from normkit.threads import checked as checked_threads

Name = Literal["raise", "bias", "identity", "layer_norm", "running"]
Answer = Name | Callable[[Problem], Any]
Loudness = Literal["ignore", "warn", "raise"]

OPS = ("layer_norm", "instance_norm")
LONGEST_ORDER = 256  # characters of names, which are kept with their number

_numbers: dict[Any, int] = {}
_next_number = count()


class PerOp(Mapping[str, Answer]):
    """A mapping from op to answer that cannot change and hashes, so that a policy can be part of a key."""

    __slots__ = ("_answers",)

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = dict(answers)

    def __getitem__(self, op: str) -> Answer:
        return self._answers[op]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def __hash__(self) -> int:
        return hash(frozenset(self._answers.items()))

    def __repr__(self) -> str:
        return repr(self._answers)


@dataclass(frozen=True, slots=True)
class FallbackPolicy:
    """What a call does when it cannot do what it was asked.

    Parameters
    ----------
    single_element : str, callable, or mapping from op name to one of these
        The answer where a set of statistics holds one element, so that its output would not depend on the input: all sets,
        by the shape of x; or those of which a mask leaves one element, or none. Such a set is answered in a batch as it is
        alone, its padding as well, and the other sets are normalized as ever.

        - ``"raise"``: `DegenerateShapeError`, as torch's instance_norm
        - ``"bias"``: what the arithmetic gives, the bias; as ONNX, WebNN, Flax
        - ``"identity"``: pass ``x * weight + bias``, computed as NumPy does; of halves in float64, rounded once
        - ``"layer_norm"``: normalize over the channels of each instance (instance_norm only)
        - ``"running"``: use the running statistics (instance_norm only)
        - a callable: receives the `Problem` (with its arrays in ``problem.operands``), returns the output

        An op that a mapping leaves out raises. The answer is the same for every batch size, backend and mode.
    order : tuple of str
        Preference among the backends that take the array's type.
    on_fallback : {"ignore", "warn", "raise"}
        How loudly to step down from a backend that is installed but refuses. One that is not installed is passed quietly,
        but for Numba, whose absence is warned of once in a process.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.FallbackPolicy.onnx().single_element
    'bias'
    >>> nk.FallbackPolicy(single_element="zeros")
    Traceback (most recent call last):
    ...
    normkit.errors.PolicyError: FallbackPolicy: single_element is 'zeros', expected one of 'raise', 'bias', 'identity', \
'layer_norm', 'running', a callable, or a mapping from op name to one of these
    """

    single_element: Answer | Mapping[str, Answer] = PerOp({"instance_norm": "raise", "layer_norm": "bias"})
    order: tuple[str, ...] = ("numba", "numpy")
    on_fallback: Loudness = "warn"
    key: Any = field(init=False, repr=False, compare=False)  # of its plans, see `normkit.plans`

    @guarded("FallbackPolicy")
    def __post_init__(self) -> None:
        answers = self.single_element
        if isinstance(answers, Mapping):
            if unknown := set(answers) - set(OPS):
                named = ", ".join(sorted(map(shown, unknown)))
                raise PolicyError(f"FallbackPolicy: single_element names {named}, expected ops among {list(OPS)}")
            object.__setattr__(self, "single_element", PerOp(answers))
        for answer in answers.values() if isinstance(answers, Mapping) else [answers]:
            if not (callable(answer) or (isinstance(answer, str) and answer in get_args(Name))):
                expected = ", ".join(map(repr, get_args(Name)))
                raise PolicyError(
                    f"FallbackPolicy: single_element is {shown(answer)}, expected one of {expected}, a callable, "
                    "or a mapping from op name to one of these"
                )
        order = self.order
        if not isinstance(order, Sequence) or isinstance(order, str) or not order or not all(isinstance(n, str) for n in order):
            raise PolicyError(f"FallbackPolicy: order is {shown(order)}, expected backend names, as ('numba', 'numpy')")
        object.__setattr__(self, "order", tuple(order))
        if not isinstance(self.on_fallback, str) or self.on_fallback not in get_args(Loudness):
            raise PolicyError(f"FallbackPolicy: on_fallback is {shown(self.on_fallback)}, expected 'ignore', 'warn' or 'raise'")

        object.__setattr__(self, "key", self._key())

    def __reduce__(self) -> Any:
        return type(self), (self.single_element, self.order, self.on_fallback)

    def _key(self) -> Any:
        """A number for all that plans depend on. A callable counts as a word: each call asks it anew, no key holds it."""
        answers = self.single_element.items() if isinstance(self.single_element, PerOp) else [("", self.single_element)]
        named = tuple((op, answer if type(answer) is str else "a callable") for op, answer in answers)
        if any(isinstance(answer, str) and type(answer) is not str for _, answer in answers):
            return UNKNOWN
        long = len(self.order) + sum(map(len, self.order)) > LONGEST_ORDER
        if long:
            return UNKNOWN
        if len(_numbers) >= MOST:
            _numbers.clear()  # policies that live keep theirs, and no other gets one of them
        return _numbers.setdefault((named, self.order, self.on_fallback), next(_next_number))

    def answer(self, op: str) -> Answer:
        """What this policy says to a single element in `op`."""
        if isinstance(self.single_element, PerOp):
            return self.single_element.get(op, "raise")
        return self.single_element  # type: ignore[return-value]

    @classmethod
    def torch(cls) -> FallbackPolicy:
        """The default: instance_norm raises, layer_norm gives the bias, as torch does."""
        return cls()

    @classmethod
    def onnx(cls) -> FallbackPolicy:
        """Never raises on a single element: the bias, as ONNX specifies."""
        return cls(single_element="bias")

    @classmethod
    def strict(cls) -> FallbackPolicy:
        """A single element raises in every op, and so does a backend that refuses."""
        return cls(single_element="raise", on_fallback="raise")


@dataclass(frozen=True, eq=False, slots=True)
class Ambient:
    """What `using` has set for the current thread or task."""

    policy: FallbackPolicy
    backend: str | None
    key: Any = field(init=False)  # of the plans of calls that set nothing themselves

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _setting(self.policy, self.backend))


def setting(backend: Any, policy: Any) -> Any:
    """The part of a plan's key that says what decides about the backend, where a call sets something itself."""
    outside = ambient()
    return _setting(outside.policy if policy is None else policy, outside.backend if backend is None else backend)


def _setting(policy: Any, backend: Any) -> Any:
    known = type(policy) is FallbackPolicy and (backend is None or type(backend) is str)
    return (policy.key, backend) if known and policy.key is not UNKNOWN else UNKNOWN


DEFAULT = Ambient(FallbackPolicy(), None)
_ambient: ContextVar[Ambient] = ContextVar("normkit.ambient", default=DEFAULT)
ambient = _ambient.get


def using(
    *, backend: str | None = None, policy: FallbackPolicy | None = None, threads: int | None = None
) -> AbstractContextManager[None]:
    """Set backend, policy or number of threads of every call inside a ``with`` block, in this thread or asyncio task only.

    What is left as None stays as it was outside; an argument of a call wins over both.

    Parameters
    ----------
    backend : str, optional
        As the argument `backend` of every op: an order, which runs there or raises.
    policy : FallbackPolicy, optional
        As the argument `policy` of every op.
    threads : int, optional
        As `set_num_threads`, which it wins over: how many threads a call may use. The results do not depend on it.

    Raises
    ------
    UnknownBackendError, PolicyError
        At once: nobody has heard of such a backend, or the policy is none.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> with nk.using(policy=nk.FallbackPolicy.onnx()):
    ...     nk.instance_norm(np.ones((2, 3, 1, 1), np.float32)).ravel()
    array([0., 0., 0., 0., 0., 0.], dtype=float32)
    """
    changes: dict[str, Any] = {}
    if policy is not None:
        changes["policy"] = checked(policy)
    if backend is not None:
        changes["backend"] = known(backend)
    return _block(changes, None if threads is None else checked_threads("using", "threads", threads, "what is set outside"))


@contextmanager
def _block(changes: dict[str, Any], threads: int | None) -> Iterator[None]:
    ambient = replace(_ambient.get(), **changes) if changes else _ambient.get()  # threads are no part of a plan's key
    token, token_of_threads = _ambient.set(ambient), block.set(block.get() if threads is None else threads)
    try:
        yield
    finally:
        _ambient.reset(token)
        block.reset(token_of_threads)


@guarded("policy")
def checked(policy: object) -> FallbackPolicy:
    """`policy`, if it is one."""
    if not isinstance(policy, FallbackPolicy):
        raise PolicyError(
            f"policy is {shown(policy)}, expected a FallbackPolicy, as nk.FallbackPolicy.onnx() or "
            "nk.FallbackPolicy(single_element='identity')"
        )
    return policy
