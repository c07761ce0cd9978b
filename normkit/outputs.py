"""What a command writes: a terminal or pipe of any encoding, and files that are known to be writable before the work."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path


def take_any_character() -> None:
    """Have what stdout and stderr cannot show become a question mark: on Windows a pipe has the characters of one language."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def why_not(file: Path) -> str:
    """Why a file cannot be written; empty if it can, as far as one can tell without writing it."""
    if file.is_dir():
        return "it is a folder"
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}"
    there = file if file.exists() else file.parent
    return "" if os.access(there, os.W_OK) else f"{there} may not be written"
