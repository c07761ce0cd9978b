"""The build backend: setuptools, without two of its habits that a clone with two folders of code suffers from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """A wheel of what is here now: setuptools would also pack what earlier builds have left in build/lib."""
    shutil.rmtree(Path("build", "lib"), ignore_errors=True)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """An editable installation by a path, as normkit/clone.py finds the engines.

    An import hook, setuptools' choice for a mapped folder, is not seen by type checkers, and comes too late where the working
    directory has a folder called normkit, as the one above a clone has.
    """
    return build_meta.build_editable(
        wheel_directory, {"editable_mode": "compat", **(config_settings or {})}, metadata_directory
    )
