"""Where a warning should point: the line of the user's that led to it."""

from __future__ import annotations

import sys


def level_of_the_user() -> int:
    """The stacklevel at which a warning of the calling function points at the line outside of normkit that led to it."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "normkit":
        depth, frame = depth + 1, frame.f_back
    return depth
