"""fuzz.py in processes of its own: a signal, a hang or an undocumented exception there is a failure here."""

import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz as calls
import pytest

import normkit as nk

FUZZ = Path(__file__).with_name("fuzz.py")


def fuzz(seed, calls, timeout):
    command = [sys.executable, FUZZ, str(seed), str(calls)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=FUZZ.parent)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    outcomes = {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", done.stdout.partition(":")[2])}
    assert sum(outcomes.values()) == calls
    assert "FAILED" not in outcomes
    return outcomes


def test_a_thousand_calls():
    outcomes = fuzz(0, 1000, 600)
    assert outcomes["right"] > 300
    assert {"InputTypeError", "InputValueError", "DegenerateShapeError"} <= outcomes.keys()


def test_what_was_once_wrong():
    """Rows of two lanes that lie in bundles."""
    assert fuzz(20002174, 1, 300)["right"] == 1


def test_what_was_once_wrong_under_a_mask():
    """A bfloat16 near the end of its range."""
    op, x, options = calls.call(random.Random(10058917))
    options["policy"] = nk.FallbackPolicy.onnx()  # the mask leaves one element of some sets
    y = getattr(nk, op)(x, **options)
    assert x.dtype.name == "bfloat16"
    calls.right(y, op, x, options, calls.arrays_of(x, options))


def test_calls_that_hypothesis_chooses(script):
    code = """
import sys; sys.path.insert(0, PATH)
import warnings, fuzz, hypothesis, normkit as nk
warnings.simplefilter("ignore", nk.FallbackWarning)
warnings.simplefilter("ignore", nk.RunningStatsWarning)

@hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)
@hypothesis.given(hypothesis.strategies.randoms(note_method_calls=False, use_true_random=False))
def calls(rng):
    fuzz.one(rng)

calls()
print("done")
"""
    assert script(code.replace("PATH", repr(str(FUZZ.parent))), timeout=600) == "done"


@pytest.mark.hostile
def test_a_hundred_thousand_calls():
    with ThreadPoolExecutor(2) as pool:
        every = list(pool.map(lambda i: fuzz(10_000_000 + 12_500 * i, 12_500, 3000), range(8)))
    assert sum(sum(outcomes.values()) for outcomes in every) == 100_000
