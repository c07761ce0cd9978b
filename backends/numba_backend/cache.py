"""Compiled kernels on disk, so that only the first process on a machine waits for the compiler.

Numba's own cache keeps one index a function, which processes that write at once can cross; leaves what a kernel calls out of
its key; and reads pickles, which are programs, from wherever it is told. Here a file is named after everything that its
code depends on, so that whoever writes it writes the same code; it is renamed into place whole; it is read only from
places that nobody but this user and root can write, see `cache_places`; and nothing is unpickled before length and checksum
have been found right. Whatever is wrong with a file, the answer is to compile again.
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

from normkit.errors import CacheWarning, InputValueError

from .cache_places import UntrustedError, check_owner, make, places, read_only, trusted

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
    """A digest of every module of this package and of those in it, which may lie in a folder or in a zip file."""
    folder: Any = Path(__file__).parent
    if not folder.is_dir():
        from importlib.resources import files

        folder = files(__package__)
    try:
        texts = sorted(_modules(folder))
    except OSError:
        return None
    return hashlib.sha256(repr(texts).encode()).hexdigest() if texts else None


def _modules(folder: Any, within: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.name.endswith(".py"):
            yield within + entry.name, entry.read_bytes()
        elif entry.name != "__pycache__" and entry.is_dir():
            yield from _modules(entry, f"{within}{entry.name}/")


_sources = _digest()  # taken now: the files may change while this process runs what it has read


def _path(place: Path, name: str, key: bytes) -> Path:
    return place / f"{name}-{key[:24].decode()}.nkc"


# --- reading


def load(name: str, signature: tuple[Any, ...]) -> Kernel | None:
    """The kernel as compiled by an earlier process, if there is one that can be trusted."""
    found = places()
    if not found or (key := _key(name, signature)) is None:
        return None
    payload = next((payload for place in found if (payload := _found(place, name, key)) is not None), None)
    try:
        return None if payload is None else _rebuilt(payload, signature)
    except _UNUSABLE:
        return None


def _found(place: Path, name: str, key: bytes) -> bytes | None:
    try:
        return _checked(_read(_path(trusted(place), name, key)), key)
    except FileNotFoundError:
        return None
    except UntrustedError as error:
        _warn(f"is not read: {error}")
    except OSError as error:
        _warn(f"cannot be read: {error}")
    return None


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise UntrustedError(f"{path} is a symbolic link")
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        check_owner(path, status, stat.S_ISREG)
        if hasattr(os, "geteuid") and status.st_mode & 0o022:
            raise UntrustedError(f"others can write to {path}")
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
    if os.environ.get("NORMKIT_CACHE") == "0" or (key := _key(name, signature)) is None:
        return
    place = next((place for place in reversed(places())), None)  # the second is there because the first cannot be written
    if place is None:
        _warn("has no place: this user has no home folder")
        return
    try:
        payload = _payload(result)
    except _UNUSABLE as error:
        _warn(f"cannot be written with Numba {numba.__version__}: {type(error).__name__}: {error}")
        return
    try:
        make(place)
        place = trusted(place)
        _write(_path(place, name, key), _framed(key, payload), 0o600 | (place.stat().st_mode & 0o044))
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


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """All of it or nothing, under that name. Who may read the folder may read it, whatever the umask."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        try:
            os.replace(temporary, path)
        except PermissionError:  # Windows, where another process reads the file of that name: what it reads is the same
            if not path.is_file():
                raise
            os.unlink(temporary)
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


# --- for all users


def share(folder: str) -> None:
    """Keep kernels in that folder from now on, for every user to read: of root's, they are trusted by all."""
    if os.environ.get("NORMKIT_CACHE") == "0":
        raise InputValueError("warmup: NORMKIT_CACHE=0 is set, which keeps no kernels; unset NORMKIT_CACHE")
    place = Path(folder).absolute()
    try:
        make(place, 0o755)
        place.chmod(stat.S_IMODE(place.stat().st_mode) | 0o055)
        trusted(place)
    except (UntrustedError, OSError) as error:
        raise InputValueError(f"warmup: nobody would load kernels from {place}: {error}") from None
    os.environ["NORMKIT_CACHE_DIR"] = str(place)


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
    if not (found := places()):
        return "off: this user has no home folder; NORMKIT_CACHE_DIR=... names a place"
    return "; and ".join(_described(place) for place in found)


def _described(place: Path) -> str:
    try:
        trusted(place)
        sizes = [status.st_size for path, status in _files(place) if path.endswith(".nkc")]
    except FileNotFoundError:
        return f"{place}, empty"
    except (UntrustedError, OSError) as error:
        return f"off: {error}; NORMKIT_CACHE_DIR=... names another place"
    only = ", read only" if read_only(place) else ""
    return f"{place}, {len(sizes)} kernels, {sum(sizes) / 1e6:.1f} MB{only}"
