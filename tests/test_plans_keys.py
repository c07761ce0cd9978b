"""What plans are kept by: never by more than equality, for longer than a registration, or at the cost of a caller's arrays."""

import gc
import threading
import tracemalloc
import weakref
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from normkit.backends.numpy_backend import NumpyBackend

import normkit as nk
from normkit import plans, pool, registry
from normkit.plans import forget

pytestmark = pytest.mark.usefixtures("fresh_plans")


def kept():
    return plans.current().plans


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def outcome(call):
    """What a call gives or raises."""
    try:
        y = call()
    except nk.NormkitError as error:
        return type(error)
    return [part.tobytes() for part in (y if isinstance(y, tuple) else (y,))]


class Equal:
    """Equals whatever it is compared with, and hashes as a number does."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash(self.value)


def alike(value):
    """Things that equal a value, and are not of its type."""
    yield Equal(value)
    if isinstance(value, tuple):
        for n in alike(value[0]):
            yield from ((n, *value[1:]), [n, *value[1:]])
    elif isinstance(value, str):
        yield np.str_(value)
    else:
        yield from (complex(value), Decimal(value), Fraction(value), np.float64(value), np.float32(value), np.longdouble(value))
        yield from [float(value), int(value), np.int64(value), np.uint8(value)] if value in (0, 1, 3) else []
        yield from [bool(value), np.bool_(value)] if value in (0, 1) else []


ARGUMENTS = [
    ("layer_norm", "normalized_shape", 3),
    ("layer_norm", "normalized_shape", 1),
    ("layer_norm", "normalized_shape", (3, 1)),
    ("layer_norm", "axis", 1),
    ("layer_norm", "axis", (0, 1)),
    ("layer_norm", "eps", 1.0),
    ("layer_norm", "eps", 0.5),
    ("layer_norm", "return_stats", True),
    ("layer_norm", "return_stats", False),
    ("layer_norm", "backend", "numba"),
    ("instance_norm", "channel_axis", 1),
    ("instance_norm", "eps", 0.5),
    ("instance_norm", "momentum", 1.0),
    ("instance_norm", "momentum", 0.5),
    ("instance_norm", "use_input_stats", True),
    ("instance_norm", "use_input_stats", False),
    ("instance_norm", "return_stats", True),
]


@pytest.mark.parametrize(("op", "name", "value"), ARGUMENTS)
@pytest.mark.parametrize("running", [False, True])
def test_what_is_accepted_does_not_depend_on_what_was(op, name, value, running):
    sizes = {3: (2, 4, 3), 1: (2, 3, 1), (3, 1): (2, 3, 1)}
    shape = sizes.get(value, (2, 3, 4)) if name == "normalized_shape" else (2, 3, 4)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def call(value):
        options = {}
        if op == "instance_norm" and (running or name == "use_input_stats"):
            options = {"running_mean": np.zeros(3, np.float32), "running_var": np.ones(3, np.float32)}
        return getattr(nk, op)(x, **options, **{name: value})

    others = list(alike(value))
    fresh = []
    for other in others:
        forget()
        fresh.append(outcome(lambda other=other: call(other)))
    for _ in range(2):
        call(value)
    assert len(kept()) == 1
    assert [outcome(lambda other=other: call(other)) for other in others] == fresh


def test_numbers_that_a_configuration_holds_are_planned(x, monkeypatch):
    weight = np.arange(8, dtype=np.float32)
    expected = nk.layer_norm(x, 8, weight, eps=np.float64(0.25))
    monkeypatch.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
    for eps in (0.25, np.float32(0.25), np.float64(0.25)):
        np.testing.assert_array_equal(nk.layer_norm(x, 8, weight, eps=eps), expected)


def bytes_held(calls):
    """By how much memory grows while calls are made, less what they give, as Python and NumPy count it."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for call in calls:
            call()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_equal_settings_are_one(monkeypatch):
    """Of `using` and of a call: the second block like another is planned, and nothing more is kept."""
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)

    def policy():
        return nk.FallbackPolicy(single_element={"layer_norm": "raise", "instance_norm": "bias"})

    with nk.using(policy=policy(), backend="numba"):
        expected = nk.layer_norm(x)
    monkeypatch.setattr("normkit.functional.execute", None)  # all that a plan does not answer ends up there
    for _ in range(3):
        with nk.using(policy=policy()), nk.using(backend="numba"):
            np.testing.assert_array_equal(nk.layer_norm(x), expected)
        np.testing.assert_array_equal(nk.layer_norm(x, policy=policy(), backend="numba"), expected)
        with nk.using(backend="numpy"):
            np.testing.assert_array_equal(nk.layer_norm(x, policy=policy(), backend="numba"), expected)
    assert len(kept()) == 1
    monkeypatch.undo()
    with nk.using(backend="numba"):
        nk.layer_norm(x)
    assert len(kept()) == 2


@pytest.mark.parametrize("given", [("weight", "bias"), ("weight",), ("bias",)])
@pytest.mark.parametrize("op", ["layer_norm", "instance_norm", "columns"])
def test_a_plan_holds_nothing_of_the_size_of_a_weight(op, given):
    """And calls with other weights, in other blocks of `using`, hold no more than one of them all together."""
    shape = (2, 64, 32, 64) if op == "layer_norm" else (1, 1 << 17, 2) if op == "instance_norm" else (2, 2, 1 << 17)
    x = np.ones(shape, np.float32)
    size = shape[1:] if op == "layer_norm" else shape[2:] if op == "columns" else shape[1:2]
    parameter = np.ones(size, np.float32)
    options = {"normalized_shape": size} if op == "layer_norm" else {"channel_axis": -1 if op == "columns" else 1}

    def call(i):
        with nk.using(policy=nk.FallbackPolicy(on_fallback=("ignore", "warn")[i % 2]), backend=("numba", None)[i % 3 > 0]):
            run = nk.layer_norm if op == "layer_norm" else nk.instance_norm
            run(x, **options, **dict.fromkeys(given, parameter), eps=1e-5 * (1 + i % 4))

    call(0)  # compiles
    nk.empty_cache()
    held = bytes_held([partial(call, i) for i in range(24)])
    assert len(kept()) >= 8
    shared = 2 * parameter.nbytes if len(given) == 1 else 0  # the ones or zeros that are not given, of all calls
    assert held - pool.held() <= shared + parameter.nbytes // 2
    nk.empty_cache()
    assert not kept()


def test_no_plan_holds_large_ones_for_a_weight_that_is_not_given():
    bias = np.zeros((1 << 20) + 1, np.float32)
    x = np.ones((1, bias.size), np.float32)
    nk.layer_norm(x, bias.size, None, bias)
    nk.empty_cache()
    assert bytes_held([lambda: nk.layer_norm(x, bias.size, None, bias)] * 3) - pool.held() < 1 << 20


def test_plans_are_small_and_of_a_bounded_number(x):
    nk.layer_norm(x)
    held = bytes_held([partial(nk.layer_norm, x, eps=1e-5 + i * 1e-9) for i in range(2000)])
    assert held < 16 << 20
    assert sum(map(len, kept().values())) <= plans.MOST
    nk.empty_cache()
    assert not kept()
    assert not plans.current().latest


def test_a_policys_callable_is_not_kept_alive(x):
    one = np.ones((2, 3, 1), np.float32)
    for calls in ([lambda p: nk.layer_norm(x, policy=p)], [lambda p: nk.instance_norm(one, policy=p)]):
        for call in (*calls, partial(in_a_block, calls[0])):
            gone = weakref.ref(held := np.full_like(one, 7))
            policy = nk.FallbackPolicy(single_element={"instance_norm": partial(given_by, held)})
            for _ in range(2):
                call(policy)
            del held, policy
            gc.collect()
            assert gone() is None


def given_by(held, problem):
    return held


def in_a_block(call, policy):
    with nk.using(policy=policy):
        call(None)


def test_plans_of_policies_with_callables_are_shared_and_each_is_asked(x, monkeypatch):
    one, masks = np.ones((2, 3, 1), np.float32), np.ones((4, 8), bool)
    policies = [nk.FallbackPolicy(single_element=partial(given_by, np.full_like(one, i))) for i in range(3)]
    for i, policy in enumerate(policies * 2):
        assert (nk.instance_norm(one, policy=policy) == i % 3).all()
        nk.layer_norm(x, policy=policy)
        nk.layer_norm(x, mask=masks, policy=policy)
    assert len(kept()) == 2
    masks[1] = False
    for i, policy in enumerate(policies):
        answer = nk.FallbackPolicy(single_element=partial(given_by, np.full_like(x, i)))
        assert (nk.layer_norm(x, mask=masks, policy=answer)[1] == i).all()
        assert policy.key == answer.key


def test_a_policy_of_many_names_is_no_key(x):
    policy = nk.FallbackPolicy(order=("numba", *map(str, range(1000))))
    for _ in range(2):
        nk.layer_norm(x, policy=policy)
        with nk.using(policy=policy):
            nk.layer_norm(x)
    assert not kept()


class Mine(NumpyBackend):
    """A backend whose outputs are all one number, and which does something meanwhile."""

    name = "mine"

    def __init__(self, number, meanwhile=lambda: None):
        self.number, self.meanwhile = number, meanwhile

    def why_not(self, problem):
        self.meanwhile()
        return []

    def prepare(self, problem):
        def run(operands):
            operands.out[...] = self.number

        return run


@pytest.fixture
def forgotten():
    yield
    registry._forget("mine")


@pytest.mark.usefixtures("forgotten")
def test_what_was_chosen_before_a_registration_is_not_kept(x):
    """Whether it comes from within, or from another thread."""
    nk.register_backend(Mine(1, meanwhile=lambda: nk.register_backend(Mine(2))))
    for number in (1, 2, 2):
        assert (nk.layer_norm(x, backend="mine") == number).all()
    other = threading.Thread(target=lambda: nk.register_backend(Mine(4)))

    def meanwhile():
        other.start()
        other.join()

    nk.register_backend(Mine(3, meanwhile))
    for number in (3, 4, 4):
        assert (nk.layer_norm(x, backend="mine") == number).all()


def test_a_plan_that_runs_during_a_registration_is_not_found_after_it(x):
    """The table that a plan was found in may have been replaced meanwhile."""
    table, found = plans.current(), []

    def plan(x, *others):
        if len(found) < 2:  # declines at first, as one that was made for another shape
            return None
        forget()
        return "y"

    key = ("key",)
    table.keep(key, x, plan)
    table.keep(key, x, plan)
    found += [1, 2]
    table.latest[key] = lambda *arrays: None
    assert plans.recall(key, x, None, None, None) == "y"
    assert not plans.current().latest
    assert plans.recall(key, x, None, None, None) is None
