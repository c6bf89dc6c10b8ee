"""Fine-tuning: every weight learns to classify, the generative loss kept beside it (paper §2.3).

It is a run like any other: `igpt.train` takes its steps, saves, resumes and shares them over ranks.
What is its own: one forward pass gives both losses, so with BERT the classifier too sees masked
images; the rate is constant (paper §3.4); it ends once validation accuracy has not risen for a
while, with the weights of the best look, whose checkpoint is kept; and the validation images can be
folded back and the chosen number of steps repeated on all images, as the paper does for its final
figures.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from igpt import compute
from igpt.config import DataConfig, FinetuneConfig, RunConfig, TrainConfig
from igpt.errors import UserError
from igpt.evaluation.classifier import Classifier, masks_for, predict, some_of
from igpt.model.gpt import GPT
from igpt.model.sizes import train_flops
from igpt.probing.features import pays_to_compile
from igpt.probing.protocol import LabelledImages
from igpt.progress import say, ticking
from igpt.tokens.batches import Batch, BatchStream, Source
from igpt.tokens.tokenizer import CroppedImages, Tokenizer
from igpt.train import checkpoint
from igpt.train.distributed import default_world
from igpt.train.log import Tracker, drop_metrics_after, tracking
from igpt.train.loop import run_steps, train_step
from igpt.train.memory import saying_what_to_lower
from igpt.train.objectives import loss_count, loss_sum
from igpt.train.optim import Optimizer
from igpt.train.parallel import copied, shard, sharing
from igpt.train.saving import restore, say_what_differs
from igpt.train.trainer import Trainer, compile_network, exactness_facts

# Masks of an image whose answers vote where a BERT model is judged on test.
BERT_MASKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunePoint:
    """One look at the validation split."""

    step: int
    class_nats: float
    """Classification loss on the training batches since the last look."""
    token_nats: float | None
    """Generative loss on the same; none where it was not trained on."""
    valid_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is fine-tuned, and on what: the same for every rate and seed."""

    network: GPT
    """To start from, on the CPU; it is copied, not changed."""
    tokenizer: Tokenizer
    train: LabelledImages
    valid: LabelledImages | None = None
    """To choose the step by; none: all steps are made and the last weights kept."""
    folded: LabelledImages | None = None
    """Both together, for the final figure."""
    test: LabelledImages | None = None
    n_classes: int
    mask_prob: float
    """BERT only, as in pre-training."""
    crops: Mapping[bool, CroppedImages] = field(default_factory=dict)
    """Under augment imagenet, what is cropped anew: of the training images, and of all (True)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What one run came to."""

    lr: float
    seed: int
    step: int
    """Updates behind the weights: those of the best look, else all."""
    valid_accuracy: float | None
    """Of the best look; none where nothing validated."""
    curve: tuple[FinetunePoint, ...]


def settings_of(task: Task, config: FinetuneConfig, *, n_images: int) -> RunConfig:
    """The settings of fine-tuning as those of a run, without any `auto`.

    Args:
        task: what is fine-tuned.
        config: how.
        n_images: to learn from.
    """
    device, network = compute.default_device(), task.network
    batch_size = min(config.batch_size, n_images)
    pays = pays_to_compile(config.total_steps * batch_size * network.seq_len, device)
    compiles = config.compile == "blocks" or (config.compile == "auto" and pays)
    dtype = compute.choose_dtype(config.precision, device)
    augment = "cifar" if config.augment == "auto" else config.augment
    return RunConfig(
        seed=config.seed,
        data=DataConfig(image_size=np.shape(task.train.images[:1])[1], augment=augment),
        model=network.config,
        train=TrainConfig(
            objective=network.objective,
            mask_prob=task.mask_prob,
            total_steps=config.total_steps,
            batch_size=batch_size,
            micro_batch=min(config.micro_batch, batch_size),
            lr=config.lr,
            betas=config.betas,
            grad_clip_norm=config.grad_clip_norm,
            warmup_steps=0,
            schedule="constant",
            precision="bf16" if dtype == torch.bfloat16 else "fp32",
            compile="blocks" if compiles else "off",
            checkpoint_activations=config.checkpoint_activations,
            parallel=config.parallel,
            timeout_s=config.timeout_s,
            log_every=config.log_every,
            valid_every=config.valid_every,
            checkpoint_every=config.checkpoint_every,
            keep_last=1,
        ),
    )


def make_trainer(
    task: Task, config: FinetuneConfig, settings: RunConfig, folder: Path, *, folds: bool
) -> Trainer:
    """What takes the steps, at step 0.

    Args:
        task: what is fine-tuned.
        config: how.
        settings: the same as `settings_of` gives them.
        folder: of the run.
        folds: whether it learns from the validation images, too; then nothing validates.

    Raises:
        UserError: there are more ranks than images, or the layer cannot be read so.
    """
    world, device, train = default_world(), compute.default_device(), settings.train
    if world.size > train.batch_size:
        raise UserError(
            f"finetune.batch_size {train.batch_size} is less than the {world.size} processes of "
            "torchrun: each needs an image, so start fewer or raise it"
        )
    classifier = Classifier(copy.deepcopy(task.network), task.n_classes, layer=config.layer)
    classifier.learns_only(joint=config.joint)
    classifier.network.checkpoint_activations = train.checkpoint_activations
    sharded = world.size > 1 and train.parallel == "fsdp"
    if sharded and classifier.layer != task.network.config.n_layer:
        raise UserError(
            f"finetune.layer {classifier.layer} is read between blocks, which finetune.parallel "
            "fsdp cuts up: drop it, or choose --finetune.parallel ddp"
        )
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    # It has blocks as a network has.
    summed = compile_network(classifier) if train.compile == "blocks" else loss_sum  # type: ignore[arg-type]
    if sharded:
        shard(classifier, dtype)  # type: ignore[arg-type]
    classifier.to(device).train()
    network = task.network
    return Trainer(
        config=settings,
        folder=folder,
        network=classifier,
        forward=copied(classifier, device) if world.size > 1 and not sharded else classifier,
        loss_sum=summed,
        optimizer=Optimizer(classifier, train),
        stream=_stream(task, settings, folds=folds),
        valid_tokens=np.empty((0, network.seq_len), np.int64),
        device=device,
        dtype=dtype,
        warmup_steps=0,
        world=world,
        flops_per_image=train_flops(network.config, network.shape),
        tokens_per_image=network.seq_len,
        loss_of=_Losses(joint=config.joint),
        validate=_Looks(task, config, folds=folds),
        memory={"since": [0, 0.0, 0.0], "curve": []},
        facts=exactness_facts(settings, device, dtype, world),
        options="finetune",
    )


def _stream(task: Task, settings: RunConfig, *, folds: bool) -> BatchStream:
    """The batches (B, T) of tokens with their labels, each image once an epoch."""
    split = task.folded if folds else task.train
    assert split is not None
    source = Source(
        images=task.crops.get(folds, split.images),
        labels=np.asarray(split.labels, np.int64),
        augment=settings.data.augment,
        name="finetune",
    )
    batch_size = settings.train.batch_size
    return BatchStream.mixed([source], task.tokenizer, batch_size=batch_size, seed=settings.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Losses:
    """Adds a batch's gradient; gives the sum of both mean losses over all ranks, () in nats."""

    joint: bool

    def __call__(self, trainer: Trainer, batch: Batch) -> Tensor:
        train, device, world = trainer.config.train, trainer.device, trainer.world
        classifier = trainer.network
        assert isinstance(classifier, Classifier) and batch.labels is not None
        slots = world.slots(train.batch_size)
        tokens = torch.from_numpy(batch.tokens).to(device)  # (B, T)
        labels = torch.from_numpy(batch.labels).to(device)  # (B,)
        masked = masks_for(
            classifier.network,
            trainer.config.seed,
            batch.step,
            range(slots.start, slots.stop),
            train.mask_prob,
        )
        local = loss_count(train.objective, tokens, masked)
        count = world.count(local, device)
        sums = torch.zeros(2, device=device)  # class, tokens
        assert train.micro_batch != "auto"
        parts = world.parts(train.batch_size, train.micro_batch)
        for part in parts:
            part_masked = None if masked is None else masked[part]
            with sharing(trainer.forward, due=part is parts[-1]):
                with compute.autocast(device, trainer.dtype):
                    scores, logits = trainer.forward(tokens[part], part_masked, generate=self.joint)
                nats = F.cross_entropy(scores.float(), labels[part], reduction="sum")
                both = [nats / train.batch_size]
                if logits is not None:
                    both.append(trainer.loss_sum(logits, tokens[part], part_masked) / count)
                # Gradients are averaged over ranks; the counts are over all ranks.
                (torch.stack(both).sum() * world.size).backward()
            for place, loss in enumerate(both):
                sums[place] += loss.detach()
        class_nats, token_nats = world.sum(sums).tolist()
        n, class_sum, token_sum = trainer.memory["since"]
        trainer.memory["since"] = [n + 1, class_sum + class_nats, token_sum + token_nats]
        return sums.sum()


class _Looks:
    """Looks at validation accuracy, keeps the best look's checkpoint, and ends the run in time.

    Args:
        task: what is fine-tuned.
        config: how.
        folds: nothing validates; only the losses are told.
    """

    def __init__(self, task: Task, config: FinetuneConfig, *, folds: bool) -> None:
        self._task, self._config = task, config
        self._valid = None if folds or not task.valid else some_of(task.valid, config.valid_images)

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        n, class_sum, token_sum = trainer.memory["since"]
        point: dict[str, Any] = {
            "step": trainer.step,
            "class_nats": class_sum / max(1, n),
            "token_nats": token_sum / max(1, n) if self._config.joint else None,
        }
        trainer.memory["since"] = [0, 0.0, 0.0]
        if self._valid is not None:
            task = self._task
            point["valid_accuracy"] = accuracy(trainer, self._valid, task, n_masks=1)
            trainer.memory["curve"].append(point)
            best = _best(_curve(trainer))
            trainer.keeps = frozenset([best.step])
            looks = [held["step"] for held in trainer.memory["curve"]]
            trainer.is_done = len(looks) - 1 - looks.index(best.step) >= self._config.patience
        return {k: v for k, v in point.items() if k != "step" and v is not None}


def accuracy(trainer: Trainer, split: LabelledImages, task: Task, *, n_masks: int) -> float:
    """The share of a split that the classifier names right, all ranks sharing its images."""
    assert isinstance(trainer.network, Classifier)
    codes = predict(
        trainer.network,
        split.images,
        encode=task.tokenizer.encode,
        mask_prob=task.mask_prob,
        n_masks=n_masks,
        world=trainer.world,
    )
    return float((codes == split.labels).mean())


def _curve(trainer: Trainer) -> tuple[FinetunePoint, ...]:
    return tuple(FinetunePoint(**point) for point in trainer.memory["curve"])


def _best(points: Sequence[FinetunePoint]) -> FinetunePoint:
    """The best validation accuracy, the earliest of equals."""
    return max(points, key=lambda point: point.valid_accuracy)


def tune(
    task: Task,
    config: FinetuneConfig,
    settings: RunConfig,
    folder: Path,
    *,
    folds: bool = False,
    trackers: Sequence[Tracker] = (),
) -> tuple[Trainer, Tuned]:
    """Make a run's steps, from its newest checkpoint where it has one, and take its best weights.

    Args:
        task: what is fine-tuned.
        config: how.
        settings: the same as `settings_of` gives them.
        folder: of the run; all that is in it is the run's.
        folds: learn from the validation images, too.
        trackers: are told every figure besides the folder.

    Raises:
        Diverged: the loss is not finite.
        Interrupted: a signal stopped it after a checkpoint.
        UserError: a file cannot be written, or no checkpoint is intact.
    """
    with saying_what_to_lower(settings):
        trainer = make_trainer(task, config, settings, folder, folds=folds)
        _go_back(trainer, config)
        with ticking("fine-tuning") as ticker, tracking(trainer) as own:
            run_steps(trainer, ticker, trackers=[*own, *trackers])
    curve = _curve(trainer)
    if not curve:
        tuned = Tuned(
            lr=config.lr, seed=config.seed, step=trainer.step, valid_accuracy=None, curve=()
        )
        return trainer, tuned
    best = _best(curve)
    if best.step != trainer.step:
        restore(trainer, checkpoint.folder_of(folder, best.step))
    tuned = Tuned(
        lr=config.lr,
        seed=config.seed,
        step=best.step,
        valid_accuracy=best.valid_accuracy,
        curve=curve,
    )
    return trainer, tuned


def _go_back(trainer: Trainer, config: FinetuneConfig) -> None:
    """Go back to the newest intact checkpoint, if there is any."""
    world, folder = trainer.world, trainer.folder
    step, damaged = world.told(lambda: _newest(folder))
    for line in damaged:
        say(f"warning: {line}")
    if step:
        state = restore(trainer, checkpoint.folder_of(folder, step))
        say_what_differs(trainer, state)
        if curve := _curve(trainer):
            best = _best(curve)
            trainer.keeps = frozenset([best.step])
            since_best = len(curve) - 1 - [p.step for p in curve].index(best.step)
            trainer.is_done = since_best >= config.patience
    if world.is_first:
        drop_metrics_after(folder, trainer.step, owes_validation=trainer.owes_validation)


def _newest(folder: Path) -> tuple[int, list[str]]:
    """The step of a run's newest intact checkpoint, 0 without any, and a line for each bad one.

    Raises:
        UserError: there are checkpoints and none is intact.
    """
    path, damaged = checkpoint.newest(folder)
    if path is None and damaged:
        raise UserError(
            f"{folder} has {len(damaged)} checkpoints and none is intact ({damaged[0]}): "
            "restore one of them, or choose another folder"
        )
    return (0 if path is None else checkpoint.step_of(path)), damaged


def tune_in_memory(task: Task, config: FinetuneConfig) -> Classifier:
    """All steps at once, nothing written and nothing validated: for many small trainings.

    Raises:
        Diverged: the loss is not finite.
    """
    settings = settings_of(task, config, n_images=len(task.train.labels))
    trainer = make_trainer(task, config, settings, Path("nowhere"), folds=False)
    for batch in trainer.stream.prefetch(0, settings.train.total_steps):
        train_step(trainer, batch)
    assert isinstance(trainer.network, Classifier)
    return trainer.network.eval()
