"""What normkit computes, to the bit: a hash of output and statistics for each of many calls, kept in golden_bits.json.

`python tests/golden.py --write` makes the file anew, after a change that is meant to change bits. `python tests/golden.py`
compares, and names what differs. Each call is made on one thread and on two, with the limits as they are and with limits so
small that rows are split, outputs go past the caches and buffers hold a part of a row: one hash stands for all.

The bits hold for CPUs with fused multiply-add and conversions of float16 (x86: FMA and F16C; every 64-bit ARM), whatever the
width of their vectors, and for the kernels run without a compiler, as with NUMBA_DISABLE_JIT=1.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

import normkit as nk

FILE = Path(__file__).with_name("golden_bits.json")
DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
ONNX = nk.FallbackPolicy.onnx()
SIZES = [(40, 1), (40, 3), (37, 5), (21, 16), (18, 64), (5, 300), (3, 4096), (2, 5003)]
LONG = [(2, 70_001)]
SMALL = [(18, 3), (17, 20), (2, 300)]  # of which the kernels without a compiler take seconds


def numbers(shape, dtype, seed):
    """Some numbers about 0, the same with any NumPy: a counter, mixed (SplitMix64), and four parts of 16 bits of that added."""
    z = np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    for by, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = (z ^ (z >> np.uint64(by))) * np.uint64(factor)
    parts = z.view(np.uint16).reshape(*shape, 4).astype(np.float64)
    return (parts.sum(-1) / 2**16 - 2).astype(dtype)


def rows(shape, dtype, seed):
    """Rows of every kind: plain, far from 0, small, large, constant, and almost so."""
    x = numbers(shape, np.float64, seed)
    large = 100.0 if dtype == np.float16 else 1e30
    for r in range(shape[0]):
        scale, offset = [(1, 0), (2, 3), (1, 1000), (1e-3, 0), (large, 0), (0, 0.7), (1e-2, -30)][r % 7]
        x[r] = x[r] * scale + offset
    return x.astype(dtype)


def shapes(small):
    return SMALL if small else SIZES + LONG


def calls(small=False):
    """(name, call), where call() gives the arrays whose bits are kept."""
    for dtype, (many, n) in itertools.product(DTYPES, shapes(small)):
        x = rows((many, n), dtype, n)
        for affine, layout, masked in itertools.product(["", "weight", "both"], LAYOUTS, [False, True]):
            of = {"": (None, None), "weight": (np.float32, None), "both": (dtype, dtype)}[affine]
            for op in ("layer_norm", "instance_norm"):
                sizes = n if op == "layer_norm" else many
                weight, bias = (None if d is None else numbers((sizes,), d, i) for i, d in enumerate(of))
                mask = numbers((many, n), np.float64, 7) > -0.3 if masked else None
                name = f"{op} {dtype.name} {many}x{n} {layout} {affine or 'plain'}{' masked' if masked else ''}"
                yield name, PREPARE[op](LAYOUTS[layout], x, weight, bias, mask)
        for layout in LAYOUTS:
            mean, var = x.astype(np.float64).mean(1), x.astype(np.float64).var(1)
            if dtype == np.float16:
                mean, var = mean.astype(np.float32), var.astype(np.float32)
            yield f"given {dtype.name} {many}x{n} {layout}", given(LAYOUTS[layout], x, mean, var)


LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: np.ascontiguousarray(np.moveaxis(x, -1, 1 - x.ndim)),
    "gaps": lambda x: np.repeat(x, 2, axis=x.ndim - 2)[..., ::2, :],
    "backwards": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
}


def layer_norm(place, x, weight, bias, mask):
    there, axis = place(x), -1
    if there.shape != x.shape:
        axis, mask = 0, None if mask is None else mask.T
    options = {"weight": weight, "bias": bias, "mask": mask, "axis": axis}
    return lambda: [back(a, axis) for a in nk.layer_norm(there, backend="numba", policy=ONNX, return_stats=True, **options)]


def instance_norm(place, x, weight, bias, mask):
    there, axis = place(x[None]), 1
    if there.shape != (1, *x.shape):
        axis, mask = -1, None if mask is None else mask.T[None]
    else:
        mask = None if mask is None else mask[None]
    options = {"weight": weight, "bias": bias, "mask": mask, "channel_axis": axis}
    return lambda: [back(a, -axis) for a in nk.instance_norm(there, backend="numba", policy=ONNX, return_stats=True, **options)]


def given(place, x, mean, var):
    there = place(x[None])
    axis = 1 if there.shape == (1, *x.shape) else -1
    options = {"running_mean": mean, "running_var": var, "use_input_stats": False, "channel_axis": axis}
    return lambda: [back(nk.instance_norm(there, backend="numba", **options), -axis)]


PREPARE = {"layer_norm": layer_norm, "instance_norm": instance_norm}


def back(a, axis):
    """With the elements of a set in a row, however the call had them."""
    return a.T if axis == 0 else np.moveaxis(a, -1, 1) if axis == 1 else a


def digest(arrays):
    found = hashlib.sha256()
    for a in arrays:
        found.update(np.ascontiguousarray(a).tobytes())
    return found.hexdigest()[:12]


@contextlib.contextmanager
def small_limits():
    """Rows are split, outputs streamed, buffers filled in parts: of arrays as small as ours."""
    from normkit.backends.numba_backend import limits, tiles

    changes = [(limits, "PARALLEL_BYTES", 0), (limits, "STREAM_BYTES", 0), (limits, "SPLIT_BYTES", 1 << 13)]
    changes += [(limits, "FETCH_BYTES", 0), (tiles, "TILE_BYTES", 1 << 15)]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        nk.empty_cache()
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        nk.empty_cache()


def ways():
    """(what, context) of every way in which a call must come to the same bits."""
    for threads in (1,) if os.environ.get("NUMBA_DISABLE_JIT") == "1" else (1, 2):
        yield f"{threads} threads", threads, contextlib.nullcontext
        yield f"{threads} threads, small limits", threads, small_limits


def found(small=False):
    """Hashes by name, as they are computed here and now; the first of the ways that comes to another one is named in it."""
    hashes = {}
    for what, threads, context in ways():
        nk.set_num_threads(threads)
        try:
            with context():
                for name, call in calls(small):
                    bits = digest(call())
                    if hashes.setdefault(name, bits) != bits:
                        hashes[name] = f"{hashes[name]}, but {bits} on {what}"
        finally:
            nk.set_num_threads(None)
    return hashes


def kept():
    return json.loads(FILE.read_text(encoding="utf-8"))


def differences(hashes):
    """What is not as it is kept, a line each."""
    known = kept()
    return [f"{name}: {bits}, kept is {known.get(name)}" for name, bits in hashes.items() if known.get(name) != bits]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="make the file anew")
    parser.add_argument("--small", action="store_true", help="only the smallest shapes")
    options = parser.parse_args()
    now = found(options.small)
    if options.write:
        if wrong := [f"{name}: {bits}" for name, bits in now.items() if "but" in bits]:
            sys.exit("the bits depend on the way:\n" + "\n".join(wrong))
        small = found(small=True)
        FILE.write_text(json.dumps(now | small, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    wrong = differences(now)
    print(*wrong[:40], f"{len(now)} calls, {len(wrong)} differ", sep="\n")
    sys.exit(bool(wrong))
