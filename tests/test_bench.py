"""The side-by-side run: what a case means, that its oracle is right, and that a run survives peers and people."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser

import numpy as np
import pytest

from normkit.bench import cli, report
from normkit.bench.cases import EPS, GROUPS, Case, make_inputs, np_dtype, select
from normkit.bench.contenders import CONTENDERS, Contender, in_turns
from normkit.bench.cores import core_distance
from normkit.bench.results import CaseResult, Run, Score, Settings, geometric_mean

pytest.importorskip("rich")
SPECS = sorted({spec for group in GROUPS.values() for spec in group})
SMALL = [
    "layer_norm/3x8",
    "layer_norm/3x8/float64",
    "layer_norm/2x3x4/axis=1",
    "layer_norm/4x8/mask/step=2",
    "layer_norm/4x8/offset=1e+06",
    "instance_norm/2x3x4x5",
    "instance_norm/2x4x5x3/channel_axis=-1/mask",
]


def arguments(*words):
    parser = ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(list(map(str, words)))


@pytest.mark.parametrize("spec", SPECS)
def test_specs_read_as_they_are_written(spec):
    assert Case.parse(spec).spec == spec


@pytest.mark.parametrize(
    "spec", ["", "layer_norm", "batch_norm/2x3", "layer_norm/2xa", "layer_norm/2x3/float8", "layer_norm/*x9999"]
)
def test_nonsense_is_not_a_case(spec):
    with pytest.raises(ValueError, match="case"):
        select([spec])


def test_groups_and_patterns_select_each_case_once():
    assert [case.spec for case in select(["standard", "layer_norm/*", "layer_norm/1x64"])][:16] == list(GROUPS["standard"])
    assert all(case.op == "instance_norm" for case in select(["instance_norm/*"]))


@pytest.mark.parametrize("spec", SMALL)
def test_oracle_agrees_with_sums_by_hand(spec):
    from normkit.bench.oracle import Oracle

    case = Case.parse(spec)
    inputs = make_inputs(case)
    y = by_hand(case, inputs)
    oracle = Oracle(case, inputs)
    assert oracle.max_error(y) < 1e-9 if "offset" in spec else oracle.max_error(y) < 1e-13
    y[(-1,) * y.ndim] += 0.5
    assert oracle.max_error(y) == pytest.approx(0.5)
    y[(0,) * y.ndim] = np.nan
    assert oracle.max_error(y) == math.inf


def by_hand(case, inputs):
    """Plain Python, one set of statistics after the other."""
    x = np.moveaxis(inputs.x, case.axes, range(-len(case.axes), 0))
    where = np.ones(case.shape, bool) if inputs.mask is None else inputs.mask
    where = np.moveaxis(where, case.axes, range(-len(case.axes), 0))
    out = np.empty(x.shape, np.float64)
    for index in np.ndindex(*x.shape[: -len(case.axes)]):
        values = [float(v) for v in x[index][where[index]]]
        mean = math.fsum(values) / len(values)
        var = math.fsum((v - mean) ** 2 for v in values) / len(values)
        out[index] = (x[index].astype(np.float64) - mean) / math.sqrt(var + EPS)
    out = np.moveaxis(out, range(-len(case.axes), 0), case.axes)
    return out * inputs.weight.reshape(case.affine_shape) + inputs.bias.reshape(case.affine_shape)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_correctly_rounded_results_are_half_an_ulp_off_at_most(dtype):
    from normkit.bench.oracle import Oracle

    pytest.importorskip("ml_dtypes")
    case = Case.parse(f"layer_norm/64x32/{dtype}")
    inputs = make_inputs(case)
    exact = by_hand(case, inputs._replace(weight=inputs.weight.astype(float), bias=inputs.bias.astype(float)))
    assert 0.45 < Oracle(case, inputs).max_ulps(exact.astype(np_dtype(dtype))) <= 0.5


@pytest.mark.filterwarnings("ignore::normkit.FallbackWarning")
@pytest.mark.parametrize("spec", SMALL)
def test_every_contender_here_gives_the_right_answer(spec):
    from normkit.bench.contenders import UnsupportedCase
    from normkit.bench.oracle import Oracle

    case = Case.parse(spec)
    inputs = make_inputs(case)
    for name in ("normkit", "normkit out=", "NumPy"):
        try:
            call = CONTENDERS[name].prepare(case, inputs)
        except UnsupportedCase:
            continue
        if "offset" not in spec or name != "NumPy":
            assert Oracle(case, inputs).max_error(call.to_numpy(call.run(call.own(inputs.x)))) < 1e-6, name


def test_large_inputs_take_turns():
    """Small ones stay in cache; of large ones there are more than a cache holds."""
    assert Case.parse("layer_norm/512x768").alike == 1
    for spec in ("layer_norm/2048x1024", "layer_norm/64x197x768", "layer_norm/16384x4096"):
        case = Case.parse(spec)
        assert case.alike >= 2
        assert case.alike * case.nbytes >= 256 << 20
    seen = []
    run = in_turns(seen.append, [1, 2, 3])
    for _ in range(5):
        run()
    assert seen == [1, 2, 3, 1, 2]


def test_the_fastest_copy_copies():
    from normkit.bench import floors

    for shape in ((7,), (3, 129), (1000, 1001)):
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        assert np.array_equal(floors.fastest_copy(x)[1](floors.aligned_copy(x)), x)
        for copy in floors.compiled_copies().values():
            source, target = floors.aligned_empty(x.nbytes), floors.aligned_empty(x.nbytes)
            source.view(np.uint8)[: x.nbytes], target[...] = x.reshape(-1).view(np.uint8), 0
            copy(target, source)
            assert np.array_equal(target.view(np.uint8)[: x.nbytes], x.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layouts_have_a_copy_of_their_own(dtype):
    """Rows with gaps, and images that are read before they are copied; of others there is none."""
    from normkit.bench.contenders import UnsupportedCase

    for spec in ("layer_norm/70x64/step=3", "layer_norm/5x6x32/step=2", "instance_norm/3x50x60x32/channel_axis=-1"):
        case = Case.parse(f"{spec}/{dtype}")
        inputs = make_inputs(case)
        call = CONTENDERS["layout copy"].prepare(case, inputs)
        source = call.own(inputs.x)
        for _ in range(2):
            assert np.array_equal(call.to_numpy(call.run(source)), inputs.x), spec
    for spec in ("layer_norm/70x64", "layer_norm/70x3/step=2", "instance_norm/3x4x64/mask"):
        case = Case.parse(spec)
        with pytest.raises(UnsupportedCase):
            CONTENDERS["layout copy"].prepare(case, make_inputs(case))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run of the command, and the folder in which it left its files."""
    folder = tmp_path_factory.mktemp("bench")
    document = folder / "page.md"
    document.write_text("before\n<!-- normkit bench: begin -->\nold\n<!-- normkit bench: end -->\nafter\n")
    words = [
        "--case",
        "layer_norm/2x8",
        "--case",
        "instance_norm/1x2x3x4/mask",
        "--only",
        "np.copy,normkit,numpy",
        "--rounds",
        1,
        "--sweeps",
        2,
    ]
    words += ["--json", folder / "a.json", "--plot", folder / "a.png", "--markdown", document]
    command = [sys.executable, "-m", "normkit.bench", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_run_measures_and_checks_every_contender(small_run):
    folder, text = small_run
    run = Run.load(folder / "a.json")
    assert [result.case.spec for result in run.finished] == ["layer_norm/2x8", "instance_norm/1x2x3x4/mask"]
    assert set(run.names) >= {"np.copy", "normkit", "normkit out=", "NumPy"}
    for result in run.finished:
        assert {name: len(score.seconds) for name, score in result.timed.items()} == dict.fromkeys(result.timed, 2), text
        assert all(score.error < 1e-6 for name, score in result.timed.items() if name != "np.copy")
    assert "instance_norm (1, 2, 3, 4) mask" in text


def test_run_leaves_a_picture_and_a_table(small_run):
    folder, _ = small_run
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "page.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("-->\nafter\n")
    assert "old" not in page
    assert "| layer_norm (2, 8)" in page
    assert "![" in page


@pytest.mark.parametrize(
    ("option", "file", "says"),
    [
        ("--json", ".", "it is a folder"),
        ("--json", "none/a.json", "there is no folder none"),
        ("--markdown", "none/a.md", "there is no folder none"),
        ("--plot", "none/a.png", "there is no folder none"),
        ("--plot", "a.docx", "docx is none of"),
        ("--plot", "a", "no suffix is none of"),
    ],
)
def test_files_that_cannot_be_written_are_told_before_the_work(option, file, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "measure", lambda *args: pytest.fail("measured"))
    assert cli.main(arguments("--case", "layer_norm/2x8", option, file)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"normkit bench: {option}: cannot write {file}: ")
    assert says in said.err


def test_a_disk_that_fills_meanwhile_leaves_the_rest(small_run, tmp_path, monkeypatch, capsys):
    folder, _ = small_run

    def full(self, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "save", full)
    page = tmp_path / "page.md"
    argv = ("--load", folder / "a.json", "--json", tmp_path / "b.json", "--markdown", page)
    assert cli.main(arguments(*argv)) == 1
    said = capsys.readouterr()
    assert "layer_norm (2, 8)" in said.out
    assert "layer_norm (2, 8)" in page.read_text(encoding="utf-8")
    assert said.err == f"normkit bench: cannot write {tmp_path / 'b.json'}: No space left on device\n"


def test_a_run_can_be_shown_and_compared_again(small_run, capsys):
    folder, _ = small_run
    assert cli.main(arguments("--load", folder / "a.json", "--compare", folder / "a.json")) == 0
    assert "by 0.0% in the median, 0.0% at most" in capsys.readouterr().out


def test_runs_that_disagree_are_compared_either_way(small_run):
    run, other = (Run.load(small_run[0] / "a.json") for _ in range(2))
    result = other.finished[0]
    result.scores["NumPy"].seconds[:] = [2 * seconds for seconds in result.scores["NumPy"].seconds]
    for pair in ((run, other), (other, run)):
        small = report.agreement(*pair)
        assert small[0] == "small (below 1 MB):"
        assert f"100.0% at most (NumPy, {result.case.title})" in small[1]
        assert small[2].endswith("at most (NumPy)")


def test_missing_peers_are_left_out_by_name(monkeypatch, capsys):
    monkeypatch.setitem(CONTENDERS, "torch", Contender("torch", "peer", CONTENDERS["torch"].prepare, ("no_such_package",)))
    names = ["torch"]
    run = cli.measure([], names, Settings(1, 0.001))
    assert run.left_out == {"torch": "not installed: no_such_package"}


def test_a_contender_that_dies_is_reported_and_replaced(monkeypatch):
    from normkit.bench.runner import Match

    with Match(["NumPy", "np.copy"], Settings(1, 0.001)) as match:
        os.kill(match._processes["NumPy"].pid, signal.SIGKILL)
        first, second = (CaseResult(Case.parse("layer_norm/2x8"), {}) for _ in range(2))
        match.play(first, lambda name: None)
        match.play(second, lambda name: None)
    assert "code -9" in first.scores["NumPy"].failure
    assert list(first.timed) == ["np.copy"]
    assert list(second.timed) == ["NumPy", "np.copy"]


def test_a_case_in_which_the_base_failed_is_not_passed_over(monkeypatch, capsys):
    scores = {"normkit": Score(failure="ended with code -9"), "NumPy": Score([1.0], 1e-7)}
    run = Run({}, Settings(1, 0.001), "normkit", results=[CaseResult(Case.parse("layer_norm/2x8"), scores)])
    monkeypatch.setattr(cli, "measure", lambda *_: run)
    assert cli.main(arguments("--case", "layer_norm/2x8")) == 1
    out = capsys.readouterr().out
    assert "layer_norm (2, 8)   nothing to compare with: normkit failed" in out
    assert "normkit: ended with code -9" in out


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts are sent by signal")
def test_interrupt_leaves_what_was_measured(tmp_path):
    file = tmp_path / "a.json"
    words = ["--case", "layer_norm/2x8", "--case", "layer_norm/64x197x768", "--only", "np.copy,numpy", "--rounds", "10000"]
    command = [sys.executable, "-m", "normkit.bench", *words, "--json", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in out
    assert json.loads(file.read_text())["cases"][0]["contenders"]["NumPy"]["seconds"]


@pytest.mark.parametrize(
    "words", [["--case", "nonsense"], ["--only", "nobody"], ["--load", "no-such-file"], ["--compare", __file__]]
)
def test_mistakes_are_named_in_one_line(words, capsys):
    assert cli.main(arguments(*words)) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_ratios_are_taken_inside_a_round():
    scores = {"normkit": Score([1.0, 10.0, 2.0]), "torch": Score([3.0, 31.0, 6.0])}
    result = CaseResult(Case.parse("layer_norm/2x8"), scores)
    assert result.ratio("torch", "normkit") == 3.0
    assert result.spread("torch", "normkit") < 0.02
    assert geometric_mean([1, 4]) == pytest.approx(2)


@pytest.mark.parametrize("option", ["--rounds", "--sweeps"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_rounds_and_sweeps_are_counts(option, value, capsys):
    with pytest.raises(SystemExit):
        arguments(f"{option}={value}")
    assert f"{option}: expected a whole number from 1 on, got '{value}'" in capsys.readouterr().err


NEAR, FAR = 1e-7, 4e-7


def moved_apart():
    """A run whose cores were apart in the second of three rounds; and in all that torch played but the first."""
    normkit = Score([1.0, 0.5, 1.0], distances=[NEAR, FAR, NEAR])
    numpy = Score([4.0, 3.0, 4.2], distances=[NEAR, FAR, 1.3 * NEAR])
    torch = Score([2.0, 2.0, 2.0], distances=[NEAR, FAR, FAR])
    result = CaseResult(Case.parse("layer_norm/2x8"), {"normkit": normkit, "NumPy": numpy, "torch": torch})
    return Run({}, Settings(3, 0.1), "normkit", results=[result]), result


def test_rounds_with_cores_apart_do_not_count():
    run, result = moved_apart()
    run.settle()
    assert run.near == pytest.approx(2 * NEAR)
    assert result.ratios("NumPy", "normkit") == [4.0, 4.2]
    assert result.ratios("torch", "normkit") == [2.0]
    assert (result.time("normkit"), result.time("torch")) == (1.0, 2.0)
    assert run.unsettled == [result]  # torch has one round of three
    for score in result.scores.values():
        score.distances[2] = NEAR
    assert run.unsettled == []


def test_rounds_count_where_none_is_near_and_where_nothing_is_known():
    run, result = moved_apart()
    result.scores["torch"].distances = [FAR, FAR, FAR]
    run.settle()
    assert len(result.ratios("torch", "normkit")) == 3
    assert run.unsettled == [result]
    for score in result.scores.values():
        score.distances = [None, None, None]
    run.settle()
    assert run.near == math.inf
    assert len(result.ratios("NumPy", "normkit")) == 3
    assert run.unsettled == []


def test_the_report_says_that_cores_were_apart(tmp_path):
    run, _ = moved_apart()
    run.save(tmp_path / "a.json")
    again = Run.load(tmp_path / "a.json")
    assert again.results[0].ratios("NumPy", "normkit") == [4.0, 4.2]
    apart, unsettled, *_ = report._remarks(again)
    assert apart.startswith(
        "cores: apart during 4 of 9 turns: a line went to another core and back in 400 ns, otherwise in 100 ns;"
    )
    assert unsettled.endswith("of the rounds count in layer_norm (2, 8)")
    far, _ = moved_apart()
    for score in far.results[0].scores.values():
        score.distances = [FAR, FAR, FAR]
    assert report.agreement(again, again)[0] == "small (below 1 MB):"
    assert report.agreement(again, far)[0].startswith("not on the same footing: a line takes 100 ns between cores, there 400")


def test_sweeps_are_played_again_for_cases_with_cores_apart(monkeypatch):
    looks = []

    def distance():
        """Near in the first sweep and in the last."""
        looks.append(0)
        return NEAR if len(looks) <= 3 or len(looks) > 6 else FAR

    monkeypatch.setattr("normkit.bench.runner.core_distance", distance)
    run = cli.measure([Case.parse("layer_norm/2x8")], ["NumPy", "np.copy"], Settings(1, 0.001, 4))
    assert len(run.results[0].scores["NumPy"].seconds) == 4
    looks.clear()
    monkeypatch.setattr("normkit.bench.runner.core_distance", lambda: (looks.append(0), NEAR if len(looks) <= 3 else FAR)[1])
    run = cli.measure([Case.parse("layer_norm/2x8")], ["NumPy", "np.copy"], Settings(1, 0.001, 3))
    assert len(run.results[0].scores["NumPy"].seconds) == 5  # 3, and 2 more, in vain
    assert run.results[0].rounds("NumPy", "np.copy") == [0]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be bound to cores")
def test_the_distance_of_two_cores_is_that_of_a_cache_line():
    allowed = os.sched_getaffinity(0)
    distance = core_distance()
    assert os.sched_getaffinity(0) == allowed
    if len(allowed) > 1:
        assert distance is None or 1e-8 < distance < 1e-3
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert core_distance() is None
    finally:
        os.sched_setaffinity(0, allowed)


def test_beside_a_busy_process(tmp_path, monkeypatch, capsys):
    from normkit.bench import busy

    monkeypatch.setattr(busy, "SECONDS", 0.01)
    monkeypatch.setattr(busy, "PRODUCTS", busy.PRODUCTS[:1])
    monkeypatch.setattr(busy, "PRODUCT", "layer_norm/4x8")
    monkeypatch.setattr(busy, "CASES", ("layer_norm/3x8",))
    file = tmp_path / "times.json"
    assert cli.main(arguments("--busy", "--only", "normkit, one,NumPy", "--rounds", 2, "--json", file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  NumPy") for line in lines) == 3  # one after the other, every 5 ms, on products
    assert sum(line.split()[3:5] == ["1.00x", "1.00x"] for line in lines if "one thread  " in line) == 3
    for contenders in json.loads(file.read_text()).values():
        for states in contenders.values():
            for times in states.values():
                assert [len(seconds) for seconds in times.values()] == [2, 2, 2]
                assert all(second > 0 for seconds in times.values() for second in seconds)


def test_the_busy_process_ends_with_ours():
    code = "from normkit.bench.busy import *; another(True).__enter__(); import os; os._exit(0)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as ours:
        assert ours.stdout.read() == b""  # until the last who has this pipe is gone
