"""Names to backends: lazily, never shadowing a built-in, and with a reason for whatever cannot be had."""

import importlib.util
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from test_dispatch import Fake

import normkit as nk
from normkit import registry


@pytest.fixture(autouse=True)
def as_it_was():
    """The registry is process-wide: what a test adds is taken away."""
    found, registered = dict(registry._found), dict(registry._registered)
    yield
    registry._found.clear()
    registry._found.update(found)
    registry._registered.clear()
    registry._registered.update(registered)


# built-ins


def test_every_built_in_for_numpy_is_usable_where_the_tests_run():
    table = {info.name: info for info in nk.backends()}
    for name, entry in registry.BUILT_IN.items():
        if entry.family == "numpy":
            assert table[name].usable, table[name].why


def test_a_backend_is_imported_when_it_is_asked_for_and_not_before(script):
    script("""
import sys, numpy as np, normkit as nk
loaded = lambda: sorted(m for m in sys.modules if m.startswith("normkit.backends"))
assert loaded() == [], loaded()
nk.FallbackPolicy(); nk.using(backend="numba"); nk.InstanceNorm2d(3)
assert loaded() == [], loaded()
nk.layer_norm(np.ones((2, 3), np.float32), backend="numpy")
assert loaded() == ["normkit.backends", "normkit.backends.numpy_backend"], loaded()
assert "numba" not in sys.modules
""")


def test_a_backend_is_loaded_once():
    assert nk.get_backend("numpy") is nk.get_backend("numpy")


def test_loading_from_many_threads_gives_one_backend(script):
    script("""
import threading, normkit as nk
barrier, found = threading.Barrier(8), []
def ask():
    barrier.wait()
    found.append(nk.get_backend("numpy"))
threads = [threading.Thread(target=ask) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert len(found) == 8 and len(set(map(id, found))) == 1
""")


def test_an_unknown_name():
    for ask in (nk.get_backend, registry.find):
        with pytest.raises(
            nk.UnknownBackendError, match=r"backend is 'nunpy', expected one of \[.*'numpy'.*did you mean 'numpy'"
        ):
            ask("nunpy")


def test_the_table_reads_well():
    table = nk.backends()
    assert isinstance(table, tuple)
    lines = str(table).splitlines()
    assert lines[0].split() == ["backend", "arrays", "source", "usable"]
    assert any(re.match(r"numpy\s+numpy\s+built in\s+yes$", line) for line in lines)
    assert table._repr_html_().startswith("<table><tr><th>backend</th>")
    assert table._repr_html_().count("<tr>") == len(lines)


def test_the_package_of_that_name_does_not_hide_the_function(script):
    script("""
import normkit as nk
before = nk.backends()
import normkit.backends.numpy_backend as reference
assert nk.backends() == before
assert nk.backends.numpy_backend is reference
""")


# missing, broken and lying backends


def built_in(monkeypatch, tmp_path, source, name="odd"):
    """A built-in whose module holds `source`."""
    module = f"normkit_test_{name}_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.BUILT_IN, name, registry.BuiltIn(module, "numpy", f"pip install {name}"))
    return name


def test_what_is_not_installed_says_what_to_type(monkeypatch, tmp_path):
    built_in(monkeypatch, tmp_path, "import a_package_that_nobody_has")
    with pytest.raises(
        nk.NoBackendError, match=r"'odd' cannot be used: a_package_that_nobody_has is not installed \(pip install odd\)"
    ):
        nk.get_backend("odd")
    info = next(info for info in nk.backends() if info.name == "odd")
    assert not info.usable
    assert "pip install odd" in info.why
    assert registry.find("odd").quiet


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise RuntimeError('no device')", "RuntimeError: no device"),
        ("from numpy import nothing_of_the_kind", "ImportError: cannot import name 'nothing_of_the_kind'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        ("", "AttributeError"),
        ("def load():\n    raise OSError('no driver')", "OSError: no driver"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def load():\n    return 3", "gave 3, expected a backend named 'odd' with name, family, why_not"),
        ("def load():\n    return None", "gave None"),
    ],
)
def test_what_is_broken_says_why_and_is_not_quiet(monkeypatch, tmp_path, source, why):
    built_in(monkeypatch, tmp_path, source)
    with pytest.raises(nk.NoBackendError) as error:
        nk.get_backend("odd")
    assert why in str(error.value)
    assert not registry.find("odd").quiet
    assert why in str(nk.backends())  # and the table still prints
    x = np.ones((2, 3), np.float32)
    with pytest.raises(nk.NoBackendError) as error:
        nk.layer_norm(x, backend="odd")
    assert why in str(error.value)
    with pytest.warns(nk.FallbackWarning):
        nk.layer_norm(x, policy=nk.FallbackPolicy(order=("odd", "numpy")))


def test_a_backend_that_lies_about_its_name(monkeypatch, tmp_path):
    source = "from normkit.backends.numpy_backend import load"  # which gives the one called numpy
    built_in(monkeypatch, tmp_path, source)
    with pytest.raises(nk.NoBackendError, match="expected a backend named 'odd'"):
        nk.get_backend("odd")


@pytest.mark.parametrize("source", ["import normkit.no_such_part", "from normkit.errors import NoSuchError"])
def test_a_broken_normkit_is_not_an_absent_extra(monkeypatch, tmp_path, source):
    built_in(monkeypatch, tmp_path, source)
    with pytest.raises(ImportError, match="normkit"):
        nk.get_backend("odd")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_interrupts_the_wait_for_an_import_and_not_the_import(script, tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.5)\nfrom normkit.backends.numpy_backend import NumpyBackend")
    script(
        """
import os, signal, threading, normkit as nk
from normkit import registry
registry.BUILT_IN["slow"] = registry.BuiltIn("slow", "numpy", "")
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    nk.get_backend("slow")
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("not interrupted")
import slow
assert slow.NumpyBackend
""",
        PYTHONPATH=tmp_path,
    )


def test_an_import_that_asks_for_a_built_in(script, tmp_path):
    """It is the main thread that holds the registry's lock here, and no other may be sent for the built-in."""
    source = "import normkit as nk\nnk.get_backend('numpy')\nnk.get_backend('numba')\n" + TOY.replace('"toy"', '"asks"')
    install(wheel(tmp_path, {"asks": "normkit_asks:load"}, source, "normkit_asks"), tmp_path / "site")
    script("import normkit as nk; assert nk.get_backend('asks').name == 'asks'", PYTHONPATH=tmp_path / "site")


# register_backend


def test_register():
    fake = Fake("fake", 5)
    nk.register_backend(fake)
    assert nk.get_backend("fake") is fake
    assert (nk.layer_norm(np.ones((2, 3), np.float32), backend="fake") == 5).all()
    info = next(info for info in nk.backends() if info.name == "fake")
    assert tuple(info) == ("fake", "numpy", "registered", True, "")


def test_registering_again_replaces():
    nk.register_backend(Fake("fake", 1))
    nk.get_backend("fake")
    nk.register_backend(Fake("fake", 2))
    assert nk.get_backend("fake").number == 2


def test_registering_alone_changes_no_call():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    before = nk.layer_norm(x)
    nk.register_backend(Fake("fake", 5))
    np.testing.assert_array_equal(nk.layer_norm(x), before)


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_built_ins_cannot_be_shadowed(name):
    with pytest.raises(nk.InputValueError, match=f"'{name}' is built in and cannot be replaced; choose another name"):
        nk.register_backend(Fake(name))
    assert not isinstance(registry.find(name), Fake)


def test_what_is_not_a_backend():
    class Half:
        name, family = "half", "numpy"

        def why_not(self, problem):
            return []

    for thing, message in (
        (3, "lacks name, family, why_not, prepare"),
        (None, "lacks name"),
        ("numpy", "lacks name"),
        (Half(), "lacks prepare, empty_like, empty_stats, describe"),
        (Fake, "lacks name, family"),
        (type(nk.get_backend("numpy")), "is a class, expected an instance"),
    ):
        with pytest.raises(nk.InputTypeError, match=message):
            nk.register_backend(thing)
    for name in (None, 3, ["fake"]):
        with pytest.raises(nk.InputTypeError, match="expected a str"):
            nk.register_backend(Fake(name))


# a third party: a distribution of its own, with metadata and an entry point, and an interpreter of its own to try it in

TOY = '''
import numpy as np

LOADED = True


class Toy:
    """Layer norm of float32 rows, the short way."""

    name, family = "toy", "numpy"

    def why_not(self, problem):
        return [] if problem.op == "layer_norm" else [f"toy knows no {problem.op}"]

    def prepare(self, problem):
        def run(operands):
            x = operands.x.astype(np.float64)
            mean, var = x.mean(problem.axes, keepdims=True), x.var(problem.axes, keepdims=True)
            operands.out[...] = (x - mean) / np.sqrt(var + problem.eps)
            if operands.mean is not None:
                operands.mean[...], operands.var[...] = mean, var

        return run

    def empty_like(self, x):
        return np.empty_like(x)

    def empty_stats(self, shape):
        return np.empty(shape)

    def describe(self):
        return {"version": "1.5"}


def load():
    return Toy()
'''


def wheel(folder, entry_points, source=TOY, name="normkit_toy"):
    """A wheel, made as the format says: the module, and its metadata."""
    info = f"{name}-1.5.dist-info"
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.5\nRequires-Dist: normkit\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[normkit.backends]\n" + "".join(f"{k} = {v}\n" for k, v in entry_points.items()),
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-1.5-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_in_archive, text in files.items():
            archive.writestr(name_in_archive, text)
    return path


def install(path, target):
    """With pip where there is one; else as pip does it with a wheel of nothing but Python, by unpacking it."""
    if importlib.util.find_spec("pip") is None:
        zipfile.ZipFile(path).extractall(target)
        return
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--isolated",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run([*pip, "--target", str(target), str(path)], check=True, timeout=120, capture_output=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The folder in which a distribution `normkit-toy` is installed."""
    folder = tmp_path_factory.mktemp("toy")
    install(wheel(folder, {"toy": "normkit_toy:load"}), folder / "site")
    return folder / "site"


def test_a_third_party_backend(script, toy):
    printed = script(
        """
import sys, numpy as np, normkit as nk
x = np.arange(12, dtype=np.float32).reshape(3, 4)
assert "normkit_toy" not in sys.modules
np.testing.assert_allclose(nk.layer_norm(x, backend="toy"), nk.layer_norm(x, backend="numpy"), rtol=1e-6)
assert "normkit_toy" in sys.modules
y, mean, rstd = nk.layer_norm(x, backend="toy", return_stats=True)
assert mean.ravel().tolist() == [1.5, 5.5, 9.5]
with nk.using(policy=nk.FallbackPolicy(order=("toy", "numpy"), on_fallback="ignore")):
    nk.layer_norm(x), nk.instance_norm(x[None])
try:
    nk.instance_norm(x[None], backend="toy")
except nk.NoBackendError as error:
    print(error)
print(nk.backends())
print(nk.explain("layer_norm", x, backend="toy"))
assert nk.get_backend("toy").describe() == {"version": "1.5"}
""",
        PYTHONPATH=toy,
    )
    assert "toy: toy knows no instance_norm" in printed
    assert re.search(r"^toy +numpy +normkit-toy 1\.5 +yes$", printed, re.MULTILINE)
    assert "toy, as asked for" in printed


def test_installing_it_changes_no_call_and_imports_nothing(script, toy):
    script(
        """
import sys, numpy as np, normkit as nk
nk.layer_norm(np.ones((2, 3), np.float32), policy=nk.FallbackPolicy(order=("numpy",)))
nk.explain("layer_norm", (2, 3))
assert "normkit_toy" not in sys.modules
""",
        PYTHONPATH=toy,
    )


def test_entry_points_can_be_turned_off(script, toy):
    printed = script(
        """
import sys, normkit as nk
print([info.name for info in nk.backends()])
try:
    nk.get_backend("toy")
except nk.UnknownBackendError as error:
    print(error)
assert "normkit_toy" not in sys.modules
""",
        PYTHONPATH=toy,
        NORMKIT_ENTRY_POINTS=0,
    )
    assert "backend is 'toy', expected one of" in printed
    assert "'toy'" not in printed.splitlines()[0]


def test_without_it_the_name_is_unknown():
    with pytest.raises(nk.UnknownBackendError):
        nk.get_backend("toy")


def test_third_parties_that_shadow_break_or_lie(script, tmp_path):
    entry_points = {
        "numpy": "normkit_odd:load",
        "numba": "normkit_odd:load",
        "gone": "normkit_gone:load",
        "attribute": "normkit_odd:nothing",
        "liar": "normkit_odd:load",
        "outdated": "normkit_odd:outdated",
        "broken": "normkit_odd:broken",
        "half": "normkit_odd:half",
    }
    source = (
        TOY.replace('"toy"', '"numpy"')
        + """
def outdated():
    import normkit.a_part_of_long_ago

def broken():
    raise RuntimeError("on fire")

half = object()
"""
    )
    install(wheel(tmp_path, entry_points, source, "normkit_odd"), tmp_path / "site")
    printed = script(
        """
import numpy as np, normkit as nk
assert type(nk.get_backend("numpy")).__name__ == "NumpyBackend"
x = np.arange(6, dtype=np.float32).reshape(2, 3)
nk.layer_norm(x, backend="numpy")
print(nk.backends())
for name in ("gone", "attribute", "liar", "outdated", "broken", "half"):
    try:
        nk.layer_norm(x, backend=name)
    except nk.NoBackendError:
        continue
    raise AssertionError(name)
""",
        PYTHONPATH=tmp_path / "site",
    )
    for name, why in (
        ("gone", "normkit_gone is not installed (reinstall or remove the package that announces it)"),
        ("attribute", "AttributeError"),
        ("liar", "expected a backend named 'liar'"),
        ("outdated", "normkit.a_part_of_long_ago"),
        ("broken", "RuntimeError: on fire"),
        ("half", "expected a backend named 'half'"),
    ):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{name} ")]
        assert "no: " in line
        assert why in line
    assert re.search(r"^numpy +numpy +built in +yes$", printed, re.MULTILINE)
