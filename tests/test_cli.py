"""The command line: answers on stdout with status 0, one line on stderr with status 2 for bad usage, 130 for Ctrl-C."""

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from normkit.backends.numpy_backend import NumpyBackend

import normkit as nk
from normkit import demo, doctor, registry, threads
from normkit.__main__ import main, shape

ROOT = Path(__file__).resolve().parents[1]


def command(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "normkit", *args], capture_output=True, text=True, timeout=120, check=False, **options
    )


def status(argv):
    """The exit status, whether it is returned or raised."""
    try:
        return main(argv)
    except SystemExit as stop:
        return stop.code


def refused(argv, capsys):
    """What a refused command line says, which is one line on stderr and nothing else."""
    assert status(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


# --- shapes

PRINTED = "ValueError: Expected more than 1 spatial element when training, got input size torch.Size([128, 512, 1, 1])"


@pytest.mark.parametrize(
    "text",
    [
        "128x512x1x1",
        "128,512,1,1",
        "(128, 512, 1, 1)",
        "[128, 512, 1, 1]",
        "128 512 1 1",
        "torch.Size([128, 512, 1, 1])",
        PRINTED,
    ],
)
def test_shape_as_people_type_it(text):
    assert shape(text) == (128, 512, 1, 1)


@pytest.mark.parametrize("text", ["7", "(7,)"])
def test_shape_of_one_axis(text):
    assert shape(text) == (7,)


@pytest.mark.parametrize("text", ["", "x", "4y", "-1x3", "1.5x2", "4xx", "²"])
def test_not_a_shape(text, capsys):
    if text == "4xx":
        assert shape(text) == (4,)
    else:
        assert repr(text) in refused(["explain", "layer_norm", "--", text], capsys)


# --- explain


def test_explain_prints_what_the_function_returns(capsys):
    assert main(["explain", "instance_norm", "128x512x1x1"]) == 0
    assert capsys.readouterr().out == f"{nk.explain('instance_norm', (128, 512, 1, 1))}\n"


@pytest.mark.parametrize("policy", ["torch", "onnx", "strict"])
def test_explain_takes_policy_backend_and_dtype(policy, capsys):
    argv = ["explain", "layer_norm", "8,1", "--policy", policy, "--backend", "numpy", "--dtype", "float64"]
    assert main(argv) == 0
    expected = nk.explain("layer_norm", (8, 1), dtype=np.float64, backend="numpy", policy=getattr(nk.FallbackPolicy, policy)())
    assert capsys.readouterr().out == f"{expected}\n"


def test_explain_bfloat16(capsys):
    assert main(["explain", "layer_norm", "8x16", "--dtype", "bfloat16", "--backend", "numpy"]) == 0
    assert "bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["layer_norm", "8x3x5", "--axis", "1"], {"axis": 1}),
        (["layer_norm", "8x3x5", "--axis", "-2"], {"axis": -2}),
        (["layer_norm", "8x3x5", "--axis", "0,2", "--mask", "8x1x5"], {"axis": (0, 2), "mask": (8, 1, 5)}),
        (["layer_norm", "8x3x5", "--axis=(-1, 0)"], {"axis": (-1, 0)}),
        (["instance_norm", "8x3x5", "--channel-axis", "-1", "--mask", "5"], {"channel_axis": -1, "mask": (5,)}),
    ],
)
def test_explain_takes_axes_and_a_mask(argv, options, capsys):
    assert main(["explain", *argv]) == 0
    assert capsys.readouterr().out == f"{nk.explain(argv[0], (8, 3, 5), **options)}\n"


def test_explain_fits_a_terminal(capsys):
    main(["explain", "instance_norm", "128x512x1x1"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 115


# --- bad usage


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["explain"], "OP"),
        (["explain", "batch_norm", "8x8"], "batch_norm"),
        (["explain", "layer_norm", "8x8", "--policy", "tf"], "tf"),
        (["explain", "layer_norm", "8x8", "--dtype", "int8"], "int8"),
        (["explain", "layer_norm", "8x8", "--backend", "nunba"], "nunba"),
        (["explain", "instance_norm", "8"], "(N, C, *spatial)"),
        (["explain", "instance_norm", "8x8", "--axis", "1"], "instance_norm has no --axis; it takes --channel-axis"),
        (["explain", "layer_norm", "8x8", "--channel-axis", "1"], "layer_norm has no --channel-axis; it takes --axis"),
        (["explain", "layer_norm", "8x8", "--axis", "one"], "'one' is no axis"),
        (["explain", "layer_norm", "8x8", "--axis", "2"], "axis holds 2, expected -2 .. 1"),
        (["explain", "layer_norm", "8x8", "--mask", "5"], "mask has shape (5,), which does not broadcast"),
        (["doctor", "--nonsense"], "--nonsense"),
        (["demo", "no-such-file.png"], "no-such-file.png"),
        (["demo", "--output", "no-such-folder/a.png"], "no-such-folder"),
    ],
)
def test_bad_usage_is_one_line(argv, says, capsys):
    assert says in refused(argv, capsys)


def test_status_of_the_process():
    done = command("explain", "layer_norm", "?")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "normkit explain: argument SHAPE: '?' is not a shape, as 128x512x1x1; normkit explain --help says more\n"
    )


def test_help_and_version(capsys):
    for argv in (["--help"], ["explain", "--help"], ["demo", "--help"], ["doctor", "--help"], ["bench", "--help"]):
        assert status(argv) == 0
        assert "usage: normkit" in capsys.readouterr().out
    assert status(["--version"]) == 0
    assert capsys.readouterr().out == f"normkit {nk.__version__}\n"


# --- missing extras


@pytest.mark.parametrize("package", ["matplotlib", "rich"])
def test_demo_names_the_extra_it_lacks(package):
    code = f"import sys; sys.modules[{package!r}] = None; from normkit.__main__ import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == f"normkit: {package} is not installed; pip install 'normkit[demo]'\n"


def test_doctor_and_explain_do_without_rich():
    code = (
        "import sys; sys.modules['rich'] = sys.modules['matplotlib'] = None; from normkit.__main__ import main; "
        "sys.exit(main(['doctor']) or main(['explain', 'layer_norm', '2x3']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "processor" in done.stdout
    assert "layer_norm on x: (2, 3)" in done.stdout


def test_the_command_is_light():
    code = (
        "import sys; from normkit.__main__ import main; main(['explain', 'layer_norm', '2x3', '--backend', 'numpy']); "
        "print(sorted({'matplotlib', 'rich', 'PIL', 'asv'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("[]\n")


# --- interruption


def test_interrupt(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert main(["doctor"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupt_of_the_process(tmp_path):
    argv = [sys.executable, "-m", "normkit", "demo", "--output", str(tmp_path / "a.png")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("normkit")  # it is at work
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="closes a pipe")
def test_reader_that_leaves():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out:
        argv = [sys.executable, "-u", "-m", "normkit", "explain", "layer_norm", "2x3"]
        done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr


# --- doctor


def test_doctor_tells_what_is_here(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for text in (nk.__version__, np.__version__, "granted of", "features", "backends", "numba", "threading layer"):
        assert text in out
    assert "BROKEN" not in out


def test_doctor_says_why_a_backend_cannot_be_used(monkeypatch, capsys):
    missing = registry.Missing("quux is not installed (pip install quux)", quiet=True)
    monkeypatch.setitem(registry._found, "numba", missing)
    assert main(["doctor"]) == 0
    assert "no: quux is not installed (pip install quux)" in capsys.readouterr().out


class Wrong(type(nk.get_backend("numpy"))):
    """Computes zeros."""

    name = "wrong"

    def prepare(self, problem):
        def run(operands):
            operands.out[...] = 0

        return run


class Failing(Wrong):
    """Raises what nobody expects."""

    def prepare(self, problem):
        raise ZeroDivisionError("boom")


@pytest.mark.parametrize(("backend", "says"), [(Wrong(), "wrong by"), (Failing(), "ZeroDivisionError: boom")])
def test_doctor_tries_every_backend(backend, says, capsys):
    nk.register_backend(backend)
    try:
        assert main(["doctor"]) == 0
    finally:
        registry._forget("wrong")
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert says in out


def test_doctor_tells_of_fewer_cores(monkeypatch, capsys):
    monkeypatch.setattr(threads, "granted", lambda: 0)
    assert main(["doctor"]) == 0
    assert "OMP_NUM_THREADS or NUMBA_NUM_THREADS" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="the status of an aborted process is POSIX's")
def test_doctor_outlives_a_numba_that_nobody_has_tested(monkeypatch):
    monkeypatch.setitem(doctor.TESTED, "numba", (0, 1))
    monkeypatch.setattr(doctor, "TRY", "import os; os.abort()")
    assert "BROKEN: a row of 64 float32 ended the process with status -6" in doctor._tried("numba", "numpy")


def test_doctor_tries_what_nobody_has_tested_in_another_process(monkeypatch):
    monkeypatch.setitem(doctor.TESTED, "numpy", (0, 1))
    monkeypatch.setattr(doctor, "tried", lambda name: pytest.fail("tried here"))
    assert doctor._tried("numpy", "numpy").startswith("yes, a row of 64 float32 is right to")


def test_doctor_says_what_is_newer_than_the_tests(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version", lambda name: "99.1.0rc2")
    monkeypatch.setattr(doctor, "tried", lambda name: "yes")
    monkeypatch.setattr(
        doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, "yes, in another process", "")
    )
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name, newest in doctor.TESTED.items():
        assert f"pip install '{name}=={newest[0]}.{newest[1]}.*'" in out
    assert "yes, in another process" in out


@pytest.mark.parametrize(("found", "newer"), [("0.68.1", False), ("0.69.0rc1", True), ("1.0", True), ("0.61.2", False)])
def test_what_is_newer(found, newer, monkeypatch):
    monkeypatch.setitem(doctor.TESTED, "numba", (0, 68))
    assert doctor._newer("numba", found) == newer


def test_this_environment_is_what_is_tested():
    """Raise doctor.TESTED when the tests pass with something newer."""
    for name in doctor.TESTED:
        assert not doctor._newer(name, doctor.version(name)), name


# --- encodings


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("argv", [["doctor"], ["bench", "--load", "docs/performance.json"]])
def test_any_encoding_of_stdout(encoding, argv):
    """A pipe on Windows has the characters of one language, and bench draws with blocks, as Rich does with lines."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "NORMKIT_NOTE": "\N{BOX DRAWINGS LIGHT HORIZONTAL}"}
    command = [sys.executable, "-m", "normkit", *argv]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    blocks = {"doctor": "\N{BOX DRAWINGS LIGHT HORIZONTAL}", "bench": "\N{FULL BLOCK}"}[argv[0]]
    assert (blocks in done.stdout.decode(encoding)) == (encoding == "utf-8")


def test_demo_module_is_what_the_command_runs(monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run", lambda *args: seen.append(args))
    assert main(["demo", "a.png", "--output", "b.png"]) == 0
    assert seen == [("a.png", "b.png")]


# --- warmup


class Engine(NumpyBackend):
    """Has something to make ready."""

    name = "engine"

    def warmup(self, dtypes, everything, into):
        self.asked = (*dtypes,), everything, into
        return [(f"work {dtype}", lambda: None) for dtype in dtypes]

    def kept(self):
        return "nowhere"


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(registry, "backends", lambda: [registry.BackendInfo("engine", "numpy", "", True, "")])
    engine = Engine()
    monkeypatch.setattr(registry, "get_backend", lambda name: engine)
    return engine


def test_warmup_names_what_it_has_made_ready(engine, capsys):
    assert status(["warmup"]) == 0
    assert engine.asked == (("float32", "float64"), False, None)
    said = capsys.readouterr().out
    assert re.search(r"1/2 +0\.00 s  engine: work float32\n +2/2 +0\.00 s  engine: work float64\nengine: kept in nowhere", said)
    assert status(["warmup", "--all", "--into", "there"]) == 0
    assert engine.asked[0][:1] + engine.asked[0][-2:] == ("float16", "float32", "float64")
    assert engine.asked[1:] == (True, "there")
    assert "NORMKIT_CACHE_DIR=there" in capsys.readouterr().out


def test_warmup_shows_a_bar_on_a_terminal(engine, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert status(["warmup"]) == 0
    assert "2/2" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert status(["warmup"]) == 0
    assert "2/2    0.00 s  engine: work float64" in capsys.readouterr().out


def test_warmup_that_cannot_be_kept_says_so_and_fails(engine, monkeypatch, capsys):
    monkeypatch.setattr(
        engine, "warmup", lambda *_: [("work", lambda: warnings.warn("no room", nk.CacheWarning, stacklevel=1))]
    )
    assert "normkit: no room" in refused(["warmup"], capsys)


def test_warmup_makes_ready_what_calls_need():
    """Kernels of every way a call can go, each once; with --all every kernel that there is."""
    pytest.importorskip("numba")
    from normkit.backends.numba_backend import compiling

    backend = nk.get_backend("numba")
    most = [what for what, _ in backend.warmup(["float32"])]
    assert {"alike", "rows_split float32", "columns_serial float32", "masked_rows_serial float32"} < set(most)
    names = [what.split()[0] for what, _ in backend.warmup(["float16"], everything=True)]
    assert len(names) == len(set(names))
    entries = {
        name
        for module in compiling._MODULES
        for name, function in vars(module).items()
        if hasattr(function, "targetoptions") and not function.targetoptions.get("no_cpython_wrapper")
    }
    assert set(names) >= {name for name in entries if not name.endswith("_first")}  # none if nothing is compiled


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_warmup_into_a_folder_for_all(monkeypatch, tmp_path, capsys):
    numba_backend = pytest.importorskip("normkit.backends.numba_backend")
    monkeypatch.setenv("NORMKIT_CACHE_DIR", "elsewhere")
    monkeypatch.setattr(numba_backend, "MOST", ())
    before = os.umask(0o077)
    try:
        assert status(["warmup", "--into", str(tmp_path / "a" / "kernels"), "float32"]) == 0
    finally:
        os.umask(before)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a", tmp_path / "a" / "kernels")] == [0o755, 0o755]
    assert f"kept in {tmp_path / 'a' / 'kernels'}" in capsys.readouterr().out
    for mode, why in ((0o777, "others can write to"), (0o1777, "others can write to")):
        tmp_path.chmod(0o755)
        place = Path(tempfile.mkdtemp(dir="/tmp"))
        place.chmod(mode)
        assert why in refused(["warmup", "--into", str(place)], capsys)
        place.rmdir()
    assert "nobody would load kernels" in refused(["warmup", "--into", "/dev/null/kernels"], capsys)
    monkeypatch.setenv("NORMKIT_CACHE", "0")
    assert "unset NORMKIT_CACHE" in refused(["warmup", "--into", str(tmp_path)], capsys)


def test_warmup_of_no_float(capsys):
    assert "int8: expected dtypes among float16, bfloat16, float32, float64" in refused(["warmup", "int8"], capsys)


@pytest.mark.parametrize(("load", "others"), [(0.0, 0.0), (1000.0, 0.0), (0.0, 1.5)])
def test_the_doctor_says_whether_the_machine_is_busy(load, others, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "load_average", lambda: load)
    monkeypatch.setattr(doctor, "done_between", lambda before, after: others * 1e6)
    assert main(["doctor"]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["busy"])
    assert ("but other processes kept" in said) == (others > 0)
    assert ("but the load is 1000.0" in said) == (load > 0)
    assert ("a good time to measure" in said) == (load == others == 0)
