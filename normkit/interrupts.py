"""Ctrl-C ends the wait for an import or a compilation, and not the work, which Numba would not survive halfway through."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
WAKE = 0.2  # seconds; on Windows Ctrl-C does not end a wait, and is seen between two


def undisturbed(work: Callable[[], T]) -> T:
    """`work()`, on another thread if this is the main one, which alone is interrupted. After Ctrl-C it goes on by itself."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it belongs
            errors.append(error)

    worker = threading.Thread(target=run, name="normkit, undisturbed")
    try:
        worker.start()
    except RuntimeError:  # no more threads, or the interpreter is about to end
        return work()
    while worker.is_alive():
        worker.join(WAKE)
    if errors:
        raise errors[0]
    return results[0]
