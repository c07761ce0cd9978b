"""Counts the instructions of every compiled kernel, so that two versions of the source can be compared.

`python -m normkit.backends.numba_backend.opcodes float32 --out before.json`, then, of the other version, `--against
before.json`: it prints each kernel's instructions, and what differs by opcode. Equal counts mean the same code, as a rule.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numba.core.registry import CPUDispatcher

from . import _dtype, compiling

Report = dict[str, dict[str, int]]


def counted(assembly: str) -> dict[str, int]:
    """How often each opcode stands in an assembly listing."""
    return dict(sorted(Counter(re.findall(r"^\t([a-z]\w*)", assembly, re.MULTILINE)).items()))


def entries() -> Iterator[tuple[str, CPUDispatcher]]:
    """The functions that are called from Python; all others are inlined into these."""
    for module in compiling._MODULES:
        for name, thing in vars(module).items():
            if isinstance(thing, CPUDispatcher) and not thing.targetoptions.get("no_cpython_wrapper"):
                yield name, thing


def report(dtypes: list[np.dtype[Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Each kernel for each dtype, compiled here and now, with the counts of its opcodes."""
    for dtype in dtypes:
        for name, dispatcher in entries():
            signature = compiling._signature(dispatcher.py_func, dtype, masked=name.startswith("masked"))
            dispatcher.compile(signature)
            yield f"{name} {dtype.name}", counted(dispatcher.inspect_asm(signature))


def changes(before: Report, after: Report) -> Iterator[str]:
    """What differs, a line for each kernel: all of its instructions, and each opcode of another number."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, {}), after.get(name, {})
        if old == new:
            continue
        opcodes = [f"{o} {old.get(o, 0)} -> {new.get(o, 0)}" for o in sorted(old | new) if old.get(o, 0) != new.get(o, 0)]
        yield f"{name}: {sum(old.values())} -> {sum(new.values())} instructions; {', '.join(opcodes)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m normkit.backends.numba_backend.opcodes", description=__doc__)
    parser.add_argument("dtypes", nargs="*", default=["float32"], help="float16, bfloat16, float32, float64; float32 if none")
    parser.add_argument("--out", type=Path, help="write the counts to this file")
    parser.add_argument("--against", type=Path, help="compare with the counts in this file; exit status 1 if any differ")
    options = parser.parse_args(arguments)
    found: Report = {}
    for name, counts in report([_dtype(dtype) for dtype in options.dtypes]):
        found[name] = counts
        print(f"{name:40} {sum(counts.values()):7} instructions", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=0), encoding="utf-8")
    if options.against:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        different = list(changes({name: before.get(name, {}) for name in found}, found))
        print(*different, f"{len(found)} kernels, {len(different)} differ", sep="\n")
        return int(bool(different))
    return 0


if __name__ == "__main__":
    sys.exit(main())
