"""What we measure ourselves against: transformers, minGPT's model, and a plain sketch.

The sketch is our architecture in PyTorch's usual parts, so that it shows what our own work adds.
minGPT's model is written anew from its published architecture. Dropout is off everywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.config import ModelConfig
from igpt.errors import UserError
from igpt.model.gpt import GPT, NORM_EPS, quick_gelu
from igpt.model.imagegpt import imagegpt_config, to_imagegpt

NAMES = ("transformers", "mingpt", "sketch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another implementation of a pixel Transformer."""

    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    """(B, T) int64 tokens to (B, T, K): slot t predicts token t."""
    generate: Callable[[int, int], Tensor]
    """So many images and tokens to (B, n) int64, drawn at temperature 1."""
    is_ours: bool
    """Whether it holds our network's weights, so that its results must be equal."""
    streams: Callable[[Tensor], Sequence[Tensor]] | None = None
    """(B, T) int64 tokens to the L + 1 layer outputs, (B, T, D) each; none: it hands out none."""


def open_peer(name: str, network: GPT, *, dtype: torch.dtype = torch.float32) -> Peer:
    """A peer of our network's size, with its weights where the architecture is the same.

    Args:
        name: one of `NAMES`.
        network: ours.
        dtype: of all its weights, transformers' alone; the others hold float32.

    Raises:
        UserError: transformers is not installed.
    """
    shape = (network.config, network.n_colors, network.seq_len)
    device = network.wte.weight.device
    if name == "transformers":
        return _transformers(network, dtype)
    if name == "mingpt":
        mingpt = MinGPT(*shape).to(device)
        return Peer(
            module=mingpt,
            logits=lambda tokens: mingpt(_after(0, tokens)),
            generate=mingpt.generate,
            is_ours=False,
        )
    assert name == "sketch"
    sketch = Sketch(*shape).to(device)
    sketch.load_state_dict(network.state_dict())
    return Peer(module=sketch, logits=sketch, generate=sketch.generate, is_ours=True)


def _after(first: int, tokens: Tensor) -> Tensor:
    """What stands before each token: `first`, then all tokens but the last."""
    start = torch.full_like(tokens[:, :1], first)
    return torch.cat([start, tokens[:, :-1]], 1)


def _draw(logits: Tensor) -> Tensor:
    """One of K by (B, K) logits: (B, 1) int64."""
    return torch.multinomial(torch.softmax(logits.float(), -1), 1)


def _transformers(network: GPT, dtype: torch.dtype) -> Peer:
    try:
        from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling
    except ImportError:
        raise UserError(
            "--against transformers needs it: pip install transformers, or name other peers"
        ) from None
    settings = imagegpt_config(network.config, n_colors=network.n_colors, seq_len=network.seq_len)
    config: Any = ImageGPTConfig.from_dict(settings)
    model: Any = ImageGPTForCausalImageModeling(config)
    model.load_state_dict(to_imagegpt(network.state_dict()), strict=False)
    model.to(network.wte.weight.device, dtype)
    sos = network.n_colors

    def generate(n_images: int, n_tokens: int) -> Tensor:
        start = torch.full((n_images, 1), sos, device=network.wte.weight.device)
        drawn: Tensor = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=True,
            top_k=0,
            use_cache=True,
            pad_token_id=sos,
        )
        return drawn[:, 1:]

    return Peer(
        module=model,
        logits=lambda tokens: model(_after(sos, tokens), use_cache=False).logits,
        generate=generate,
        is_ours=True,
        streams=lambda tokens: (
            model(_after(sos, tokens), use_cache=False, output_hidden_states=True).hidden_states
        ),
    )


class _SketchBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.n_head = config.n_head
        self.ln_1 = nn.RMSNorm(width, eps=NORM_EPS)
        self.attn = nn.ModuleDict(
            {
                "c_attn": nn.Linear(width, 3 * width, bias=config.bias),
                "c_proj": nn.Linear(width, width, bias=config.bias),
            }
        )
        self.ln_2 = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(width, 4 * width, bias=config.bias),
                "c_proj": nn.Linear(4 * width, width, bias=config.bias),
            }
        )

    def forward(
        self, h: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0
    ) -> Tensor:
        B, T, D = h.shape
        qkv = self.attn["c_attn"](self.ln_1(h)).view(B, T, 3, self.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, E)
        if cache is not None:
            cache[0][:, :, start : start + T], cache[1][:, :, start : start + T] = k, v
            k, v = cache[0][:, :, : start + T], cache[1][:, :, : start + T]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        h = h + self.attn["c_proj"](y.transpose(1, 2).reshape(B, T, D))
        return h + self.mlp["c_proj"](quick_gelu(self.mlp["c_fc"](self.ln_2(h))))  # type: ignore[no-any-return]


class Sketch(nn.Module):
    """Our architecture on PyTorch's usual parts, with a preallocated cache."""

    def __init__(self, config: ModelConfig, n_colors: int, seq_len: int) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(n_colors, config.n_embd)
        self.wpe = nn.Embedding(seq_len, config.n_embd)
        self.sos = nn.Parameter(torch.zeros(config.n_embd))
        self.h = nn.ModuleList(_SketchBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.RMSNorm(config.n_embd, eps=NORM_EPS)
        self.head = nn.Linear(config.n_embd, n_colors, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, K): slot t predicts token t."""
        before = self.wte(tokens[:, :-1])
        first = self.sos.expand(len(tokens), 1, -1)
        h = torch.cat([first, before], 1) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            h = block(h)
        return self.head(self.ln_f(h))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def generate(self, n_images: int, n_tokens: int) -> Tensor:
        """Draw (n_images, n_tokens) int64."""
        E = self.config.n_embd // self.config.n_head
        shape = (n_images, self.config.n_head, n_tokens, E)
        caches = [(self.sos.new_empty(shape), self.sos.new_empty(shape)) for _ in self.h]
        x, drawn = self.sos.expand(n_images, 1, -1), []
        for t in range(n_tokens):
            h = x + self.wpe.weight[t]
            for block, cache in zip(self.h, caches, strict=True):
                h = block(h, cache, t)
            drawn.append(_draw(self.head(self.ln_f(h[:, -1]))))
            x = self.wte(drawn[-1])
        return torch.cat(drawn, 1)


class _MinBlock(nn.Module):
    def __init__(self, config: ModelConfig, seq_len: int) -> None:
        super().__init__()
        width = config.n_embd
        self.n_head = config.n_head
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("mask", torch.ones(seq_len, seq_len).tril())
        self.mask: Tensor

    def forward(self, h: Tensor) -> Tensor:
        B, T, D = h.shape
        parts = self.qkv(self.norm_1(h)).split(D, 2)
        q, k, v = (p.view(B, T, self.n_head, -1).transpose(1, 2) for p in parts)
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])  # (B, H, T, T)
        weights = F.softmax(scores.masked_fill(self.mask[:T, :T] == 0, -math.inf), -1)
        h = h + self.out((weights @ v).transpose(1, 2).reshape(B, T, D))
        return h + self.down(F.gelu(self.up(self.norm_2(h)), approximate="tanh"))  # type: ignore[no-any-return]


class MinGPT(nn.Module):
    """minGPT's published architecture: explicit attention with a mask, and no cache."""

    def __init__(self, config: ModelConfig, n_colors: int, seq_len: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(n_colors, config.n_embd)
        self.positions = nn.Embedding(seq_len, config.n_embd)
        self.blocks = nn.ModuleList(_MinBlock(config, seq_len) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, n_colors, bias=False)

    def forward(self, before: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, K) of the tokens that follow each."""
        h = self.tokens(before) + self.positions.weight[: before.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def generate(self, n_images: int, n_tokens: int) -> Tensor:
        """Draw (n_images, n_tokens) int64, the whole sequence anew for each."""
        given = torch.zeros(n_images, 1, dtype=torch.int64, device=self.head.weight.device)
        for _ in range(n_tokens):
            given = torch.cat([given, _draw(self(given)[:, -1])], 1)
        return given[:, 1:]
