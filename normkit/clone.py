"""In a clone the engines lie in backends/, beside this folder and not in it, and no import system looks there.

So that a clone works from its root, installed or not, and runs with its own engines whichever copy is installed: a finder
that comes after Python's own. In an installation normkit/backends/ is where Python looks, and nothing is added here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class BesideTheCore:
    """Finds normkit.backends in the clone of the normkit that asks for it, and no other module."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "normkit.backends":
            return None
        roots = [os.path.dirname(os.path.realpath(folder)) for folder in path or ()]
        return PathFinder.find_spec(name, [root for root in roots if _is_clone(root)])


def find_engines(core: str) -> None:
    """Have normkit.backends found, if `core` is the folder normkit/ of a clone."""
    if _is_clone(os.path.dirname(os.path.realpath(core))):
        # before the finder of an editable installation, which may be another clone's
        after = sys.meta_path.index(PathFinder) + 1 if PathFinder in sys.meta_path else 0
        sys.meta_path.insert(after, BesideTheCore)


def _is_clone(root: str) -> bool:
    return all(os.path.isfile(os.path.join(root, *parts)) for parts in (("pyproject.toml",), ("backends", "numpy_backend.py")))
