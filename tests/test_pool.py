"""Memory of dead outputs is lent again, and that of living ones never."""

import gc
import pickle
import weakref

import numpy as np
import pytest

import normkit as nk
from normkit import pool
from normkit.memory_limits import Scope

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
    kept = pool.empty(SHAPE, FLOAT)
    del kept
    assert pool.held() > 0
    left = [1 << 40]
    monkeypatch.setattr(pool, "scopes", lambda: [Scope("machine", 1 << 40, 1 << 40), Scope("control group", 1 << 28, left[0])])
    monkeypatch.setattr(pool, "_look", pool._Look())
    left[0] = (1 << 28) // 10 + (3 << 20)
    other = pool.empty((SHAPE[0] * 2, SHAPE[1]), FLOAT)  # 4 MiB, which would leave less than a tenth
    assert pool.held() == 0
    del other
    assert pool.held() == 0
    assert not pool._blocks


def test_what_is_kept_is_a_small_share_of_what_is_granted(monkeypatch):
    nk.set_cache_limit(1 << 30)
    monkeypatch.setattr(pool, "_limit", None)
    for granted, limit in (([], 1 << 30), ([1 << 40], 1 << 30), ([1 << 40, 600 << 20, 1 << 30], 75 << 20)):
        monkeypatch.setattr(pool, "scopes", lambda granted=granted: [Scope("", n, n) for n in granted])
        monkeypatch.setattr(pool, "_look", pool._Look())
        assert nk.get_cache_limit() == limit
    kept = [pool.empty((9 << 20,), np.dtype(np.float32)) for _ in range(5)]  # 36 MiB each, of 75
    del kept
    assert 36 << 20 <= pool.held() <= 75 << 20


def test_the_system_is_not_asked_for_each_output(monkeypatch):
    asked = []
    monkeypatch.setattr(pool, "scopes", lambda: asked.append(1) or [Scope("machine", 1 << 34, 1 << 34)])
    monkeypatch.setattr(pool, "LOOK_SECONDS", 3600)
    monkeypatch.setattr(pool, "_look", pool._Look())
    kept = [pool.empty(SHAPE, FLOAT) for _ in range(64)]  # 128 MiB; a 64th of what is granted is 256
    assert len(asked) == 1
    kept += [pool.empty(SHAPE, FLOAT) for _ in range(66)]
    assert len(asked) == 2
    del kept


def freeze_shape(base):
    base.shape = (2, -1)


FREEZES = {
    "y": lambda y: [y.setflags(write=False)],
    "its base": lambda y: [y.setflags(write=False), y.base.setflags(write=False)],
    "its base, not y": lambda y: [y.base.setflags(write=False)],
    "the shape of its base": lambda y: [freeze_shape(y.base)],
    "the dtype of its base": lambda y: [setattr(y.base, "dtype", np.uint16)],
}


@pytest.mark.parametrize("freeze", FREEZES)
def test_what_becomes_of_an_output_is_nothing_to_the_next(freeze, same_bits):
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    mask = np.ones(SHAPE, bool)
    expected = nk.layer_norm(x).copy()
    for options in ({}, {"mask": mask}, {"return_stats": True}):
        for given in (x, x.astype(">f4"), np.asfortranarray(x)):
            nk.empty_cache()
            first = pool.empty(SHAPE, FLOAT)
            where = place(first)
            FREEZES[freeze](first)
            del first
            y = nk.layer_norm(given, **options)
            y = y[0] if options.get("return_stats") else y
            assert place(y) == where
            same_bits(np.ascontiguousarray(y), expected)
            assert y.flags.writeable
            y.setflags(write=False)
            y.setflags(write=True)
            y += 1


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


def test_the_number_of_blocks_is_bounded():
    """Else each of many outputs that live, small ones at that, would be looked at for each new one."""
    alive = [pool.empty((pool.SMALLEST,), np.dtype(np.uint8)) for _ in range(2 * pool.MOST_BLOCKS)]
    assert len(pool._blocks) == pool.MOST_BLOCKS
    del alive
    assert pool.held() <= pool.MOST_BLOCKS * (pool.SMALLEST + pool.PAGE)
