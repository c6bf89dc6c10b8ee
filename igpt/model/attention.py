"""Attention over whole sequences on a CPU: `attention.cpp` as an operator of PyTorch's.

It takes queries, keys and values side by side as one linear map leaves them, so nothing is copied
into another layout, and it is opaque to the compiler, which would keep T x T scores otherwise.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.config import Kernel
from igpt.model import native

TRIALS = 3
# Longer sequences are judged by this many positions, which take half a second at most.
TRIAL_TOKENS = 2048
# Smaller work, in T x T x D, is not worth a choice; nor is a smaller gain, which might be chance.
SMALL_WORK, SMALL_GAIN = 2**22, 1.1


def is_built() -> bool:
    """Whether the machine's compiler made the operator; the same in all of a process's life."""
    return native.library("attention") is not None


def takes(qkv: Tensor, kernel: Kernel | None = None) -> bool:
    """Whether `attention` is the way for (B, T, 3 D) queries, keys and values.

    Args:
        qkv: what it would be given.
        kernel: as a run has chosen by measurement (`faster_kernel`); none: ours in bfloat16 and
            PyTorch's in float32, so that what is not trained comes out the same on every machine.
    """
    return (
        qkv.device.type == "cpu"
        and qkv.dtype in (torch.bfloat16, torch.float32)
        and (kernel or usual_kernel(qkv.dtype)) == "igpt"
        and not torch.compiler.is_exporting()
        and is_built()
    )


def usual_kernel(dtype: torch.dtype) -> Kernel:
    """The kernel where none was chosen."""
    return "igpt" if dtype == torch.bfloat16 else "torch"


def by_torch(qkv: Tensor, n_head: int, *, causal: bool) -> Tensor:
    """`attention` by PyTorch's kernel, with the copies that it needs."""
    B, T, width = qkv.shape
    q, k, v = (part.transpose(1, 2) for part in qkv.view(B, T, 3, n_head, -1).unbind(2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return y.transpose(1, 2).reshape(B, T, width // 3)


def faster_kernel(
    shape: tuple[int, int, int], n_head: int, *, causal: bool, dtype: torch.dtype
) -> Kernel:
    """Which kernel is faster on this CPU, forward and backward, by a trial of less than a second.

    Args:
        shape: (B, T, D) of what is trained; at most two sequences are tried.
        n_head: heads.
        causal: whether a position sees itself and those before it, or all.
        dtype: of the products.
    """
    if not is_built():
        return "torch"
    usual = usual_kernel(dtype)
    B, T, D = min(shape[0], 2), min(shape[1], TRIAL_TOKENS), shape[2]
    if T * T * D < SMALL_WORK:
        return usual
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, T, 3 * D, generator=generator).to(dtype).requires_grad_()
    ways: dict[Kernel, Callable[..., Tensor]] = {"igpt": attention, "torch": by_torch}
    spans: dict[Kernel, list[float]] = {name: [] for name in ways}
    for _ in range(1 + TRIALS):  # the first warms up
        for name, way in ways.items():
            start_s = time.perf_counter()
            output = way(qkv, n_head, causal=causal)
            torch.autograd.grad(output, qkv, output.detach())
            spans[name].append(time.perf_counter() - start_s)
    fastest = min(ways, key=lambda name: min(spans[name]))
    return fastest if SMALL_GAIN * min(spans[fastest]) < min(spans[usual]) else usual


def attention(qkv: Tensor, n_head: int, *, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(E)) v of every head, over the past only if `causal`.

    Args:
        qkv: (B, T, 3 D) float32 or bfloat16; queries, keys, values, each head by head.
        n_head: heads, a divisor of D.
        causal: whether a position sees itself and those before it, or all.

    Returns:
        (B, T, D), of the type of qkv.
    """
    output: Tensor = _attend(qkv, n_head, causal)[0]
    return output


def _shape(output: Tensor, n_head: int, causal: bool) -> native.Shape:
    B, T, D = output.shape
    threads = torch.get_num_threads()
    return native.Shape(B, n_head, T, D, causal, threads)


@torch.library.custom_op("igpt::attend", mutates_args=(), device_types="cpu")
def _attend(qkv: Tensor, n_head: int, causal: bool) -> tuple[Tensor, Tensor]:
    """The output and the logarithms of the softmax's sums, (B, H, T) float32."""
    qkv = qkv.contiguous()
    output, log_sums = _attend_like(qkv, n_head, causal)
    library = native.library("attention")
    assert library is not None
    call = library.attend_float32 if qkv.dtype == torch.float32 else library.attend_bfloat16
    shape = _shape(output, n_head, causal)
    call(shape, qkv.data_ptr(), output.data_ptr(), log_sums.data_ptr())
    return output, log_sums


@_attend.register_fake
def _attend_like(qkv: Tensor, n_head: int, _causal: bool) -> tuple[Tensor, Tensor]:
    B, T, width = qkv.shape
    return qkv.new_empty(B, T, width // 3), qkv.new_empty(B, n_head, T, dtype=torch.float32)


@torch.library.custom_op("igpt::attend_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    grad: Tensor, qkv: Tensor, output: Tensor, log_sums: Tensor, causal: bool
) -> Tensor:
    """The gradient of qkv."""
    grad, qkv = grad.contiguous(), qkv.contiguous()
    d_qkv = torch.empty_like(qkv)
    library = native.library("attention")
    assert library is not None
    is_float = qkv.dtype == torch.float32
    call = library.attend_backward_float32 if is_float else library.attend_backward_bfloat16
    shape = _shape(output, log_sums.shape[1], causal)
    call(shape, *(part.data_ptr() for part in (grad, qkv, output, log_sums, d_qkv)))
    return d_qkv


@_attend_backward.register_fake
def _attend_backward_like(_grad: Tensor, qkv: Tensor, *_: object) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, int, bool], output: tuple[Tensor, Tensor]) -> None:
    qkv, _, ctx.causal = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, None, None]:
    return _attend_backward(grad, *ctx.saved_tensors, ctx.causal), None, None


_attend.register_autograd(_gradient, setup_context=_keep)
