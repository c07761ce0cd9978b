"""Compiled kernels on disk, so that only the first process on a machine waits for the compiler.

Numba's own cache keeps one index a function, which processes that write at once can cross; leaves what a kernel calls out of
its key; and reads pickles, which are programs, from wherever it is told. Here a file is named after everything that its
code depends on, so that whoever writes it writes the same code; it is renamed into place whole; it is read only from
places that nobody else can write; and nothing is unpickled before length and checksum have been found right. Whatever is
wrong with a file, the answer is to compile again.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as ll
import numba
import numpy as np
from numba.core import config, serialize
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target

from normkit.errors import CacheWarning

MAGIC = b"normkit kernel 1\n"
MOST_FILES = 500  # of all versions together; a file has some 60 KB
_NOT_IN_CODE = ("CUDA", "NUMBA_", "THREADING_", "CACHE_", "RUNNING_UNDER_PROFILER", "COLOR_", "DISABLE_PERFORMANCE", "_")

Kernel = Callable[..., None]

_loaded: list[Any] = []  # the code points into what these hold

# What unpickling and Numba's rebuilding may raise on a file that is right by its checksum and wrong for this Numba
_UNUSABLE = (
    pickle.PickleError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    EOFError,
    RuntimeError,
)


class UntrustedError(Exception):
    """A place from which no code may be read, since others could have put it there; the message says why."""


# --- where


def directory() -> Path | None:
    """Where kernels are kept: NORMKIT_CACHE_DIR, or the user's cache folder. None if there is none, or with NORMKIT_CACHE=0."""
    if os.environ.get("NORMKIT_CACHE") == "0":
        return None
    if given := os.environ.get("NORMKIT_CACHE_DIR"):
        return Path(given).absolute()
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = home / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return parent / "normkit" if parent.is_absolute() else None


def _trusted(place: Path) -> Path:
    """`place` without links, if it is a folder of our own, and nobody but us and root can put another in its place."""
    _own(place, os.lstat(place), stat.S_ISDIR)
    place = place.resolve()
    if hasattr(os, "geteuid"):
        for parent in place.parents:
            status = os.lstat(parent)
            if status.st_uid not in (0, os.geteuid()):
                raise UntrustedError(f"{parent} belongs to another user")
            if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
                raise UntrustedError(f"others can write to {parent}")
    return place


def _own(path: Path, status: os.stat_result, kind: Callable[[int], bool]) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise UntrustedError(f"{path} is a symbolic link")
    if not kind(status.st_mode):
        raise UntrustedError(f"{path} is not what it should be")
    if hasattr(os, "geteuid"):
        if status.st_uid != os.geteuid():
            raise UntrustedError(f"{path} belongs to another user")
        if status.st_mode & 0o022:
            raise UntrustedError(f"others can write to {path}")


# --- under which name


def _key(name: str, signature: tuple[Any, ...]) -> bytes | None:
    """A digest of everything that the compiled code depends on. None where our own source cannot be read."""
    if _sources is None:
        return None
    settings = [(k, repr(v)) for k, v in sorted(vars(config).items()) if k.isupper() and not k.startswith(_NOT_IN_CODE)]
    python = (sys.version, sysconfig.get_config_var("SOABI"), sys.maxsize)
    libraries = (numba.__version__, llvmlite.__version__, np.__version__)
    machine = cpu_target.target_context.codegen().magic_tuple()
    everything = (MAGIC, name, signature, _sources, settings, python, libraries, machine)
    return hashlib.sha256(repr(everything).encode()).hexdigest().encode()


def _digest() -> str | None:
    """A digest of every module of this package, which may lie in a folder or in a zip file."""
    folder: Any = Path(__file__).parent
    if not folder.is_dir():
        from importlib.resources import files

        folder = files(__package__)
    try:
        texts = [(file.name, file.read_bytes()) for file in folder.iterdir() if file.name.endswith(".py")]
    except OSError:
        return None
    return hashlib.sha256(repr(sorted(texts)).encode()).hexdigest() if texts else None


_sources = _digest()  # taken now: the files may change while this process runs what it has read


def _path(place: Path, name: str, key: bytes) -> Path:
    return place / f"{name}-{key[:24].decode()}.nkc"


# --- reading


def load(name: str, signature: tuple[Any, ...]) -> Kernel | None:
    """The kernel as compiled by an earlier process, if there is one that can be trusted."""
    place = directory()
    if place is None or (key := _key(name, signature)) is None:
        return None
    try:
        payload = _checked(_read(_path(_trusted(place), name, key)), key)
    except FileNotFoundError:
        return None
    except UntrustedError as error:
        _warn(f"is not read: {error}")
        return None
    except OSError as error:
        _warn(f"cannot be read: {error}")
        return None
    try:
        return None if payload is None else _rebuilt(payload, signature)
    except _UNUSABLE:
        return None


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise UntrustedError(f"{path} is a symbolic link")
    with open(os.open(path, flags), "rb") as file:
        _own(path, os.fstat(file.fileno()), stat.S_ISREG)
        return file.read()


def _checked(content: bytes, key: bytes) -> bytes | None:
    """What `_framed` has framed, if it is whole and was written under that key."""
    head, _, payload = content.removeprefix(MAGIC).partition(b"\n")
    return payload if content == _framed(key, payload) and head else None


def _framed(key: bytes, payload: bytes) -> bytes:
    digest = hashlib.sha256(payload).hexdigest().encode()
    return MAGIC + b"%s %d %s\n" % (key, len(payload), digest) + payload


def _rebuilt(payload: bytes, signature: tuple[Any, ...]) -> Kernel | None:
    needs, parts = pickle.loads(payload)
    context = cpu_target.target_context
    library, descriptor, environment, written_for, *rest = parts
    reload, environments = rest[3], rest[4]
    if written_for.args != signature:
        return None
    for function in reload:  # starts the threads of a parallel kernel
        function()
    if not _resolved(needs):
        context.refresh()  # 0.2 s that are not needed otherwise
        if not _resolved(needs):
            return None  # LLVM would end the process
    rebuild: Any = CompileResult._rebuild
    result = rebuild(context, library, descriptor, environment, written_for, *rest[:3], [], environments)
    _loaded.append(result)
    return result.entry_point  # type: ignore[no-any-return]


def _resolved(symbols: list[str]) -> bool:
    return all(ll.address_of_symbol(symbol) for symbol in symbols)


# --- writing


def save(name: str, signature: tuple[Any, ...], result: Any) -> None:
    """Keep a compiled kernel for other processes, if there is a place for it."""
    place = directory()
    if place is None or (key := _key(name, signature)) is None:
        if place is None and os.environ.get("NORMKIT_CACHE") != "0":
            _warn("has no place: this user has no home folder")
        return
    try:
        payload = _payload(result)
    except _UNUSABLE as error:
        _warn(f"cannot be written with Numba {numba.__version__}: {type(error).__name__}: {error}")
        return
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
        place = _trusted(place)
        _write(_path(place, name, key), _framed(key, payload))
        _prune(place)
    except UntrustedError as error:
        _warn(f"is not used: {error}")
    except OSError as error:
        _warn(f"cannot be written: {error}")


def _payload(result: Any) -> bytes:
    """Names that the code needs from outside, and what Numba rebuilds a kernel from."""
    _, *rest = result._reduce()
    library, needs = _sealed(result.library, result.fndesc.llvm_cpython_wrapper_name)
    return serialize.dumps((needs, (library, *rest)))  # type: ignore[no-any-return, no-untyped-call]


def _sealed(library: Any, entry: str) -> tuple[Any, list[str]]:
    """The library with nothing to be seen but its entry, and the names it needs.

    Numba names the body of a parallel loop after an address and a counter, which another process may have used for another
    loop. LLVM takes the first of two of a name for both: this is how Numba's own cache comes to wrong numbers.
    """
    module = ll.parse_bitcode(library._final_module.as_bitcode())
    defined = [function for function in module.functions if not function.is_declaration]
    for function in defined:
        if function.name != entry:
            function.linkage = "internal"
    needs = [function.name for function in module.functions if function.is_declaration]
    code = library.codegen._tm.emit_object(module)
    index = ll.parse_assembly(f'define void @"{entry}"() {{ ret void }}').as_bitcode()
    return (library.name, "object", (code, index)), [symbol for symbol in needs if not symbol.startswith("llvm.")]


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, under that name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _prune(place: Path) -> None:
    """Forget the oldest, and what a process has left that died while writing."""
    files = sorted((status.st_mtime, path) for path, status in _files(place))
    for _, path in files[:-MOST_FILES]:
        with suppress(OSError):
            os.unlink(path)


def _files(place: Path) -> Iterator[tuple[str, os.stat_result]]:
    """What is there, finished or not. Other processes give files their names, and forget them, meanwhile."""
    for entry in os.scandir(place):
        if ".nkc" in entry.name:
            with suppress(FileNotFoundError):
                yield entry.path, entry.stat()


# --- telling

_warned = False


def _warn(what: str) -> None:
    """Once in a process."""
    global _warned
    if not _warned:
        _warned = True
        text = f"normkit compiles anew in each process, as its cache {what}; NORMKIT_CACHE_DIR=... names another place, "
        warnings.warn(text + "NORMKIT_CACHE=0 does without", CacheWarning, stacklevel=2)


def describe() -> str:
    """Where it is and what it holds, for `normkit doctor`."""
    if os.environ.get("NORMKIT_CACHE") == "0":
        return "off: NORMKIT_CACHE=0"
    place = directory()
    if place is None:
        return "off: this user has no home folder; NORMKIT_CACHE_DIR=... names a place"
    try:
        _trusted(place)
        sizes = [status.st_size for path, status in _files(place) if path.endswith(".nkc")]
    except FileNotFoundError:
        return f"{place}, empty"
    except (UntrustedError, OSError) as error:
        return f"off: {error}; NORMKIT_CACHE_DIR=... names another place"
    return f"{place}, {len(sizes)} kernels, {sum(sizes) / 1e6:.1f} MB"
