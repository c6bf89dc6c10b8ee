"""Fine-tuning: every weight learns to classify, the generative loss kept beside it (paper §2.3).

One forward pass gives both losses, so with BERT the classifier too sees masked images. The learning
rate is constant (paper §3.4); the weights kept are those of the best validation accuracy.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from igpt import compute, streams
from igpt.config import FinetuneConfig
from igpt.errors import UserError
from igpt.evaluate.classifier import Classifier, Encode, masks_for, predict, some_of
from igpt.images.augment import crop_and_flip
from igpt.model.gpt import GPT
from igpt.probe.features import pays_to_compile
from igpt.probe.protocol import LabelledImages
from igpt.tokens.batches import BatchStream
from igpt.train.objectives import loss_count, loss_sum
from igpt.train.optim import clip_gradients


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
class FinetuneResult:
    """The best of a run by validation accuracy, and that one's test accuracy."""

    lr: float
    step: int
    """At which validation accuracy was best."""
    valid_accuracy: float
    test_accuracy: float
    test_accuracy_se: float
    """Standard error of a share counted on n_test images."""
    n_train: int
    n_valid: int
    n_test: int
    curve: tuple[FinetunePoint, ...]


def finetune(
    network: GPT,
    train: LabelledImages,
    valid: LabelledImages | None,
    *,
    encode: Encode,
    n_classes: int,
    mask_prob: float,
    config: FinetuneConfig,
    progress: Callable[[int], None] | None = None,
) -> tuple[Classifier, tuple[FinetunePoint, ...]]:
    """Train a copy of the network to classify.

    Args:
        network: pre-trained, or freshly drawn for the baseline from scratch; it is not changed.
        train: to learn from.
        valid: to stop by; none: all steps are made and the last weights kept.
        encode: (n, S, S, 3) uint8 -> (n, T) int64.
        n_classes: C.
        mask_prob: BERT only, as in pre-training.
        config: how.
        progress: called with 1 after each step.

    Returns:
        The classifier with its best weights, and what was seen of it on validation.

    Raises:
        UserError: the loss is not finite.
    """
    classifier = Classifier(copy.deepcopy(network), n_classes, layer=config.layer).train()
    trainer = _trainer_of(classifier, config, mask_prob=mask_prob, n_images=len(train.labels))
    valid = valid and some_of(valid, config.valid_images)
    points: list[FinetunePoint] = []
    best = {name: value.clone() for name, value in classifier.state_dict().items()}
    losses: list[tuple[float, float | None]] = []
    for step, (tokens, labels) in enumerate(_batches(train, encode, config), start=1):
        losses.append(trainer.step(tokens, labels, step))
        if progress is not None:
            progress(1)
        if valid is None or (step % config.valid_every and step != config.total_steps):
            continue
        codes = predict(classifier, valid.images, encode=encode, mask_prob=mask_prob)
        points.append(_point(step, losses, float((codes == valid.labels).mean())))
        losses.clear()
        since_best = len(points) - 1 - points.index(_best(points))
        if since_best == 0:
            best = {name: value.clone() for name, value in classifier.state_dict().items()}
        if since_best >= config.patience:
            break
    if valid is not None:
        classifier.load_state_dict(best)
    return classifier.eval(), tuple(points)


def finetune_and_test(
    network: GPT,
    train: LabelledImages,
    valid: LabelledImages,
    test: LabelledImages,
    *,
    encode: Encode,
    n_classes: int,
    mask_prob: float,
    config: FinetuneConfig,
    rates: Sequence[float] = (),
    n_masks: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[Classifier, FinetuneResult]:
    """Fine-tune, with a search over learning rates if asked for, and look at test once.

    Args:
        network: to start from.
        train: to learn from.
        valid: to choose step and rate by.
        test: to report on.
        encode: (n, S, S, 3) uint8 -> (n, T) int64.
        n_classes: C.
        mask_prob: BERT only, as in pre-training.
        config: how.
        rates: tried in turn until validation accuracy falls (paper §3.4); none: `config.lr` only.
        n_masks: BERT only, masks an image whose answers vote on test.
        progress: called with 1 after each step.
    """

    def tune(lr: float) -> tuple[Classifier, tuple[FinetunePoint, ...]]:
        return finetune(
            network,
            train,
            valid,
            encode=encode,
            n_classes=n_classes,
            mask_prob=mask_prob,
            config=replace(config, lr=lr),
            progress=progress,
        )

    lr, classifier, points = _searched(tune, rates or (config.lr,))
    codes = predict(classifier, test.images, encode=encode, mask_prob=mask_prob, n_masks=n_masks)
    accuracy = float((codes == test.labels).mean())
    best = _best(points)
    return classifier, FinetuneResult(
        lr=lr,
        step=best.step,
        valid_accuracy=best.valid_accuracy,
        test_accuracy=accuracy,
        test_accuracy_se=math.sqrt(accuracy * (1 - accuracy) / len(test.labels)),
        n_train=len(train.labels),
        n_valid=len(valid.labels),
        n_test=len(test.labels),
        curve=points,
    )


def _searched(
    tune: Callable[[float], tuple[Classifier, tuple[FinetunePoint, ...]]], rates: Sequence[float]
) -> tuple[float, Classifier, tuple[FinetunePoint, ...]]:
    """The rate before the first one that does worse on validation, with what it led to."""
    lr = rates[0]
    classifier, points = tune(lr)
    for next_lr in rates[1:]:
        next_classifier, next_points = tune(next_lr)
        if _best(next_points).valid_accuracy < _best(points).valid_accuracy:
            break
        lr, classifier, points = next_lr, next_classifier, next_points
    return lr, classifier, points


def _trainer_of(
    classifier: Classifier, config: FinetuneConfig, *, mask_prob: float, n_images: int
) -> "_Trainer":
    """What takes the steps; the blocks are compiled where that pays."""
    network, device = classifier.network, classifier.head.weight.device
    n_tokens = config.total_steps * min(config.batch_size, n_images) * network.seq_len
    if pays_to_compile(n_tokens, device):
        for block in network.h:
            block.compile(dynamic=False)
    return _Trainer(
        classifier=classifier,
        optimizer=torch.optim.AdamW(
            classifier.parameters(), config.lr, betas=config.betas, weight_decay=0.0, fused=True
        ),
        config=config,
        mask_prob=mask_prob,
        dtype=compute.choose_dtype(config.precision, device),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trainer:
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    config: FinetuneConfig
    mask_prob: float
    dtype: torch.dtype

    def step(self, tokens: np.ndarray, labels: np.ndarray, step: int) -> tuple[float, float | None]:
        """One update on (B, T) tokens and (B,) labels: both mean losses, in nats."""
        classifier, config = self.classifier, self.config
        network = classifier.network
        device = classifier.head.weight.device
        batch = torch.from_numpy(tokens).to(device)
        codes = torch.from_numpy(labels).to(device)
        masked = masks_for(network, config.seed, step, range(len(batch)), self.mask_prob)
        count = max(1, loss_count(network.objective, batch, masked))
        class_nats, token_nats = 0.0, 0.0
        for start in range(0, len(batch), config.micro_batch):
            part = slice(start, start + config.micro_batch)
            part_masked = None if masked is None else masked[part]
            with compute.autocast(device, self.dtype):
                scores, logits = classifier(batch[part], part_masked, generate=config.joint)
            loss = F.cross_entropy(scores.float(), codes[part], reduction="sum") / len(batch)
            class_nats += float(loss.detach())
            if logits is not None:
                generative = loss_sum(logits, batch[part], part_masked) / count
                token_nats += float(generative.detach())
                loss = loss + generative
            loss.backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(class_nats + token_nats):
            raise UserError(
                f"the loss is not finite at step {step} of fine-tuning: lower finetune.lr "
                f"({config.lr:g})"
            )
        clip_gradients(classifier.parameters(), config.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return class_nats, token_nats if config.joint else None


def _batches(
    train: LabelledImages, encode: Encode, config: FinetuneConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(B, T) tokens and (B,) labels of each step, each image once an epoch."""
    rows = np.arange(len(train.labels))[:, None]
    size = min(config.batch_size, len(rows))
    order = BatchStream(rows, None, None, batch_size=size, seed=config.seed, name="finetune")
    for step in range(config.total_steps):
        chosen = np.sort(order.at(step).ids)  # sorted: images on disk are read in their order
        images = np.asarray(train.images[chosen])
        if config.augment:
            images = crop_and_flip(images, streams.stream(config.seed, "finetune-augment", step))
        yield encode(images), train.labels[chosen]


def _point(
    step: int, losses: Sequence[tuple[float, float | None]], accuracy: float
) -> FinetunePoint:
    class_nats = [class_nats for class_nats, _ in losses]
    token_nats = [nats for _, nats in losses if nats is not None]
    return FinetunePoint(
        step=step,
        class_nats=sum(class_nats) / len(class_nats),
        token_nats=sum(token_nats) / len(token_nats) if token_nats else None,
        valid_accuracy=accuracy,
    )


def _best(points: Sequence[FinetunePoint]) -> FinetunePoint:
    """The best validation accuracy, the earliest of equals."""
    return max(points, key=lambda point: point.valid_accuracy)
