"""Where compiled kernels are kept, and whether code may be read from there: only if nobody but this user and root can write it.

A folder of root's that others cannot write is trusted by all, so that one can be part of an image.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path


class UntrustedError(Exception):
    """A place from which no code may be read, since others could have put it there; the message says why."""


def places() -> list[Path]:
    """Where kernels are looked for. They are written to the first that can be written; none with NORMKIT_CACHE=0.

    NORMKIT_CACHE_DIR, or else the user's cache folder; also that where the former is for all to read, as in an image.
    """
    if os.environ.get("NORMKIT_CACHE") == "0":
        return []
    own = _own_folder()
    if given := os.environ.get("NORMKIT_CACHE_DIR"):
        place = Path(given).absolute()
        return [place, own] if own is not None and read_only(place) else [place]
    return [] if own is None else [own]


def _own_folder() -> Path | None:
    """The cache folder of this user; None if there is none. A variable that names no absolute path counts as unset."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        parent = _absolute("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        parent = home / "Library" / "Caches"
    else:
        parent = _absolute("XDG_CACHE_HOME") or home / ".cache"
    return parent / "normkit" if parent.is_absolute() else None


def _absolute(variable: str) -> Path | None:
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


def read_only(place: Path) -> bool:
    """Whether it is there, and not ours to write."""
    return place.is_dir() and not os.access(place, os.W_OK | os.X_OK)


def make(place: Path, mode: int = 0o700) -> None:
    """Make the folder, and what it is missing above it, with that mode whatever the umask."""
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir(mode)
            folder.chmod(mode)
        except FileExistsError:
            continue  # another process was faster


def trusted(place: Path) -> Path:
    """`place` without links, if it is a folder of ours or root's, and nobody else can put another in its place."""
    check_owner(place, os.lstat(place), stat.S_ISDIR)
    place, closed = place.resolve(), False
    for folder in (*reversed(place.parents), place) if hasattr(os, "geteuid") else ():
        status = os.lstat(folder)
        check_owner(folder, status, stat.S_ISDIR)
        sticky = folder != place and status.st_mode & stat.S_ISVTX
        if not closed and not sticky and _writable_by_others(folder, status):
            raise UntrustedError(f"others can write to {folder}; chmod go-w {shlex.quote(str(folder))} mends that")
        closed = closed or status.st_mode & 0o011 == 0  # nobody else comes to what lies below
    return place


def check_owner(path: Path, status: os.stat_result, kind: Callable[[int], bool]) -> None:
    """Raise unless it is what it should be, no link, and belongs to this user or root."""
    if stat.S_ISLNK(status.st_mode):
        raise UntrustedError(f"{path} is a symbolic link")
    if not kind(status.st_mode):
        raise UntrustedError(f"{path} is not what it should be")
    if hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid()):
        raise UntrustedError(f"{path} belongs to another user")


def _writable_by_others(path: Path, status: os.stat_result) -> bool:
    """Whether anybody but its owner, and root, may write to it. A user's private group, as for a umask of 002, is nobody."""
    if status.st_mode & 0o002:
        return True
    return bool(status.st_mode & 0o020) and not (_is_private(status.st_gid, os.geteuid()) and not _has_access_list(path))


@lru_cache
def _is_private(gid: int, uid: int) -> bool:
    """Whether it is the group that the system has made for this user alone: its main one, of the same name, with no other."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    alone = set(group.gr_mem) <= {user.pw_name}
    return uid != 0 and user.pw_gid == gid and user.pw_name == group.gr_name and alone


def _has_access_list(path: Path) -> bool:
    """Whether what stands for the group may stand for others too. Only Linux tells."""
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except AttributeError:
        return True
    except OSError:  # a file system without such lists
        return False
