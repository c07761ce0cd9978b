"""The canonical layouts: a view as rows or columns must pair every element with its own statistics, weight and bias.

Kernels trust these few integers without looking, so they are checked element by element against the plain meaning of axes.
"""

from itertools import combinations, product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normkit as nk
from normkit import validation
from normkit.problem import Columns, Problem, Rows


def numbered(shape, axes):
    """For every element, the number of what it shares: equal over `axes`, counted in C order over the others."""
    kept = tuple(1 if a in axes else n for a, n in enumerate(shape))
    return np.broadcast_to(np.arange(prod(kept)).reshape(kept), shape)


def claimed(layout):
    """For every element of the view, the number of its statistics and of its weight, as the layout has them."""
    if isinstance(layout, Rows):
        row, run, _ = np.indices((layout.rows, layout.runs, layout.inner))
        return row, (row % layout.period) * layout.runs + run
    outer, length, lane = np.indices((layout.outer, layout.length, layout.lanes))
    return outer * layout.lanes + lane, length if layout.affine == "length" else lane


def check(problem):
    layout = problem.layout
    if layout is None:
        return
    size = layout.rows * layout.runs * layout.inner if isinstance(layout, Rows) else layout.outer * layout.length * layout.lanes
    assert size == prod(problem.shape)
    statistics, parameter = claimed(layout)
    np.testing.assert_array_equal(statistics.ravel(), numbered(problem.shape, problem.axes).ravel())
    if problem.weight is not None:
        others = tuple(a for a in range(len(problem.shape)) if a not in problem.affine_axes)
        np.testing.assert_array_equal(parameter.ravel(), numbered(problem.shape, others).ravel())


def problem(shape, axes, affine_axes, affine):
    f4 = np.dtype(np.float32)
    return Problem("any", "numpy", shape, f4, axes, affine_axes, 1e-5, weight=f4 if affine else None)


SUBSETS = [c for n in range(5) for c in combinations(range(4), n)]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 3, 1), (1, 1, 1, 1), (0, 2, 3, 4), (2, 3, 0, 4), (3, 2, 1, 4)])
def test_every_layout_of_every_choice_of_axes(shape):
    for axes, affine_axes in product(SUBSETS, SUBSETS):
        check(problem(shape, axes, affine_axes, affine=bool(affine_axes)))


@given(st.data())
def test_any_layout(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=7)))
    some = st.sets(st.integers(0, len(shape) - 1)).map(sorted).map(tuple)
    affine_axes = data.draw(some)
    check(problem(shape, data.draw(some), affine_axes, affine=bool(affine_axes)))


@pytest.mark.parametrize(
    ("call", "layout"),
    [
        (lambda x, p: validation.layer_norm(x((8, 512)), weight=p(512)), Rows(8, 512, 1, 1)),
        (lambda x, p: validation.layer_norm(x((2, 3, 4, 5)), (4, 5), p(4, 5)), Rows(6, 20, 1, 1)),
        (lambda x, p: validation.layer_norm(x((2, 3, 4))), Rows(6, 1, 4, 1)),
        (lambda x, p: validation.instance_norm(x((8, 6, 4, 5)), weight=p(6)), Rows(48, 1, 20, 6)),
        (lambda x, p: validation.instance_norm(x((8, 6, 4, 5))), Rows(48, 1, 20, 1)),
        (lambda x, p: validation.layer_norm(x((2, 3, 4)), axis=1, weight=p(3)), Columns(2, 3, 4, "length")),
        (lambda x, p: validation.layer_norm(x((3, 4)), axis=0, weight=p(3)), Columns(1, 3, 4, "length")),
        (lambda x, p: validation.instance_norm(x((2, 4, 5, 3)), weight=p(3), channel_axis=-1), Columns(2, 20, 3, "lanes")),
        (lambda x, p: validation.layer_norm(x((2, 3, 4)), axis=(0, 2)), None),
    ],
)
def test_the_layouts_that_the_design_names(call, layout):
    def p(*shape):
        return np.ones(shape, np.float32)

    assert call(p_of_shape, p).problem.layout == layout


def p_of_shape(shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 1), (0, 3), (5,), (1,)])
def test_contiguous_is_what_numpy_says(layout, shape):
    x = layout(np.ones(shape, np.float32))
    assert validation.layer_norm(x).problem.contiguous == x.flags.c_contiguous


def test_counts_and_shapes():
    p = validation.instance_norm(np.ones((2, 3, 4, 5), np.float32)).problem
    assert (p.count, p.stats_shape, p.affine_shape, p.degenerate) == (20, (2, 3, 1, 1), (1, 3, 1, 1), False)
    p = validation.layer_norm(np.ones((2, 3, 1), np.float32)).problem
    assert (p.count, p.stats_shape, p.degenerate) == (1, (2, 3, 1), True)
    assert not validation.layer_norm(np.ones((2, 0), np.float32)).problem.degenerate


def test_the_backends_keep_the_protocol():
    for info in nk.backends():
        if info.usable:
            assert isinstance(nk.get_backend(info.name), nk.Backend)
