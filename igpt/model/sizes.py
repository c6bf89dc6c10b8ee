"""The published sizes and what a network costs: parameters, operations, memory (PAPER §2.2, §B)."""

from dataclasses import dataclass
from typing import Self

from igpt.config import ModelConfig, Objective, RunConfig
from igpt.errors import UserError

SIZES = {
    "s": ModelConfig(n_layer=24, n_head=8, n_embd=512),
    "m": ModelConfig(n_layer=36, n_head=8, n_embd=1024),
    "l": ModelConfig(n_layer=48, n_head=16, n_embd=1536),
    # The paper states no head count for XL; 48 keeps L's trend towards heads of 64.
    "xl": ModelConfig(n_layer=60, n_head=48, n_embd=3072),
}


# A network may be so many times larger than its weights, and 16 MB, before it is not built at all.
_SLACK = 4
_SLACK_VALUES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What, beside the `ModelConfig`, fixes a network's tensors."""

    n_colors: int
    """Tokens in the vocabulary, K."""
    seq_len: int
    """Tokens of an image, T."""
    objective: Objective
    """`ar` has one vector more: sos."""

    @classmethod
    def of_run(cls, config: RunConfig, n_colors: int) -> Self:
        """That of a run's network; its vocabulary is the tokeniser's."""
        return cls(n_colors=n_colors, seq_len=config.data.seq_len, objective=config.train.objective)


def parameter_count(config: ModelConfig, shape: Shape) -> int:
    """Parameters by formula: L(12 D^2 + 2 D) + 2 K D + T D + D, and D for sos."""
    D, L = config.n_embd, config.n_layer
    block = 12 * D * D + 2 * D + (9 * D if config.bias else 0)
    return (
        L * block
        + 2 * shape.n_colors * D
        + shape.seq_len * D
        + D
        + (D if shape.objective == "ar" else 0)
    )


def check_held(
    config: ModelConfig, shape: Shape, *, n_tensors: int, n_values: int, where: str
) -> None:
    """Refuse a network that is far larger than the weights beside its description.

    A file of a few bytes can ask for any number of layers, so this is asked before one is built;
    what is wrong by a little is named tensor by tensor once it is.

    Args:
        config: what the description asks for.
        shape: its vocabulary and length.
        n_tensors: tensors that are there.
        n_values: numbers in all of them together.
        where: the file that describes it.

    Raises:
        UserError: it asks for far more than is there.
    """
    needed = parameter_count(config, shape)
    is_possible = min(shape.n_colors, shape.seq_len) > 0
    if not is_possible or config.n_layer > n_tensors or needed > _SLACK * n_values + _SLACK_VALUES:
        raise UserError(
            f"{where} describes {config.n_layer} layers of width {config.n_embd} on "
            f"{shape.seq_len} tokens of {shape.n_colors} colours, but its weights are {n_tensors} "
            f"tensors with {n_values} numbers: restore the model folder"
        )


def forward_flops(config: ModelConfig, shape: Shape) -> int:
    """Floating-point operations of one image's forward pass, counting what is needed.

    Autoregressive attention counts the triangle only; BERT's the whole square.
    """
    T, D, L = shape.seq_len, config.n_embd, config.n_layer
    pairs = T * (T + 1) // 2 if shape.objective == "ar" else T * T
    return 2 * T * 12 * D * D * L + 4 * pairs * D * L + 2 * T * shape.n_colors * D


def train_flops(config: ModelConfig, shape: Shape) -> int:
    """Operations of forward and backward: three times the forward pass."""
    return 3 * forward_flops(config, shape)


def activation_bytes(config: ModelConfig, shape: Shape, *, recompute: bool, width: int) -> int:
    """Estimated bytes that one image's forward pass keeps for the backward pass.

    Args:
        config: network.
        shape: its vocabulary and length.
        recompute: whether blocks are recomputed (activation checkpointing).
        width: bytes of one number in the matrix products (4 or 2).

    A block keeps about 16 D numbers a token (norm inputs, q, k, v, attention output, 4D before and
    after the activation and its gate); the head keeps logits and their softmax in float32.
    """
    T, D, L = shape.seq_len, config.n_embd, config.n_layer
    block = 8 * 4 * D + 18 * width * D
    kept = L * 4 * D + block if recompute else L * block
    return T * (kept + 3 * 4 * shape.n_colors)
