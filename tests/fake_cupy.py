"""A stand-in for CuPy that needs no GPU: arrays that behave as CuPy's do where normkit touches them, on CPU memory.

RawModule compiles the kernels' own source with g++ and runs it on the emulated device of cuda_on_cpu.h, so that everything
from `nk.layer_norm` down to the last line of the kernels is executed. Memory is poisoned with NaN, and every array lies
between guards: what is read beyond it shows in the result, what is written beyond it fails the launch.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np

GUARD = 256
HERE = Path(__file__).parent


class CUDADriverError(RuntimeError):
    pass


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):
    pass


class Device:
    """The only one; counts how often it was made current."""

    id = 0
    compute_capability = "90"
    mem_info = (3 * 2**30, 4 * 2**30)

    def __init__(self, id=0):
        self.id = id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """NumPy inside, CuPy outside: no implicit way to a NumPy array, and no mixing with one."""

    def __init__(self, inside, device=0):
        """Of a NumPy array; or of a shape and a dtype, as CuPy's own."""
        self.inside = inside if isinstance(inside, np.ndarray) else empty(inside, device).inside
        self.device = Device(device if isinstance(inside, np.ndarray) else 0)
        memory = self.inside
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        if id(memory) not in _memory:
            _loose[id(memory)] = memory

    shape = property(lambda self: self.inside.shape)
    dtype = property(lambda self: self.inside.dtype)
    strides = property(lambda self: self.inside.strides)
    ndim = property(lambda self: self.inside.ndim)
    size = property(lambda self: self.inside.size)
    nbytes = property(lambda self: self.inside.nbytes)

    @property
    def flags(self):
        return SimpleNamespace(c_contiguous=self.inside.flags.c_contiguous)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.inside.__array_interface__["data"][0], device_id=self.device.id)

    @property
    def __cuda_array_interface__(self):
        return {"data": (self.data.ptr, False), "shape": self.shape, "strides": self.strides, "version": 3}

    def get(self):
        return self.inside.copy()

    def __bool__(self):
        return bool(self.inside)

    def __int__(self):
        return int(self.inside)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getitem__(self, key):
        return ndarray(self.inside[key], self.device.id)

    def __setitem__(self, key, value):
        self.inside[key] = _unwrap(value)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or kwargs:
            raise TypeError(f"CuPy may not take {method} {kwargs}")
        with np.errstate(all="ignore"):  # a GPU does not warn
            return _wrap(ufunc(*map(_unwrap, inputs)))

    def __array_function__(self, func, types, args, kwargs):
        if not all(t is ndarray for t in types) or kwargs.keys() - {"axis", "keepdims", "dtype", "where"}:
            raise TypeError(f"CuPy may not take {types} {kwargs}")
        return getattr(MODULE, func.__name__)(*args, **kwargs)

    def astype(self, dtype, copy=True):
        return ndarray(self.inside.astype(dtype, copy=copy), self.device.id)

    def copy(self):
        return array(self)

    def transpose(self, *axes):
        return ndarray(self.inside.transpose(*axes), self.device.id)

    def reshape(self, *shape):
        return ndarray(self.inside.reshape(*shape), self.device.id)

    def sum(self, axis=None, keepdims=False):
        return _wrap(np.asarray(self.inside.sum(axis=axis, keepdims=keepdims)))

    def any(self, axis=None, keepdims=False):
        return _wrap(np.asarray(self.inside.any(axis=axis, keepdims=keepdims)))


ndarray.__module__ = "cupy"

_memory = weakref.WeakValueDictionary()  # of arrays that lie between guards
_loose = weakref.WeakValueDictionary()  # of others, which NumPy has made


def _unwrap(value):
    if isinstance(value, ndarray):
        return value.inside
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(value)(map(_unwrap, value)) if isinstance(value, list | tuple) else value


def _wrap(value):
    if value is None:
        return None
    return ndarray(value) if isinstance(value, np.ndarray) else ndarray(np.asarray(value))


def empty(shape, dtype=np.float64):
    """Poisoned memory between two guards, 256 bytes on a boundary of 256 as CuPy's are."""
    dtype = np.dtype(dtype)
    shape = shape if isinstance(shape, tuple) else (int(shape),)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.full(nbytes + 3 * GUARD, 0xFF, np.uint8)
    start = GUARD - raw.__array_interface__["data"][0] % GUARD
    start += GUARD * (start < GUARD)
    _memory[id(raw)] = raw
    return ndarray(raw[start : start + nbytes].view(dtype).reshape(shape), 0)


def array(a, order="C"):
    """A copy of an array of either kind."""
    inside = a.inside if isinstance(a, ndarray) else np.asarray(a)
    fresh = empty(inside.shape, inside.dtype)
    fresh.inside[...] = inside
    return fresh


def ascontiguousarray(a, dtype=None):
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    return a if a.flags.c_contiguous and a.dtype == dtype else array(a.astype(dtype))


def empty_like(a):
    return ndarray(np.empty_like(a.inside)) if not a.flags.c_contiguous else empty(a.shape, a.dtype)


def _numpys(name):
    function = getattr(np, name)
    return lambda *args, **kwargs: _wrap(function(*map(_unwrap, args), **{k: _unwrap(v) for k, v in kwargs.items()}))


NUMPYS = ["zeros", "full", "full_like", "zeros_like", "ones_like", "where", "broadcast_to", "sum", "max", "sqrt"]
NUMPYS += ["reshape", "repeat", "astype", "copyto"]


def _within(raw):
    """First byte of an array, and the first behind it, in its memory."""
    start = GUARD - raw.__array_interface__["data"][0] % GUARD
    start += GUARD * (start < GUARD)
    return start, start + raw.size - 3 * GUARD


def guards_hold():
    """Whether nothing was written outside an array."""
    for raw in list(_memory.values()):
        start, end = _within(raw)
        if np.any(raw[:start] != 0xFF) or np.any(raw[end:] != 0xFF):
            return False
    return True


def readable_ranges():
    """First and last byte of what may be read, one array after the other: up to the next 16-byte boundary, as on a GPU."""
    found = []
    for raw in list(_memory.values()):
        address = raw.__array_interface__["data"][0]
        start, end = _within(raw)
        found += [address + start, (address + end + 15) // 16 * 16 - 1]
    for array in list(_loose.values()):
        address = array.__array_interface__["data"][0]
        found += [address, (address + array.nbytes + 15) // 16 * 16 - 1]
    return found


class Compiler:
    """Builds a kernel for the emulated device, once for each text: the results are kept in `folder`."""

    def __init__(self, folder, order=0):
        self.folder = Path(folder)
        self.order = order  # in which threads run: 0 forwards, 1 backwards, 2 at random
        self.launched = []

    def raw_module(self, code, options, name_expressions):
        (name,) = name_expressions
        kernels = code[code.index("// Moments, merge, apply") :]
        text = f"{(HERE / 'cuda_on_cpu.h').read_text()}\n{kernels}\nDEVICE_ENTRY({name})\n"
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
        if not path.exists():
            self._build(text, path)
        library = ctypes.CDLL(str(path))
        return SimpleNamespace(get_function=lambda _: self._function(name, library))

    def _build(self, text, path):
        source = path.with_suffix(".cpp")
        source.write_text(text)
        command = [
            "g++",
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-Wno-unknown-pragmas",
        ]
        command += [str(source), "-o", f"{path}.new"]
        built = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if built.returncode:
            raise CompileException(built.stderr)
        Path(f"{path}.new").replace(path)

    def _function(self, name, library):
        in_cluster = int(name.partition("rows_in_")[2][:1] or 1)

        def launch(grid, block, args, shared_mem=0):
            for i, argument in enumerate(args):
                assert argument.itemsize == library.device_parameter_size(i), f"argument {i} of {name}: {argument!r}"
            assert library.device_parameter_size(len(args)) == -1, f"too few arguments for {name}"
            assert 1 <= block[0] <= (128 if re.match(r"columns<\w+, \w+, \d, 8,", name) else 256)  # the launch bounds
            assert 1 <= grid[0] < 2**31
            assert grid[0] % in_cluster == 0
            assert shared_mem <= 48 * 1024
            self.launched.append(name)
            boxes = [np.array(argument) for argument in args]
            values = (ctypes.c_void_p * len(boxes))(*(box.__array_interface__["data"][0] for box in boxes))
            size = ctypes.c_size_t(shared_mem)
            readable = readable_ranges()
            ranges = (ctypes.c_size_t * len(readable))(*readable)
            stuck = library.device_launch(values, grid[0], block[0], in_cluster, size, self.order, ranges, len(readable) // 2)
            assert not stuck, f"{name}: threads wait for each other for ever"
            assert not library.device_read_outside(), f"{name} read outside its arrays"
            assert guards_hold(), f"{name} wrote outside its arrays"

        return launch


def module(compiler=None):
    """What normkit sees as `cupy`."""
    names = {name: _numpys(name) for name in NUMPYS}
    cuda = SimpleNamespace(
        Device=Device,
        compiler=SimpleNamespace(CompileException=CompileException),
        driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDevice=lambda: 0,
            driverGetVersion=lambda: 12040,
            runtimeGetVersion=lambda: 12090,
            getDeviceProperties=lambda _: {"name": b"Emulated"},
        ),
    )
    return SimpleNamespace(
        __version__="14.0.0",
        ndarray=ndarray,
        float64=np.float64,
        empty=empty,
        empty_like=empty_like,
        array=array,
        ascontiguousarray=ascontiguousarray,
        RawModule=compiler and compiler.raw_module,
        cuda=cuda,
        **names,
    )


MODULE = module()
GXX = shutil.which("g++")
