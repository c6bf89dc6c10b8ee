"""The network: a GPT-2-like Transformer over colour tokens, as the paper's authors released it.

Exact points that differ from GPT-2 (paper §2.1, §3.3): the norm is RMS without centring, nothing
has a bias, the activation is x * sigmoid(1.702 x), the output head is untied and starts at zero,
and the autoregressive input is shifted right behind a learned `sos` vector, so that the last token
is never an input. Shapes: B batch, T tokens, D width, H heads, E = D / H, K colours.
"""

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from igpt.config import Kernel, ModelConfig, Objective
from igpt.errors import UserError
from igpt.model import attention
from igpt.model.cache import KVCache, LayerCache
from igpt.model.sizes import Shape

NORM_EPS = 1e-5


def quick_gelu(x: Tensor) -> Tensor:
    """The paper's approximate GELU."""
    return x * torch.sigmoid(1.702 * x)


class Linear(nn.Linear):
    """Zeros at first: PyTorch's draws what `init_weights` or a file replaces, 0.35 s for S."""

    def reset_parameters(self) -> None:
        """Called when it is made."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()


class Attention(nn.Module):
    """Multi-head self-attention; scores are never held as a T x T matrix."""

    def __init__(self, width: int, n_head: int, *, causal: bool, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.causal = causal
        self.kernel: Kernel | None = None
        self.c_attn = Linear(width, 3 * width, bias=bias)
        self.c_proj = Linear(width, width, bias=bias)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); with a cache, x is the next stretch of each sequence."""
        B, T, D = x.shape
        qkv = self.c_attn(x)  # (B, T, 3 D)
        if cache is None and attention.takes(qkv, self.kernel):
            return self.c_proj(attention.attention(qkv, self.n_head, causal=self.causal))  # type: ignore[no-any-return]
        parts = qkv.view(B, T, 3, self.n_head, D // self.n_head).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)  # each (B, H, T, E)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, slots, E)
        # A single new position may see all of the cache; a longer one starts an empty cache.
        seen = None if cache is None else cache.seen
        is_causal = self.causal and T > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=is_causal)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The position-wise half of a block."""

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.c_fc = Linear(width, 4 * width, bias=bias)
        self.c_proj = Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.c_proj(quick_gelu(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """n = norm(h); a = h + attn(n); h' = a + mlp(norm(a)) (paper §2.2)."""

    def __init__(self, width: int, n_head: int, *, causal: bool, bias: bool) -> None:
        super().__init__()
        self.ln_1 = nn.RMSNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, n_head, causal=causal, bias=bias)
        self.ln_2 = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, bias=bias)

    def forward(self, h: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        a = h + self.attn(self.ln_1(h), cache)
        return a + self.mlp(self.ln_2(a))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Predicts every token of an image from those before it, or masked tokens from the rest.

    Args:
        config: depth, heads and width.
        n_colors: tokens in the vocabulary, K.
        seq_len: tokens of one image, T; shorter inputs are accepted, longer ones are not.
        objective: `ar` has `sos` and a causal mask; `bert` has neither.
    """

    def __init__(
        self, config: ModelConfig, *, n_colors: int, seq_len: int, objective: Objective = "ar"
    ) -> None:
        super().__init__()
        self.config = config
        self.n_colors = n_colors
        self.seq_len = seq_len
        self.objective = objective
        self.checkpoint_activations = False
        # Classifiers from transformers have no output head, and their own feed no sos either.
        self.predicts, self.shifted = True, objective == "ar"
        width, causal = config.n_embd, objective == "ar"
        self.wte = nn.Embedding.from_pretrained(torch.zeros(n_colors, width), freeze=False)
        self.wpe = nn.Embedding.from_pretrained(torch.zeros(seq_len, width), freeze=False)
        if causal:
            self.sos = nn.Parameter(torch.zeros(width))
        self.h = nn.ModuleList(
            Block(width, config.n_head, causal=causal, bias=config.bias)
            for _ in range(config.n_layer)
        )
        self.ln_f = nn.RMSNorm(width, eps=NORM_EPS)
        self.head = Linear(width, n_colors, bias=False)
        # Whatever the process's default type is: files hold float32, and so does compiled code.
        self.float()

    @property
    def shape(self) -> Shape:
        """What fixes its tensors beside the configuration."""
        return Shape(n_colors=self.n_colors, seq_len=self.seq_len, objective=self.objective)

    def attend_by(self, kernel: Kernel | None) -> None:
        """Use this kernel for attention over whole sequences; none: the usual one of the type."""
        for block in self.h:
            block.attn.kernel = kernel  # type: ignore[union-attr]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the released code's initial weights (paper §3.3; PAPER §2.2 lists them)."""
        for name, parameter in self.named_parameters():
            self.fill_initial(name, parameter, generator)

    @torch.no_grad()
    def fill_initial(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Draw the initial values of the parameter called `name`; call in the network's order."""
        width, n_layer = self.config.n_embd, self.config.n_layer
        std_of_suffix = {
            "wpe.weight": 0.01,
            "attn.c_attn.weight": 1 / math.sqrt(width),
            "attn.c_proj.weight": 1 / math.sqrt(width * n_layer),
        }
        if name.endswith("bias") or name == "head.weight":
            parameter.zero_()  # so the first loss is exactly ln K
        elif "ln_" in name:
            parameter.fill_(1.0)
        else:
            std = next((s for suffix, s in std_of_suffix.items() if name.endswith(suffix)), 0.02)
            parameter.normal_(0.0, std, generator=generator)

    def embed(self, tokens: Tensor, masked: Tensor | None = None, *, start: int = 0) -> Tensor:
        """The input of the first block.

        Args:
            tokens: (B, n) int64. Autoregressive: what stands *before* slot `start + 1` onwards; at
                start 0, `sos` takes the first slot and so there are n + 1 slots.
            masked: (B, n) bool, BERT only: True where the token embedding becomes zero.
            start: position of the first slot.

        Returns:
            (B, slots, D) float.
        """
        x = self.wte(tokens)  # (B, n, D)
        if masked is not None:
            x = x * ~masked.unsqueeze(-1)
        if self.shifted and start == 0:
            first = self.sos.to(x.dtype).expand(x.shape[0], 1, -1)  # (B, 1, D)
            x = torch.cat([first, x], dim=1)  # (B, n + 1, D)
        return x + self.wpe.weight[start : start + x.shape[1]]  # type: ignore[no-any-return]

    def hidden(self, tokens: Tensor, masked: Tensor | None = None) -> Iterator[Tensor]:
        """The L + 1 layer outputs h^0 .. h^L of the residual stream, one after another.

        Nothing is kept that is not asked for, and a caller that stops early saves the rest.

        Args:
            tokens: (B, T) int64, values in [0, K).
            masked: (B, T) bool, BERT only.

        Yields:
            (B, T, D) float, not normalised; `normalised` gives the paper's features.
        """
        h = self.embed(tokens[:, :-1] if self.shifted else tokens, masked)
        yield h
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for block in self.h:
            h = checkpoint(block, h, use_reentrant=False) if recompute else block(h)
            yield h

    def normalised(self, layer: int, h: Tensor) -> Tensor:
        """n^layer (paper §2.4): block `layer`'s first norm of h^layer, `ln_f` at the last."""
        norm = self.ln_f if layer == len(self.h) else self.h[layer].ln_1
        return norm(h)  # type: ignore[no-any-return, operator]

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """Logits of every token.

        Args:
            tokens: (B, T) int64, values in [0, K), T at most `seq_len`.
            masked: (B, T) bool, BERT only: True where the model may not look.

        Returns:
            (B, T, K) float; slot t predicts token t.
        """
        self.check_predicts()
        for h in self.hidden(tokens, masked):  # noqa: B007 - only the last is needed
            pass
        return self.head(self.ln_f(h))  # type: ignore[no-any-return]

    def in_float32(self) -> "GPT":
        """This network, or a copy in float32 where its weights were given another type."""
        if all(parameter.dtype == torch.float32 for parameter in self.parameters()):
            return self
        return copy.deepcopy(self).float()

    def check_predicts(self) -> None:
        """Refuse a network that came without an output head.

        Raises:
            UserError: it came from transformers as a classifier, or as the bare network.
        """
        if not self.predicts:
            raise UserError(
                "this model came from transformers without an output head: it gives features, "
                "and classes if it is a classifier, so use the model that it was made from"
            )

    def extend(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Logits of the token after `tokens`, which follow what the cache holds (autoregressive).

        On an empty cache `sos` is put before them, so `tokens` may then be of length 0. Equal to
        the last slot that `forward` would give, to rounding.

        Args:
            tokens: (B, n) int64; n is 1 unless the cache is empty.
            cache: holds the keys and values so far; is extended in place.

        Returns:
            (B, K) float.
        """
        h = self.embed(tokens, start=cache.length)
        filling = torch.arange(cache.length, cache.length + h.shape[1], device=h.device)
        cache.length += h.shape[1]
        return self.after(h, cache.layers(cache.length, filling))

    def after(self, h: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        """Logits (B, K) of the token after the slots whose first block's input is (B, n, D)."""
        for block, layer in zip(self.h, layers, strict=True):
            h = block(h, layer)
        return self.head(self.ln_f(h[:, -1]))  # type: ignore[no-any-return]


def weights_digest(network: GPT) -> str:
    """The sha256 of all weights and what they are called, as hex."""
    kind = b"" if network.shifted or network.objective == "bert" else b"unshifted"
    digest = hashlib.sha256(repr((network.config, network.objective)).encode() + kind)
    for name, value in sorted(network.state_dict().items()):
        data = value.detach().float().cpu().contiguous().numpy()
        digest.update(f"{name}{data.shape}".encode())
        digest.update(data.data)
    return digest.hexdigest()
