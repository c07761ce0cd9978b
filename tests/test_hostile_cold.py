"""The first calls with an empty cache: a kernel that is soon compiled serves, and others are compiled meanwhile."""

import os
import threading

import numpy as np
import pytest
from hostile import FORK

import normkit as nk

background = pytest.importorskip("normkit.backends.numba_backend.background")
compiling = pytest.importorskip("normkit.backends.numba_backend.compiling")

pytestmark = pytest.mark.skipif(bool(os.environ.get("NUMBA_DISABLE_JIT")), reason="nothing is compiled")

OTHERS = ("float64", "float16", "bfloat16")  # to compile for them takes long
COLD = (
    FORK
    + """
from normkit.backends.numba_backend import background, cache, compiling
nk.set_num_threads(2)
ready = lambda: sorted(name for name, _ in compiling._compiled)
small, large = CALLS[0], CALLS[1]
"""
)


# --- what serves meanwhile has the same bits


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(d, marks=pytest.mark.hostile) for d in OTHERS)])
def test_the_kernel_that_serves_meanwhile_has_the_same_bits(dtype, monkeypatch, same_bits, threads):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    threads(1)
    rng = np.random.default_rng(0)
    cases = []
    for shape in ((1, 1), (1, 3), (5, 64), (33, 7), (40, 100), (16, 32), (3, 5000), (2, 9000), (2000, 768)):
        x = (rng.standard_normal(shape) * 3 + 2).astype(np.dtype(dtype))
        parameter = rng.standard_normal(shape[1]).astype(np.float32)
        cases += [(x, {}), (x, {"weight": parameter, "bias": parameter}), (x[::-1], {}), (x, {"mask": x > x.mean()})]

    def results():
        nk.plans.forget()
        return [nk.layer_norm(x, policy=nk.FallbackPolicy.onnx(), **options) for x, options in cases] + [
            nk.instance_norm(x.reshape(1, *x.shape), policy=nk.FallbackPolicy.onnx()) for x, _ in cases
        ]

    expected = results()
    first = {name: compiling.kernel(name, np.dtype(dtype)) for name in ("rows_first", "masked_rows_first")}
    used = []

    def soon(name, dtype, meanwhile):
        used.append(name)

    monkeypatch.setattr("normkit.backends.numba_backend.launches.soon", soon)
    for a, b in zip(results(), expected, strict=True):
        same_bits(a, b)
    assert {"rows_serial", "masked_rows_serial"} <= set(used)
    assert len(first) == 2


# --- the thread


@pytest.fixture
def idle(monkeypatch):
    """No thread, nothing wanted, and nothing known: as in a fresh process."""
    background.wait()
    monkeypatch.setattr(background, "_known", set())
    monkeypatch.setenv("NORMKIT_BACKGROUND", "1")
    yield
    background.wait()


def test_work_is_done_once_and_in_order(idle):
    go, done = threading.Event(), []
    assert background.compile_later("a", lambda: (go.wait(60), done.append("a")))
    for key in "bcb":
        assert background.compile_later(key, lambda key=key: done.append(key))
    go.set()
    background.wait()
    assert done == ["a", "b", "c"]
    assert background.compile_later("a", lambda: done.append("again"))
    assert background._thread is None
    assert done == ["a", "b", "c"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_work_that_fails_is_told_and_does_not_stop_the_rest(idle):
    done = []
    assert background.compile_later("a", lambda: 1 / 0)
    background.wait()
    assert background.compile_later("b", lambda: done.append("b"))
    background.wait()
    assert done == ["b"]


def test_where_there_is_no_thread_the_call_waits(idle, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert not background.compile_later("a", lambda: None)
    monkeypatch.setattr(compiling, "_get", lambda *key: key)
    monkeypatch.setattr(compiling, "_compiled", {})
    monkeypatch.setattr(compiling.cache, "load", lambda *_: None)
    monkeypatch.setattr(compiling, "undisturbed", lambda work: work())
    assert compiling.soon("rows_serial", np.dtype("float32")) == ("rows_serial", np.dtype("float32"))


def test_it_can_be_turned_off(idle, monkeypatch):
    monkeypatch.setenv("NORMKIT_BACKGROUND", "0")
    monkeypatch.setattr(compiling, "kernel", lambda *key: key)
    monkeypatch.setattr(compiling, "_compiled", {})
    assert compiling.soon("rows_split", np.dtype("float32")) == ("rows_split", np.dtype("float32"))
    assert background._known == set()


# --- cold processes


def test_a_process_that_forks_and_ends_while_it_compiles(script, tmp_path):
    """The first call is served by what is soon compiled; a child forked meanwhile works; the end does not wait."""
    code = """
first = check(*small)
assert ready() == ["rows_first"], ready()
assert background._thread is not None
wait(child(lambda: check(*small)))
assert (check(*small) == first).all()
threading.Thread(target=lambda: None).start()
print("done")
"""
    assert script(COLD + code, NORMKIT_CACHE_DIR=tmp_path / "kernels", NORMKIT_BACKGROUND="1", timeout=600) == "done"


@pytest.mark.hostile
def test_what_was_compiled_meanwhile_serves_and_is_kept(script, tmp_path):
    code = """
before = [check(*call) for call in CALLS]
assert "rows_parallel" not in ready()
background.wait()
assert set(ready()) >= {"alike", "rows_first", "rows_serial", "rows_parallel", "rows_split"}, ready()
for a, call in zip(before, CALLS):
    assert a.tobytes() == check(*call).tobytes()
from normkit import plans
print("done")
"""
    place = tmp_path / "kernels"
    assert script(COLD + code, NORMKIT_CACHE_DIR=place, NORMKIT_BACKGROUND="1", timeout=900) == "done"
    names = {path.name.partition("-")[0] for path in place.iterdir()}
    assert names == {"alike", "rows_first", "rows_serial", "rows_parallel", "rows_split"}
    code = "check_all(); assert background._thread is None; assert 'rows_first' not in ready(), ready(); print('done')"
    assert script(COLD + code, NORMKIT_CACHE_DIR=place, NORMKIT_BACKGROUND="1") == "done"


@pytest.mark.hostile
@pytest.mark.parametrize("seconds", [0, 0.5, 2, 5, 9])
def test_an_end_at_any_moment(script, tmp_path, seconds):
    code = f"check(*small); check(*large); time.sleep({seconds}); print('done')"
    assert script(COLD + code, NORMKIT_CACHE_DIR=tmp_path / "kernels", NORMKIT_BACKGROUND="1", timeout=600) == "done"
