"""The engines behind normkit's ops, one module or package each; imported by name from `normkit.registry`, never all at once."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Engines(ModuleType):
    """`normkit.backends` names this package and a function; Python hides the function once the package is loaded."""

    def __call__(self) -> Any:
        from normkit.registry import backends

        return backends()


sys.modules[__name__].__class__ = _Engines
