"""Token by token through an autoregressive network: the fastest way that this machine has.

Weights and cache lie in pages of 2 MB where the system gives them, as every step reads all of them.
Threads wait for each other within a step: on a busy machine, or for a small network, fewer can be
faster, so now and then fewer are tried. What is decoded does not depend on it.

At one token a step a GPU waits for Python to launch some hundred kernels, so the launches are
recorded once, as CUDA graphs, and replayed. A recording has fixed shapes: there is one for each
`BUCKET` positions of the cache, and within it a mask hides what is not filled yet.
"""

import copy
import math
import mmap
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.compute import Precision, autocast, multiplies_bfloat16
from igpt.model import native
from igpt.model.cache import KVCache
from igpt.model.gpt import GPT, Block

LOOK_STEPS = 3
FIRST_WAIT, LONGEST_WAIT = 16, 512
SLOWER = 1.5  # than at the last look: time for another
BUCKET = 128  # positions of the cache that one recorded graph sees


class Pace:
    """Chooses among all threads, half of them, a quarter, ... and one, by how long steps take.

    Now and then a few steps try the next larger or smaller choice; the less often, the longer this
    has changed nothing.

    Args:
        n_threads: the most that may be used.
    """

    def __init__(self, n_threads: int) -> None:
        self.choices = [n_threads]
        while self.choices[-1] > 1:
            self.choices.append(self.choices[-1] // 2)
        self.best = self.tried = 0
        self.upwards = False
        self.wait = self.left = FIRST_WAIT
        self.usual_s: deque[float] = deque(maxlen=2 * LOOK_STEPS + 1)
        self.tried_s: list[float] = []
        self.looked_s = 0.0

    def next(self) -> int:
        """Threads for the next step."""
        return self.choices[self.tried]

    def took(self, span_s: float) -> None:
        """How long that step was."""
        if self.tried != self.best:
            self.tried_s.append(span_s)
            if len(self.tried_s) == LOOK_STEPS:
                self._judge()
            return
        self.usual_s.append(span_s)
        self.left -= 1
        full = len(self.usual_s) == self.usual_s.maxlen
        slowed = full and 0 < SLOWER * self.looked_s < median(self.usual_s)
        if len(self.choices) > 1 and full and (self.left <= 0 or slowed):
            self._look()

    def _look(self) -> None:
        self.upwards = not self.upwards
        beside = self.best + (-1 if self.upwards else 1)
        if not 0 <= beside < len(self.choices):
            beside = self.best + (1 if self.upwards else -1)
        self.tried, self.tried_s = beside, []
        self.looked_s = median(self.usual_s)

    def _judge(self) -> None:
        better = median(self.tried_s) < self.looked_s
        self.wait = FIRST_WAIT if better else min(2 * self.wait, LONGEST_WAIT)
        self.left = self.wait
        if better:
            self.best = self.tried
            self.looked_s = median(self.tried_s)
        self.tried = self.best
        self.usual_s.clear()


# The layout of decode.cpp.
PANEL = 64
CHANNELS = 16
ALIGNED = 64


class PlainDecoder:
    """PyTorch's operators, on any device; sums depend on the batch size in their last bits."""

    def __init__(self, model: GPT, *, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.dtype = dtype
        self.device = model.wte.weight.device

    def start(self, prefix: Tensor) -> Tensor:
        """Begin B sequences anew: (B, n) int64, n from 0, to logits (B, K) of the next token."""
        config, T = self.model.config, self.model.seq_len
        self.cache = KVCache(
            config, batch_size=len(prefix), seq_len=T, dtype=self.dtype, device=self.device
        )
        return self._extend(prefix)

    def step(self, tokens: Tensor) -> Tensor:
        """One more token of every sequence: (B,) int64 to logits (B, K) of the one after."""
        return self._extend(tokens.unsqueeze(1))

    def _extend(self, tokens: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            return self.model.extend(tokens, self.cache).float()


class NativeDecoder:
    """`decode.cpp`: several times faster, and the same bit for bit at any batch size.

    Args:
        model: autoregressive network on the CPU; its weights are copied as they are now.
        dtype: float32, or bfloat16 for the matrices and the cache (heads of even width).
    """

    def __init__(self, model: GPT, *, dtype: torch.dtype = torch.float32) -> None:
        library = native.library("decode")
        assert library is not None
        self.model = model
        self.dtype = dtype
        kind = "float32" if dtype == torch.float32 else "bfloat16"
        self.decode, self.fill = (getattr(library, f"{does}_{kind}") for does in ("decode", "fill"))
        blocks = cast(list[Block], model.h)
        outer = [model.wte.weight, model.wpe.weight, model.sos, padded(model.ln_f.weight)]
        pieces = [*outer, *self._matrix(model.head)]
        # decode.cpp reads four bytes where it is given two or eight.
        assert all(piece.dtype == torch.float32 for piece in outer)
        for block in blocks:
            pieces += [padded(block.ln_1.weight), padded(block.ln_2.weight)]
            for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                pieces += self._matrix(linear)
        at = iter(self._together(pieces))

        def matrix() -> native.Matrix:
            return native.Matrix(panels=next(at), bias=next(at))

        self.network = native.Network(
            n_layer=model.config.n_layer,
            n_head=model.config.n_head,
            width=model.config.n_embd,
            n_colors=model.n_colors,
            seq_len=model.seq_len,
            token_table=next(at),
            position_table=next(at),
            sos=next(at),
            norm_f=next(at),
            head=matrix(),
        )
        self.blocks = (native.Block * len(blocks))(
            *(
                native.Block(
                    norm_1=next(at),
                    norm_2=next(at),
                    c_attn=matrix(),
                    c_proj=matrix(),
                    c_fc=matrix(),
                    mlp_proj=matrix(),
                )
                for _ in blocks
            )
        )
        self.network.blocks = self.blocks

    def _matrix(self, linear: nn.Linear) -> list[Tensor]:
        bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
        return [as_panels(linear.weight.detach(), self.dtype), padded(bias)]

    def _together(self, pieces: list[Tensor]) -> list[int]:
        """Copy tensors into one stretch of memory, which is kept; the address of each."""
        starts = [0]
        for piece in pieces:
            starts.append(starts[-1] + -(-piece.nbytes // ALIGNED) * ALIGNED)
        self.weights = large_memory(starts[-1])
        for start, piece in zip(starts, pieces, strict=False):
            place = self.weights[start : start + piece.nbytes].view(piece.dtype)
            place.copy_(piece.detach().reshape(-1))
        return [self.weights.data_ptr() + start for start in starts[:-1]]

    def start(self, prefix: Tensor) -> Tensor:
        """Begin B sequences anew: (B, n) int64, n from 0, to logits (B, K) of the next token."""
        self._allocate(len(prefix))
        logits = torch.empty(len(prefix), self.model.n_colors, dtype=torch.float32)
        self.owners = torch.full((len(prefix),), -1)
        for i in range(len(prefix)):
            if self.owners[i] < 0:
                same = (prefix == prefix[i]).all(1)
                logits[same] = self._fill(prefix[i].contiguous(), i)
                self.owners[same] = i
        self.position = prefix.shape[1] + 1  # `sos` stands first
        self._share(self.position)
        return logits

    def _allocate(self, batch_size: int) -> None:
        """A cache in the layout of decode.cpp."""
        self.pace = Pace(torch.get_num_threads())
        self.network.n_threads = torch.get_num_threads()
        if batch_size == self.network.batch_size:
            return
        config, per_word = self.model.config, 4 // self.dtype.itemsize
        E, L = config.n_embd // config.n_head, config.n_layer
        panels, channels = -(-self.model.seq_len // PANEL), -(-E // CHANNELS) * CHANNELS
        lead = (L, batch_size, config.n_head)
        keys = (*lead, panels, E // per_word, PANEL, per_word)
        values = (*lead, panels * PANEL // per_word, channels, per_word)
        self.keys, self.values = (
            large_memory(math.prod(shape) * self.dtype.itemsize).view(self.dtype).view(shape)
            for shape in (keys, values)
        )
        for block, k, v in zip(self.blocks, self.keys, self.values, strict=True):
            block.keys, block.values = k.data_ptr(), v.data_ptr()
        self.network.batch_size = batch_size

    def _fill(self, tokens: Tensor, row: int) -> Tensor:
        """Run (n,) tokens into sequence `row`: logits (K,) of the next one."""
        logits = torch.empty(self.model.n_colors, dtype=torch.float32)
        self.fill(self.network, row, len(tokens), tokens.data_ptr(), logits.data_ptr())
        return logits

    def _share(self, filled: int) -> None:
        """Let what begins alike read whole panels from one cache; the rest of them is copied."""
        panels, per_word = filled // PANEL, 4 // self.dtype.itemsize
        self.network.shared, self.network.owners = panels * PANEL, self.owners.data_ptr()
        if filled % PANEL and (self.owners != torch.arange(len(self.owners))).any():
            last = self.keys[:, :, :, panels]
            last.copy_(last[:, self.owners])
            words = slice(panels * PANEL // per_word, -(-filled // per_word))
            last = self.values[:, :, :, words]
            last.copy_(last[:, self.owners])

    def step(self, tokens: Tensor) -> Tensor:
        """One more token of every sequence: (B,) int64 to logits (B, K) of the one after."""
        assert self.position < self.model.seq_len
        tokens = tokens.contiguous()
        logits = torch.empty(len(tokens), self.model.n_colors, dtype=torch.float32)
        self.network.n_threads = self.pace.next()
        start_s = time.perf_counter()
        self.decode(self.network, self.position, tokens.data_ptr(), logits.data_ptr())
        self.pace.took(time.perf_counter() - start_s)
        self.position += 1
        return logits


class GraphDecoder:
    """The network's own operators, recorded. The interface is `PlainDecoder`'s.

    Args:
        model: autoregressive network; on another device than a GPU the steps run unrecorded.
        dtype: float32, or bfloat16 for the matrices, which are copied, and the cache.
    """

    def __init__(self, model: GPT, *, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.dtype = dtype
        self.device = model.wte.weight.device
        self.network = model if dtype == torch.float32 else _with_matrices_in(dtype, model)
        self.batch_size = 0

    def start(self, prefix: Tensor) -> Tensor:
        """Begin B sequences anew: (B, n) int64, n from 0, to logits (B, K) of the next token."""
        if len(prefix) != self.batch_size:
            self._allocate(len(prefix))
        self.cache.length = 0
        with self._numbers():
            logits = self.network.extend(prefix, self.cache)
        self.next_position = prefix.shape[1] + 1
        return logits.float()

    def step(self, tokens: Tensor) -> Tensor:
        """One more token of every sequence: (B,) int64 to logits (B, K) of the one after."""
        filled = min(self.next_position // BUCKET * BUCKET + BUCKET, self.model.seq_len)
        self.tokens.copy_(tokens)
        self.position.fill_(self.next_position)
        self.next_position += 1
        if filled not in self.steps:
            self.steps[filled] = self._recorded(filled)
        self.steps[filled]()
        return self.logits.clone()

    def _allocate(self, batch_size: int) -> None:
        """Tensors that the recordings read and write; earlier recordings are dropped."""
        model, device = self.model, self.device
        self.batch_size = batch_size
        self.steps: dict[int, Callable[[], None]] = {}
        self.cache = KVCache(
            model.config,
            batch_size=batch_size,
            seq_len=model.seq_len,
            dtype=self.dtype,
            device=device,
        )
        self.tokens = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(batch_size, model.n_colors, dtype=torch.float32, device=device)

    def _recorded(self, filled: int) -> Callable[[], None]:
        """The step that looks at the first `filled` positions of the cache."""

        def run() -> None:
            seen = (torch.arange(filled, device=self.device) <= self.position).unsqueeze(0)
            h = self.network.wte(self.tokens) + self.network.wpe(self.position)  # (B, D)
            with self._numbers():
                layers = self.cache.layers(filled, self.position, seen)
                self.logits.copy_(self.network.after(h.unsqueeze(1), layers))

        if self.device.type != "cuda":
            return run
        waiting: torch.cuda.Stream = torch.cuda.Stream(self.device)
        waiting.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(waiting):
            run()  # libraries set themselves up on first use, which cannot be recorded
        torch.cuda.current_stream(self.device).wait_stream(waiting)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def _numbers(self) -> torch.autocast:
        # Its cache of converted weights would be freed under a recording.
        return torch.autocast(
            self.device.type,
            dtype=torch.bfloat16,
            enabled=self.dtype != torch.float32,
            cache_enabled=False,
        )


def _with_matrices_in(dtype: torch.dtype, model: GPT) -> GPT:
    """A copy whose linear maps hold `dtype`; norms, embeddings and the stream stay float32."""
    network = copy.deepcopy(model)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    return network


Decoder = PlainDecoder | NativeDecoder | GraphDecoder


def open_decoder(model: GPT, *, precision: Precision = "auto") -> Decoder:
    """Compiled code on a CPU with a compiler, CUDA graphs on a GPU, else the plain decoder.

    Args:
        model: autoregressive network.
        precision: auto takes bfloat16 where the processor multiplies it itself. That depends on the
            machine alone, not on a measurement, so that a seed gives the same images every time.
    """
    model = model.in_float32()
    device = model.wte.weight.device
    library = native.library("decode") if device.type == "cpu" else None
    even = model.config.n_embd // model.config.n_head % 2 == 0
    fast_bf16 = multiplies_bfloat16(device) if library is None else bool(library.has_bfloat16())
    wanted = precision == "bf16" or (precision == "auto" and fast_bf16)
    if library is None:
        plain = GraphDecoder if device.type == "cuda" else PlainDecoder
        return plain(model, dtype=torch.bfloat16 if wanted else torch.float32)
    return NativeDecoder(model, dtype=torch.bfloat16 if wanted and even else torch.float32)


def cache_bytes(model: GPT, dtype: torch.dtype) -> int:
    """Bytes of one image's keys and values."""
    return 2 * model.config.n_layer * model.seq_len * model.config.n_embd * dtype.itemsize


def as_panels(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., rows, columns) as (..., rows / 64, columns / n, 64, n), n numbers being 32 bits."""
    missing, n = -matrix.shape[-2] % PANEL, 4 // dtype.itemsize
    rows = F.pad(matrix, (0, 0, 0, missing)).to(dtype)
    split = rows.view(*rows.shape[:-2], -1, PANEL, rows.shape[-1] // n, n)
    return split.transpose(-3, -2).contiguous()


def padded(vector: Tensor) -> Tensor:
    """A vector with zeros up to a whole panel."""
    return F.pad(vector.detach(), (0, -len(vector) % PANEL))


LARGE_PAGE = 2**21


def large_memory(n_bytes: int) -> Tensor:
    """(n_bytes,) uint8 of any content, lent by the system as it is first written.

    In a memory map of its own, since pages that a process has used before stay small. Where the
    system has no large pages for it, or the memory would not fill one, it is ordinary.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or n_bytes < LARGE_PAGE:
        return torch.empty(n_bytes, dtype=torch.uint8)
    whole = -(-n_bytes // LARGE_PAGE) * LARGE_PAGE + LARGE_PAGE  # room to begin at a page's edge
    pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        pages.madvise(advice)
    except OSError:
        return torch.empty(n_bytes, dtype=torch.uint8)  # a kernel without them
    memory = torch.frombuffer(pages, dtype=torch.uint8)  # keeps the map as long as it lives
    start = -memory.data_ptr() % LARGE_PAGE
    return memory[start : start + n_bytes]
