"""The C++ parts of the network, and the structures that they read.

Two libraries: the sampler's needs no OpenMP, so that it is there where a compiler lacks it.
"""

import ctypes
import subprocess
import sys
import threading
from ctypes import POINTER, Structure, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from igpt import cpp

_FOLDER = Path(__file__).parent
# The casts between vectors of floats and words break the language's strict aliasing rule.
FLAGS = ("-O3", "-fno-strict-aliasing", "-w")

Name = Literal["decode", "attention"]

PARTS: dict[Name, cpp.Part] = {
    "decode": cpp.Part(
        name="decode",
        sources=(_FOLDER / "decode.cpp",),
        headers=(_FOLDER / "crew.h", _FOLDER / "lanes.h"),
        flags=(*FLAGS, "-pthread"),
        trial="__import__('igpt.model.native', fromlist=['']).try_decoding",
    ),
    "attention": cpp.Part(
        name="attention",
        sources=(_FOLDER / "attention.cpp",),
        headers=(_FOLDER / "lanes.h", _FOLDER / "tiles.h"),
        flags=(*FLAGS, "-fopenmp"),
        trial="__import__('igpt.model.native', fromlist=['']).try_attention",
    ),
}


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
        ("shared", c_int64),
        ("owners", c_void_p),
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
def library(name: Name = "decode") -> ctypes.CDLL | None:
    """A part with the types of its functions; none where it cannot be built."""
    loaded = cpp.library(PARTS[name])
    return None if loaded is None else typed(name, loaded)


def missing(name: Name) -> str | None:
    """Why a part is not there and what to do, in one line; none: it is there."""
    return cpp.built(PARTS[name]).reason or None


def build_ahead(name: Name) -> None:
    """Let another process build a part that was never tried, while this one still imports torch.

    Whoever asks for the part meanwhile waits for it. It is built to its end whatever becomes of
    this process, so it takes no signals from its terminal.
    """
    if cpp.status(PARTS[name]).state != "untried":
        return
    code = f"__import__('igpt.model.native', fromlist=['']).missing({name!r})"
    building = threading.Thread(
        target=subprocess.run,
        args=([sys.executable, "-c", code],),
        kwargs={"check": False, "start_new_session": True, "stdin": subprocess.DEVNULL},
        daemon=True,
    )
    building.start()


def typed(name: Name, loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Give the functions of a loaded part their types."""
    if name == "attention":
        for attend in (loaded.attend_float32, loaded.attend_bfloat16):
            attend.argtypes = [POINTER(Shape), *[c_void_p] * 3]
            attend.restype = None
        for backward in (loaded.attend_backward_float32, loaded.attend_backward_bfloat16):
            backward.argtypes = [POINTER(Shape), *[c_void_p] * 5]
            backward.restype = None
        return loaded
    for decode in (loaded.decode_float32, loaded.decode_bfloat16):
        decode.argtypes = [POINTER(Network), c_int64, c_void_p, c_void_p]
        decode.restype = None
    for fill in (loaded.fill_float32, loaded.fill_bfloat16):
        fill.argtypes = [POINTER(Network), c_int64, c_int64, c_void_p, c_void_p]
        fill.restype = None
    loaded.read_all.argtypes = [c_void_p, c_int64, c_int64]
    loaded.read_all.restype = c_int64
    return loaded


def _zeros(n_bytes: int) -> tuple[int, object]:
    """An aligned address of so many zeros, and what keeps them."""
    kept = ctypes.create_string_buffer(n_bytes + 64)
    return -(-ctypes.addressof(kept) // 64) * 64, kept


def try_decoding(loaded: ctypes.CDLL) -> None:
    """Run every kind of product of the sampler once, on zeros; imports nothing but ctypes."""
    loaded = typed("decode", loaded)
    B, T, D, K = 3, 70, 64, 70
    zeros, kept = _zeros(4 * 4 * D * 4 * D)  # as large as the largest matrix
    cache, kept_cache = _zeros(2 * 4 * B * 128 * D)
    logits, kept_logits = _zeros(4 * B * K)
    matrix = Matrix(zeros, zeros)
    block = Block(zeros, zeros, matrix, matrix, matrix, matrix, cache, cache + 4 * B * 128 * D)
    network = Network(
        1, 2, D, K, T, B, 2, 0, zeros, zeros, zeros, zeros, zeros, matrix, POINTER(Block)(block)
    )
    for kind in ("float32", "bfloat16"):
        getattr(loaded, f"fill_{kind}")(network, 0, T - 1, zeros, logits)
        getattr(loaded, f"decode_{kind}")(network, T - 1, zeros, logits)
    del kept, kept_cache, kept_logits


def try_attention(loaded: ctypes.CDLL) -> None:
    """Run every kind of product of attention once, on zeros; imports nothing but ctypes."""
    loaded = typed("attention", loaded)
    B, H, T, D = 1, 2, 70, 64
    zeros, kept = _zeros(4 * B * T * 3 * D)
    result, kept_result = _zeros(4 * B * T * 3 * D)
    sums, kept_sums = _zeros(4 * B * H * T)
    shape = Shape(B, H, T, D, 1, 2)
    for kind in ("float32", "bfloat16"):
        getattr(loaded, f"attend_{kind}")(shape, zeros, result, sums)
        getattr(loaded, f"attend_backward_{kind}")(shape, zeros, zeros, zeros, sums, result)
    del kept, kept_result, kept_sums
