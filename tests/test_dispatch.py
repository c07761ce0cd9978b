"""Which backend runs: `choose` with fake backends, and what is said when the preferred one cannot."""

import warnings

import numpy as np
import pytest

import normkit as nk
from normkit import registry, validation
from normkit.dispatch import choose, loud, refusal, stepping_down
from normkit.registry import Missing

X = np.ones((2, 3, 4), np.float32)
PROBLEM = validation.layer_norm(X).problem


class Fake:
    """A backend that can be told to refuse, and writes its own number into the output so that it can be recognized."""

    def __init__(self, name, number=0.0, reasons=(), family="numpy"):
        self.name, self.family, self.number, self.reasons, self.calls = name, family, number, list(reasons), 0

    def why_not(self, problem):
        return self.reasons

    def prepare(self, problem):
        def run(operands):
            self.calls += 1
            operands.out[...] = self.number
            if operands.mean is not None:
                operands.mean[...], operands.var[...] = self.number, 1

        return run

    def empty_like(self, x):
        return np.empty_like(x)

    def empty_stats(self, shape):
        return np.empty(shape)

    def describe(self):
        return {}


@pytest.fixture
def register():
    """`register_backend`, undone afterwards."""
    names = []

    def register(backend):
        nk.register_backend(backend)
        names.append(backend.name)
        return backend

    yield register
    for name in names:
        registry._forget(name)


def among(*known):
    """A lookup that knows these backends, and what is missing."""
    table = {entry[0] if isinstance(entry, tuple) else entry.name: entry for entry in known}

    def lookup(name):
        entry = table[name]
        return Missing(*entry[1:]) if isinstance(entry, tuple) else entry

    return lookup


def order(*names, on_fallback="warn"):
    return nk.FallbackPolicy(order=names, on_fallback=on_fallback)


# choose


def test_the_first_that_can():
    a, b = Fake("a"), Fake("b")
    assert choose(PROBLEM, order("a", "b"), lookup=among(a, b)) == (a, [])
    assert choose(PROBLEM, order("b", "a"), lookup=among(a, b)) == (b, [])


def test_one_that_refuses_is_passed_over_loudly():
    a, b = Fake("a", reasons=["too old", "too slow"]), Fake("b")
    choice = choose(PROBLEM, order("a", "b"), lookup=among(a, b))
    assert choice.backend is b
    assert [tuple(s) for s in choice.skipped] == [("a", ["too old", "too slow"], False)]
    assert loud(choice) == choice.skipped


def test_one_that_is_not_installed_is_passed_over_quietly():
    b = Fake("b")
    choice = choose(PROBLEM, order("a", "b"), lookup=among(("a", "a is not installed (pip install a)", True), b))
    assert choice.backend is b
    assert [tuple(s) for s in choice.skipped] == [("a", ["a is not installed (pip install a)"], True)]
    assert loud(choice) == []


def test_one_that_is_broken_is_passed_over_loudly():
    b = Fake("b")
    assert loud(choose(PROBLEM, order("a", "b"), lookup=among(("a", "its import failed", False), b)))


def test_a_name_is_an_order():
    a, b = Fake("a", reasons=["no"]), Fake("b")
    assert choose(PROBLEM, order("b"), "a", among(a, b)).backend is None
    assert choose(PROBLEM, order("a"), "b", among(a, b)) == (b, [])


def test_other_families_are_no_candidates():
    a, b = Fake("a", family="cupy"), Fake("b")
    assert choose(PROBLEM, order("a", "b"), lookup=among(a, b)) == (b, [])
    choice = choose(PROBLEM, order("b"), "a", among(a, b))
    assert choice.backend is None
    assert choice.skipped[0].reasons == ["takes cupy arrays, and never moves an array of numpy"]


def test_nobody_can_and_the_error_lists_everyone():
    a, b = Fake("a", reasons=["one", "two"]), Fake("b", reasons=["three"])
    policy = order("a", "b", on_fallback="raise")
    text = str(refusal(PROBLEM, policy, choose(PROBLEM, policy, lookup=among(a, b)), None))
    assert text.splitlines() == [
        "no backend can run layer_norm on x: (2, 3, 4) float32 numpy array",
        "  a: one",
        "  a: two",
        "  b: three",
        "  policy: order=('a', 'b'), on_fallback='raise'",
    ]


def test_stepping_down_says_from_what_to_what():
    a, b = Fake("a", reasons=["one"]), Fake("b")
    policy = order("a", "b")
    text = stepping_down(PROBLEM, policy, choose(PROBLEM, policy, lookup=among(a, b)))
    assert "layer_norm on x: (2, 3, 4) float32 numpy array runs on 'b'" in text
    assert "a: one" in text
    assert "on_fallback='warn'" in text


def test_choose_runs_nothing():
    a = Fake("a")
    choose(PROBLEM, order("a"), lookup=among(a))
    assert a.calls == 0


# through the public ops


def test_the_policys_order_decides(register):
    one, two = register(Fake("one", 1)), register(Fake("two", 2))
    assert (nk.layer_norm(X, policy=order("one", "two")) == 1).all()
    assert (nk.layer_norm(X, policy=order("two", "one")) == 2).all()
    assert (nk.layer_norm(X, backend="one", policy=order("two")) == 1).all()
    assert (one.calls, two.calls) == (2, 1)


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_on_fallback_ignore(register, op):
    register(Fake("one", 1, ["not today"]))
    register(Fake("two", 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (getattr(nk, op)(X, policy=order("one", "two", on_fallback="ignore")) == 2).all()


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_on_fallback_warn(register, op):
    register(Fake("one", 1, ["not today"]))
    register(Fake("two", 2))
    with pytest.warns(nk.FallbackWarning, match=rf"{op} on x: .* runs on 'two'\n  one: not today") as record:
        assert (getattr(nk, op)(X, policy=order("one", "two")) == 2).all()
    assert len(record) == 1
    assert record[0].filename == __file__  # it points at the user's line


@pytest.mark.parametrize("op", ["layer_norm", "instance_norm"])
def test_on_fallback_raise(register, op):
    register(Fake("one", 1, ["not today"]))
    two, out = register(Fake("two", 2)), np.full_like(X, 9)
    with pytest.raises(nk.NoBackendError, match=rf"(?s)no backend can run {op}.*one: not today.*on_fallback='raise'"):
        getattr(nk, op)(X, policy=order("one", "two", on_fallback="raise"), out=out)
    assert two.calls == 0
    assert (out == 9).all()


@pytest.mark.parametrize("on_fallback", ["ignore", "warn", "raise"])
def test_what_is_not_installed_is_quiet_whatever_the_policy(monkeypatch, register, on_fallback):
    register(Fake("two", 2))
    monkeypatch.setitem(registry.BUILT_IN, "absent", registry.BuiltIn("normkit_absent_package", "numpy", "pip install absent"))
    try:
        assert (nk.layer_norm(X, policy=order("absent", "two", on_fallback=on_fallback)) == 2).all()
    finally:
        registry._forget("absent")


@pytest.mark.parametrize("on_fallback", ["ignore", "warn", "raise"])
def test_nobody_left_raises_whatever_the_policy(register, on_fallback):
    register(Fake("one", 1, ["not today"]))
    register(Fake("two", 2, ["nor ever"]))
    with pytest.raises(nk.NoBackendError, match=r"(?s)one: not today.*two: nor ever"):
        nk.layer_norm(X, policy=order("one", "two", on_fallback=on_fallback))


def test_an_order_by_name_never_steps_down(register):
    register(Fake("one", 1, ["not today"]))
    for on_fallback in ("ignore", "warn", "raise"):
        with pytest.raises(nk.NoBackendError, match="which is an order"):
            nk.layer_norm(X, backend="one", policy=order("one", "numpy", on_fallback=on_fallback))
    with nk.using(backend="one"), pytest.raises(nk.NoBackendError, match="one: not today"):
        nk.layer_norm(X)


def test_an_order_of_other_families_leaves_those_that_take_the_array(register):
    register(Fake("elsewhere", 1, family="cupy"))
    y = nk.layer_norm(X, policy=order("elsewhere", on_fallback="raise"))
    np.testing.assert_allclose(y, nk.layer_norm(X, backend="numpy"), atol=1e-6)


def test_an_error_while_running_is_not_a_fallback(register):
    class Broken(Fake):
        def prepare(self, problem):
            raise ZeroDivisionError

    register(Broken("broken"))
    with pytest.raises(ZeroDivisionError):
        nk.layer_norm(X, policy=order("broken", "numpy"))


def test_a_refusal_concerns_the_problem_that_runs_not_the_one_that_was_asked(register):
    class OnlyGiven(Fake):
        def why_not(self, problem):
            return [] if problem.statistics == "given" else ["only given statistics"]

    register(OnlyGiven("given", 7))
    x = np.ones((2, 3, 1), np.float32)
    running = np.zeros(3, np.float32), np.ones(3, np.float32)
    given = nk.FallbackPolicy(single_element="running")
    assert (nk.instance_norm(x, *running, backend="given", policy=given) == 7).all()
    with pytest.raises(nk.NoBackendError, match="only given statistics"):
        nk.instance_norm(x, backend="given", policy=nk.FallbackPolicy.onnx())


def test_statistics_are_asked_for_only_when_they_are_wanted(register):
    class Nosy(Fake):
        def prepare(self, problem):
            def run(operands):
                self.seen = operands.mean is not None, operands.var is not None
                operands.out[...] = 0
                if operands.mean is not None:
                    operands.mean[...], operands.var[...] = 3, 1

            return run

    nosy = register(Nosy("nosy"))
    nk.layer_norm(X, backend="nosy")
    assert nosy.seen == (False, False)
    _, mean, rstd = nk.layer_norm(X, backend="nosy", return_stats=True, eps=0)
    assert nosy.seen == (True, True)
    assert (mean == 3).all()
    assert (rstd == 1).all()
    nk.instance_norm(X, np.zeros(3), np.ones(3), backend="nosy")
    assert nosy.seen == (True, True)


def test_a_backend_never_sees_an_out_that_it_could_read_after_writing(register):
    """Engines write while they read: out is all of x, element on element, or it touches no operand."""

    class Watchful(Fake):
        def prepare(self, problem):
            def run(operands):
                for name in ("x", "weight", "bias", "mask"):
                    operand = getattr(operands, name)
                    if operand is not None and np.may_share_memory(operands.out, operand):
                        seen.append(
                            (name, operands.out.ctypes.data == operand.ctypes.data and operands.out.strides == operand.strides)
                        )
                operands.out[...] = 7

            return run

    register(Watchful("watchful"))
    memory, square = np.zeros(100, np.float32), np.zeros((4, 4), np.float32)
    booleans = square.view(bool)[:, :4]
    for arguments, expected in (
        ({"x": square, "out": square}, [("x", True)]),
        ({"x": square, "out": square[:]}, [("x", True)]),
        ({"x": square, "out": np.zeros_like(square)}, []),
        ({"x": square, "out": square.T}, []),
        ({"x": square, "out": square[::-1]}, []),
        ({"x": memory[:64].reshape(8, 8), "out": memory[1:65].reshape(8, 8)}, []),
        ({"x": square, "out": square, "weight": square[0]}, []),
        ({"x": np.ones((4, 4), np.float32), "out": square, "bias": square[2]}, []),
        ({"x": np.ones((4, 4), np.float32), "out": square, "mask": booleans}, []),
    ):
        seen = []
        out = arguments["out"]
        booleans[...] = True
        assert nk.layer_norm(backend="watchful", **arguments) is out
        assert (out == 7).all()
        assert seen == expected
        square[...] = 0
