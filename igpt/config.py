"""Every setting of a run, as frozen dataclasses; a default exists once, on its field.

The command line is parsed straight from these classes (`--train.lr` is `RunConfig.train.lr`), and
`config.json` in a run folder is `RunConfig.to_dict()`.
"""

import contextlib
import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Self

from igpt.errors import UserError

SCHEMA_VERSION = 1

Objective = Literal["ar", "bert"]
Kernel = Literal["igpt", "torch"]
Tokenizer = Literal["palette", "raw"]
Pooling = Literal["mean", "bands"]
"""Of activations over positions: mean, the paper's; bands keeps where and how much they vary."""
N_BANDS = 4
N_POOLED: dict[Pooling, int] = {"mean": 1, "bands": N_BANDS + 1}
"""Numbers that a channel gives."""
Augment = Literal["none", "flip", "cifar", "imagenet"]
TrackerName = Literal["tensorboard", "wandb"]

# Settings younger than the first runs: a config.json without one was made with its default.
YOUNGER_KEYS = frozenset(
    {
        "train.attention",
        "train.draw_every",
        "train.probe_every",
        "train.track",
        "train.zero_outputs",
    }
)


T = typing.TypeVar("T")

_CHECKED = ContextVar("_CHECKED", default=True)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let settings be any of their type inside: they are read before it is known whose they are."""
    token = _CHECKED.set(False)
    try:
        yield
    finally:
        _CHECKED.reset(token)


def _require(condition: bool, message: str) -> None:
    if not condition and _CHECKED.get():
        raise UserError(message)


def whole(value: object, name: str) -> int:
    """A whole number of any kind, numpy's too, and `3.0` for 3.

    Args:
        value: what a caller gave.
        name: of the argument, for the message.

    Raises:
        UserError: it is none.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value != int(value):  # type: ignore[arg-type, call-overload]
        raise UserError(f"{name} is {value!r}: give a whole number")
    return int(value)  # type: ignore[call-overload, no-any-return]


def real(value: object, name: str) -> float:
    """A finite number of any kind, numpy's too; arguments and errors as for `whole`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):  # type: ignore[arg-type]
        raise UserError(f"{name} is {value!r}: it must be a finite number")
    return float(value)  # type: ignore[arg-type]


def _check_numbers(config: Any, section: str) -> None:
    """Refuse infinity and what is no number, in every field; a new one is covered from the start.

    Raises:
        UserError: one is.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            is_number = isinstance(item, numbers.Real)
            _require(
                not is_number or math.isfinite(item),
                f"{section}{field.name} is {value}: it must be a finite number",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of the network (paper §3.3); the defaults are iGPT-S."""

    n_layer: int = 24
    """Number of Transformer blocks L."""
    n_head: int = 8
    """Attention heads a block H; must divide n-embd."""
    n_embd: int = 512
    """Width D of the residual stream."""
    bias: bool = False
    """Biases in the blocks' linear maps: the paper has none, models trained in transformers do."""

    def __post_init__(self) -> None:
        _check_numbers(self, "model.")
        for name, most in (("n_layer", 1_000), ("n_head", 65_536), ("n_embd", 65_536)):
            value = getattr(self, name)
            _require(1 <= value <= most, f"model.{name} is {value}: choose from 1 to {most}")
        _require(
            self.n_embd % self.n_head == 0,
            f"model.n_head {self.n_head} does not divide model.n_embd {self.n_embd}: "
            "choose a width that is a multiple of the heads",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which pixels the model sees, and how they become tokens (paper §3.1, §3.2)."""

    image_size: int = 32
    """Side S of the square input, in pixels; the context is S * S tokens."""
    tokens: Tokenizer = "palette"
    """palette: one token a pixel; raw: one a colour channel (256 values)."""
    n_colors: int = 512
    """Colours K in a palette that is fitted here."""
    palette: str | None = None
    """A palette file to use (.npy as the authors store it); none: fit one on the training split."""
    augment: Augment = "none"
    """Random changes to training images: none, flip (left-right), cifar (paper §3.1), imagenet."""
    valid_fraction: float | None = None
    """Share of the training images for validation, by seed; none: 0.1, for ImageNet 0.04."""
    fold_validation: bool = False
    """Train on the validation images too (the paper's last step, after every choice is made)."""

    def __post_init__(self) -> None:
        _check_numbers(self, "data.")
        _require(
            1 <= self.image_size <= 256,
            f"data.image_size is {self.image_size}: choose from 1 to 256 pixels",
        )
        _require(
            2 <= self.n_colors <= 65536,
            f"data.n_colors is {self.n_colors}: choose from 2 to 65536",
        )
        _require(
            self.valid_fraction is None or 0 < self.valid_fraction < 1,
            f"data.valid_fraction is {self.valid_fraction}: choose a share between 0 and 1",
        )

    @property
    def seq_len(self) -> int:
        """Tokens T of one image."""
        return self.image_size**2 * (3 if self.tokens == "raw" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the weights are found (paper §3.4)."""

    objective: Objective = "ar"
    """ar: predict each pixel from those before it; bert: predict masked pixels (paper §2.1)."""
    mask_prob: float = 0.15
    """bert: the chance that a position is masked."""
    total_steps: int = 1_000_000
    """Optimiser updates in the whole run."""
    batch_size: int = 128
    """Images an update, over all devices and micro-batches."""
    micro_batch: int | Literal["auto"] = "auto"
    """Images a forward pass on one device; auto: the largest that fits, stored in the run."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: the paper's; muon: orthogonalised momentum for the matrices of the blocks."""
    lr: float = 0.003
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.01
    """muon: peak learning rate of the block matrices (its update matched to AdamW's size)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's averaging of the gradient and of its square."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices."""
    grad_clip_norm: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; none: one epoch, at most 5 % of the run."""
    zero_outputs: bool = False
    """Start the last matrix of both halves of each block at zero, not at the paper's values."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After warm-up: cosine to 0, constant with a linear fall to 0 over the last part, constant."""
    decay_fraction: float = 0.5
    """linear: the share of the steps after warm-up, at the end, over which the rate falls to 0."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the matrix products; auto: the faster one, measured on the spot. Weights are fp32."""
    compile: Literal["auto", "blocks", "off"] = "auto"
    """Compile each Transformer block; auto: where a compiler is found."""
    attention: Literal["auto", "igpt", "torch"] = "auto"
    """Attention on a CPU, by our C++ or by PyTorch; auto: the faster one, measured on the spot."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Under torchrun: ddp copies the network to every device, fsdp cuts it up; auto: by memory."""
    timeout_s: float = 600.0
    """Under torchrun: seconds without a sign of a rank after which the job ends, naming it."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    valid_every: int = 1000
    """Steps between validations; the last step always validates."""
    valid_images: int = 2000
    """Most validation images used during training (the final figure uses all of them)."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step always saves."""
    checkpoint_at: tuple[int, ...] = ()
    """Steps whose checkpoints are kept for good (the paper's 65k, 131k, 262k, 524k)."""
    keep_last: int = 2
    """Newest checkpoints kept beside those of checkpoint-at."""
    draw_every: int = 0
    """Steps between grids of samples and completions (pictures/training/ of the run); 0: none."""
    probe_every: int = 0
    """Steps between probes of every layer on 3,000 labelled images; 0: none."""
    track: tuple[TrackerName, ...] = ()
    """Where metrics and grids go besides the run folder: tensorboard, wandb (offline)."""

    def __post_init__(self) -> None:
        _check_numbers(self, "train.")
        for name in ("total_steps", "batch_size", "log_every", "valid_every", "valid_images"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} is {value}: it must be at least 1")
        for name in ("checkpoint_every", "keep_last"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} is {value}: it must be at least 1")
        for name in ("lr", "muon_lr", "timeout_s"):
            value = getattr(self, name)
            _require(value > 0, f"train.{name} is {value}: it must be above 0")
        for name in ("weight_decay", "grad_clip_norm", "draw_every", "probe_every"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name} is {value}: it must not be negative")
        _require(
            all(0 <= beta < 1 for beta in self.betas),
            f"train.betas is {self.betas}: each must be from 0 to below 1",
        )
        _require(
            0 < self.mask_prob < 1,
            f"train.mask_prob is {self.mask_prob}: choose a chance between 0 and 1",
        )
        _require(
            0 < self.decay_fraction <= 1,
            f"train.decay_fraction is {self.decay_fraction}: choose a share above 0, at most 1",
        )
        self._check_steps()

    def _check_steps(self) -> None:
        if self.micro_batch != "auto":
            _require(
                1 <= self.micro_batch <= self.batch_size,
                f"train.micro_batch is {self.micro_batch}: choose from 1 to train.batch_size "
                f"({self.batch_size})",
            )
        _require(
            self.warmup_steps is None or 0 <= self.warmup_steps <= self.total_steps,
            f"train.warmup_steps is {self.warmup_steps}: choose from 0 to train.total_steps "
            f"({self.total_steps})",
        )
        _require(
            all(step >= 1 for step in self.checkpoint_at),
            f"train.checkpoint_at is {self.checkpoint_at}: steps start at 1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits; 1 is the paper's, 0 always takes the likeliest colour."""
    top_k: int | None = None
    """Draw among the k likeliest colours only."""
    top_p: float | None = None
    """Draw among the likeliest colours that hold this share of the probability."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", real(self.temperature, "temperature"))
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole(self.top_k, "top_k"))
        if self.top_p is not None:
            object.__setattr__(self, "top_p", real(self.top_p, "top_p"))
        _require(
            self.temperature >= 0,
            f"temperature is {self.temperature}: it must not be negative",
        )
        _require(
            self.top_k is None or self.top_k >= 1,
            f"top_k is {self.top_k}: it must be at least 1",
        )
        _require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p is {self.top_p}: choose a share above 0, at most 1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """What a probe fits on frozen features, and how (paper §2.4, §3.4)."""

    raw_residual: bool = False
    """Pool the residual stream itself in place of the paper's normalised features."""
    pooling: Pooling = "mean"
    """Over positions: mean, the paper's; bands: means of four bands of rows, and spread."""
    raw_pixels: bool = True
    """Treat the pixels themselves the same, for comparison."""
    joined: int = 0
    """Also probe so many adjacent layers around the best, side by side (the paper's 5)."""
    kmeans: int = 0
    """Also probe the features of so many k-means clusters (Coates et al. 2011)."""
    attentive: int = 0
    """Also train a head that attends over the positions of the chosen layer, in place of their
    mean, by so many updates of 128 images."""
    solver: Literal["lbfgs", "sgd", "knn"] = "lbfgs"
    """Of every kind of features: lbfgs finds the optimum; sgd reads a batch at a time, as the paper
    does (§3.4); knn lets the nearest training images vote."""
    sgd_steps: int = 10_000
    """Updates of sgd, the same for each of its rates."""
    large: bool = False
    """For sets of any size: ridge regression ranks the layers while images pass, then the features
    of the best three are kept, in float16, for the solver to choose between; sgd where the optimum
    would not fit in memory."""
    layer_images: int = 20_000
    """Training images, drawn at random, that rank the layers of --large; 0: all."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the network's matrix products; auto: bf16 where the processor has it."""

    def __post_init__(self) -> None:
        _check_numbers(self, "")
        for name, least in (
            ("joined", 0),
            ("kmeans", 0),
            ("attentive", 0),
            ("sgd_steps", 1),
            ("layer_images", 0),
        ):
            value = getattr(self, name)
            option = name.replace("_", "-")
            _require(value >= least, f"--{option} is {value}: it must be at least {least}")
        _require(
            not (self.large and self.kmeans), "--large does not take --kmeans: probe that apart"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """How a classifier is trained with all weights (paper §2.3, §3.4)."""

    joint: bool = True
    """Keep the generative loss beside the classification loss, both with weight 1."""
    layer: int | None = None
    """Layer whose features the classifier reads; none: the last."""
    lr: float = 0.0003
    """Learning rate, constant throughout."""
    total_steps: int = 2000
    """Most optimiser updates."""
    batch_size: int = 128
    """Images an update."""
    micro_batch: int = 32
    """Images a forward pass on one device."""
    valid_every: int = 100
    """Steps between looks at validation accuracy; the best look's checkpoint is kept."""
    valid_images: int | None = None
    """Most validation images looked at; none: all."""
    patience: int = 5
    """Looks without a better accuracy before training ends; the best weights are kept."""
    fold_validation: Literal["auto", "on", "off"] = "auto"
    """on: repeat the chosen number of steps on training and validation images together, for the
    final figure (paper §3.4); auto: where the model was trained by one of the paper's recipes."""
    augment: Literal["auto", "none", "flip", "cifar", "imagenet"] = "auto"
    """Random changes to the training images; auto: imagenet's crops where the model was trained
    with them and the images are at hand, else the paper's of CIFAR (reflect, crop, mirror)."""
    grad_clip_norm: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    betas: tuple[float, float] = TrainConfig().betas
    """Adam's averaging of the gradient and of its square."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the matrix products."""
    compile: Literal["auto", "blocks", "off"] = "auto"
    """Compile each Transformer block; auto: where that saves more time than it takes."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: ddp copies the network to every device, fsdp cuts it up."""
    timeout_s: float = TrainConfig().timeout_s
    """Under torchrun: seconds without a sign of a rank after which the job ends, naming it."""
    log_every: int = TrainConfig().log_every
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 100
    """Steps between checkpoints; a better look and the last step always save."""
    seed: int = 0
    """Of the order of images, their augmentation and masks."""

    def __post_init__(self) -> None:
        _check_numbers(self, "finetune.")
        for name in (
            "total_steps",
            "batch_size",
            "micro_batch",
            "valid_every",
            "patience",
            "log_every",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            _require(value >= 1, f"finetune.{name} is {value}: it must be at least 1")
        for name in ("lr", "timeout_s"):
            value = getattr(self, name)
            _require(value > 0, f"finetune.{name} is {value}: it must be above 0")
        _require(
            self.grad_clip_norm >= 0,
            f"finetune.grad_clip_norm is {self.grad_clip_norm}: it must not be negative",
        )
        _require(
            all(0 <= beta < 1 for beta in self.betas),
            f"finetune.betas is {self.betas}: each must be from 0 to below 1",
        )
        _require(
            self.valid_images is None or self.valid_images >= 1,
            f"finetune.valid_images is {self.valid_images}: it must be at least 1",
        )

    @classmethod
    def from_dict(cls, values: Any, *, where: str) -> Self:
        """The settings that a fine-tuning's config.json holds.

        Raises:
            UserError: an unknown or missing key, or a value of a wrong type.
        """
        restored: Self = _restore(cls, values, where=where, path="")
        return restored


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The whole of a training run."""

    recipe: str | None = None
    """Named starting values: demo, cifar10-record, record-32, cifar10-paper, or the paper's igpt-s,
    igpt-m, igpt-l, igpt-xl; single options override them."""
    seed: int = 0
    """Seed of every random stream of the run."""
    data: DataConfig = DataConfig()
    """Data."""
    model: ModelConfig = ModelConfig()
    """Network."""
    train: TrainConfig = TrainConfig()
    """Training."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the schema version."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, where: str) -> Self:
        """The configuration that `to_dict` wrote; unknown and missing keys are refused.

        Args:
            values: what was read from JSON.
            where: the file's name, for messages.

        Raises:
            UserError: another schema version, an unknown or missing key, a value of a wrong type.
        """
        values = dict(values)
        version = values.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{where} has schema version {version}, this igpt reads {SCHEMA_VERSION}: "
                "use the igpt version that wrote it"
            )
        restored: Self = _restore(cls, values, where=where, path="")
        return restored


# Settings that act under another's value alone; of several values any will do.
_ACTS_UNDER: dict[str, dict[str, object]] = {
    "train.muon_lr": {"train.optimizer": "muon"},
    "train.mask_prob": {"train.objective": "bert"},
    "train.decay_fraction": {"train.schedule": "linear"},
    "data.palette": {"data.tokens": "palette"},
    "sgd_steps": {"solver": "sgd", "large": True},
    "layer_images": {"large": True},
}


def check_acts(config: Any, beside: Any) -> None:
    """Refuse a setting that was asked for and would do nothing.

    Args:
        config: of any kind.
        beside: what single settings were laid over: only what differs was asked for.

    Raises:
        UserError: one acts under another value of another setting only.
    """
    values, before = _flat(config), _flat(beside)
    for name, needs in _ACTS_UNDER.items():
        if values.get(name) == before.get(name) or any(values[n] == v for n, v in needs.items()):
            continue
        raise UserError(
            f"{_said(name, values[name])} would do nothing: it acts under "
            f"{' or '.join(_said(*need) for need in needs.items())} alone, so ask for that too or "
            "leave it out"
        )


def _said(name: str, value: object) -> str:
    """A setting as messages call it: of a run with its part, of a probe as the option."""
    if "." in name:
        return f"{name} {value}"
    return f"--{name.replace('_', '-')} {value}".removesuffix(" True")


def _flat(config: Any, above: str = "") -> dict[str, object]:
    """Every setting by its name with dots."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{above}{field.name}"
        found |= _flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


def overlaid(config: T, settings: Mapping[str, Any]) -> T:
    """A configuration with single settings in place of its own, as callers in Python give them.

    Args:
        config: to begin with.
        settings: by name; those of a part as a mapping, or with dots: `{"train.lr": 1e-3}`.

    Raises:
        UserError: one is unknown, or does not take such a value.
    """
    values = _listed(dataclasses.asdict(config))  # type: ignore[call-overload]
    for name, value in settings.items():
        _lay(values, name.split("."), value)
    restored: T = _restore(type(config), values, where="settings", path="")
    return restored


def _listed(value: Any) -> Any:
    """Tuples as lists, as from a file."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def _lay(values: dict[str, Any], names: list[str], value: Any) -> None:
    first, *rest = names
    below = values.get(first)
    if rest or (isinstance(value, Mapping) and isinstance(below, dict)):
        inner = {".".join(rest): value} if rest else value
        part = below if isinstance(below, dict) else values.setdefault(first, {})
        for name, item in inner.items():
            _lay(part, name.split("."), item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        values[first] = _listed(dataclasses.asdict(value))
    else:
        values[first] = _listed(value.item() if hasattr(value, "item") else value)


def _restore(kind: Any, value: Any, *, where: str, path: str) -> Any:
    """`value` from JSON as `kind`: a dataclass, or a field's type (lists become tuples)."""
    if dataclasses.is_dataclass(kind):
        return _restore_dataclass(kind, value, where=where, path=path)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and value in args:
        return value
    if origin in (typing.Union, types.UnionType):
        for arm in args:
            try:
                return _restore(arm, value, where=where, path=path)
            except UserError:
                continue
    if origin is tuple and isinstance(value, list):
        arm = args[0]
        return tuple(_restore(arm, item, where=where, path=path) for item in value)
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, str, bool, types.NoneType) and type(value) is kind:
        return value
    raise UserError(
        f"{where}: {path.rstrip('.')} is {value!r}, which is not what this setting takes"
    )


def _restore_dataclass(kind: Any, values: Any, *, where: str, path: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {path or 'the document'} must be an object of settings")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(hints)}"
            raise UserError(f"{where}: unknown key {path + key!r}: {hint}")
    for key in hints:
        if key not in values and path + key not in YOUNGER_KEYS:
            raise UserError(f"{where}: key {path + key!r} is missing: write the file anew")
    return kind(
        **{
            key: _restore(hint, values[key], where=where, path=f"{path}{key}.")
            for key, hint in hints.items()
            if key in values
        }
    )
