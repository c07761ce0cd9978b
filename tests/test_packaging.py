"""What is built from a clone and where it works; what the project says of itself in pyproject.toml and to its hosts."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import normkit

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = shutil.ignore_patterns(
    "__pycache__", ".git", ".venv*", ".asv", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis"
)


def project():
    return tomllib.loads(text("pyproject.toml"))


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def files(package):
    return sorted(p for p in (ROOT / package).rglob("*.py") if "__pycache__" not in p.parts)


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
    shutil.copytree(ROOT, clone, ignore=NOT_OURS)
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


# what the sdist holds


def test_the_sdist_is_whole_and_tests_itself(built, script, tmp_path):
    held = script(BUILD.format("sdist"), cwd=built.clone).splitlines()[-1]
    with tarfile.open(built.clone / "dist" / held) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    ours = {p.relative_to(ROOT) for p in (Path(folder, name) for folder, _, names in walk(ROOT) for name in names)}
    assert {path for path in ours if not (unpacked / path).is_file()} == set()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_oracle.py"]
    done = subprocess.run(command, cwd=unpacked, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def walk(root):
    """The project's own files, folder by folder, as a clone has them."""
    for folder, names, found in os.walk(root):
        dropped = NOT_OURS(folder, [*names, *found])
        names[:] = [name for name in names if name not in dropped]
        yield folder, names, [name for name in found if name not in dropped and not name.endswith((".png", ".pyc"))]


# what the project says of itself


def test_pythons_are_the_same_wherever_they_are_named():
    metadata = project()["project"]
    named = [c.rpartition(" ")[2] for c in metadata["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert metadata["requires-python"] == f">={named[0]}"
    assert named == [f"3.{minor}" for minor in range(11, 11 + len(named))]
    (matrix,) = re.findall(r"^        python: \[(.*)\]$", text(".github/workflows/tests.yml"), re.MULTILINE)
    assert re.findall(r"[\d.]+", matrix) == named
    assert set(re.findall(r"python3\.\d+", text("Makefile"))) >= {f"python{version}" for version in named}


def test_systems_are_those_that_are_tested():
    systems = {c.rpartition(" ")[2] for c in project()["project"]["classifiers"] if c.startswith("Operating System")}
    runs = set(re.findall(r"(ubuntu|macos|windows)-", text(".github/workflows/tests.yml")))
    assert {"Linux": "ubuntu", "MacOS": "macos", "Windows": "windows"}.keys() == systems
    assert runs == {"ubuntu", "macos", "windows"}


def test_workflows_call_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        called = set(re.findall(r"run: make ([a-z-]+)", workflow.read_text(encoding="utf-8")))
        assert called <= targets
        assert called
    assert set(re.findall(r"^make ([a-z-]+)", text("CONTRIBUTING.md"), re.MULTILINE)) <= targets


def test_floors_are_what_is_tested_at_the_floors():
    (pattern,) = re.findall(r"^FLOORS = .*$", text("Makefile"), re.MULTILINE)
    assert "pyproject.toml" in pattern
    dependencies = re.findall(r"^dependencies = \[(.*)\]$", text("pyproject.toml"), re.MULTILINE)
    assert dependencies == [", ".join(f'"{d}"' for d in project()["project"]["dependencies"])]  # one line, as the pattern reads
    assert all(re.fullmatch(r"\w+>=[\d.]+", d) for d in project()["project"]["dependencies"])


def test_the_citation_is_of_this_version():
    assert re.findall(r"^version: (.*)$", text("CITATION.cff"), re.MULTILINE) == [normkit.__version__]


def test_the_changelog_tells_of_all_that_there_is():
    told = text("CHANGELOG.md")
    names = [*normkit.__all__, *re.findall(r'add_parser\(\s*"(\w+)"', text("normkit/__main__.py"))]
    sources = [path.read_text(encoding="utf-8") for folder in ("normkit", "backends") for path in files(folder)]
    variables = {name for source in sources for name in re.findall(r'environ[^\n]*"(NORMKIT_[A-Z_]+)"', source)}
    assert {"NORMKIT_CACHE_DIR", "NORMKIT_POOL_LIMIT"} <= variables
    assert [name for name in (*names, *sorted(variables)) if not re.search(rf"\b{name}\b", told)] == []


def test_what_of_the_readme_needs_an_address():
    """An index page shows README without the repository: these links lead nowhere there until [project.urls] is known."""
    relative = set(re.findall(r"\]\((?!http)([^)#]+)\)", text("README.md")))
    assert all((ROOT / target).is_file() for target in relative)
    assert relative <= {"docs/demo.jpg", "docs/design.md", "docs/gpu.md", "docs/performance.md", "docs/reliability.md"}
    assert "urls" not in project()["project"]  # when there is one, these become links to it


def test_the_version_is_that_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", normkit.__version__)
    assert project()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "normkit.__version__"}


def test_numpy_is_as_new_as_the_project_says():
    (wanted,) = (d for d in project()["project"]["dependencies"] if d.startswith("numpy>="))
    assert tuple(map(int, np.__version__.split(".")[:2])) >= tuple(map(int, wanted.removeprefix("numpy>=").split(".")))
