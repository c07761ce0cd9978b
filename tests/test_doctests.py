"""Every example in a docstring does what it says.

They run from here, module by module, since `--doctest-modules` on the folder `backends` would import it under a second name.
"""

import doctest
import importlib
import pkgutil

import pytest

import normkit

COMMANDS = {"normkit.__main__", "normkit.demo", "normkit.doctor", "normkit.bench"}  # with extras of their own, and tests


def modules():
    yield "normkit"
    for package in ("normkit", "normkit.backends"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if module.name not in COMMANDS:
                yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings(name):
    if "cupy" in name:
        pytest.importorskip("cupy")
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_the_public_names_have_docstrings_with_examples():
    for name in ("layer_norm", "instance_norm", "explain", "using", "backends", "get_backend", "LayerNorm", "InstanceNorm2d"):
        assert ">>> " in getattr(normkit, name).__doc__ or name == "backends"
    for name in normkit.__all__:
        assert getattr(normkit, name).__doc__
