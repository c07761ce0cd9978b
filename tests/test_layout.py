"""The house: which module may import which, what `import normkit` costs, and the traps of a folder mapped into a package."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import normkit
from normkit.registry import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
CORE = Path(normkit.__file__).resolve().parent

# From the bottom to the top; a module imports from lines above its own. What is not named here is an end of its own, as a
# command is: nobody in the core may import it.
LEVELS = [
    {"errors", "callers", "problem", "forks", "interrupts", "clone", "control_groups", "arrays", "cures"},
    {"arguments", "overlap", "memory_limits", "answers", "constants", "plans"},
    {"validation", "threads", "pool", "masks", "checkpoints"},
    {"registry", "degenerate"},
    {"policy"},
    {"dispatch"},
    {"explaining"},
    {"execute"},
    {"functional"},
    {"layers"},
    {"__init__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
FOR_BACKENDS = {
    "problem",
    "masks",
    "errors",
    "threads",
    "pool",
    "plans",
    "constants",
    "forks",
    "interrupts",
    "hardware",
    "callers",
}


def files(package):
    folder = ROOT / package
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def imports(path, package):
    """Every module that a file imports, wherever in it, by its absolute name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            module = f"{base}{node.module or ''}".rstrip(".")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def backend_package(path):
    inside = path.relative_to(ROOT / "backends").parent.parts
    return ".".join(["normkit", "backends", *inside])


core = pytest.mark.parametrize("path", [p for p in files("normkit") if p.parent == ROOT / "normkit"], ids=lambda p: p.stem)
backend_files = pytest.mark.parametrize("path", files("backends"), ids=lambda p: "/".join(p.relative_to(ROOT).parts))


# imports


def test_every_level_is_a_module():
    assert {p.stem for p in files("normkit")} >= LEVEL.keys()


def test_no_public_name_hides_a_module():
    """But `backends`, a package that can be called as the function."""
    modules = {p.stem for p in files("normkit") if p.parent == ROOT / "normkit"} - {"__init__", "__main__"}
    assert not modules & set(normkit.__all__)


@core
def test_imports_go_one_way(path):
    mine = LEVEL.get(path.stem, len(LEVELS))
    for name in imports(path, "normkit"):
        parts = name.split(".")
        if parts[0] != "normkit" or len(parts) == 1:
            continue
        assert parts[1] != "backends", f"{path.stem} imports a backend; the registry's table names them"
        if (ROOT / "normkit" / f"{parts[1]}.py").exists() or (ROOT / "normkit" / parts[1]).is_dir():
            theirs = LEVEL.get(parts[1], len(LEVELS))
            assert theirs < mine or mine == len(LEVELS), f"{path.stem} imports {parts[1]}, which stands no lower"


@core
def test_the_core_imports_numpy_and_nothing_else(path):
    if path.stem not in LEVEL:
        return
    for name in imports(path, "normkit"):
        top = name.partition(".")[0]
        assert top in {"normkit", "numpy"} or top in sys.stdlib_module_names, f"{path.stem} imports {top}"


@core
def test_the_core_names_a_backend_only_in_the_table(path):
    if path.stem not in LEVEL or path.stem == "registry":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            strings = {s.value for s in sides if isinstance(s, ast.Constant) and isinstance(s.value, str)}
            about = {s.attr if isinstance(s, ast.Attribute) else getattr(s, "id", "") for s in sides}
            assert not (strings & BUILT_IN.keys() and about & {"backend", "name", "engine", "candidate"}), ast.unparse(node)
        if isinstance(node, ast.Constant) and node.value in BUILT_IN.keys() - {"numpy"}:  # numpy is also a family
            assert path.stem == "policy", f"{path.stem}:{node.lineno} names {node.value!r}"  # the default order


@backend_files
def test_backends_import_each_other_relatively_and_little_of_the_core(path):
    package = backend_package(path)
    engine = path.relative_to(ROOT / "backends").parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "backends" for alias in node.names), "works in the root by accident"
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] != "backends", "works in the root by accident"
            assert not (node.module or "").startswith("normkit.backends"), f"{path}: use a relative import"
    for name in imports(path, package):
        parts = name.split(".")
        if parts[:2] == ["normkit", "backends"] and len(parts) > 2:
            assert parts[2] == engine, f"{path} imports another engine, {parts[2]}"
        elif parts[0] == "normkit" and len(parts) > 1 and path != ROOT / "backends" / "__init__.py":
            assert parts[1] in FOR_BACKENDS, f"{path} imports normkit.{parts[1]}"


@backend_files
def test_no_file_is_named_after_a_package_that_it_imports(path):
    names = {name.partition(".")[0] for name in imports(path, backend_package(path))}
    assert path.stem not in names
    assert path.parent.name not in names


# What normkit needs of Python beside what NumPy has loaded: logging by `forks`, which says why, and what these load in turn.
NEEDED = {"__future__", "atexit", "dataclasses", "logging", "threading"}
IN_TURN = {
    "_colorize",
    "_opcode",
    "_string",
    "copy",
    "dis",
    "importlib",
    "inspect",
    "linecache",
    "opcode",
    "string",
    "token",
    "tokenize",
    "traceback",
}


def test_import_loads_numpy_and_the_core(script):
    """Each module costs a millisecond or so: pathlib and numpy.typing are for those who use them."""
    loaded = set(
        script("import sys, numpy; before = set(sys.modules); import normkit; print(*set(sys.modules) - before)").split()
    )
    others = {name for name in loaded if name.partition(".")[0] != "normkit"}
    assert {name for name in others if name.partition(".")[0] not in NEEDED | IN_TURN} == set()
    assert not {name for name in loaded if name.startswith("normkit.backends.")}
    ends = {"normkit.__main__", "normkit.demo", "normkit.doctor", "normkit.bench", "normkit.hardware", "normkit.outputs"}
    assert not loaded & ends


def test_the_public_names():
    assert sorted(normkit.__all__) == list(normkit.__all__)
    for name in normkit.__all__:
        assert getattr(normkit, name) is not None
        assert callable(getattr(normkit, name)) or isinstance(getattr(normkit, name), type)


def test_text_has_an_encoding():
    """A file of text has UTF-8 in it whatever the system would choose: Windows takes cp1252."""
    for folder in ("normkit", "backends", "packaging", "asv_bench"):
        for path in files(folder):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
                given = {keyword.arg for keyword in getattr(node, "keywords", ())}
                assert called not in {"read_text", "write_text"} or "encoding" in given, f"{path}:{node.lineno}"
                if called in {"open", "fdopen"} and not ast.unparse(node).startswith(("os.open(", "Image.open(")):
                    assert "encoding" in given or "b" in node.args[1].value, f"{path}:{node.lineno}"


# the folder that is mapped into the package


def test_core_and_backends_belong_together(script):
    """Two clones that share an environment would mix the one's core with the other's backends, silently."""
    folders = script(
        "import normkit, normkit.backends.numpy_backend as b; print(normkit.__file__); print(b.__file__)"
    ).splitlines()
    core, backends = (Path(folder).resolve().parent for folder in folders)
    assert backends in (core.parent / "backends", core / "backends")
    assert core == CORE  # and it is what these tests import


def test_the_tests_test_this_checkout_or_an_installed_copy():
    assert ROOT / "normkit" == CORE or (CORE / "backends").is_dir()


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_the_backends_are_found_from_anywhere(script, tmp_path, where):
    code = "import normkit as nk, numpy as np; print(nk.layer_norm(np.ones((2, 3), np.float32), backend='numpy').sum())"
    assert script(code, cwd=ROOT if where == "root" else tmp_path) == "0.0"


def test_the_tests_are_no_package():
    assert not (ROOT / "tests" / "__init__.py").exists()


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_code_is_installed():
    """A package that is missing from the list works in an editable install, and is absent from the wheel."""
    tool = project()["tool"]["setuptools"]
    assert tool["package-dir"] == {"normkit": "normkit", "normkit.backends": "backends"}
    expected = set()
    for folder, package in (("normkit", "normkit"), ("backends", "normkit.backends")):
        for path in files(folder):
            expected.add(".".join([package, *path.parent.relative_to(ROOT / folder).parts]))
    assert set(tool["packages"]) == expected
