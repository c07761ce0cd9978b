"""Memory of dead outputs is lent again, and that of living ones never."""

import gc
import pickle
import weakref

import numpy as np
import pytest

import normkit as nk
from normkit import pool

FLOAT = np.dtype(np.float32)
SHAPE = (1024, 512)  # 2 MiB


@pytest.fixture(autouse=True)
def fresh():
    before = nk.get_cache_limit()
    nk.empty_cache()
    nk.set_cache_limit(1 << 28)
    yield
    nk.empty_cache()
    nk.set_cache_limit(before)


def place(a):
    return a.__array_interface__["data"][0]


def test_a_dead_output_is_used_again():
    a = pool.empty(SHAPE, FLOAT)
    where = place(a)
    assert pool.held() == 0
    del a
    assert pool.held() >= 2 << 20
    assert place(pool.empty(SHAPE, FLOAT)) == where


HOLDERS = {
    "the array": lambda a: a,
    "a slice": lambda a: a[3:9, ::2],
    "a scalar's view": lambda a: a[5, 5:6],
    "a transpose": lambda a: a.T,
    "another dtype": lambda a: a.view(np.uint32),
    "a reshape": lambda a: a.reshape(-1)[7:],
    "a memoryview": memoryview,
    "a flat iterator": lambda a: a.flat,
    "a real part": lambda a: a.real,
    "an iterator": iter,
    "a broadcast": lambda a: np.broadcast_to(a, (2, *a.shape)),
    "a subclass": lambda a: a.view(np.recarray),
    "DLPack": np.from_dlpack,
    "a buffer": lambda a: np.frombuffer(a, np.uint8),
    "a ctypes pointer": lambda a: a.ctypes.data_as(__import__("ctypes").c_void_p),
    "strides": lambda a: np.lib.stride_tricks.as_strided(a, (2, 2), (4, 4)),
    "a list of rows": list,
    "a cycle": lambda a: (lambda box: (box.append((a, box)), box)[1])([]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_is_held_in_any_way_is_not_lent(holder):
    a = pool.empty(SHAPE, FLOAT)
    where = place(a)
    held = HOLDERS[holder](a)
    del a
    gc.collect()
    others = [pool.empty(SHAPE, FLOAT) for _ in range(3)]
    assert where not in [place(b) for b in others]
    del held
    gc.collect()
    assert place(pool.empty(SHAPE, FLOAT)) == where


def test_weak_references_and_pickles_do_not_hold():
    a = pool.empty(SHAPE, FLOAT)
    a[...] = 3
    where, weak, pickled = place(a), weakref.ref(a), pickle.dumps(a)
    del a
    assert weak() is None
    b = pool.empty(SHAPE, FLOAT)
    assert place(b) == where
    b[...] = 4
    assert (pickle.loads(pickled) == 3).all()


def test_outputs_of_calls_do_not_change_under_their_owners():
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    first = nk.layer_norm(x)
    kept = first.copy()
    for _ in range(5):
        nk.layer_norm(x * 2 + 1)
    assert (first == kept).all()


def test_limit_and_off():
    nk.set_cache_limit(3 << 20)
    a, b = pool.empty(SHAPE, FLOAT), pool.empty(SHAPE, FLOAT)
    del a, b
    assert pool.held() <= 3 << 20
    nk.set_cache_limit(0)
    assert pool.held() == 0
    assert pool.empty(SHAPE, FLOAT).base is None
    with pytest.raises(nk.InputValueError, match="expected 0 or more"):
        nk.set_cache_limit(-1)
    with pytest.raises(nk.InputTypeError, match="expected an int"):
        nk.set_cache_limit(1.5)


def test_nothing_is_kept_under_pressure(monkeypatch):
    monkeypatch.setattr(pool, "_under_pressure", lambda: True)
    del_me = pool.empty(SHAPE, FLOAT)
    del del_me
    assert pool.held() == 0


def test_blocks_fit_without_waste():
    a = pool.empty(SHAPE, FLOAT)
    where = place(a)
    del a
    assert place(pool.empty((SHAPE[0] // 2, SHAPE[1]), FLOAT)) != where
    assert place(pool.empty((SHAPE[0] - 8, SHAPE[1]), FLOAT)) == where


def test_an_output_starts_on_a_page():
    assert place(pool.empty(SHAPE, FLOAT)) % pool.PAGE == 0


def test_who_interrupts_the_pool_does_not_wait_for_itself(monkeypatch):
    monkeypatch.setattr(pool, "PATIENCE", 3600)
    with pool._Alone() as interrupted:
        assert interrupted
        with pool._Alone() as interrupting:
            assert not interrupting
        assert pool.empty((1 << 20,), np.dtype(np.float32)).size == 1 << 20  # not from the pool
    with pool._Alone() as after:
        assert after
