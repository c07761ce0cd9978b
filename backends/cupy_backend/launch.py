"""How a problem is cut into blocks and threads: pure functions of lengths and element sizes, which know no GPU.

A cut depends on the length of a set of statistics and on the dtype, never on how many sets there are or where they lie:
the order of every sum follows from it, and so do the bits of the result.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from normkit.problem import Columns

VECTOR_BYTES = 16
THREADS = 256  # the most in a block for rows, as in the kernels' launch bounds
MOST_HELD = 16  # vectors that a thread holds in registers
CLUSTERS = (2, 4, 8)  # blocks in a cluster; 8 is what every GPU that has clusters can do
BLOCK = 128  # threads in a block of several short rows
COLUMN_THREADS = 256  # in a block, for columns
COLUMN_HELD = ((8, 16), (4,), (4,))  # vectors in registers: what each step may hold
COLUMN_BATCHES = 8  # of vectors that a thread holds, one after the other
FOLDED_LEAST = 256  # places
LEAST_PART = 16  # threads whose sums another one adds up
SEGMENT, SECTOR = 256, 32  # bytes: neighbours read together at best, and at least
FIXED_SHARED, MOST_SHARED = 1024, 48 * 1024  # bytes: for what the kernels keep apart from their buffer; all that a block has
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
    """A block covers `depth` outer blocks x `chunk` places of the length x `width` vectors of lanes.

    Each thread has every `height`-th place.
    """

    vector: int  # lanes in a vector
    held: int  # vectors in registers
    width: int
    height: int
    chunk: int  # places of the length in a block
    chunks: int
    tiles: int  # blocks side by side over the lanes
    depth: int

    @property
    def parts(self) -> int:
        """In how many parts it is added up what the threads above and below each other know of a lane."""
        return _ceil(self.height, max(LEAST_PART, _ceil(self.height, 16)))


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


def folds_of(layout: Columns, itemsize: int) -> int:
    """How many places side by side are taken for one, of so many times the lanes, so that it is in whole vectors; often 1.

    Where lanes are few they have long columns, as the channels of an image.
    """
    vector = VECTOR_BYTES // itemsize
    folds = vector // gcd(vector, layout.lanes)
    pays = layout.affine == "lanes" and layout.length % folds == 0 and layout.length >= FOLDED_LEAST * folds
    return folds if pays else 1


def cut_columns(outer: int, length: int, lanes: int, itemsize: int) -> ColumnCut | None:
    """A cut that reads columns once, in one kernel; None if they are too long to be held by one block."""
    held = COLUMN_HELD[FUSED][length > 32]  # the more, the fewer threads know of a lane
    height = _ceil(length, held)
    vector = gcd(lanes, VECTOR_BYTES // itemsize)
    if height * min(_ceil(lanes, vector), _vectors_in(SECTOR, vector * itemsize)) > COLUMN_THREADS:
        return None
    # Half of the threads, where they are wide enough: more blocks wait while others work.
    half = COLUMN_THREADS // 2
    threads = half if half // height >= _vectors_in(SEGMENT // 2, vector * itemsize) else COLUMN_THREADS
    width, tiles = _across(lanes, vector, threads // height)
    cut = ColumnCut(vector, held, width, height, length, 1, tiles, max(1, min(threads // (width * height), outer)))
    return cut if column_grid(outer, cut, itemsize).shared <= MOST_SHARED else None


def cut_column_chunks(outer: int, length: int, lanes: int, itemsize: int, step: int) -> ColumnCut:
    """A cut of columns of any length, for moments of chunks or for the elementwise step."""
    held = COLUMN_HELD[step][0]
    vector = gcd(lanes, VECTOR_BYTES // itemsize)
    width, tiles = _across(lanes, vector, _vectors_in(SEGMENT, vector * itemsize))
    height = min(COLUMN_THREADS // width, length)
    chunk = height * held  # and several times that, where enough blocks are left
    blocks = length // chunk // 16 if step == MOMENTS else length // chunk * outer * tiles // 1024
    chunk = min(length, chunk * min(COLUMN_BATCHES, max(1, blocks)))
    depth = max(1, min(COLUMN_THREADS // (width * height), outer))
    return ColumnCut(vector, held, width, height, chunk, _ceil(length, chunk), tiles, depth)


def column_grid(outer: int, cut: ColumnCut, itemsize: int) -> Grid:
    """The launch of a cut."""
    threads = cut.width * cut.height * cut.depth
    blocks = _ceil(outer, cut.depth) * cut.chunks * cut.tiles
    # In the buffer are up to four numbers for each thread and lane; three in double if a lane is taken over again.
    parts = cut.parts * cut.width * cut.depth * cut.vector if cut.parts > 1 else 0
    numbers = max(24, cut.vector * (3 * 4 if itemsize == 2 else 4 * itemsize))
    return Grid(blocks, threads, FIXED_SHARED + 16 * parts + (threads + cut.width) * numbers)


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


def _across(lanes: int, vector: int, widest: int) -> tuple[int, int]:
    """How many vectors of lanes a block has, in whole sectors if it can be, and how many such blocks."""
    vectors = _ceil(lanes, vector)
    width = _ceil(vectors, _ceil(vectors, widest))
    width = min(width + width % 2, widest)
    return width, _ceil(vectors, width)


def _vectors_in(size: int, vector_bytes: int) -> int:
    """Vectors side by side that make up `size` bytes, no more than a warp."""
    return min(32, max(1, size // vector_bytes))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power(n: int) -> int:
    """The smallest power of two that is n or more."""
    return 1 << max(0, n - 1).bit_length()
