"""A fine-tuning from its beginning to its end, in a folder: rates, seeds, validation folded back.

The folder is a run's: `config.json`, `metrics.jsonl`, `checkpoints/`, and at the end `result.json`
and `model/`. Rates that are searched are runs of their own in `lr-*/`, further seeds in `seed-*/`,
and the repetition on all images in `folded/`. Where no folder is named, one is kept in the cache by
what was asked for, so that the same command goes on where it was stopped.
"""

import copy
import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import igpt
from igpt import compute
from igpt.config import FinetuneConfig, overlaid, real, whole
from igpt.errors import Diverged, Interrupted, UserError
from igpt.evaluation.classifier import Classifier, from_scratch
from igpt.evaluation.finetune import (
    BERT_MASKS,
    FinetunePoint,
    Task,
    Tuned,
    accuracy,
    settings_of,
    tune,
)
from igpt.files import FolderLock, cache_folder, read_json, write_json
from igpt.images.live import open_live
from igpt.images.packed.read import PackedSet
from igpt.images.packed.seen import fingerprints, united
from igpt.images.splits import SPLITS
from igpt.jobs.opening import open_labelled, opened
from igpt.loading import Ended
from igpt.pixelmodel import PixelModel
from igpt.probing.exact import checked_labels
from igpt.probing.features import pays_to_compile
from igpt.probing.protocol import LabelledImages
from igpt.progress import quietly, say
from igpt.published import name_of
from igpt.recipes import RECIPES
from igpt.system import as_text, at_home
from igpt.train.checkpoint import all_steps
from igpt.train.distributed import World, default_world, joined
from igpt.train.folder import check_new, is_run
from igpt.train.log import Told, Tracker
from igpt.train.parallel import is_sharded, whole_weights
from igpt.train.saving import check_room
from igpt.train.standing import versions
from igpt.train.trainer import Trainer
from igpt.trained import resampled

TABLE = "search.json"
# What `--resume` may change, for a fine-tuning to end sooner or later.
ENDS = ("finetune.total_steps", "finetune.patience")
RESULT = "result.json"
SCHEMA_VERSION = 1
# A recipe this long is one of the paper's own runs.
PAPERS_STEPS = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneResult:
    """The best of a run by validation accuracy, and that one's test accuracy."""

    lr: float
    step: int
    """At which validation accuracy was best."""
    valid_accuracy: float
    test_accuracy: float
    test_accuracy_se: float
    """Standard error of a share counted on n_test images."""
    folded: bool
    """Test accuracy is that of as many steps on training and validation images together."""
    n_train: int
    n_valid: int
    n_test: int
    curve: tuple[FinetunePoint, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuned(Ended):
    """A fine-tuning that was carried to its end."""

    result: dict[str, Any]
    """The first seed's `FinetuneResult` as plain values; `test_accuracy` is the mean over seeds,
    `test_accuracies` each one's, `test_accuracy_sd` their standard deviation."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """All that decides what a fine-tuning is."""

    config: FinetuneConfig
    rates: tuple[float, ...] = ()
    """Tried in turn until validation accuracy falls (paper §3.4); none: the configured one."""
    scratch: bool = False
    """Start from fresh weights: the supervised baseline."""
    seeds: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", whole(self.seeds, "--seeds"))
        object.__setattr__(self, "rates", tuple(real(lr, "--rates") for lr in self.rates))
        if self.seeds < 1:
            raise UserError(f"--seeds is {self.seeds}: it must be at least 1")
        for lr in self.rates:
            if lr <= 0:
                raise UserError(f"--rates has {lr}: each must be a finite number above 0")


def finetune(
    model: str | Path | PixelModel,
    data: str | Path,
    folder: str | Path | None = None,
    *,
    rates: Sequence[float] | None = None,
    scratch: bool | None = None,
    seeds: int | None = None,
    image_size: int | None = None,
    max_images: int | None = None,
    workers: int = 0,
    resume: bool = False,
    progress: Callable[[Mapping[str, Any]], object] | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Finetuned:
    """Train all weights to classify (paper §2.3), as `igpt finetune` does.

    Nothing is printed unless asked for; signals are as in `igpt.pretrain`.

    Args:
        model: what `igpt.load` takes, or a model; it is not changed.
        data: labelled images: a name, a packed set, a folder with one folder a class.
        folder: of the run; none: one in the cache, with which the same call goes on.
        rates: learning rates to try in turn until validation accuracy falls; none: one.
        scratch: start from fresh weights; none: do not.
        seeds: fine-tune so many times; none: once.
        image_size: side in pixels; none: the model's.
        max_images: of each split, at random; none: all.
        workers: processes that crop images anew; 0: one a core.
        resume: go on with the run in `folder`, by its settings where none are given.
        progress: is called with each line of metrics.jsonl as it is written.
        verbose: say on standard error what the command says.
        settings: of `FinetuneConfig`, by name.

    Raises:
        UserError: something does not allow it, before anything is written.
        Interrupted: a signal stopped it after a checkpoint.
    """
    run = None if folder is None else at_home(folder)
    start, size = starting(run, resume=resume)
    given: dict[str, Any] = {"rates": rates, "scratch": scratch, "seeds": seeds}
    asked = dataclasses.replace(
        start,
        config=overlaid(start.config, settings),
        **{name: value for name, value in given.items() if value is not None},
    )
    place, loaded = opened(model, device="cpu")
    with quietly(not verbose), joined() as world:
        with world.first_alone():
            packed = open_labelled(
                loaded, as_text(data), image_size=image_size or size, max_images=max_images
            )
        return finetune_model(
            loaded,
            packed,
            run,
            asked,
            place=place,
            command="igpt.finetune",
            resume=resume,
            workers=workers,
            trackers=[] if progress is None else [Told(progress)],
        )


def finetune_model(
    model: PixelModel,
    data: PackedSet,
    folder: Path | None,
    asked: Asked,
    *,
    place: str,
    command: str,
    resume: bool = False,
    workers: int = 0,
    trackers: Sequence[Tracker] = (),
) -> Finetuned:
    """Fine-tune copies of a model, with all ranks where there are several, and test once.

    Args:
        model: to start from.
        data: labelled images at the size to train at.
        folder: of the run; new, or at `resume` a run's; none: one in the cache.
        asked: what is to be done.
        place: what the model was called.
        command: that the folder records.
        resume: go on with the run that is there.
        workers: processes that crop anew under augment imagenet; 0: one a core.
        trackers: are told every figure besides the folder.

    Raises:
        UserError: the folder, the data or a setting does not allow it, before anything is written.
        Interrupted: a signal stopped it after a checkpoint.
    """
    world = default_world()
    facts = {
        "model": place,
        "model_digest": model.digest(),
        "data": data.source,
        "data_digest": data.digest,
        "images": [data.n(split) for split in SPLITS],
        "image_size": data.image_size,
    }
    own_folder = folder is None
    folder = folder or _folder_in_cache(asked, facts)
    with ExitStack() as held:
        if is_run(folder) and (resume or own_folder):
            asked = world.told(lambda: _taken_up(folder, asked, facts))
        else:
            world.told(lambda: check_new(folder))
            if resume:
                say(f"{folder} holds no run yet: a new one starts")
            asked = world.told(lambda: _resolved(model, data, asked))
        if (done := world.told(lambda: _finished(folder))) is not None:
            say(f"{folder} is finished: its result stands in {RESULT}")
            return Finetuned(folder=folder, result=done)
        n_parameters = sum(weight.numel() for weight in model.network.parameters())
        world.told(lambda: check_room(folder, n_parameters, n_kept=1))
        task = _task(model, data, asked, held, workers=workers)
        with world.first_alone():
            if world.is_first:
                held.enter_context(FolderLock(folder))
                _record(folder, asked, facts, command)
        if own_folder:
            say(f"the run is kept in {folder}; the same command goes on with it")
        try:
            result = _all_seeds(model, data, task, folder, asked, world, trackers)
        except Interrupted as stop:
            if not own_folder:
                raise
            raise Interrupted(
                f"{stop}".replace("with --resume", "with the same command"), stop.signal_number
            ) from stop
        with world.first_alone():
            if world.is_first:
                write_json(folder / RESULT, result)
    return Finetuned(folder=folder, result=result)


# What is asked for.


def _resolved(model: PixelModel, data: PackedSet, asked: Asked) -> Asked:
    """What is asked for without any `auto`, so that a resumed run computes the same."""
    config, network, device = asked.config, model.network, compute.default_device()
    if config.joint:
        network.check_predicts()
    Classifier(network, 2, layer=config.layer)  # refuses a layer that is not there
    trained = model.facts.trained
    theirs = RECIPES.get(trained.get("recipe") or "")
    cropped = trained.get("augment", theirs.data.augment if theirs else "none") == "imagenet"
    folds = theirs is not None and theirs.train.total_steps >= PAPERS_STEPS
    n_tokens = config.total_steps * config.batch_size * data.image_size**2
    chosen: dict[str, Any] = {
        "augment": "imagenet" if cropped and data.manifest.get("originals") else "cifar",
        "fold_validation": "on" if folds else "off",
        "compile": "blocks" if pays_to_compile(n_tokens, device) else "off",
    }
    chosen = {name: value for name, value in chosen.items() if getattr(config, name) == "auto"}
    bf16 = compute.choose_dtype(config.precision, device) == torch.bfloat16
    chosen["precision"] = "bf16" if bf16 else "fp32"
    return dataclasses.replace(asked, config=dataclasses.replace(config, **chosen))


def _folder_in_cache(asked: Asked, facts: dict[str, Any]) -> Path:
    text = json.dumps([dataclasses.asdict(asked), facts, igpt.__version__], sort_keys=True)
    return cache_folder() / "finetuned" / hashlib.sha256(text.encode()).hexdigest()[:16]


# The run's folder.


def read_finetuning(folder: Path) -> tuple[Asked, dict[str, Any]]:
    """What a fine-tuning's folder says was asked for, and its facts.

    Raises:
        UserError: it holds none.
    """
    path = folder / "config.json"
    document = read_json(path)
    if not isinstance(document, dict) or "finetune" not in document:
        raise UserError(f"{folder} holds no fine-tuning: choose another folder")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {document.get('schema_version')}, this igpt reads "
            f"{SCHEMA_VERSION}: use the igpt version that wrote it"
        )
    config = FinetuneConfig.from_dict(document["finetune"], where=str(path))
    asked = Asked(
        config=config,
        rates=tuple(document["rates"]),
        scratch=document["scratch"],
        seeds=document["seeds"],
    )
    return asked, document["facts"]


def starting(folder: Path | None, *, resume: bool) -> tuple[Asked, int | None]:
    """What single options are laid over: at `resume` what the run in the folder was asked, and its
    image size; else the defaults, and the model's own size.

    Raises:
        UserError: the run cannot be read, or is none of fine-tuning.
    """
    if folder is None or not resume or not is_run(folder):
        return Asked(config=FinetuneConfig()), None
    asked, facts = read_finetuning(folder)
    return asked, facts["image_size"]


def _taken_up(folder: Path, asked: Asked, facts: dict[str, Any]) -> Asked:
    """What the run in a folder goes on with: its settings, and the end that is asked for.

    Raises:
        UserError: it holds no fine-tuning, or one of something else, or by other settings.
    """
    stored, before = read_finetuning(folder)
    for key in ("model_digest", "data_digest", "images", "image_size"):
        if before[key] != facts[key]:
            name = key.partition("_")[0]
            raise UserError(
                f"{folder} was started with another {name} ({before.get(name, before[key])}): "
                "give the same, or choose another folder"
            )
    old = _flat(stored)
    # What was `auto` is stored as what it came to.
    changed = {key: value for key, value in _flat(asked).items() if value not in ("auto", old[key])}
    # The rate is constant: where a run of one rate and seed ends decides nothing before.
    may_move = ENDS if not stored.rates and stored.seeds == 1 else ()
    for key, value in changed.items():
        if key not in may_move:
            raise UserError(
                f"--resume cannot change {key} {old[key]} -> {value}: drop it, or choose another "
                "folder"
            )
    if changed and _finished(folder):
        raise UserError(f"{folder} is finished, its end cannot move: choose another folder")
    moved = {key.removeprefix("finetune."): value for key, value in changed.items()}
    reached = max((step for step, _ in all_steps(folder)), default=0)
    if moved.get("total_steps", reached) < reached:
        raise UserError(
            f"{folder} is at step {reached} already: --finetune.total-steps {reached} ends it there"
        )
    return dataclasses.replace(stored, config=dataclasses.replace(stored.config, **moved))


def _flat(asked: Asked) -> dict[str, Any]:
    own = dataclasses.asdict(asked)
    config = own.pop("config")
    return {**{f"finetune.{key}": value for key, value in config.items()}, **own}


def _record(folder: Path, asked: Asked, facts: dict[str, Any], command: str) -> None:
    """Write config.json; a resumed run's gets one more command."""
    path = folder / "config.json"
    commands = [command]
    if path.is_file():
        before = read_json(path)["facts"]
        commands, facts = [*before["commands"], command], before
    document = {
        "schema_version": SCHEMA_VERSION,
        "finetune": dataclasses.asdict(asked.config),
        "rates": list(asked.rates),
        "scratch": asked.scratch,
        "seeds": asked.seeds,
        "facts": {**versions(), **facts, "commands": commands},
    }
    write_json(path, document)


def _finished(folder: Path) -> dict[str, Any] | None:
    """The result of a fine-tuning that is over."""
    path = folder / RESULT
    if not (path.is_file() and (folder / "model" / "config.json").is_file()):
        return None
    result: dict[str, Any] = read_json(path)
    return result


# The work.


def _task(
    model: PixelModel, data: PackedSet, asked: Asked, held: ExitStack, *, workers: int
) -> Task:
    """What every rate and seed starts from; originals stay open as long as `held`."""
    labels = checked_labels(data)
    assert data.classes is not None  # else there were no labels
    train, valid, test = (LabelledImages(data.images(split), labels[split]) for split in SPLITS)
    rows = {False: data.rows("train")}
    folded = None
    if asked.config.fold_validation == "on":
        rows[True] = np.concatenate([data.rows("train"), data.rows("valid")])
        both = np.concatenate([labels["train"], labels["valid"]])
        folded = LabelledImages(data.images_at(rows[True]), both)
    crops = {}
    if asked.config.augment == "imagenet":
        crops = {
            folds: held.enter_context(open_live(data, own, workers=workers))
            for folds, own in rows.items()
        }
    network = copy.deepcopy(model.network).cpu()
    if data.image_size != model.image_size:
        network = resampled(network, image_size=model.image_size, new_image_size=data.image_size)
    return Task(
        network=network,
        tokenizer=model.tokenizer,
        train=train,
        valid=valid,
        folded=folded,
        test=test,
        n_classes=len(data.classes),
        mask_prob=model.facts.mask_prob,
        crops=crops,
    )


def _all_seeds(
    model: PixelModel,
    data: PackedSet,
    task: Task,
    folder: Path,
    asked: Asked,
    world: World,
    trackers: Sequence[Tracker],
) -> dict[str, Any]:
    results: list[FinetuneResult] = []
    for number in range(asked.seeds):
        config = dataclasses.replace(asked.config, seed=asked.config.seed + number)
        own = task
        if asked.scratch:
            own = dataclasses.replace(task, network=from_scratch(task.network, seed=config.seed))
        place = folder if number == 0 else folder / f"seed-{config.seed}"
        if number == 0 and asked.rates:
            trainer, tuned = _searched(own, config, asked.rates, place, world, trackers)
        else:
            if results:
                config = dataclasses.replace(config, lr=results[0].lr)
            trainer, tuned = _tuned(own, config, place, trackers=trackers)
        if asked.config.fold_validation == "on":
            config = dataclasses.replace(config, lr=tuned.lr, total_steps=tuned.step)
            trainer, _ = _tuned(own, config, place / "folded", folds=True, trackers=trackers)
        results.append(_tested(own, trainer, tuned, folded=own.folded is not None))
        if number == 0:
            _export(model, data, own, trainer, folder, scratch=asked.scratch)
    accuracies = [result.test_accuracy for result in results]
    return {
        "joint": asked.config.joint,
        "layer": asked.config.layer,
        "scratch": asked.scratch,
        "image_size": data.image_size,
        "objective": task.network.objective,
        **dataclasses.asdict(results[0]),
        "test_accuracy": statistics.mean(accuracies),
        "test_accuracies": accuracies,
        "test_accuracy_sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    }


def _tuned(
    task: Task,
    config: FinetuneConfig,
    folder: Path,
    *,
    folds: bool = False,
    trackers: Sequence[Tracker] = (),
) -> tuple[Trainer, Tuned]:
    split = task.folded if folds else task.train
    assert split is not None
    settings = settings_of(task, config, n_images=len(split.labels))
    return tune(task, config, settings, folder, folds=folds, trackers=trackers)


def _searched(
    task: Task,
    config: FinetuneConfig,
    rates: Sequence[float],
    folder: Path,
    world: World,
    trackers: Sequence[Tracker],
) -> tuple[Trainer, Tuned]:
    """The rate before the first one that does worse on validation, with what it led to.

    The table says what is searched from before the first rate on; a rate that diverges is passed
    over, and takes nothing else with it.
    """
    table = world.told(lambda: _table(folder, rates))
    best: dict[str, Any] | None = None
    for place, lr in enumerate(rates):
        if place == len(table["trials"]):
            found = _tried(task, dataclasses.replace(config, lr=lr), folder, trackers)
            table["trials"].append(found)
            if world.is_first:
                write_json(folder / TABLE, table)
        trial = table["trials"][place]
        if trial["valid_accuracy"] is None:
            continue
        if best and trial["valid_accuracy"] < best["valid_accuracy"]:
            break
        best = trial
    if best is None:
        raise UserError(
            f"every learning rate in {folder} diverged: try lower ones in another folder"
        )
    # Its steps are made: its weights are put back.
    own = dataclasses.replace(config, lr=best["lr"])
    return _tuned(task, own, folder / f"lr-{best['lr']:g}")


def _table(folder: Path, rates: Sequence[float]) -> dict[str, Any]:
    path = folder / TABLE
    if path.is_file():
        held: dict[str, Any] = read_json(path)
        return held
    table = {"rates": list(rates), "trials": []}
    write_json(path, table)
    return table


def _tried(
    task: Task, config: FinetuneConfig, folder: Path, trackers: Sequence[Tracker]
) -> dict[str, Any]:
    """One rate of a search; none where the loss was no longer finite."""
    say(f"== learning rate {config.lr:g}")
    name = f"lr-{config.lr:g}"
    try:
        _, tuned = _tuned(task, config, folder / name, trackers=trackers)
    except Diverged as error:
        say(f"learning rate {config.lr:g} diverged: {error}")
        return {"lr": config.lr, "valid_accuracy": None, "step": None, "run": name}
    return {
        "lr": config.lr,
        "valid_accuracy": tuned.valid_accuracy,
        "step": tuned.step,
        "run": name,
    }


def _tested(task: Task, trainer: Trainer, tuned: Tuned, *, folded: bool) -> FinetuneResult:
    """The result, after the one look at test."""
    assert task.test is not None and task.valid is not None and tuned.valid_accuracy is not None
    share = accuracy(trainer, task.test, task, n_masks=BERT_MASKS)
    n_test = len(task.test.labels)
    return FinetuneResult(
        lr=tuned.lr,
        step=tuned.step,
        valid_accuracy=tuned.valid_accuracy,
        test_accuracy=share,
        test_accuracy_se=math.sqrt(share * (1 - share) / n_test),
        folded=folded,
        n_train=len(task.train.labels),
        n_valid=len(task.valid.labels),
        n_test=n_test,
        curve=tuned.curve,
    )


def _seen(model: PixelModel, data: PackedSet, task: Task, scratch: bool) -> np.ndarray | None:
    """What the fine-tuned model has seen: these images, and those of pre-training of their size."""
    before = None if scratch or data.image_size != model.image_size else model.seen
    splits = SPLITS[:1] if task.folded is None else SPLITS[:2]
    return united(before, *(fingerprints(data.images(split)) for split in splits))


def _export(
    model: PixelModel,
    data: PackedSet,
    task: Task,
    trainer: Trainer,
    folder: Path,
    *,
    scratch: bool,
) -> None:
    """Write the fine-tuned weights with their class head as `model/`; all ranks must call this."""
    classifier, world = trainer.network, trainer.world
    assert isinstance(classifier, Classifier)
    weights = (
        whole_weights(classifier, world) if is_sharded(classifier) else classifier.state_dict()
    )
    with world.first_alone():
        if not world.is_first:
            return
        network = copy.deepcopy(task.network)
        inner = "network."
        network.load_state_dict(
            {k.removeprefix(inner): v for k, v in weights.items() if k.startswith(inner)}
        )
        assert data.classes is not None
        trained = {} if scratch else model.facts.trained
        own = {"finetuned": data.source, "finetuned_digest": data.digest}
        facts = dataclasses.replace(
            model.facts, image_size=data.image_size, trained={**trained, **own}
        )
        found = PixelModel(network, model.tokenizer, facts, seen=_seen(model, data, task, scratch))
        protocol = f"all weights fine-tuned on {name_of(data.source)} (paper §2.3)"
        found.take_class_head(
            weights["head.weight"].detach().cpu().numpy(),
            data.classes,
            layer=classifier.layer,
            protocol=protocol,
        )
        found.save(folder / "model")
