"""How a problem is cut into blocks and threads: pure functions of lengths and element sizes, which know no GPU.

A cut depends on the length of a set of statistics and on the dtype, never on how many sets there are or where they lie:
the order of every sum follows from it, and so do the bits of the result.
"""

from __future__ import annotations

from typing import NamedTuple

VECTOR_BYTES = 16
THREADS = 256  # the most in a block for rows, as in the kernels' launch bounds
MOST_HELD = 16  # vectors that a thread holds in registers
CLUSTERS = (2, 4, 8)  # blocks in a cluster; 8 is what every GPU that has clusters can do
BLOCK = 128  # threads in a block of several short rows
COLUMN_BLOCK, COLUMN_THREADS, COLUMN_HELD = 256, 512, 8  # for columns: threads as a rule, threads at most, vectors in registers
SEGMENT, SECTOR = 128, 32  # bytes: neighbours read together at best, and at least
FIXED_SHARED = 1024  # bytes, for what the kernels keep apart from their buffer
MOST_BLOCKS = 2**31 - 1
FUSED, MOMENTS, APPLY = range(3)  # what a kernel does, as in common.cuh


class RowCut(NamedTuple):
    """A row is cut into `chunks` of `chunk` elements, each held by `group` threads in `held` vectors a thread."""

    group: int
    held: int
    chunk: int
    chunks: int = 1
    clustered: bool = False  # the chunks of a row are the blocks of a cluster


class ColumnCut(NamedTuple):
    """A block covers `depth` outer blocks x `height` x COLUMN_HELD places of the length x `width` vectors of lanes."""

    vector: int  # lanes in a vector
    width: int
    height: int
    depth: int
    chunk: int  # places of the length in a block
    chunks: int
    tiles: int  # blocks side by side over the lanes


class Grid(NamedTuple):
    """Blocks, threads in a block, and bytes of shared memory."""

    blocks: int
    threads: int
    shared: int


def cut_row(length: int, itemsize: int, clusters: bool) -> RowCut | None:
    """A cut that reads a row once, in one kernel; None if the row is too long for that."""
    vector = VECTOR_BYTES // itemsize
    vectors = _row_vectors(length, vector)
    if vectors <= 64:
        held = min(2, vectors)
        return RowCut(_power(_ceil(vectors, held)), held, length)
    if vectors <= MOST_HELD * THREADS:
        fours = 7 / 8 * _power(vectors) < vectors <= 256  # they leave no thread idle, and more threads read at once
        held = 4 if fours else 8 if vectors <= 8 * THREADS else MOST_HELD
        return RowCut(_power(_ceil(vectors, held)), held, length)
    for blocks in CLUSTERS if clusters else ():
        chunk = _ceil(_ceil(length, blocks), vector) * vector
        if _row_vectors(chunk, vector) + (length % vector != 0) <= MOST_HELD * THREADS:
            return RowCut(THREADS, MOST_HELD, chunk, blocks, True)
    return None


def cut_moments(length: int, itemsize: int) -> RowCut:
    """A cut of a long row into chunks whose moments are merged by another kernel."""
    return _chunked(length, itemsize, 8)


def cut_apply(length: int, itemsize: int) -> RowCut:
    """A cut of any row for the elementwise step, which adds nothing up."""
    vectors = _row_vectors(length, VECTOR_BYTES // itemsize)
    if vectors <= 4 * 256:
        return RowCut(_power(_ceil(vectors, 4)), 4, length)
    return _chunked(length, itemsize, 4)


def row_grid(rows: int, cut: RowCut, itemsize: int, ragged: bool) -> Grid:
    """The launch of a cut. `ragged`: rows need not start on a 16-byte boundary."""
    threads = cut.group if cut.clustered else max(cut.group, BLOCK)
    blocks = _ceil(rows * cut.chunks, threads // cut.group)
    # In the buffer are the sums of a thread's columns, in double if a row is taken over again.
    shared = FIXED_SHARED + (VECTOR_BYTES // itemsize * threads * 8 if ragged else 0)
    return Grid(blocks, threads, shared)


def cut_columns(outer: int, length: int, lanes: int, itemsize: int, step: int = FUSED) -> ColumnCut | None:
    """A cut for the columns layout. FUSED: None if a lane is too long to be held by one block."""
    vector = VECTOR_BYTES // itemsize
    if lanes % vector:
        vector = 1
    across = _power(_ceil(lanes, vector))  # vectors of lanes
    if step == FUSED:
        height, least = _power(_ceil(length, COLUMN_HELD)), min(across, _vectors_in(SECTOR, vector * itemsize))
        if height * least > COLUMN_THREADS:
            return None
        width = min(across, max(least, COLUMN_BLOCK // height), 128)
    else:
        width = min(across, _vectors_in(SEGMENT, vector * itemsize))
        height = COLUMN_BLOCK // width
    chunk = length if step == FUSED else min(length, height * COLUMN_HELD)
    depth = max(1, min(COLUMN_BLOCK // (width * height), outer))
    return ColumnCut(vector, width, height, depth, chunk, _ceil(length, chunk), _ceil(lanes, width * vector))


def column_grid(outer: int, cut: ColumnCut) -> Grid:
    """The launch of a cut."""
    threads = cut.width * cut.height * cut.depth
    blocks = _ceil(outer, cut.depth) * cut.chunks * cut.tiles
    return Grid(blocks, threads, FIXED_SHARED + cut.vector * threads * 8)


def merge_grid(sets: int) -> Grid:
    """A warp for each set of statistics."""
    return Grid(_ceil(sets, BLOCK // 32), BLOCK, FIXED_SHARED)


def _chunked(length: int, itemsize: int, held: int) -> RowCut:
    vector, group = VECTOR_BYTES // itemsize, 256
    chunk = (group * held - (length % vector != 0)) * vector
    return RowCut(group, held, min(chunk, length), _ceil(length, chunk))


def _row_vectors(length: int, vector: int) -> int:
    """16-byte vectors that a row can touch; one of an odd length may start anywhere between two boundaries."""
    return length // vector + (2 if length % vector else 0)


def _vectors_in(size: int, vector_bytes: int) -> int:
    """Vectors side by side that make up `size` bytes, no more than a warp."""
    return min(32, max(1, size // vector_bytes))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power(n: int) -> int:
    """The smallest power of two that is n or more."""
    return 1 << max(0, n - 1).bit_length()
