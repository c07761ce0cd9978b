"""normkit: normalization for arrays, without a framework.

>>> import numpy as np, normkit as nk
>>> nk.layer_norm(np.array([1, 2, 3], np.float32)).round(3)
array([-1.225,  0.   ,  1.225], dtype=float32)
"""

from normkit.clone import find_engines
from normkit.dispatch import get_num_threads
from normkit.errors import (
    CacheWarning,
    DegenerateShapeError,
    FallbackWarning,
    InputTypeError,
    InputValueError,
    InstallationError,
    NoBackendError,
    NormkitError,
    PolicyError,
    RunningStatsWarning,
    ThreadsWarning,
    UnknownBackendError,
    UnsupportedError,
)
from normkit.explaining import explain
from normkit.functional import instance_norm, layer_norm
from normkit.layers import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, LayerNorm
from normkit.policy import FallbackPolicy, using
from normkit.pool import empty_cache, get_cache_limit, set_cache_limit
from normkit.problem import Backend, Operands, Problem
from normkit.registry import backends, get_backend, register_backend
from normkit.threads import set_num_threads

find_engines(__path__[0])

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "CacheWarning",
    "DegenerateShapeError",
    "FallbackPolicy",
    "FallbackWarning",
    "InputTypeError",
    "InputValueError",
    "InstallationError",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "NoBackendError",
    "NormkitError",
    "Operands",
    "PolicyError",
    "Problem",
    "RunningStatsWarning",
    "ThreadsWarning",
    "UnknownBackendError",
    "UnsupportedError",
    "backends",
    "empty_cache",
    "explain",
    "get_backend",
    "get_cache_limit",
    "get_num_threads",
    "instance_norm",
    "layer_norm",
    "register_backend",
    "set_cache_limit",
    "set_num_threads",
    "using",
]


def __dir__() -> list[str]:
    """The public names, without the modules that Python puts beside them."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
