"""Loads named arrays into a layer: all that fit, or none. Checkpoints come from torch, from older versions, as whole models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from normkit.arguments import shown
from normkit.cures import FLOATS, cure, kind_of
from normkit.errors import InputTypeError, InputValueError
from normkit.problem import Array

OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # of TensorFlow, and of the first checkpoints of transformers
SINCE_LATER = ("num_batches_tracked",)  # torch before 0.4.1 did not write it, and takes checkpoints without it
MOST = 10  # names that an error shows

# How a layer is made that has what this one lacks
MADE_WITH = {
    "weight": ("affine=True", "elementwise_affine=True"),
    "bias": ("affine=True", "elementwise_affine=True"),
    "running_mean": ("track_running_stats=True",),
    "running_var": ("track_running_stats=True",),
    "num_batches_tracked": ("track_running_stats=True",),
}


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` returns, as torch's: names that the layer has and the state lacks, and the other way round."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


class Stateful(Protocol):
    """What has a state: a layer."""

    state_names: ClassVar[tuple[str, ...]]

    def state_dict(self, prefix: str = "") -> dict[str, Array]: ...


def load(layer: Stateful, state: Any, strict: bool, prefix: Any) -> IncompatibleKeys:
    """Copy the arrays of `state` under `prefix` into the layer's own."""
    if not isinstance(state, Mapping):
        raise InputTypeError(
            f"{layer}: state is {kind_of(state)}, expected a mapping of names to arrays, as layer.state_dict() or np.load of "
            "an .npz file gives; dict(state) makes one of pairs"
        )
    check_prefix(layer, prefix)
    names = list(state)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise InputTypeError(f"{layer}: state holds the name {shown(odd[0])}, expected names that are strs")
    own = layer.state_dict()
    prefix, given = _under(prefix, names, own)
    missing = [prefix + name for name in own if name not in given and name not in SINCE_LATER]
    unexpected = [given[name] for name in given if name not in own]
    if strict and (missing or unexpected):
        raise InputValueError(f"{layer}: {_mismatch(layer, state, names, own, prefix, missing, unexpected)}")
    loaded = {name: _converted(layer, prefix + name, state[given[name]], own[name]) for name in own if name in given}
    for name in loaded:
        if not own[name].flags.writeable:
            raise InputValueError(
                f"{layer}: its {name} is read-only, expected a writable array: layer.{name} = layer.{name}.copy() is one"
            )
    for name, array in loaded.items():
        own[name][...] = array
    return IncompatibleKeys(missing, unexpected)


def check_prefix(layer: Stateful, prefix: Any) -> None:
    """Check the prefix of a layer's names."""
    if not isinstance(prefix, str):
        raise InputTypeError(f"{layer}: prefix is {shown(prefix)}, expected a str, as 'encoder.norm1.'")


def _under(prefix: str, names: list[str], own: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The prefix, with its dot if that was left out, and the names under it: as the layer has them, and as they stand."""
    given = _stripped(prefix, names)
    if prefix and not prefix.endswith(".") and not given.keys() & set(own):
        dotted = _stripped(f"{prefix}.", names)
        if dotted.keys() & set(own):
            prefix, given = f"{prefix}.", dotted
    for old, new in OLD_NAMES.items():
        if old in given and new in own and new not in given:
            given[new] = given.pop(old)
    return prefix, given


def _stripped(prefix: str, names: list[str]) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def _mismatch(
    layer: Stateful, state: Any, names: list[str], own: dict[str, Array], prefix: str, missing: list[str], unexpected: list[str]
) -> str:
    """What does not fit, and the cure: another prefix, a layer made otherwise, or to take what fits."""
    here = f"after the prefix {prefix!r}"
    if own and len(missing) >= len(own.keys() - set(SINCE_LATER)) and (near := _prefixes(state, names, own, prefix)):
        return (
            f"state has none of {_few(own)} {here}, expected them; it has {'them' if len(own) > 1 else 'it'} after "
            f"{_few(near)}: prefix={near[0]!r} takes those of the first"
        )
    text = f"state lacks {_few(missing)} and has unexpected {_few(unexpected)}, expected {sorted(own)} {here}; "
    extra = {name.removeprefix(prefix) for name in unexpected}
    if not missing and extra <= set(layer.state_names):
        made = {MADE_WITH[name][-1 if type(layer).__name__ == "LayerNorm" else 0] for name in extra}
        if extra == {"bias"} and "weight" in own:
            made = {"bias=True"}
        return f"{text}a layer that has them is made with {', '.join(sorted(made))}"
    return f"{text}strict=False takes what fits"


def _prefixes(state: Any, names: list[str], own: dict[str, Array], prefix: str) -> list[str]:
    """The prefixes after which the state has all that the layer has, those most like the one given first."""
    from difflib import SequenceMatcher  # for errors alone

    known, needed = set(names), own.keys() - set(SINCE_LATER)
    also = {new: old for old, new in OLD_NAMES.items()}
    ends = [*needed, *(also[name] for name in needed if name in also)]
    found = {name.removesuffix(end) for name in names for end in ends if name == end or name.endswith(f".{end}")} - {prefix}
    whole = [p for p in found if all(p + name in known or p + also.get(name, name) in known for name in needed)]
    if isinstance(state, dict):  # others may have to read a file for it
        whole = [p for p in whole if all(getattr(state.get(p + n), "shape", own[n].shape) == own[n].shape for n in needed)]
    return sorted(whole, key=lambda p: (-SequenceMatcher(None, p, prefix).ratio(), "norm" not in p.lower(), p))


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{names[:MOST]}" if len(names) <= MOST else f"{names[:MOST]} and {len(names) - MOST} more"


def _converted(layer: Stateful, name: str, value: Any, own: Array) -> Array:
    """A new array of the dtype of the layer's own, which may be what the state is made of."""
    if not isinstance(own, np.ndarray):
        raise InputTypeError(f"{layer}: its {name} is {kind_of(own)}, expected a NumPy array to copy to")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(
            f"{layer}: {name} is {kind_of(value)} that cannot become an array: {shown(error)}; {cure('it', value)}"
        ) from None
    if array.dtype == np.dtype("V2") and own.dtype.name in FLOATS:  # how NumPy's files keep bfloat16
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(array.shape)
    if array.shape != own.shape:
        raise InputValueError(f"{layer}: {name} has shape {array.shape}, expected {own.shape} as the layer was made with")
    if not (np.can_cast(array.dtype, own.dtype, "same_kind") or {array.dtype.name, own.dtype.name} <= set(FLOATS)):
        raise InputTypeError(f"{layer}: {name} has dtype {array.dtype}, which {own.dtype} cannot hold")
    with np.errstate(all="ignore"):
        fresh = array.astype(own.dtype)
        if own.dtype.name in FLOATS and (np.isfinite(array) & ~np.isfinite(fresh)).any():
            largest = np.abs(array[np.isfinite(array)]).max()
            raise InputValueError(
                f"{layer}: {name} holds {largest}, expected numbers that {own.dtype} can hold as the layer was made with; "
                f"dtype=np.float{32 if array.dtype.itemsize < 8 else 64} makes one for them"
            )
    return fresh
