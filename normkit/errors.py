"""Every exception and warning that normkit raises on purpose; each is also the builtin class a NumPy user would catch."""


class NormkitError(Exception):
    """Base of all errors that normkit raises on purpose."""


class InputTypeError(NormkitError, TypeError):
    """An argument is of a type or dtype that cannot be normalized."""


class InputValueError(NormkitError, ValueError):
    """An argument has the right type and an impossible value: a shape, an axis, eps, out."""


class DegenerateShapeError(InputValueError):
    """Each set of statistics would hold one element, so the output would not depend on the input."""


class UnsupportedError(NormkitError, NotImplementedError):
    """A legal request that normkit does not serve yet."""


class UnknownBackendError(InputValueError):
    """No backend of that name is known."""


class NoBackendError(InputValueError):
    """No backend can run this call under this policy; the message lists each one with its reasons."""


class InstallationError(NormkitError, ImportError):
    """A part of normkit is missing, or is of another version than the rest."""


class PolicyError(InputValueError):
    """A fallback policy that contradicts itself, or an answer of it that does not fit the call."""


class FallbackWarning(UserWarning):
    """The preferred backend is installed but cannot serve a call, so another one does."""


class CacheWarning(UserWarning):
    """Compiled kernels cannot be kept on disk, so every process compiles its own."""


class RunningStatsWarning(RuntimeWarning):
    """A running statistic has outgrown the dtype of its array and become infinite."""


class ThreadsWarning(UserWarning):
    """Large calls run on one thread where more are granted, as nothing here can launch them."""
