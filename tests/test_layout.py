"""The house: which module may import which, what `import normkit` costs, and the traps of a folder mapped into a package."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import normkit
from normkit.registry import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
CORE = Path(normkit.__file__).resolve().parent

# From the bottom to the top; a module imports from lines above its own. What is not named here is an end of its own, as a
# command is: nobody in the core may import it.
LEVELS = [
    {"errors", "problem", "forks", "interrupts", "clone"},
    {"validation", "policy", "threads", "pool", "masks"},
    {"plans"},
    {"registry"},
    {"dispatch"},
    {"explain"},
    {"execute"},
    {"functional"},
    {"layers"},
    {"__init__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
FOR_BACKENDS = {"problem", "masks", "errors", "threads", "pool", "forks", "interrupts"}


def files(package):
    folder = ROOT / package
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def imports(path, package):
    """Every module that a file imports, wherever in it, by its absolute name."""
    for node in ast.walk(ast.parse(path.read_text())):
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
    for node in ast.walk(ast.parse(path.read_text())):
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
    for node in ast.walk(ast.parse(path.read_text())):
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


def test_import_loads_numpy_and_the_core(script):
    loaded = set(
        script("import sys, numpy; before = set(sys.modules); import normkit; print(*set(sys.modules) - before)").split()
    )
    heavy = {"numba", "llvmlite", "cupy", "dask", "ml_dtypes", "matplotlib", "rich", "asyncio", "importlib.metadata", "html"}
    assert not loaded & heavy
    strangers = {name for name in loaded if name.partition(".")[0] not in {"normkit", "numpy"} | set(sys.stdlib_module_names)}
    assert not strangers
    assert not {name for name in loaded if name.startswith("normkit.backends.")}
    ends = {"normkit.__main__", "normkit.demo", "normkit.doctor", "normkit.bench"}
    assert not loaded & ends


def test_the_public_names():
    assert sorted(normkit.__all__) == list(normkit.__all__)
    for name in normkit.__all__:
        assert getattr(normkit, name) is not None
        assert callable(getattr(normkit, name)) or isinstance(getattr(normkit, name), type)


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


# what is built, and where it works from

BUILD = """
import sys, warnings
warnings.simplefilter("ignore")  # what setuptools says of itself
sys.path.insert(0, "packaging")
import normkit_build
print(normkit_build.build_{}("dist"))
"""
ENGINES = "import normkit, normkit.backends.numpy_backend as b; print(normkit.__file__); print(b.__file__)"


class Built(NamedTuple):
    """A clone called normkit, what was built from it, and the places where that is installed."""

    clone: Path
    wheel: Path
    installed: Path  # the wheel, unpacked
    editable: Path  # the folder of an editable installation: a .pth file


@pytest.fixture(scope="module")
def built(script, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    clone = above / "normkit"
    for name in ("normkit", "backends", "packaging"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, clone)
    (stale := clone / "build" / "lib" / "normkit").mkdir(parents=True)
    (stale / "left_by_an_earlier_build.py").touch()
    wheel, editable = (script(BUILD.format(kind), cwd=clone).splitlines()[-1] for kind in ("wheel", "editable"))
    places = [above.parent / f"{above.name}-{name}" for name in ("installed", "editable")]
    for place, name in zip(places, (wheel, editable), strict=True):
        zipfile.ZipFile(clone / "dist" / name).extractall(place)
    return Built(clone, clone / "dist" / wheel, *places)


def bare(code, *places, cwd, site=None):
    """Run code with these places in front of NumPy's, and no site-packages: whatever is installed there is not seen."""
    if site:
        code = f"import site; site.addsitedir({str(site)!r})\n{code}"
    path = os.pathsep.join([*map(str, places), str(Path(np.__file__).parents[1])])
    command = [sys.executable, "-S", "-W", "error", "-c", code]
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, timeout=60, capture_output=True, text=True, check=False)


def lines(done):
    assert done.returncode == 0, done.stderr
    return [Path(line).resolve() for line in done.stdout.splitlines()]


def test_the_wheel_holds_normkit_and_nothing_else(built):
    held = zipfile.ZipFile(built.wheel).namelist()
    assert {path.partition("/")[0] for path in held} == {"normkit", built.wheel.name.partition("-py3")[0] + ".dist-info"}
    wanted = {f"normkit/{p.relative_to(ROOT / 'normkit').as_posix()}" for p in files("normkit")}
    wanted |= {f"normkit/backends/{p.relative_to(ROOT / 'backends').as_posix()}" for p in files("backends")}
    assert {path for path in held if path.endswith(".py")} == wanted
    assert "normkit/py.typed" in held
    code = "import normkit as nk, numpy as np; nk.layer_norm(np.ones((2, 3)), backend='numpy'); print(nk.__file__)"
    assert lines(bare(code, built.installed, cwd=built.installed)) == [built.installed / "normkit" / "__init__.py"]


def core_and_engines(root, inside=False):
    return [root / "normkit" / "__init__.py", root / ("normkit/backends" if inside else "backends") / "numpy_backend.py"]


def test_a_clone_runs_from_its_root_whatever_is_installed(built, tmp_path):
    """`python -m normkit` and `python -m pytest` find the clone's core first, and must find the clone's engines with it."""
    assert lines(bare(ENGINES, "", cwd=built.clone)) == core_and_engines(built.clone)
    assert lines(bare(ENGINES, "", built.installed, cwd=built.clone)) == core_and_engines(built.clone)
    assert lines(bare(ENGINES, "", cwd=built.clone, site=built.editable)) == core_and_engines(built.clone)
    for name in ("normkit", "backends"):
        shutil.copytree(built.clone / name, tmp_path / name)
    shutil.copy(built.clone / "pyproject.toml", tmp_path)
    assert lines(bare(ENGINES, "", cwd=tmp_path, site=built.editable)) == core_and_engines(tmp_path)  # of the two, this clone


def test_the_clone_is_found_by_an_import_hook_too(built, tmp_path):
    """The editable installations that setuptools makes by itself: a finder of normkit.backends that comes last."""
    code = f"""
import sys
from importlib.util import spec_from_file_location
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "normkit.backends":
            return spec_from_file_location(name, {str(tmp_path / "another.py")!r})
sys.meta_path.append(Finder)
{ENGINES}
"""
    assert lines(bare(code, "", cwd=built.clone)) == core_and_engines(built.clone)


def test_what_is_installed_wins_over_a_folder_called_normkit(built):
    """The folder above a clone has one, which is no package: Python goes on to look for one that is."""
    above = built.clone.parent
    assert lines(bare(ENGINES, "", built.installed, cwd=above)) == core_and_engines(built.installed, inside=True)
    assert lines(bare(ENGINES, "", cwd=above, site=built.editable)) == core_and_engines(built.clone)


def test_an_editable_installation_is_a_path_that_type_checkers_follow(built):
    (file,) = built.editable.glob("*.pth")
    assert file.read_text().split() == [str(built.clone)]
    assert not list(built.editable.glob("*.py"))


BROKEN = """
import sys, numpy as np, normkit as nk
from normkit.__main__ import main
assert main(["doctor"]) == 0
try:
    nk.layer_norm(np.ones((2, 3)))
except nk.InstallationError as error:
    print(error)
"""


@pytest.mark.parametrize("stranger", [False, True])
def test_a_core_without_engines_says_so(built, tmp_path, stranger):
    """And takes none of a stranger's package that is called backends."""
    shutil.copytree(built.clone / "normkit", tmp_path / "normkit")
    if stranger:
        shutil.copytree(built.clone / "backends", tmp_path / "backends")
    done = bare(BROKEN, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, told = done.stdout.splitlines()
    assert told == f"normkit in {tmp_path / 'normkit'} is not whole: No module named 'normkit.backends'; " + (
        "install it again, with all of its files"
    )
    assert f"BROKEN: {told}" in done.stdout


def test_the_version_is_that_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", normkit.__version__)
    assert project()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "normkit.__version__"}


def test_numpy_is_as_new_as_the_project_says():
    (wanted,) = (d for d in project()["project"]["dependencies"] if d.startswith("numpy>="))
    assert tuple(map(int, np.__version__.split(".")[:2])) >= tuple(map(int, wanted.removeprefix("numpy>=").split(".")))
