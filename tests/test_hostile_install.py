"""Odd installations: from a zip file, with nothing that may be written, without Numba, with a Numba that does not work."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from hostile import CHECK

import normkit


@pytest.fixture(scope="module")
def modules():
    """Every module of the installed package: its name in the distribution, and where it is."""
    roots = {
        "normkit": Path(normkit.__file__).parent,
        "normkit/backends": Path(import_module("normkit.backends").__file__).parent,
    }
    return {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in roots.items()
        for path in root.rglob("*.py")
        if "demo" not in path.parts and (name != "normkit" or "backends" not in path.relative_to(root).parts)
    }


# --- where it is installed


def test_from_within_a_zip_file(script, tmp_path, modules):
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as archive:
        for name, path in modules.items():
            archive.write(path, name)
    code = CHECK + "assert '.zip' in nk.__file__; check('layer_norm', (4, 64)); print('done')"
    place = tmp_path / "kernels"
    for _ in range(2):
        assert script(code, cwd=tmp_path, PYTHONPATH=tmp_path / "site.zip", NORMKIT_CACHE_DIR=place) == "done"
    if not os.environ.get("NUMBA_DISABLE_JIT"):
        assert {file.name.partition("-")[0] for file in place.iterdir()} == {"rows_serial", "alike"}


def test_nothing_is_written_beside_the_code(script, tmp_path, modules):
    """So it does not matter whether site-packages may be written."""
    for name, path in modules.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_bytes(path.read_bytes())
    for folder in [p for p in (tmp_path / "site").rglob("*") if p.is_dir()]:
        folder.chmod(0o555)
    before = sorted((tmp_path / "site").rglob("*"))
    code = CHECK + "assert 'site' in nk.__file__; check('layer_norm', (4, 64)); print('done')"
    assert script(code, cwd=tmp_path, PYTHONPATH=tmp_path / "site", PYTHONDONTWRITEBYTECODE=1) == "done"
    assert sorted((tmp_path / "site").rglob("*")) == before
    for folder in [p for p in (tmp_path / "site").rglob("*") if p.is_dir()]:
        folder.chmod(0o755)


# --- without a working Numba

BROKEN = {
    "absent": None,
    "refuses this NumPy": "raise ImportError('Numba needs NumPy 2.1 or less. Got NumPy 9.9.')",
    "its library is gone": "raise OSError('Could not find/load shared object file libllvmlite.so')",
    "half installed": "raise AttributeError('module numba has no attribute core')",
}
ONCE = (
    CHECK
    + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for seed in range(3):
        for op, shape in CALLS:
            check(op, shape, seed=seed, backend=None)
assert [w.category for w in caught] == [nk.FallbackWarning], [str(w.message) for w in caught]
print(caught[0].message)
assert not nk.backends()[0].usable and nk.backends()[1].usable
try:
    nk.layer_norm(np.ones((4, 8), np.float32), backend="numba")
except nk.NoBackendError as error:
    assert "pip install numba" in str(error)
with nk.using(policy=nk.FallbackPolicy(on_fallback="ignore")):
    check("layer_norm", (4, 64), backend=None)
"""
)


@pytest.mark.parametrize("how", BROKEN)
def test_without_a_working_numba_it_runs_on_numpy_and_says_so_once(script, tmp_path, how):
    if BROKEN[how] is None:
        said = script("import sys; sys.modules['numba'] = None\n" + ONCE)
    else:
        (tmp_path / "numba").mkdir()
        (tmp_path / "numba" / "__init__.py").write_text(BROKEN[how])
        said = script(ONCE, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert "runs on 'numpy'" in said
    assert "pip install numba" in said


def test_the_doctor_says_why_and_the_cure(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(BROKEN["refuses this NumPy"])
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "normkit", "doctor"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    text = " ".join(done.stdout.split())
    assert "Numba needs NumPy 2.1 or less" in text
    assert "pip install numba" in text


def test_a_silent_policy_is_told_nothing(script):
    code = "x = np.ones((4, 8), np.float32); nk.layer_norm(x, policy=nk.FallbackPolicy(on_fallback='ignore')); print('done')"
    assert script("import sys; sys.modules['numba'] = None\n" + CHECK + code) == "done"


# --- supply and privilege


def test_only_the_cache_reads_pickles(modules):
    """And so no other file that somebody sends can run code."""
    readers = re.compile(r"\b(pickle|marshal|shelve|dill|joblib|allow_pickle|eval\(|exec\(|torch\.load)(?!\w)")
    using = {name for name, path in modules.items() if readers.search(path.read_text().replace(".eval()", ""))}
    using = {name for name in using if "/bench/" not in name}
    assert using <= {"normkit/backends/numba_backend/cache.py", "normkit/layers.py"}, using
    assert "pickle" not in modules["normkit/layers.py"].read_text()


def test_no_variable_makes_an_import_do_more(script, tmp_path):
    """Every NORMKIT_ variable set to a module's name or a path: nothing of it is imported or run."""
    (tmp_path / "trap.py").write_text("print('ran')")
    variables = {
        "CACHE",
        "CACHE_DIR",
        "ENTRY_POINTS",
        "POOL_LIMIT",
        "BACKEND",
        "BACKGROUND",
        "BACKENDS",
        "PLUGINS",
        "POLICY",
        "CONFIG",
    }
    environment = {f"NORMKIT_{name}": "trap" for name in variables}
    code = "import sys, normkit as nk; assert 'trap' not in sys.modules and 'numba' not in sys.modules; print('done')"
    assert script(code, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]), **environment) == "done"
