"""The README's examples do what it says."""

import doctest
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import normkit as nk
from normkit import registry, support
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


def test_the_table_of_support_is_what_the_backends_say(text):
    """`python -m normkit.support README.md` renews it."""
    pytest.importorskip("numba")
    pytest.importorskip("ml_dtypes")
    assert support.BEGIN in text
    assert support.END in text
    assert support.renewed(text) == text


def test_every_case_in_the_table_runs_where_it_says_so(assert_close):
    """A backend that says that it serves a case is asked to, and all that do agree."""
    pytest.importorskip("ml_dtypes")
    for _, (problem, operands, running) in support.cases():
        if not isinstance(operands.x, np.ndarray):
            continue  # a shape that is too large for a test
        if problem.statistics == "given":
            mean, var = (s.astype(np.float64).reshape(problem.affine_shape) for s in running[:2])
            operands = replace(operands, mean=mean, var=np.abs(var))
        wide = replace(operands, x=operands.x.astype(np.float64), out=np.empty(problem.shape))
        exact = replace(problem, dtype=wide.x.dtype, strides=wide.x.strides)
        nk.get_backend("numpy").prepare(exact)(wide)
        for name in support.BACKENDS:
            backend = nk.get_backend(name)
            if not backend.why_not(problem):
                arrays = replace(operands, out=backend.empty_like(operands.x))
                backend.prepare(problem)(arrays)
                assert_close(arrays.out, wide.out)


def test_every_variable_is_told_of(text):
    """Each that the code reads is in the README, and each in the README is read."""
    roots = Path(nk.__file__).parent, Path(registry.__file__).parents[1] / "backends"
    code = "".join(p.read_text(encoding="utf-8") for root in roots for p in root.rglob("*.py") if "bench" not in p.parts)
    read = set(re.findall(r'environ\S*\(\s*"(NORMKIT_[A-Z_]+)"', code))
    assert {"NORMKIT_CACHE_DIR", "NORMKIT_BACKGROUND", "NORMKIT_POOL_LIMIT"} <= read
    assert read == set(re.findall(r"NORMKIT_[A-Z_]+", text))


def test_the_dockerfile_uses_commands_that_exist(text):
    (block,) = re.findall(r"```dockerfile\n(.*?)```", text, flags=re.DOTALL)
    (folder,) = re.findall(r"normkit warmup --into (\S+)", block)
    assert f"ENV NORMKIT_CACHE_DIR={folder}" in block
    assert block.index("warmup") < block.index("USER")  # root's is trusted by all
