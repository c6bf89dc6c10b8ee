"""The settings of a run: what stands for `auto`, and what a resumed run may change."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from igpt import compute
from igpt.config import RunConfig, TrainConfig
from igpt.errors import UserError
from igpt.model.attention import faster_kernel
from igpt.model.sizes import Shape, parameter_count
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
    if stored.schedule == "cosine" and step:
        raise UserError(
            f"--resume cannot change train.total_steps {stored.total_steps} -> "
            f"{asked.total_steps}: under train.schedule cosine every step depends on the last one; "
            "start another run folder with --init-from this one"
        )
    common, level = (
        min(step, level_steps(train, train.warmup_steps or 0)) for train in (stored, asked)
    )
    if level < common or asked.total_steps < common:
        old, new = dataclasses.asdict(stored), dataclasses.asdict(asked)
        changes = _differences({"train": old}, {"train": new})
        raise _cannot_change([change for change in changes if change[0] in THE_END])
    return common


def _cannot_change(changes: list[tuple[str, Any, Any]]) -> UserError:
    listed = ", ".join(f"{key} {old} -> {new}" for key, old, new in changes)
    return UserError(f"--resume cannot change {listed}: drop it, or start another run folder")


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
