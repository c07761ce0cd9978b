"""How the GPU backend cuts problems up: pure functions, tried on sizes that no test could allocate."""

import itertools
import math
import re
from struct import Struct

import numpy as np
import pytest
from normkit.backends.cupy_backend import engine, launch

from normkit.problem import Columns, Rows

ITEMSIZES = [2, 4, 8]
LENGTHS = sorted(
    {n + d for n in (1, 2, 4, 8, 100, 128, 512, 768, 1000, 4096, 16384, 32768, 65536, 2**17, 2**21) for d in (-1, 0, 1)}
)
HUGE = [2**31 - 1, 2**31, 2**31 + 9, 2**35 + 1]


def touched(count, itemsize, head):
    """16-byte vectors that hold `count` elements, the first of them `head` elements after a boundary."""
    return math.ceil((count + head) * itemsize / launch.VECTOR_BYTES)


@pytest.mark.parametrize("itemsize", ITEMSIZES)
@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("length", [n for n in [*LENGTHS, *HUGE] if n > 0])
def test_a_row_cut_holds_every_element_wherever_the_row_starts(length, itemsize, clusters):
    vector = launch.VECTOR_BYTES // itemsize
    heads = range(vector) if length % vector else [0]
    cuts = [
        launch.cut_row(length, itemsize, clusters),
        launch.cut_moments(length, itemsize),
        launch.cut_apply(length, itemsize),
    ]
    for cut in filter(None, cuts):
        assert cut.group & (cut.group - 1) == 0
        assert cut.group <= launch.THREADS
        assert cut.held in (1, 2, 4, 8, 16)
        assert cut.chunks == math.ceil(length / cut.chunk)
        assert cut.chunks == 1 or cut.chunk % vector == 0
        last = length - (cut.chunks - 1) * cut.chunk
        assert 0 < last <= cut.chunk
        for count, head in itertools.product((cut.chunk, last), heads):
            assert touched(count, itemsize, head) <= cut.group * cut.held
        assert cut.chunk * itemsize < 2**31  # places within a chunk are 32-bit


def test_long_rows_need_clusters_or_more_kernels():
    assert launch.cut_row(16384, 4, clusters=False).chunks == 1
    assert launch.cut_row(16385, 4, clusters=False) is None
    assert launch.cut_row(16385, 4, clusters=True).chunks == 2
    assert launch.cut_row(65536, 4, clusters=True).chunks == 4
    assert launch.cut_row(131072, 4, clusters=True).chunks == 8
    assert launch.cut_row(131073, 4, clusters=True) is None


@pytest.mark.parametrize("itemsize", ITEMSIZES)
@pytest.mark.parametrize(("rows", "length"), [(1, 2**31 + 9), (2**31 + 5, 7), (2**33, 1), (70000, 65536), (3, 2**34)])
def test_a_row_grid_covers_more_than_32_bits(rows, length, itemsize):
    whole = launch.cut_row(length, itemsize, clusters=True)
    for cut in (whole or launch.cut_moments(length, itemsize), launch.cut_apply(length, itemsize)):
        grid = launch.row_grid(rows, cut, itemsize, ragged=True)
        assert grid.blocks * (grid.threads // cut.group) >= rows * cut.chunks
        assert (grid.blocks - 1) * (grid.threads // cut.group) < rows * cut.chunks
        assert grid.blocks <= launch.MOST_BLOCKS
        assert grid.threads <= launch.THREADS
        assert grid.threads % 32 == 0
        assert grid.shared <= 48 * 1024
        assert not cut.clustered or (grid.blocks % cut.chunks == 0 and grid.threads == cut.group)


def column_cut(outer, length, lanes, itemsize, step):
    if step == launch.FUSED:
        return launch.cut_columns(outer, length, lanes, itemsize)
    return launch.cut_column_chunks(outer, length, lanes, itemsize, step)


OUTER, LANES = [1, 3, 64, 2**20], [2, 3, 8, 12, 64, 513, 2**22]


@pytest.mark.parametrize("itemsize", ITEMSIZES)
@pytest.mark.parametrize("length", [1, 2, 3, 9, 64, 100, 1024, 4096, 4097, 2**20, 2**31 + 3])
def test_a_column_cut_covers_length_and_lanes(length, itemsize):
    for outer, lanes, step in itertools.product(OUTER, LANES, (launch.FUSED, launch.MOMENTS, launch.APPLY)):
        cut = column_cut(outer, length, lanes, itemsize, step)
        if cut is None:
            assert step == launch.FUSED
            assert length > launch.COLUMN_HELD[step][-1]
            continue
        assert lanes % cut.vector == 0
        assert cut.vector * itemsize <= launch.VECTOR_BYTES
        assert cut.held in launch.COLUMN_HELD[step]
        assert step != launch.FUSED or cut.chunk == length <= cut.height * cut.held
        assert cut.chunk * cut.chunks >= length > cut.chunk * (cut.chunks - 1)
        assert cut.chunk <= cut.height * cut.held * launch.COLUMN_BATCHES  # a float sum has so many elements
        assert cut.tiles * cut.width * cut.vector >= lanes
        assert (cut.tiles - 1) * cut.width * cut.vector < lanes
        assert 1 <= cut.parts <= cut.height
        grid = launch.column_grid(outer, cut, itemsize)
        assert grid.threads == cut.width * cut.height * cut.depth
        assert grid.threads <= launch.COLUMN_THREADS
        assert grid.shared <= launch.MOST_SHARED
        assert grid.blocks == math.ceil(outer / cut.depth) * cut.chunks * cut.tiles
        if outer * length * lanes < 2**40:
            assert grid.blocks <= launch.MOST_BLOCKS


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_a_cut_does_not_hang_on_how_many_sets_there_are(itemsize):
    """Else the bits would. `depth`, outer blocks in a block, adds nothing up."""
    for length, lanes in itertools.product((3, 100, 5000), (3, 64)):
        for step in (launch.FUSED, launch.MOMENTS):
            cuts = [column_cut(outer, length, lanes, itemsize, step) for outer in OUTER]
            assert len({cut and cut._replace(depth=0) for cut in cuts}) == 1
    assert launch.cut_row.__code__.co_varnames[:3] == ("length", "itemsize", "clusters")


def test_the_steps_of_a_problem_are_kernels_that_the_tests_compile():
    known = {clusters: set(engine.specializations(clusters)) for clusters in (False, True)}
    for name, clusters, statistics in itertools.product(engine.C_TYPES, (False, True), ("input", "given")):
        dtype = np.dtype("float16" if name == "bfloat16" else name)
        parameter = engine.C_TYPES[dtype.name]
        for length in (n for n in LENGTHS if n > 0):
            for steps in (
                engine._row_steps(Rows(5, length, 1, 1), clusters, dtype, parameter, 1e-5, statistics, 5),
                engine._column_steps(Columns(2, length, 6, "length"), dtype, parameter, 1e-5, statistics, 12),
                engine._column_steps(Columns(2, length, 3, "lanes"), dtype, parameter, 1e-5, statistics, 6),
                engine._column_steps(Columns(2, length, 16, "lanes"), dtype, parameter, 1e-5, statistics, 32),
            ):
                assert {step.kernel for step in steps} <= known[clusters]
                assert len(steps) in (1, 3)
                assert statistics == "input" or len(steps) == 1


def test_sizes_are_64_bits_wide():
    (step,) = engine._row_steps(Rows(2**33, 1, 4, 2**33), False, np.dtype(np.float32), "float", 0.0, "input", 2**33)
    assert engine.ROWS.unpack(step.constants)[:5] == (2**33, 4, 4, 1, 2**33)
    assert len(step.constants) == engine.ROWS.size


def test_the_structs_are_those_of_the_kernels():
    """Field by field: names are not checked by anybody else, sizes are by the emulated device."""
    letter = {"int64": "q", "double": "d", "int": "i"}
    for name, before, layout in (
        ("Arrays", engine.POINTERS, Struct("")),
        ("RowsCall : Arrays", Struct("0Q"), engine.ROWS),
        ("ColumnsCall : Arrays", Struct("0Q"), engine.COLUMNS),
        ("MergeCall", engine.MERGED, engine.MERGE),
    ):
        body = re.search(rf"struct {name} {{(.*?)\n}};", engine.source(), re.DOTALL)[1]
        pointers, fields = 0, ""
        for kind, names in re.findall(r"(?:const )?(void|double|Moments|int64|int|Divisor)\*? ([^;]+);", body):
            declared = [n.strip() for n in names.split(",")]
            if kind in ("void", "Moments") or names.startswith("*"):
                pointers += len(declared)
            else:
                fields += ("qd" if kind == "Divisor" else letter[kind]) * len(declared)
        assert before.format == f"{pointers}Q"
        assert fields == "".join(c * int(n or 1) for n, c in re.findall(r"(\d*)([a-wyz])", layout.format))  # but x, which pads
