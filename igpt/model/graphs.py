"""Token by token on a GPU: each step is one CUDA graph, launched as a whole.

At one token a step a GPU waits for Python to launch some hundred kernels, so the launches are
recorded once and replayed. A recording has fixed shapes: there is one for each `BUCKET` positions
of the cache, and within it a mask hides what is not filled yet.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from igpt.model.cache import KVCache
from igpt.model.gpt import GPT

BUCKET = 128


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
        waiting: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
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
