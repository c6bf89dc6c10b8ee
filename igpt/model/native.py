"""The C++ sources, built once by the machine's compiler, and the structures that they read."""

import ctypes
import hashlib
import platform
import subprocess
from ctypes import POINTER, Structure, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from igpt.compute import cpp_compiler
from igpt.errors import UserError
from igpt.runs import cache_folder, writing

SOURCES = [Path(__file__).with_name(name) for name in ("decode.cpp", "attention.cpp")]
HEADERS = [Path(__file__).with_name(name) for name in ("crew.h", "lanes.h", "tiles.h")]
# The casts between vectors of floats and words break the language's strict aliasing rule.
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fno-strict-aliasing"),
    *("-pthread", "-fopenmp", "-shared", "-fPIC"),
]


class Matrix(Structure):
    """A linear map; both addresses, of panels and of a bias padded with zeros."""

    _fields_: ClassVar = [("panels", c_void_p), ("bias", c_void_p)]


class Block(Structure):
    """Addresses of one block's weights and of its part of the cache."""

    _fields_: ClassVar = [
        ("norm_1", c_void_p),
        ("norm_2", c_void_p),
        ("c_attn", Matrix),
        ("c_proj", Matrix),
        ("c_fc", Matrix),
        ("mlp_proj", Matrix),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class Network(Structure):
    """All that a step reads."""

    _fields_: ClassVar = [
        ("n_layer", c_int64),
        ("n_head", c_int64),
        ("width", c_int64),
        ("n_colors", c_int64),
        ("seq_len", c_int64),
        ("batch_size", c_int64),
        ("n_threads", c_int64),
        ("token_table", c_void_p),
        ("position_table", c_void_p),
        ("sos", c_void_p),
        ("norm_f", c_void_p),
        ("head", Matrix),
        ("blocks", POINTER(Block)),
    ]


class Shape(Structure):
    """Of the sequences that attention goes over."""

    _fields_: ClassVar = [
        ("batch_size", c_int64),
        ("n_head", c_int64),
        ("seq_len", c_int64),
        ("width", c_int64),
        ("causal", c_int64),
        ("n_threads", c_int64),
    ]


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled sources; none where no compiler can build them.

    It is kept in the cache folder, under a name that stands for everything it was made from.
    """
    compiler = cpp_compiler()
    if compiler is None:
        return None
    try:
        code = [path.read_bytes() for path in SOURCES + HEADERS]
        made_from = repr((code, compiler, FLAGS, platform.machine(), _cpu_flags()))
        digest = hashlib.sha256(made_from.encode()).hexdigest()
        target = cache_folder() / f"native-{digest[:16]}.so"
        if not target.exists():
            with writing(target) as part:
                command = [compiler, *FLAGS, "-o", str(part), *map(str, SOURCES)]
                subprocess.run(command, capture_output=True, check=True, timeout=120)
        return load(target)
    except (UserError, OSError, subprocess.SubprocessError):
        return None  # no threads, or no place to write: PyTorch's operators do the same, slower


def _cpu_flags() -> str:
    """What this processor can do: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def load(path: Path) -> ctypes.CDLL:
    """The compiled sources with the types of their functions."""
    loaded = ctypes.CDLL(str(path))
    for decode in (loaded.decode_float32, loaded.decode_bfloat16):
        decode.argtypes = [POINTER(Network), c_int64, c_void_p, c_void_p]
        decode.restype = None
    for fill in (loaded.fill_float32, loaded.fill_bfloat16):
        fill.argtypes = [POINTER(Network), c_int64, c_int64, c_void_p, c_void_p]
        fill.restype = None
    for attend in (loaded.attend_float32, loaded.attend_bfloat16):
        attend.argtypes = [POINTER(Shape), *[c_void_p] * 3]
        attend.restype = None
    for backward in (loaded.attend_backward_float32, loaded.attend_backward_bfloat16):
        backward.argtypes = [POINTER(Shape), *[c_void_p] * 5]
        backward.restype = None
    loaded.use_large_pages.argtypes = [c_void_p, c_int64]
    loaded.use_large_pages.restype = None
    loaded.read_all.argtypes = [c_void_p, c_int64, c_int64]
    loaded.read_all.restype = c_int64
    return loaded
