"""The bits of what is computed are those that are kept: of compiled kernels, on one thread and two, and without a compiler."""

import json
import platform
from pathlib import Path

import golden
import pytest

numba = pytest.importorskip("numba")


def has_fma():
    """Whether this CPU computes as the kept bits say: without FMA, LLVM calls a function that is right but slow, or none."""
    import llvmlite.binding as llvm

    return platform.machine().lower() in ("aarch64", "arm64") or llvm.get_host_cpu_features().get("fma", False)


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="hours; the small calls are compared without a compiler below")
@pytest.mark.skipif(not has_fma(), reason="the kept bits are those of CPUs with fused multiply-add")
def test_golden_bits():
    hashes = golden.found()
    assert not golden.differences(hashes)
    assert len(hashes) > 1000


def test_golden_bits_without_a_compiler(script):
    code = f"import sys; sys.path.insert(0, {str(Path(golden.__file__).parent)!r}); import golden\n"
    code += "hashes = golden.found(small=True); print(len(hashes), golden.differences(hashes)[:9])"
    number, wrong = script(code, NUMBA_DISABLE_JIT=1).split(maxsplit=1)
    assert wrong == "[]"
    assert int(number) > 100


@pytest.mark.hostile
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="names an x86 CPU")
def test_golden_bits_of_a_cpu_with_shorter_vectors(script):
    code = f"import sys; sys.path.insert(0, {str(Path(golden.__file__).parent)!r}); import golden\n"
    code += "hashes = golden.found(); print(golden.differences(hashes)[:9])"
    features = "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2"
    assert script(code, timeout=1500, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=features) == "[]"


def test_a_changed_bit_is_named():
    name, bits = next(iter(golden.kept().items()))
    assert golden.differences({name: bits}) == []
    assert golden.differences({name: "0" * 12}) == [f"{name}: {'0' * 12}, kept is {bits}"]


def test_opcodes_are_counted_and_compared(tmp_path, capsys, monkeypatch):
    from normkit.backends.numba_backend import opcodes

    if numba.config.DISABLE_JIT:
        pytest.skip("nothing is compiled with NUMBA_DISABLE_JIT=1")
    widened = [(name, kernel) for name, kernel in opcodes.entries() if name == "widened"]
    monkeypatch.setattr(opcodes, "entries", lambda: iter(widened))
    file = tmp_path / "counts.json"
    assert opcodes.main(["float16", "--out", str(file)]) == 0
    counts = json.loads(file.read_text())
    assert sum(counts["widened float16"].values()) > 50
    monkeypatch.setattr(opcodes, "report", lambda dtypes: iter(counts.items()))
    assert opcodes.main(["float16", "--against", str(file)]) == 0
    assert "1 kernels, 0 differ" in capsys.readouterr().out
    opcode = next(iter(counts["widened float16"]))
    counts["widened float16"][opcode] += 1
    assert opcodes.main(["float16", "--against", str(file)]) == 1
    assert f"{opcode} {counts['widened float16'][opcode] - 1} -> {counts['widened float16'][opcode]}" in capsys.readouterr().out


def test_entries_are_the_kernels_that_calls_run_on():
    from normkit.backends.numba_backend import opcodes

    names = [name for name, _ in opcodes.entries()]
    assert {"rows_serial", "rows_parallel", "masked_columns_split", "tile_apply", "alike"} <= set(names)
