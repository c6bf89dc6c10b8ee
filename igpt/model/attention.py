"""Causal attention in stretches of queries, for training on a CPU in compiled blocks.

PyTorch's fused kernel for the CPU takes nearly half of a training step, most of it in its backward
pass. Here each stretch of queries meets only the keys it may see, by batched matrix products
between which the compiler fuses everything else into single loops; the backward pass makes the
scores anew. So no T x T matrix is held: B * H * STRETCH * T scores at a time.
"""

import math
from typing import Any

import torch
from torch import Tensor

STRETCH = 128
# The stretches are unrolled in the compiled code, which would grow too long beyond this.
MAX_SEQ_LEN = 1024


def pays_for(q: Tensor) -> bool:
    """Whether `causal_attention` is faster than the fused kernel for these queries (B, H, T, E)."""
    return (
        torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and q.device.type == "cpu"
        and 1 < q.shape[2] <= MAX_SEQ_LEN
    )


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v over the past.

    Args:
        q: (B, H, T, E) float.
        k: (B, H, T, E) float.
        v: (B, H, T, E) float.

    Returns:
        (B, H, T, E), of the type of v.
    """
    heads = (part.reshape(-1, *part.shape[2:]) for part in (q, k, v))  # each (B * H, T, E)
    output: Tensor = _CausalAttention.apply(*heads)  # type: ignore[no-untyped-call]
    return output.view(q.shape)


def _scores(q: Tensor, k: Tensor, start: int, stop: int) -> Tensor:
    """Scaled scores of queries `start` to `stop` on the keys they see: (N, n, stop) float32."""
    scores = torch.bmm(q[:, start:stop], k[:, :stop].transpose(1, 2)).float()
    slots = torch.arange(stop, device=q.device)
    seen = slots[None, :] <= slots[start:, None]
    return torch.where(seen, scores / math.sqrt(q.shape[-1]), -math.inf)


def _stretches(seq_len: int) -> list[tuple[int, int]]:
    return [(start, min(start + STRETCH, seq_len)) for start in range(0, seq_len, STRETCH)]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (N, T, E) -> (N, T, E)."""
        outputs, log_sums = [], []
        for start, stop in _stretches(q.shape[1]):
            scores = _scores(q, k, start, stop)
            log_sum = scores.logsumexp(-1, keepdim=True)  # (N, n, 1)
            weights = torch.exp(scores - log_sum).to(v.dtype)
            outputs.append(torch.bmm(weights, v[:, :stop]))
            log_sums.append(log_sum)
        output = torch.cat(outputs, 1)
        ctx.save_for_backward(q, k, v, output, torch.cat(log_sums, 1))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, each (N, T, E); sums over stretches are float32."""
        q, k, v, output, log_sum = ctx.saved_tensors
        scale = 1 / math.sqrt(q.shape[-1])
        # The part of the softmax's gradient that all of a query's keys share.
        common = (grad.float() * output.float()).sum(-1, keepdim=True)  # (N, T, 1)
        dq = []
        dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for start, stop in _stretches(q.shape[1]):
            part = slice(start, stop)
            weights = torch.exp(_scores(q, k, start, stop) - log_sum[:, part])
            d_weights = torch.bmm(grad[:, part], v[:, :stop].transpose(1, 2)).float()
            d_scores = ((d_weights - common[:, part]) * weights * scale).to(q.dtype)
            dv[:, :stop] += torch.bmm(weights.to(v.dtype).transpose(1, 2), grad[:, part])
            dk[:, :stop] += torch.bmm(d_scores.transpose(1, 2), q[:, part])
            dq.append(torch.bmm(d_scores, k[:, :stop]))
        return torch.cat(dq, 1), dk.to(k.dtype), dv.to(v.dtype)
