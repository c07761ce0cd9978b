"""Names to backends, lazily: nothing is imported before a backend is asked for, and a failure to import is kept as a reason.

Built-ins stand in a literal table; third parties announce an entry point in the group ``normkit.backends`` or call
`register_backend`. Neither can shadow a built-in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple

from normkit import forks
from normkit.arguments import guarded, shown
from normkit.errors import InputTypeError, InputValueError, InstallationError, NoBackendError, UnknownBackendError
from normkit.interrupts import undisturbed
from normkit.plans import forget
from normkit.problem import Backend

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class BuiltIn(NamedTuple):
    """Where a built-in backend lives, which array family it takes, and what to type if it is missing."""

    module: str  # which has a function `load`
    family: str
    install: str


class Missing(NamedTuple):
    """Why a known backend cannot be had. `quiet`: it is just not installed, which is nobody's fault."""

    reason: str
    quiet: bool


class BackendInfo(NamedTuple):
    """One line of `backends()`."""

    name: str
    family: str
    source: str
    usable: bool
    why: str


BUILT_IN = {
    "numba": BuiltIn("normkit.backends.numba_backend", "numpy", "pip install numba"),
    "numpy": BuiltIn("normkit.backends.numpy_backend", "numpy", "pip install numpy"),
    "cupy": BuiltIn("normkit.backends.cupy_backend", "cupy", "pip install 'normkit[cuda12]' or 'normkit[cuda13]'"),
}
DEPENDENCIES = ("numba",)  # installed with normkit: their absence is not a choice
ENTRY_POINT_GROUP = "normkit.backends"

_found: dict[str, Backend | Missing] = {}
_registered: dict[str, Backend] = {}
_lock = RLock()
forks.wait_for(_lock)


@guarded("register_backend")
def register_backend(backend: Backend) -> None:
    """Make a backend known in this process under its own name.

    Parameters
    ----------
    backend : Backend
        An object with the attributes `name` and `family` and the methods of `normkit.Backend`.

    Raises
    ------
    InputTypeError
        It lacks a part of the protocol.
    InputValueError
        The name is a built-in's.
    """
    if not isinstance(backend, Backend) or isinstance(backend, type):
        parts = [part for part in _PROTOCOL if not hasattr(backend, part)]
        lacks = f"lacks {', '.join(parts)}" if parts else "is a class, expected an instance"
        raise InputTypeError(f"register_backend: {shown(backend)} {lacks}; see help(normkit.Backend)")
    if not isinstance(backend.name, str):
        raise InputTypeError(f"register_backend: name is {shown(backend.name)}, expected a str")
    if backend.name in BUILT_IN:
        raise InputValueError(f"register_backend: {backend.name!r} is built in and cannot be replaced; choose another name")
    with _lock:
        _registered[backend.name] = backend
        _found.pop(backend.name, None)
        forget()


def get_backend(name: str) -> Backend:
    """The backend of that name, imported if need be.

    Raises
    ------
    UnknownBackendError
        Nobody has heard of it.
    NoBackendError
        It is known, and cannot be used here; the message says why and what to install.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.get_backend("numpy").family
    'numpy'
    """
    found = find(name)
    if isinstance(found, Missing):
        raise NoBackendError(f"backend {name!r} cannot be used: {found.reason}")
    return found


def find(name: str) -> Backend | Missing:
    """The backend, or why it cannot be had; raises only if the name is unknown."""
    name = named(name)
    found = _found.get(name) or _registered.get(name)
    if found is not None:
        return found
    if name in BUILT_IN and not _lock._is_owned():  # type: ignore[attr-defined]  # else a stranger's import has called us
        return undisturbed(lambda: _looked_up(name))
    return _looked_up(name)


@guarded("backend")
def named(name: object) -> str:
    """What may be the name of a backend."""
    if not isinstance(name, str):
        raise InputTypeError(f"backend is {shown(name)}, expected a name, one of {names()}, or None for the policy's choice")
    return str.__str__(name)  # of a subclass too: its own __hash__ is not asked


def known(name: object) -> str:
    """The name of a backend that somebody has heard of; nothing is imported for it."""
    name = named(name)
    if name not in BUILT_IN and name not in _registered and name not in _announced():
        raise _unknown(name)
    return name


def _unknown(name: str) -> UnknownBackendError:
    import difflib

    close = difflib.get_close_matches(name, names(), 3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    return UnknownBackendError(f"backend is {shown(name)}, expected one of {names()}{hint}")


def _looked_up(name: str) -> Backend | Missing:
    with _lock:
        if name in _found:
            return _found[name]
        if name in BUILT_IN:
            entry = BUILT_IN[name]
            _found[name] = _load(name, lambda: import_module(entry.module).load, entry.install)
        elif name in (announced := _announced()):
            _found[name] = _load(name, announced[name].load, "reinstall or remove the package that announces it")
        else:
            raise _unknown(name)
        return _found[name]


def names() -> list[str]:
    """Every name that is known here: built in, announced by an installed package, or registered."""
    return list(dict.fromkeys([*BUILT_IN, *_announced(), *_registered]))


def family_names(family: str) -> list[str]:
    """Names of the built-in and registered backends for an array family."""
    built_in = [name for name, entry in BUILT_IN.items() if entry.family == family]
    return built_in + [name for name, backend in list(_registered.items()) if backend.family == family]


def family_of(name: str) -> str | None:
    """The array family of a built-in or registered backend; None where only loading it would tell."""
    if name in BUILT_IN:
        return BUILT_IN[name].family
    return _registered[name].family if name in _registered else None


def backends() -> BackendTable:
    """Every known backend, whether it can be used here, and why not.

    Examples
    --------
    >>> import normkit as nk
    >>> [info.name for info in nk.backends() if info.usable and info.family == "numpy"]
    ['numba', 'numpy']
    """
    announced = _announced()
    rows = []
    for name in names():
        found = find(name)
        family = family_of(name) or ("?" if isinstance(found, Missing) else found.family)
        if name in announced:
            dist = announced[name].dist
            source = f"{dist.name} {dist.version}" if dist else "entry point"
        else:
            source = "built in" if name in BUILT_IN else "registered"
        usable = not isinstance(found, Missing)
        rows.append(BackendInfo(name, family, source, usable, found.reason if isinstance(found, Missing) else ""))
    return BackendTable(rows)


class BackendTable(tuple[BackendInfo, ...]):
    """The answer of `backends()`: a tuple of BackendInfo that prints as a table."""

    __slots__ = ()

    def _cells(self) -> Iterator[tuple[str, ...]]:
        yield ("backend", "arrays", "source", "usable")
        for info in self:
            yield (info.name, info.family, info.source, "yes" if info.usable else f"no: {info.why}")

    def __repr__(self) -> str:
        cells = list(self._cells())
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in cells]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        head, *body = (
            "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
            for tag, row in zip(["th"] + ["td"] * len(self), self._cells(), strict=True)
        )
        return "<table><tr>" + "</tr><tr>".join([head, *body]) + "</tr></table>"


_PROTOCOL = ("name", "family", "why_not", "prepare", "empty_like", "empty_stats", "describe")


def _announced() -> dict[str, EntryPoint]:
    """Entry points of third parties; reading them imports nothing of theirs. NORMKIT_ENTRY_POINTS=0 turns them off."""
    if os.environ.get("NORMKIT_ENTRY_POINTS") == "0":
        return {}
    from importlib.metadata import entry_points  # 10 ms, and most processes never ask

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in BUILT_IN}


def _load(name: str, imported: Callable[[], Any], install: str) -> Backend | Missing:
    try:
        factory = imported()
        backend = factory() if callable(factory) else factory
    except ImportError as error:
        if name in BUILT_IN and (error.name or "").partition(".")[0] == "normkit":
            raise InstallationError(  # not an absent extra
                f"normkit in {os.path.dirname(__file__)} is not whole: {error}; install it again, with all of its files",
                name=error.name,
                path=error.path,
            ) from error
        if isinstance(error, ModuleNotFoundError):
            return Missing(f"{error.name} is not installed ({install})", quiet=True)
        if name in BUILT_IN and error.name == name:
            return Missing(str(error), quiet=False)  # a backend's own words about this machine
        return Missing(f"its import failed: {type(error).__name__}: {error} ({install})", quiet=False)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's import must not take the others down with it
        return Missing(f"its import failed: {type(error).__name__}: {error} ({install})", quiet=False)
    if not isinstance(backend, Backend) or backend.name != name:
        wanted = ", ".join(_PROTOCOL)
        return Missing(f"its entry point gave {backend!r}, expected a backend named {name!r} with {wanted}", quiet=False)
    return backend


def _forget(name: str) -> None:
    """Take a registered backend back, or look for a built-in anew; for tests."""
    with _lock:
        _registered.pop(name, None)
        _found.pop(name, None)
        forget()
