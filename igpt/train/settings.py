"""The settings of a run: what stands for `auto`, and what a resumed run may change.

What a run would cost, before it is started, is here too: size, operations, memory, time.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from igpt import compute
from igpt.config import RunConfig, TrainConfig
from igpt.errors import UserError
from igpt.model.attention import faster_kernel
from igpt.model.sizes import Shape, activation_bytes, parameter_count, train_flops
from igpt.progress import say
from igpt.train.distributed import default_world
from igpt.train.memory import STATE_BYTES, fitting_micro_batch
from igpt.train.optim import level_steps, warmup_steps_of

# What may change when a run is resumed; anything else would make it another run.
FREE_AT_RESUME = frozenset(
    f"train.{name}"
    for name in (
        "log_every",
        "valid_every",
        "valid_images",
        "checkpoint_every",
        "checkpoint_at",
        "keep_last",
        "draw_every",
        "probe_every",
        "track",
        "timeout_s",
    )
)
# These may change too, while no step so far has depended on them.
THE_END = frozenset({"train.total_steps", "train.decay_fraction"})
# These keep the run valid but not bit for bit the same.
INEXACT_AT_RESUME = frozenset(
    f"train.{name}"
    for name in (
        "micro_batch",
        "precision",
        "attention",
        "compile",
        "checkpoint_activations",
        "parallel",
    )
)


def resolve(config: RunConfig, *, n_images: int, n_colors: int, tried: bool = True) -> RunConfig:
    """The configuration without any `auto`, as it is stored and obeyed from then on.

    Args:
        config: as asked for.
        n_images: of an epoch.
        n_colors: tokens in the vocabulary, K.
        tried: whether the memory that an image takes may be measured by a trial.
    """
    device = compute.default_device()
    train = config.train
    dtype = compute.choose_dtype(train.precision, device)
    problem = None if train.compile == "off" else compute.compile_problem(device)
    compiles = train.compile != "off" and problem is None
    if problem and train.compile == "blocks":
        raise UserError(f"train.compile blocks is not possible here: {problem}; or use auto")
    if problem:
        say(f"training without compilation: {problem}")
    train = dataclasses.replace(
        train,
        precision=compute.name_of(dtype),
        compile="blocks" if compiles else "off",
        warmup_steps=warmup_steps_of(train, n_images),
    )
    shape = Shape.of_run(config, n_colors)
    if train.parallel == "auto":
        states = STATE_BYTES * parameter_count(config.model, shape)
        large = states > 0.25 * compute.free_memory_bytes(device) and train.optimizer == "adamw"
        train = dataclasses.replace(train, parallel="fsdp" if large else "ddp")
    config = dataclasses.replace(config, train=train)
    if train.micro_batch == "auto":
        micro_batch = fitting_micro_batch(
            config, n_colors=n_colors, ranks=default_world().size, tried=tried
        )
        train = dataclasses.replace(train, micro_batch=micro_batch)
    if tried and train.attention == "auto" and device.type == "cpu":
        assert train.micro_batch != "auto"
        kernel = faster_kernel(
            (train.micro_batch, config.data.seq_len, config.model.n_embd),
            config.model.n_head,
            causal=train.objective == "ar",
            dtype=dtype,
        )
        train = dataclasses.replace(train, attention=kernel)
    return dataclasses.replace(config, train=train)


def taken_up(stored: RunConfig, asked: RunConfig) -> RunConfig:
    """What a resumed run goes on with; where the run ends is judged by `check_end`.

    `auto` and none mean what is stored, and steps once promised to be kept stay promised.

    Args:
        stored: the run's settings.
        asked: now.

    Raises:
        UserError: it would be another run; names each changed key.
    """
    asked = _as_stored(stored, asked)
    promised = sorted({*stored.train.checkpoint_at, *asked.train.checkpoint_at})
    train = dataclasses.replace(asked.train, checkpoint_at=tuple(promised))
    asked = dataclasses.replace(asked, train=train)
    changes = _differences(stored.to_dict(), asked.to_dict())
    free = FREE_AT_RESUME | INEXACT_AT_RESUME | THE_END
    if fatal := [change for change in changes if change[0] not in free]:
        raise _cannot_change(fatal)
    for key, old, new in changes:
        if key in INEXACT_AT_RESUME:
            say(f"warning: {key} {old} -> {new}: the weights will not be bit for bit the same")
    return asked


def ends_anew(stored: TrainConfig, asked: TrainConfig) -> bool:
    """Whether a resumed run is to end elsewhere than it was to."""
    return any(
        getattr(stored, key) != getattr(asked, key) for key in ("total_steps", "decay_fraction")
    )


def last_common_step(stored: TrainConfig, asked: TrainConfig, *, step: int) -> int:
    """The last update up to `step` that is the same under another end.

    Args:
        stored: the run's settings; resolved.
        asked: with another end; resolved.
        step: updates made so far.

    Raises:
        UserError: there is none from which the run could go on to that end.
    """
    old, new = {"train": dataclasses.asdict(stored)}, {"train": dataclasses.asdict(asked)}
    changes = [change for change in _differences(old, new) if change[0] in THE_END]
    if stored.schedule == "cosine" and step:
        raise UserError(
            f"--resume cannot change {_listed(changes)}: under train.schedule cosine every step "
            "depends on the last one; start another run folder with --init-from this one"
        )
    common, level = (
        min(step, level_steps(train, train.warmup_steps or 0)) for train in (stored, asked)
    )
    if level < common or asked.total_steps < common:
        raise _cannot_change(changes)
    return common


def _cannot_change(changes: list[tuple[str, Any, Any]]) -> UserError:
    return UserError(
        f"--resume cannot change {_listed(changes)}: drop it, or start another run folder"
    )


def _listed(changes: list[tuple[str, Any, Any]]) -> str:
    return ", ".join(f"{key} {old} -> {new}" for key, old, new in changes)


def _as_stored(stored: Any, asked: Any) -> Any:
    """`asked` with what is stored in place of each `auto` and none."""
    values = {}
    for field in dataclasses.fields(asked):
        old, new = getattr(stored, field.name), getattr(asked, field.name)
        if dataclasses.is_dataclass(new):
            new = _as_stored(old, new)
        values[field.name] = old if new is None or new == "auto" else new
    return dataclasses.replace(asked, **values)


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key, value in old.items():
        if isinstance(value, Mapping):
            found += _differences(value, new[key], f"{prefix}{key}.")
        elif value != new[key]:
            found.append((f"{prefix}{key}", value, new[key]))
    return found


# Of the matrix rate: what training reaches with small and with large networks.
SHARES_OF_RATE = (0.1, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cost of a run on this machine, by formula; only the matrix rate is measured."""

    parameters: int
    tokens_per_image: int
    images: int
    """Seen in the whole run, repeats counted."""
    flops_per_image: int
    """Of forward and backward pass."""
    total_flops: int
    device: str
    precision: str
    micro_batch: int
    """Images a forward pass that fit in memory."""
    memory_bytes: int
    """Of weights, gradients, optimiser state and one micro-batch's activations."""
    matrix_flops_per_s: float
    """Measured here, now."""
    least_s: float
    """At the larger of `SHARES_OF_RATE`."""
    most_s: float
    """At the smaller."""

    def lines(self) -> list[str]:
        """For a person."""
        few, many = (f"{share:.0%}" for share in SHARES_OF_RATE)
        return [
            f"parameters   {self.parameters:,}",
            f"tokens       {self.tokens_per_image:,} an image, {self.images:,} images in all",
            f"operations   {self.flops_per_image:.3g} an image, {self.total_flops:.3g} in all",
            f"memory       {self.memory_bytes / 1e9:.1f} GB with {self.micro_batch} images at once",
            f"matrix rate  {self.matrix_flops_per_s / 1e9:,.0f} GFLOP/s "
            f"({self.device}, {self.precision})",
            f"time         {in_words(self.least_s)} to {in_words(self.most_s)} "
            f"({many} to {few} of the matrix rate)",
        ]


def plan_of(config: RunConfig) -> Plan:
    """The plan of a run in this one process.

    Args:
        config: as for training; the data need not be at hand.
    """
    n_colors = 256 if config.data.tokens == "raw" else config.data.n_colors
    images = config.train.total_steps * config.train.batch_size
    config = resolve(config, n_images=images, n_colors=n_colors, tried=False)
    train, device = config.train, compute.default_device()
    shape = Shape.of_run(config, n_colors)
    dtype = compute.choose_dtype(train.precision, device)
    rate = compute.matrix_rate(device, dtype)
    parameters = parameter_count(config.model, shape)
    flops = train_flops(config.model, shape)
    assert train.micro_batch != "auto"
    kept = activation_bytes(
        config.model, shape, recompute=train.checkpoint_activations, width=dtype.itemsize
    )
    least_s, most_s = (flops * images / (share * rate) for share in reversed(SHARES_OF_RATE))
    return Plan(
        parameters=parameters,
        tokens_per_image=shape.seq_len,
        images=images,
        flops_per_image=flops,
        total_flops=flops * images,
        device=device.type,
        precision=train.precision,
        micro_batch=train.micro_batch,
        memory_bytes=STATE_BYTES * parameters + train.micro_batch * kept,
        matrix_flops_per_s=rate,
        least_s=least_s,
        most_s=most_s,
    )


def in_words(span_s: float) -> str:
    """A span to two digits in the unit that suits it."""
    for unit, seconds in (("years", 31_557_600), ("days", 86_400), ("h", 3600), ("min", 60)):
        if span_s >= seconds:
            return (
                f"{span_s / seconds:.2g} {unit}"
                if span_s < 10 * seconds
                else (f"{span_s / seconds:,.0f} {unit}")
            )
    return f"{span_s:.2g} s"
