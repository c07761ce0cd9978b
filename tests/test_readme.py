"""The README's examples do what it says."""

import doctest
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import normkit as nk
from normkit import registry
from normkit.__main__ import main

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def text():
    return README.read_text(encoding="utf-8")


def test_examples(text):
    # a fence would be taken for output
    source = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(source, {}, "README.md", str(README), 0)
    failures = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    try:
        runner.run(test, out=failures.append)
    finally:
        registry._forget("plain")
    assert len(test.examples) > 20
    assert not failures, "".join(failures)


def test_commands_exist(text, capsys):
    for command in set(re.findall(r"`normkit (\w+)", text)):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"normkit {command}" in capsys.readouterr().out


def test_make_targets_exist(text):
    makefile = README.with_name("Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake (demo|test|lint|bench\S*?)\b", text))
    assert targets >= {"demo", "test", "lint", "bench"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links(text):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (README.parent / target).exists(), target


def test_entry_point_example(text):
    (block,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert registry.ENTRY_POINT_GROUP in tomllib.loads(block)["project"]["entry-points"]


X = np.ones((2, 3, 4, 5), np.float32)
WORKS = {
    "float32, float64": [lambda b: nk.layer_norm(X, backend=b), lambda b: nk.layer_norm(X.astype(np.float64), backend=b)],
    "float16, bfloat16 (with `ml_dtypes`)": [
        lambda b: nk.layer_norm(X.astype(np.float16), backend=b),
        lambda b: nk.layer_norm(X.astype(pytest.importorskip("ml_dtypes").bfloat16), backend=b),
    ],
    "trailing axes; channels first": [
        lambda b: nk.layer_norm(X, (3, 4, 5), backend=b),
        lambda b: nk.instance_norm(X, backend=b),
    ],
    "other axes; channels last": [
        lambda b: nk.layer_norm(X, axis=1, backend=b),
        lambda b: nk.instance_norm(X, channel_axis=-1, backend=b),
    ],
    "strided, Fortran-ordered, byte-swapped input": [
        lambda b: nk.layer_norm(X[:, :, ::2], backend=b),
        lambda b: nk.layer_norm(np.asfortranarray(X), backend=b),
        lambda b: nk.layer_norm(X.astype(X.dtype.newbyteorder()), backend=b),
    ],
    "`mask`": [lambda b: nk.layer_norm(X, mask=X > 0, backend=b)],
    "`out`, in place, running statistics, `return_stats`": [
        lambda b: nk.layer_norm(X, out=X.copy(), backend=b),
        lambda b: nk.layer_norm(y := X.copy(), out=y, backend=b),
        lambda b: nk.InstanceNorm2d(3, track_running_stats=True)(X, return_stats=True, backend=b),
    ],
}


def test_the_table_of_what_works(text):
    table = re.search(r"What works today:\n\n(.*?)\n\n", text, re.DOTALL)[1]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    backends = [name.strip("`") for name in head[1:]]
    cells = {what: dict(zip(backends, said, strict=True)) for what, *said in rows if what in WORKS}
    assert cells.keys() == WORKS.keys()
    seen = {
        what: {backend: "yes" if all(runs(call, backend) for call in calls) else "not yet" for backend in backends}
        for what, calls in WORKS.items()
    }
    assert cells == seen


def runs(call, backend):
    try:
        call(backend)
    except nk.NoBackendError:
        return False
    return True
