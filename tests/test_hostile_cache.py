"""The cache of compiled kernels: a second process does not compile, and nothing that is wrong with a file gives a wrong answer.

Figures are in docs/reliability.md.
"""

import os
import pickle
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import normkit as nk

cache = pytest.importorskip("normkit.backends.numba_backend.cache")
cache_places = pytest.importorskip("normkit.backends.numba_backend.cache_places")
compiling = pytest.importorskip("normkit.backends.numba_backend.compiling")

pytestmark = pytest.mark.skipif(bool(os.environ.get("NUMBA_DISABLE_JIT")), reason="nothing is compiled")

# One serial and two parallel kernels, checked against the formula; prints what was compiled here, and the results' bits.
WORK = """
import hashlib, sys, warnings
import numpy as np, normkit as nk

def work(dtype="float32", shapes=((5, 64), (4096, 64), (1, 1 << 18))):
    digest = hashlib.sha256()
    rng = np.random.default_rng(0)
    for shape in shapes:
        x = rng.normal(3, 2, shape).astype(dtype)
        y = nk.layer_norm(x, backend="numba")
        wide = x.astype(np.float64)
        expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
        assert abs(y - expected).max() < (2e-3 if x.itemsize == 2 else 1e-6), abs(y - expected).max()
        digest.update(y.tobytes())
    return digest.hexdigest()

def compiled():
    from normkit.backends.numba_backend.compiling import _MODULES
    return sum(len(getattr(k, "overloads", ())) for module in _MODULES for k in vars(module).values())
"""
REPORT = WORK + "print(work(), compiled())"
SERIAL = WORK + "print(work(shapes=[(5, 64)]), compiled())"


@pytest.fixture
def place(monkeypatch):
    """Where others could come to, if it were not closed: pytest's own folders are."""
    with tempfile.TemporaryDirectory(prefix="normkit-test-") as folder:
        os.chmod(folder, 0o755)
        place = Path(folder) / "kernels"
        monkeypatch.setenv("NORMKIT_CACHE_DIR", str(place))
        yield place


@pytest.fixture(scope="module")
def full(tmp_path_factory, script):
    """A cache as a first process leaves it, and what that process printed."""
    place = tmp_path_factory.mktemp("full") / "kernels"
    bits, compiled = script(REPORT, NORMKIT_CACHE_DIR=place).split()
    assert int(compiled) > 0
    return place, bits


@pytest.fixture
def filled(full, place):
    """A copy of it."""
    shutil.copytree(full[0], place)
    return place


def files(place):
    return sorted(p for p in place.iterdir())


def serial():
    """Name and signature of the kernel that small calls use."""
    from normkit.backends.numba_backend import row_kernels

    function = row_kernels.rows_serial.py_func
    return "rows_serial", compiling._signature(function, np.dtype("float32"), masked=False)


def its_file(place):
    name, signature = serial()
    return cache._path(place, name, cache._key(name, signature))


# --- a second process


def test_a_second_process_loads_what_the_first_compiled(full, script):
    place, bits = full
    before = [(p.name, p.stat().st_mtime_ns) for p in files(place)]
    assert len(before) >= 2
    assert script(REPORT, NORMKIT_CACHE_DIR=place).split() == [bits, "0"]
    assert [(p.name, p.stat().st_mtime_ns) for p in files(place)] == before


def test_it_is_private(full):
    place, _ = full
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in files(place)} == {0o600}


def test_turned_off_it_neither_reads_nor_writes(filled, monkeypatch):
    monkeypatch.setenv("NORMKIT_CACHE", "0")
    assert cache.load(*serial()) is None
    assert cache.places() == []
    assert cache.describe() == "off: NORMKIT_CACHE=0"


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("NORMKIT_CACHE_DIR", "here")
    assert cache.places() == [Path.cwd() / "here"]
    monkeypatch.delenv("NORMKIT_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.places() == [tmp_path / "normkit"]
    for unset in ("cache", "./cache", ""):  # "all paths must be absolute", says their specification; others are to be ignored
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache.places() == [Path.home() / ".cache" / "normkit"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.places() == [Path.home() / "Library" / "Caches" / "normkit"]
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache.places() == [tmp_path / "normkit"]
    monkeypatch.setenv("LOCALAPPDATA", "cache")
    assert cache.places() == [Path.home() / "AppData" / "Local" / "normkit"]


def test_the_doctor_shows_where(filled):
    described = nk.get_backend("numba").describe()["kernels kept in"]
    assert described.startswith(str(filled))
    assert f"{len(files(filled))} kernels" in described


# --- the key


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("_sources", "another source"),
        ("numba.__version__", "0.0"),
        ("llvmlite.__version__", "0.0"),
        ("np.__version__", "0.0"),
        ("sys.version", "3.0"),
        ("config.CPU_NAME", "another"),
        ("config.BOUNDSCHECK", 1 - bool(os.environ.get("NUMBA_BOUNDSCHECK"))),
        ("config.OPT", 1),
    ],
)
def test_everything_that_code_depends_on_is_in_the_key(monkeypatch, what, value):
    before = cache._key(*serial())
    *owner, name = what.split(".")
    monkeypatch.setattr(getattr(cache, owner[0]) if owner else cache, name, value)
    assert cache._key(*serial()) != before


def test_threads_are_not_in_the_key(monkeypatch):
    before = cache._key(*serial())
    for name in ("NUMBA_NUM_THREADS", "THREADING_LAYER", "CACHE_DIR"):
        monkeypatch.setattr(cache.config, name, "another", raising=False)
    assert cache._key(*serial()) == before


def test_every_module_of_the_backend_is_in_the_source_digest(tmp_path, monkeypatch):
    copy = shutil.copytree(Path(cache.__file__).parent, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
    digests = {cache._digest()}
    assert cache._sources in digests
    (copy / "kernels" / "rows").mkdir(parents=True)
    for name in ("kernels/__init__.py", "kernels/rows/__init__.py", "kernels/rows/serial.py"):  # in packages within it too
        (copy / name).write_bytes(b"")
        digests.add(cache._digest())
    for module in copy.rglob("*.py"):
        module.write_bytes(module.read_bytes() + b"#")
        digests.add(cache._digest())
    assert len(digests) == 1 + 3 + len(list(copy.rglob("*.py")))
    (copy / "kernels" / "rows").rename(copy / "kernels" / "columns")
    assert cache._digest() not in digests


def test_the_digest_of_what_lies_in_a_zip_file(tmp_path, monkeypatch):
    folder = Path(cache.__file__).parent
    archive = Path(shutil.make_archive(str(tmp_path / "site"), "zip", folder))
    monkeypatch.setattr(cache, "__file__", str(archive / "cache.py"))
    monkeypatch.setattr("importlib.resources.files", lambda _: zipfile.Path(archive))
    assert cache._digest() == cache._sources


# --- damage


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


DAMAGE = {
    "empty": lambda content, other: b"",
    "cut short": lambda content, other: content[:-1],
    "cut in the middle": lambda content, other: content[: len(content) // 2],
    "cut in the head": lambda content, other: content[:20],
    "longer": lambda content, other: content + b"\0",
    "a flipped bit": lambda content, other: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "a flipped bit in the head": lambda content, other: content[:30] + bytes([content[30] ^ 1]) + content[31:],
    "another kernel's": lambda content, other: other,
    "zeros": lambda content, other: bytes(len(content)),
    "text": lambda content, other: b"not a kernel\n" * 99,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_not_used(filled, damage):
    path = its_file(filled)
    other = next(p for p in files(filled) if p != path)
    path.write_bytes(DAMAGE[damage](path.read_bytes(), other.read_bytes()))
    assert cache.load(*serial()) is None


def test_nothing_is_unpickled_before_the_checksum_is_right(filled, tmp_path):
    mark = tmp_path / "mark"
    its_file(filled).write_bytes(its_file(filled).read_bytes()[:160] + pickle.dumps(Trap(mark)))
    assert cache.load(*serial()) is None
    its_file(filled).write_bytes(pickle.dumps(Trap(mark)))
    assert cache.load(*serial()) is None
    assert not mark.exists()


@pytest.mark.parametrize("payload", [b"", b"junk", pickle.dumps(None), pickle.dumps((["no_such_symbol"], (1,) * 9))])
def test_a_whole_file_with_the_wrong_contents_is_not_used(filled, payload):
    key = cache._key(*serial())
    its_file(filled).write_bytes(cache._framed(key, payload))
    assert cache.load(*serial()) is None


def test_an_intact_file_is_used(filled):
    kernel = cache.load(*serial())
    assert callable(kernel)


def test_a_damaged_cache_heals(filled, script):
    bits, compiled = script(SERIAL).split()
    assert compiled == "0"
    for path in files(filled):
        path.write_bytes(path.read_bytes()[:-100])
    again, compiled = script(SERIAL).split()
    assert again == bits
    assert int(compiled) > 0
    assert script(SERIAL).split() == [bits, "0"]


@pytest.mark.hostile
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_process_that_meets_damage(full, filled, script, damage):
    """All files at once, in a process that could be killed by what it reads: the right bits, and no warning."""
    contents = [path.read_bytes() for path in files(filled)]
    for path, content, other in zip(files(filled), contents, contents[1:] + contents[:1], strict=True):
        path.write_bytes(DAMAGE[damage](content, other))
    bits, compiled = script(REPORT).split()
    assert bits == full[1]
    assert int(compiled) > 0


# --- places that others can write to


def spoil_directory_mode(place):
    place.chmod(0o777)


def spoil_directory_group(place):
    place.chmod(0o770)


def spoil_directory_link(place):
    place.rename(place.with_name("elsewhere"))
    place.symlink_to(place.with_name("elsewhere"))


def spoil_parent(place):
    place.parent.chmod(0o777)


def spoil_file_mode(place):
    its_file(place).chmod(0o666)


def spoil_file_link(place):
    its_file(place).rename(place.parent / "file")
    its_file(place).symlink_to(place.parent / "file")


def spoil_file_kind(place):
    its_file(place).unlink()
    os.mkfifo(its_file(place))


def spoil_file_directory(place):
    its_file(place).unlink()
    its_file(place).mkdir()


def spoil_not_a_directory(place):
    shutil.rmtree(place)
    place.write_text("a file")


SPOILT = [spoil_directory_mode, spoil_directory_group, spoil_directory_link, spoil_parent, spoil_file_mode, spoil_file_link,
          spoil_file_kind, spoil_file_directory, spoil_not_a_directory]  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("spoil", SPOILT)
def test_nothing_is_read_from_where_others_can_write(filled, monkeypatch, spoil):
    monkeypatch.setattr(cache, "_warned", False)
    monkeypatch.setattr(pickle, "loads", None)
    spoil(filled)
    with pytest.warns(nk.CacheWarning, match="NORMKIT_CACHE_DIR"):
        assert cache.load(*serial()) is None
    assert cache.load(*serial()) is None  # and no second warning, which would be an error


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_process_whose_cache_others_can_write_to(filled, script):
    spoil_directory_mode(filled)
    assert "others can write to" in script(WARNED_ONCE)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["directory", "file", "parent"])
def test_nothing_is_read_that_belongs_to_another_user(filled, monkeypatch, which):
    monkeypatch.setattr(cache, "_warned", False)
    os.chown({"directory": filled, "file": its_file(filled), "parent": filled.parent}[which], 12345, 12345)
    with pytest.warns(nk.CacheWarning, match="belongs to another user"):
        assert cache.load(*serial()) is None


def test_a_sticky_parent_is_trusted(filled):
    filled.parent.chmod(0o1777)
    try:
        assert cache.load(*serial()) is not None
    finally:
        filled.parent.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_what_others_cannot_come_to_is_trusted(filled, monkeypatch):
    """As ~/.cache in a closed home, made by another program under umask 0."""
    inner = filled.parent / "open" / "kernels"
    shutil.copytree(filled, inner)
    inner.parent.chmod(0o777)
    monkeypatch.setenv("NORMKIT_CACHE_DIR", str(inner))
    filled.parent.chmod(0o700)
    assert cache.load(*serial()) is not None
    filled.parent.chmod(0o711)
    monkeypatch.setattr(cache, "_warned", False)
    with pytest.warns(nk.CacheWarning, match=re.escape(f"others can write to {inner.parent}; chmod go-w {inner.parent} mends")):
        assert cache.load(*serial()) is None


@pytest.fixture
def user(monkeypatch):
    """Makes this process that of an imagined user 1000, and root's files theirs; 'alice' is also what their group is called."""
    pwd, grp = pytest.importorskip("pwd"), pytest.importorskip("grp")
    real = os.lstat

    def user(group="alice", members=(), main=2000, uid=1000):
        cache_places._is_private.cache_clear()
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        passwd, entry = SimpleNamespace(pw_uid=uid, pw_gid=main, pw_name="alice"), SimpleNamespace
        monkeypatch.setattr(pwd, "getpwuid", lambda _: passwd)
        monkeypatch.setattr(grp, "getgrgid", lambda gid: entry(gr_gid=gid, gr_name=group, gr_mem=list(members)))

    def lstat(path, real=real):
        status = list(real(path))
        status[stat.ST_GID] = 2000
        return os.stat_result(status)

    monkeypatch.setattr(os, "lstat", lstat)
    yield user
    monkeypatch.undo()
    cache_places._is_private.cache_clear()


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_users_private_group_is_nobody_else(filled, user, monkeypatch):
    """umask 002 is the rule where each user has a group of their own: ~/.cache may be writable by that."""
    filled.parent.chmod(0o775)
    for options in ({}, {"members": ["alice"]}):
        user(**options)
        assert cache_places.trusted(filled) == filled.resolve()
    for options in ({"group": "staff"}, {"members": ["alice", "bob"]}, {"main": 100}, {"uid": 0}):
        user(**options)
        with pytest.raises(cache_places.UntrustedError, match="others can write"):
            cache_places.trusted(filled)
    user()
    monkeypatch.setattr(
        os, "listxattr", lambda _: ["system.posix_acl_access"], raising=False
    )  # the bits say less than they seem
    with pytest.raises(cache_places.UntrustedError, match="others can write"):
        cache_places.trusted(filled)


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o002, 0o077, 0o000, 0o027])
def test_what_we_make_is_ours_alone_whatever_the_umask(place, umask):
    before = os.umask(umask)
    try:
        deep = place / "a" / "b"
        cache_places.make(deep)
        cache._write(deep / "file.nkc", b"")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (place, place / "a", deep)} == {0o700}
    assert stat.S_IMODE((deep / "file.nkc").stat().st_mode) == 0o600
    assert cache_places.trusted(deep) == deep.resolve()


@pytest.mark.hostile
@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("umask", ["0o002", "0o077", "0"])
def test_a_second_process_loads_whatever_the_umask(place, script, umask):
    masked = f"import os; os.umask({umask})\n" + SERIAL
    bits = script(masked, NORMKIT_CACHE_DIR=place / "a" / "b").split()[0]
    assert script(masked, NORMKIT_CACHE_DIR=place / "a" / "b").split() == [bits, "0"]


# --- an image's cache


# Once as root, so that nothing has to be imported from where that user cannot read; then, with all kernels forgotten, as a user
AS_A_USER = (
    WORK
    + """
import os
from normkit import plans
from normkit.backends.numba_backend import compiling
work()
compiling._compiled.clear()
plans.forget()
os.setgroups([])
os.setgid(1000)
os.setuid(1000)
os.environ["HOME"] = "/nonexistent"
os.environ.pop("XDG_CACHE_HOME", None)
assert not os.access(os.environ["NORMKIT_CACHE_DIR"], os.W_OK)
print(work(), compiled())
"""
)


REMOUNT = ["-o", "remount,bind,ro"]


@pytest.fixture
def image(full, place):
    """A cache as `normkit warmup --into` leaves it: for all to read."""
    shutil.copytree(full[0], place)
    place.chmod(0o555)
    for path in files(place):
        path.chmod(0o444)
    yield place
    place.chmod(0o755)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_what_root_has_warmed_serves_every_user(image, full, script):
    """As in a container: warmed as root, run as user 1000, with no home, nothing that could be written, and no warning."""
    assert script(AS_A_USER).split() == [full[1], "0"]


def test_what_is_missing_in_an_image_goes_to_the_users_own_cache(image, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != image)  # as root sees a file system mounted read only
    monkeypatch.setattr(cache, "_payload", lambda result: b"payload")
    assert cache.places() == [image, tmp_path / "normkit"]
    assert cache.load(*serial()) is not None
    cache.save(*serial(), None)
    (written,) = files(tmp_path / "normkit")
    assert written.name == its_file(image).name
    assert "kernels" in cache.describe().partition("; and ")[0]
    assert "read only" in cache.describe()
    assert "1 kernels" in cache.describe().partition("; and ")[2]


def test_files_may_be_read_by_who_may_read_the_folder(place, monkeypatch):
    monkeypatch.setattr(cache, "_payload", lambda result: b"payload")
    before = os.umask(0o077)
    try:
        cache.share(str(place))
        cache.save(*serial(), None)
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert stat.S_IMODE(its_file(place).stat().st_mode) == 0o644


@pytest.mark.hostile
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount, and become another user")
def test_the_dockerfile_of_the_readme(place, script):
    """`normkit warmup --into` as root, then calls as user 1000 on a file system that is read only."""
    command = [sys.executable, "-m", "normkit", "warmup", "--into", str(place), "float32"]
    subprocess.run(command, check=True, timeout=900, capture_output=True, umask=0o077)
    if any(subprocess.run(["mount", *how, place, place], capture_output=True).returncode for how in (["--bind"], REMOUNT)):
        pytest.skip("this system lets nobody mount")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (place / "file").touch()
        assert script(AS_A_USER, NORMKIT_CACHE_DIR=place).split()[1] == "0"
    finally:
        subprocess.run(["umount", place], check=True)


WARNED_ONCE = (
    WORK
    + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    work(shapes=[(5, 64)])  # tries to read, and then to write
assert [w.category for w in caught] == [nk.CacheWarning], [str(w.message) for w in caught]
print(caught[0].message)
"""
)


@pytest.mark.skipif(os.name != "posix", reason="POSIX paths")
@pytest.mark.parametrize("environment", [{"NORMKIT_CACHE_DIR": "/dev/null/kernels"}])
def test_no_place_to_write_is_one_warning(script, environment):
    assert "cannot be" in script(WARNED_ONCE, **environment)


@pytest.mark.skipif(os.name != "posix", reason="POSIX users")
def test_a_process_without_a_home(script):
    """As in a container with a user that it does not know."""
    homeless = """
import os, pwd
for name in ("HOME", "XDG_CACHE_HOME", "NORMKIT_CACHE_DIR"):
    os.environ.pop(name, None)
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
"""
    assert "no home folder" in script(homeless + WARNED_ONCE)


def test_no_home_is_one_warning(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NORMKIT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(cache, "_warned", False)
    assert cache.places() == []
    assert cache.load(*serial()) is None
    with pytest.warns(nk.CacheWarning, match="no home folder"):
        cache.save(*serial(), None)
    assert "no home folder" in cache.describe()


@pytest.mark.skipif(os.name != "posix", reason="POSIX limits")
def test_a_full_disk_leaves_nothing_behind(place, script):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + WARNED_ONCE
    assert "cannot be written" in script(limited, PYTHONDONTWRITEBYTECODE=1)
    assert files(place) == []


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(filled, monkeypatch, fails):
    def fail(*args):
        raise OSError(28, "No space left on device")

    path, before = its_file(filled), files(filled)
    old = path.read_bytes()
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="No space"):
        cache._write(path, b"new")
    assert (files(filled), path.read_bytes()) == (before, old)


def test_a_file_that_another_process_reads_stays_as_on_windows(filled, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Access is denied")

    path, before = its_file(filled), files(filled)
    old = path.read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    cache._write(path, old)
    assert (files(filled), path.read_bytes()) == (before, old)
    path.unlink()
    with pytest.raises(PermissionError):
        cache._write(path, old)
    assert path not in files(filled)


def test_the_oldest_are_forgotten(place, monkeypatch):
    place.mkdir(mode=0o700)
    monkeypatch.setattr(cache, "MOST_FILES", 3)
    for i in range(6):
        (place / f"kernel-{i}.nkc").write_bytes(b"")
        os.utime(place / f"kernel-{i}.nkc", (i, i))
    cache._prune(place)
    assert [p.name for p in files(place)] == ["kernel-3.nkc", "kernel-4.nkc", "kernel-5.nkc"]


# --- what is written


def elf_symbols(code):
    """(name, binding, section) of each symbol of a 64-bit little-endian ELF object."""
    (header,) = struct.unpack_from("<Q", code, 40)
    count = struct.unpack_from("<H", code, 60)[0]
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, header + 64 * i) for i in range(count)]
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind == 2:
            names = sections[link][4]
            for at in range(offset, offset + size, 24):
                name, info, _, section = struct.unpack_from("<IBBH", code, at)
                text = code[names + name : code.index(b"\0", names + name)].decode()
                yield text, info >> 4, info & 15, section


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_two_files_cannot_take_each_others_functions(full):
    """Numba names a parallel loop's body after an address and a counter; seen from outside, it could be taken for another's."""
    seen = set()
    for path in files(full[0]):
        _, (library, *_) = pickle.loads(path.read_bytes().split(b"\n", 2)[2])
        code = library[2][0]
        defined = [(name, binding) for name, binding, kind, section in elf_symbols(code) if kind == 2 and section]
        loops = [(name, binding) for name, binding in defined if "parfor" in name]
        visible = [name for name, binding in defined if binding != 0]
        assert all(binding == 0 for _, binding in loops)
        assert len(visible) == 1
        assert not seen & set(visible)
        seen |= set(visible)
        if "parallel" in path.name:
            assert loops


# --- several at once


def race(number, place, dtypes, shapes):
    command = [sys.executable, "-W", "error", "-c", WORK + f"print(work(sys.argv[1], {shapes}))"]
    environment = os.environ | {"NORMKIT_CACHE_DIR": str(place)}
    running = [
        subprocess.Popen([*command, dtypes[i % len(dtypes)]], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(number)
    ]
    results = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0] * number, b"\n".join(err for _, err in results).decode()
    by_dtype = [{out for i, (out, _) in enumerate(results) if dtypes[i % len(dtypes)] == dtype} for dtype in dtypes]
    assert all(len(outs) == 1 for outs in by_dtype)  # the same bits, whoever compiled
    assert all(p.name.endswith(".nkc") and not p.name.startswith(".") for p in files(place))
    return [outs.pop().decode().strip() for outs in by_dtype]


def test_two_processes_fill_one_cache_at_once(place, script):
    (bits,) = race(2, place, ["float32"], [(5, 64)])
    assert script(SERIAL).split() == [bits, "0"]


def test_a_file_that_another_process_renames_meanwhile(place, monkeypatch):
    """Between a look at the folder and one at the file: nothing is wrong, and nobody is warned."""
    place.mkdir(mode=0o700)
    for age, name in enumerate(("new.nkc", "old.nkc", ".other.nkc.1-2")):
        (place / name).write_bytes(b"12345")
        os.utime(place / name, (1e9 - age, 1e9 - age))
    seen = list(os.scandir(place))
    (place / ".other.nkc.1-2").rename(place / "other.nkc")
    with monkeypatch.context() as patched:  # undone before the folder goes
        patched.setattr(cache.os, "scandir", lambda _: iter(seen))
        patched.setattr(cache, "MOST_FILES", 1)
        assert "2 kernels" in cache.describe()
        cache._prune(place)
    assert sorted(os.listdir(place)) == ["new.nkc", "other.nkc"]


@pytest.mark.hostile
@pytest.mark.parametrize("round", range(2))
def test_eight_processes_fill_one_cache_with_different_dtypes(place, script, round):
    dtypes = ["float32", "float64", "float16"]
    shapes = [(5, 64), (4096, 64), (1, 1 << 18)]
    expected = race(8, place, dtypes, shapes)
    for dtype, bits in zip(dtypes, expected, strict=True):
        assert script(WORK + f"print(work({dtype!r}), compiled())").split() == [bits, "0"]


@pytest.mark.hostile
def test_a_process_killed_while_it_fills_the_cache(place, script):
    """At any moment: what it leaves is whole, or not there."""
    expected = None
    for delay in np.linspace(0.3, 5, 10):
        process = subprocess.Popen([sys.executable, "-c", SERIAL], stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
        bits = script(SERIAL).split()[0]
        expected = expected or bits
        assert bits == expected
        shutil.rmtree(place)


@pytest.mark.hostile
def test_a_tiny_file_system(tmp_path, script):
    """A disk that is really full, where the system lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "none", disk], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    try:
        assert "cannot be written" in script(WARNED_ONCE, NORMKIT_CACHE_DIR=disk / "kernels")
        assert files(disk / "kernels") == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.hostile
def test_a_second_process_is_ready_in_half_the_time_of_importing_torch(full, script):
    pytest.importorskip("torch")
    clock = "import time; start = time.process_time()\n{}\nprint(time.process_time() - start)"
    call = "import numpy as np, normkit as nk; nk.layer_norm(np.ones((4, 64), np.float32), backend='numba')"
    ours, theirs = (
        min(float(script(clock.format(code), NORMKIT_CACHE_DIR=full[0])) for _ in range(5)) for code in (call, "import torch")
    )
    assert ours <= theirs / 2
