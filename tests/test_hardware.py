"""What systems tell of processor and memory: each system's answers, faked where they are not to be had here."""

import struct
import sys

import pytest

from normkit import hardware
from normkit.bench import machine


def sysfs(folder, *indices):
    for number, index in enumerate(indices):
        place = folder / f"index{number}"
        place.mkdir()
        for name, text in index.items():
            (place / name).write_text(f"{text}\n", encoding="utf-8")
    return folder


def cache(level, kind, size):
    return {"level": level, "type": kind, "size": size}


@pytest.mark.parametrize(
    ("indices", "sizes"),
    [
        ([cache(1, "Data", "32K"), cache(1, "Instruction", "64K"), cache(2, "Unified", "1M")], {1: 32 << 10, 2: 1 << 20}),
        ([cache(3, "Unified", "32768K"), cache(1, "Data", "48K")], {1: 48 << 10, 3: 32 << 20}),  # in any order, one missing
        (
            [{"level": 1, "type": "Data"}, cache(2, "Unified", "512K")],
            {2: 512 << 10},
        ),  # on virtual machines
        ([cache(1, "Data", ""), cache(2, "Unified", "what")], {}),
        ([], {}),
    ],
)
def test_caches_of_linux(indices, sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hardware, "CACHES", sysfs(tmp_path, *indices))
    assert hardware.cache_sizes() == sizes
    assert machine._caches() == ", ".join(f"L{level} {size >> 10}K" for level, size in sizes.items())


def test_linux_without_sysfs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hardware, "CACHES", tmp_path / "none")
    assert hardware.cache_sizes() == {}
    assert machine.describe()["python"]


@pytest.mark.parametrize(
    ("answers", "sizes"),
    [
        ({"hw.perflevel0.l1dcachesize": 128 << 10, "hw.l1dcachesize": 64 << 10, "hw.perflevel0.l2cachesize": 16 << 20},
         {1: 128 << 10, 2: 16 << 20, 3: 16 << 20}),  # Apple: what the fast cores have, and no L3
        ({"hw.l1dcachesize": 32 << 10, "hw.l2cachesize": 256 << 10, "hw.l3cachesize": 8 << 20},
         {1: 32 << 10, 2: 256 << 10, 3: 8 << 20}),
        ({}, {}),
    ],
)  # fmt: skip
def test_caches_of_macos(answers, sizes, monkeypatch):
    told = {name: value.to_bytes(8, "little") for name, value in answers.items()}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "sysctl", lambda name: told.get(name, b""))
    assert hardware.cache_sizes() == sizes


def test_the_model_on_macos(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "sysctl", lambda name: b"Apple M3\0" if name == "machdep.cpu.brand_string" else b"")
    assert hardware.cpu_model() == "Apple M3"


@pytest.mark.skipif(sys.platform == "darwin", reason="it has one")
def test_without_sysctl():
    assert hardware.sysctl("hw.l1dcachesize") == b""


def record(relation, level, size, kind):
    return struct.pack("<QI4xBBHII4x", 1, relation, level, 8, 64, size, kind)


def test_caches_of_windows(monkeypatch):
    core = record(0, 0, 0, 0)
    records = [core, record(2, 1, 32 << 10, 2), record(2, 1, 64 << 10, 1), record(2, 2, 1 << 20, 0), record(2, 3, 8 << 20, 0)]
    records += [record(2, 2, 2 << 20, 0)]  # of another kind of core
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(hardware, "_records", lambda: b"".join(records))
    assert hardware.cache_sizes() == {1: 32 << 10, 2: 2 << 20, 3: 8 << 20}


def test_memory_is_told_here():
    assert hardware.memory() > 1 << 28


def test_the_load_where_nothing_tells(monkeypatch):
    monkeypatch.delattr("os.getloadavg", raising=False)
    assert hardware.load_average() == 0


def test_limits_without_any_cache_told(script):
    """Nothing but sizes that fit most CPUs is left, and all of them are positive."""
    pytest.importorskip("numba")
    script("""
from normkit import hardware
hardware.cache_sizes = lambda: {}
from normkit.backends.numba_backend import limits
assert limits.cache_bytes(3, 7) == 7
assert min(limits.NEXT_BYTES, limits.STREAM_BYTES, limits.GROUP_BYTES) > 0
""")


def test_code_is_compiled_for_what_llvm_says(monkeypatch):
    """Not for what the machine is called: an emulated process is told the name of the real one."""
    conversions = pytest.importorskip("normkit.backends.numba_backend.conversions")
    before = conversions.converts_halves(), conversions.architecture()
    monkeypatch.setattr("platform.machine", lambda: "ARM64")
    assert (conversions.converts_halves(), conversions.architecture()) == before
    assert before[1] in ("x86_64", "aarch64", "arm64")
