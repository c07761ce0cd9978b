"""How far apart two cores are: the time that a cache line takes from one to the other and back.

The host of a virtual machine may move its cores. On one host two of them took 127 ns while they were in one complex, with one
L3 and one way to memory, and 389 ns in two, where memory was 1.7 times as fast. It changes within minutes, and what is measured
on one side of such a change cannot be compared with what is measured on the other.
"""

from __future__ import annotations

import os
from contextlib import suppress
from threading import Thread
from time import perf_counter

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

LINE = 16  # numbers: two cache lines, which some CPUs fetch together
TRIPS = 200  # of the line in one look
LOOKS = 5  # of which the shortest counts: an interrupt takes as long as a whole look
PATIENCE = 1_000_000_000  # looks at the line before the other thread is given up: 0.1 s and more


def core_distance() -> float | None:
    """Seconds of a round trip between the first two cores that this process may use; None where it cannot be known."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(allowed) < 2:
        return None
    line = np.zeros(LINE, np.int64)

    def answer() -> None:
        with suppress(OSError):  # as below
            os.sched_setaffinity(0, allowed[1:2])  # of this thread
        bounce(line, 1, LOOKS * TRIPS)

    other, times = Thread(target=answer), []
    other.start()
    try:
        os.sched_setaffinity(0, allowed[:1])
        for _ in range(LOOKS):
            start = perf_counter()
            if not bounce(line, 0, TRIPS):
                return None
            times.append((perf_counter() - start) / TRIPS)
    except OSError:  # a core was taken from us meanwhile
        return None
    finally:
        other.join()
        with suppress(OSError):
            os.sched_setaffinity(0, allowed)
    return min(times)


@intrinsic
def look(typing, line):
    """What the first number of a line is, not to be taken out of a loop."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_place(context, builder, signature, arguments), "acquire", 8)

    return types.int64(line), generate


@intrinsic
def put(typing, line, value):
    """Set the first number of a line."""

    def generate(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _place(context, builder, signature, arguments), "release", 8)
        return context.get_dummy_value()

    return types.void(line, types.int64), generate


def _place(context, builder, signature, arguments):
    return context.make_array(signature.args[0])(context, builder, arguments[0]).data


@njit(nogil=True)
def bounce(line, mine, trips):
    """Wait for `mine` and answer with the other of 0 and 1, so many times; False if it never came."""
    for _ in range(trips):
        looks = 0
        while look(line) != mine:
            looks += 1
            if looks > PATIENCE:
                return False
        put(line, 1 - mine)
    return True
