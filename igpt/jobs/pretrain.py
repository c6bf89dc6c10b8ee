"""A run from its beginning to its end: the one place where all its parts meet.

`train_run` reads top to bottom: configuration, weights to start from, data, tokeniser, trainer,
checkpoint to go on from, steps, export. What is unusual in it: a run that begins with other weights
saves them as its step 0, so that resuming is the same whether or not a step was made; and nothing
but RUN decides how a resumed run goes on.
"""

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from igpt.config import RunConfig, check_acts, overlaid
from igpt.errors import UserError
from igpt.files import FolderLock
from igpt.images.packed.read import PackedSet
from igpt.images.packed.seen import MOST, fingerprints, n_seen, united, write_seen
from igpt.jobs.looks import check_looks, looks_of
from igpt.loading import Ended, export_run, load
from igpt.manifest import fault_of
from igpt.model.gpt import weights_digest
from igpt.model.sizes import Shape, parameter_count
from igpt.pixelmodel import PixelModel
from igpt.progress import quietly, say, ticking
from igpt.published import name_of
from igpt.system import as_text, at_home
from igpt.tokens.palette import Palette
from igpt.tokens.tokenizer import RawTokens, Tokenizer
from igpt.train import checkpoint
from igpt.train.distributed import World, default_world, joined
from igpt.train.feeding import (
    Ingredient,
    Mixed,
    epoch_images,
    fitted_palette,
    open_sets,
    originals,
    parse_mix,
    training_stream,
)
from igpt.train.folder import (
    check_new,
    exported_step,
    is_run,
    read_metrics,
    read_run,
    starting_config,
    write_run,
)
from igpt.train.log import Told, Tracker, check_trackers, drop_metrics_after, tracking
from igpt.train.loop import run_steps
from igpt.train.memory import saying_what_to_lower
from igpt.train.saving import check_room, clear_parts, restore, save, say_what_differs, set_aside
from igpt.train.settings import ends_anew, last_common_step, resolve, taken_up
from igpt.train.standing import Standing, standing, standing_at, tokenizer_of, versions
from igpt.train.trainer import Look, Trainer, make_trainer
from igpt.train.validate import valid_name
from igpt.trained import resampled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Ended):
    """A run that was trained to its end."""

    config: RunConfig
    step: int
    """Updates made."""
    valid_nats: float | None
    """Loss on the validation images used during training; none: it is not known."""
    folded_nats: float | None = None
    """The same where these images were trained on, too (`data.fold_validation`)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Weights that a run begins with, and what they are of."""

    place: str
    """As --init-from names it."""
    weights: dict[str, Tensor]
    """By name, on the CPU."""
    tokenizer: Tokenizer
    digest: str
    trained: Mapping[str, Any]
    """The facts of the model that they are of."""
    seen: np.ndarray | None
    """Fingerprints of its training images; none: not known, or of images of another size."""


def pretrain(
    data: str | Path,
    folder: str | Path,
    /,
    *,
    recipe: str | None = None,
    config: RunConfig | None = None,
    mix: Sequence[str] = (),
    workers: int = 0,
    resume: bool = False,
    init_from: str | Path | None = None,
    progress: Callable[[Mapping[str, Any]], object] | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Run:
    """Train a model on images without labels, as `igpt pretrain` does (paper §3.4).

    Nothing is printed unless asked for. In the main thread Ctrl-C and SIGTERM save the step at hand
    and raise `Interrupted`; the handlers are put back. Under torchrun every rank calls this.

    Args:
        data: a name (cifar10), a packed set, a folder of images, a tar, a parquet or csv file.
        folder: of the run; must be new unless `resume`.
        recipe: named settings to begin with.
        config: all settings, in place of a recipe.
        mix: WEIGHT:AUGMENT:DATA of further images.
        workers: processes that decode images anew under augment imagenet; 0: one a core.
        resume: go on with the run that is there, with its settings; where there is none, start it.
        init_from: a run or model folder whose weights and palette to start from.
        progress: is called with each line of metrics.jsonl as it is written.
        verbose: say on standard error what the command says.
        settings: single ones, named as the options are: `seed=1, train={"lr": 1e-3}`.

    Raises:
        UserError: the folder, the data or a setting does not allow it.
        Interrupted: a signal stopped it after a checkpoint.
    """
    place = at_home(folder)
    base = config or starting_config(place, resume=resume, recipe=recipe)
    asked = {name: value for name, value in (("recipe", recipe), *settings.items()) if value}
    words = "".join(f", {name}={value!r}" for name, value in asked.items())
    with quietly(not verbose), joined():
        return train_run(
            as_text(data),
            place,
            overlaid(base, settings),
            command=f"igpt.pretrain({str(data)!r}, {str(folder)!r}{words})",
            mix=mix,
            workers=workers,
            resume=resume,
            init_from=None if init_from is None else str(init_from),
            trackers=[] if progress is None else [Told(progress)],
        )


def train_run(
    data: str,
    folder: Path,
    config: RunConfig,
    *,
    command: str,
    mix: Sequence[str] = (),
    workers: int = 0,
    resume: bool = False,
    init_from: str | None = None,
    trackers: Sequence[Tracker] = (),
) -> Run:
    """Train to the last step and export the model folder; with all ranks where there are several.

    Args:
        data: what the command line calls DATA.
        folder: of the run; new, or at `resume` a run's.
        config: all settings, as `starting_config` and single options give them.
        command: that the folder records.
        mix: WEIGHT:AUGMENT:DATA of each further set; none at `resume`: the run's.
        workers: processes that decode images anew under augment imagenet; 0: one a core.
        resume: go on with the run that is there.
        init_from: names a model whose weights and palette to begin with.
        trackers: are told every figure besides those that the settings name.

    Raises:
        UserError: the folder, the data or a setting does not allow it.
        Interrupted: a signal stopped it after a checkpoint.
    """
    world = default_world()
    check_trackers(config.train.track, folder)
    with ExitStack() as held:
        # What the run is, and what it begins with.
        it = _settled(folder, config, mix, resume=resume, init_from=init_from, held=held)
        config, at = it.config, it.at
        if at and it.is_finished:
            say(f"{folder} is finished: all {at.step} steps are done")
            return _exported(folder, config, at.step, world)
        start = None if it.init_from is None else read_start(it.init_from, config)

        # What it learns from.
        with world.first_alone():
            sets = open_sets(data, it.mixed, config)
            check_looks(config, sets[0].packed)
            if at:
                _check_same(folder, sets, start)
        live = held.enter_context(originals(config, sets, workers=workers))

        # Its folder, with the palette.
        with world.first_alone():
            if world.is_first and at:
                _go_on(folder, config, at, command)
            elif world.is_first:
                held.enter_context(FolderLock(folder))
                begin(folder, config, sets, start=start, command=command)
        config, facts = read_run(folder)
        tokenizer = tokenizer_of(folder, config, facts)

        # What takes the steps.
        with saying_what_to_lower(config):
            trainer = make_trainer(
                config,
                sets[0].packed,
                folder,
                tokenizer=tokenizer,
                initial=start.weights if start else None,
                batches=training_stream(config, sets, tokenizer, live),
            )
        start = None  # a second copy of the weights need not stay
        if at:
            go_back(trainer, at)
        if not trainer.step and "init_from" in facts and not (at and at.checkpoint):
            save(trainer)

        # The steps, and the model.
        _trained(trainer, looks_of(trainer, sets[0].packed, tokenizer), trackers)
        return _exported(folder, config, trainer.step, world)


def _trained(trainer: Trainer, looks: Sequence[Look], others: Sequence[Tracker]) -> None:
    with (
        ticking("training") as ticker,
        saying_what_to_lower(trainer.config),
        tracking(trainer) as trackers,
    ):
        run_steps(trainer, ticker, trackers=[*trackers, *others], looks=looks)


# Configuration.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Settled:
    """What a run is before anything is read of its data."""

    config: RunConfig
    mixed: list[Mixed]
    init_from: str | None
    """The model whose weights are still to be read."""
    at: Standing | None
    """Where the run that is there goes on from; none: it is new."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do but the export."""
        at = self.at
        if at is None or at.step < self.config.train.total_steps:
            return False
        return not at.state.get("owes_validation")


def _settled(
    folder: Path,
    config: RunConfig,
    mix: Sequence[str],
    *,
    resume: bool,
    init_from: str | None,
    held: ExitStack,
) -> _Settled:
    """The settings of RUN where it is there, else those asked for; a run is held from here on."""
    world, mixed = default_world(), [parse_mix(text) for text in mix]
    if not world.told(lambda: resume and is_run(folder) and bool(read_run(folder))):
        world.told(lambda: check_new(folder))
        if resume:
            say(f"{folder} holds no run yet: a new one starts")
        check_acts(config, starting_config(folder, resume=resume, recipe=config.recipe))
        return _Settled(config=config, mixed=mixed, init_from=init_from, at=None)
    with world.first_alone():
        if world.is_first:
            held.enter_context(FolderLock(folder))
    config, at = world.told(lambda: _taken_up(folder, config))
    facts = read_run(folder)[1]
    _check_start(folder, facts, init_from)
    began = facts.get("init_from", {}).get("model")
    if began is None and at.step == 0 and "--init-from" in facts["command"]:
        raise UserError(
            f"{folder} was started with --init-from by igpt {facts['igpt']}, which saved nothing "
            "of it: start another run folder"
        )
    return _Settled(
        config=config,
        mixed=mixed or _mixed_before(facts),
        init_from=None if at.checkpoint else began,
        at=at,
    )


def _taken_up(folder: Path, asked: RunConfig) -> tuple[RunConfig, Standing]:
    """What the run in a folder goes on with, and from where; nothing is changed yet."""
    stored, facts = read_run(folder)
    check_acts(asked, stored)
    tokenizer_of(folder, stored, facts)
    config = taken_up(stored, asked)
    at = standing(folder, stored)
    if ends_anew(stored.train, config.train):
        common = last_common_step(stored.train, config.train, step=at.step)
        if common < at.step:
            at = _before(folder, common, config.train.total_steps)
    return config, at


def _before(folder: Path, step: int, total_steps: int) -> Standing:
    """The newest checkpoint that knows nothing of the old end."""
    path, damaged = checkpoint.newest(folder, before=step)
    if path is None:
        raise UserError(
            f"{folder} has no intact checkpoint of step {step} or earlier, before its learning "
            f"rate began to fall, to go on from to step {total_steps}: start another run folder "
            "with --init-from this one"
        )
    return standing_at(path, damaged)


def _check_start(folder: Path, facts: Mapping[str, Any], init_from: str | None) -> None:
    """Whether `--init-from`, repeated at resume, says what is true of the run.

    Raises:
        UserError: the run began otherwise.
    """
    began = facts.get("init_from", {}).get("model")
    if init_from is None or (began is None and "--init-from" in facts["command"]):
        return
    if began is not None and Path(init_from) == Path(began):  # with a slash at the end, or none
        return
    how = "without --init-from" if began is None else f"with --init-from {began}, not {init_from}"
    raise UserError(f"{folder} was started {how}: drop it, or start another run folder")


def _mixed_before(facts: Mapping[str, Any]) -> list[Mixed]:
    """What a run mixed in when it was started, where its folder says so."""
    mixed = facts.get("mixed", [])
    if not all("data" in entry for entry in mixed):  # as 0.1 wrote it
        raise UserError(f"repeat the --mix options of this run ({facts['command']})")
    return [(entry["weight"], entry["augment"], entry["data"]) for entry in mixed]


# Weights to start from.


def read_start(place: str, config: RunConfig) -> Start:
    """Weights to begin a run with, resampled where it sees images of another size.

    Args:
        place: what `igpt.load` takes.
        config: of the run.

    Raises:
        UserError: there is no such model, or it is of another kind or shape.
    """
    model = load(place, device="cpu")
    _check_alike(place, model, config)
    network, digest, side = model.network, weights_digest(model.network), config.data.image_size
    if model.image_size != side:
        say(
            f"--init-from {place} sees {model.image_size} pixels a side, this run {side}: "
            "its position embeddings are resampled"
        )
        network = resampled(network, image_size=model.image_size, new_image_size=side)
    return Start(
        place=place,
        weights=dict(network.state_dict()),
        tokenizer=_tokenizer_to_start(place, model.tokenizer, config),
        digest=digest,
        trained=model.facts.trained,
        seen=model.seen if model.image_size == side else None,
    )


def _check_alike(place: str, model: PixelModel, config: RunConfig) -> None:
    own, theirs = config.model, model.network.config
    pairs = {
        "train.objective": (config.train.objective, model.facts.objective),
        "data.tokens": (config.data.tokens, model.facts.tokens),
        **{
            f"model.{field.name}": (getattr(own, field.name), getattr(theirs, field.name))
            for field in dataclasses.fields(own)
        },
    }
    if config.data.tokens == "palette" and config.data.palette is None:
        pairs["data.n_colors"] = (config.data.n_colors, model.tokenizer.n_colors)
    wrong = [(name, asked, held) for name, (asked, held) in pairs.items() if asked != held]
    if wrong:
        name, asked, held = wrong[0]
        options = " ".join(_as_option(name, held) for name, _, held in wrong)
        raise UserError(f"--init-from {place} has {name} {held}, this run {asked}: add {options}")
    if not (model.facts.predicts and model.facts.shifted):
        raise UserError(
            f"--init-from {place} is a classifier that predicts no pixels: choose another model"
        )


def _as_option(name: str, value: Any) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        part, _, last = option.rpartition(".")
        return f"--{option}" if value else f"--{part}.no-{last}"
    return f"--{option} {value}"


def _tokenizer_to_start(place: str, held: Tokenizer, config: RunConfig) -> Tokenizer:
    """The model's palette, unless the run is given another of as many colours."""
    if config.data.palette is None:
        return held
    chosen = Palette.load(config.data.palette)
    if chosen.n_colors != held.n_colors:
        raise UserError(
            f"--init-from {place} knows {held.n_colors} colours, data.palette "
            f"{config.data.palette} has {chosen.n_colors}: drop --data.palette"
        )
    if chosen.digest != held.digest:
        say(
            f"warning: data.palette {config.data.palette} is not the palette of --init-from "
            f"{place}: its weights have to learn what the colours mean anew"
        )
    return chosen


# Data.


def _check_same(folder: Path, sets: Sequence[Ingredient], start: Start | None) -> None:
    """Refuse to go on with other images, another mixture of them, or another start.

    Raises:
        UserError: names what is not the same.
    """
    facts, data = read_run(folder)[1], sets[0].packed
    if facts["data_digest"] != data.digest:
        raise UserError(
            f"{folder} was trained on {facts['data']} (digest {facts['data_digest'][:12]}), not on "
            f"{data.source} ({data.digest[:12]}): give the same data, or start another run folder"
        )
    before, now = (
        [(entry["digest"], entry["weight"], entry["augment"]) for entry in entries]
        for entries in (facts.get("mixed", []), [other.facts() for other in sets[1:]])
    )
    if before != now:
        raise UserError(
            f"{folder} was started with another --mix: repeat its options, or give none to take "
            "what it was started with"
        )
    if start and start.digest != facts["init_from"]["digest"]:
        raise UserError(
            f"{folder} was started with --init-from {start.place}, whose weights have changed "
            "since, before it saved anything: start another run folder"
        )


# The run's folder.


def begin(
    folder: Path,
    config: RunConfig,
    sets: Sequence[Ingredient],
    *,
    command: str,
    start: Start | None = None,
) -> None:
    """Write config.json, with every `auto` resolved, and palette.npy.

    Args:
        folder: of the run; new or empty.
        config: as asked for.
        sets: DATA, and what is mixed in.
        command: that the folder records.
        start: weights to begin with, whose palette the run takes.

    Raises:
        UserError: the folder holds something already, or cannot be written.
    """
    check_new(folder)
    data = sets[0].packed
    tokenizer = start.tokenizer if start else _new_tokenizer(config, sets)
    own = dataclasses.replace(config.data, valid_fraction=data.valid_fraction)
    config = dataclasses.replace(config, data=own)
    n_images = epoch_images(config, sets)
    config = resolve(config, n_images=n_images, n_colors=tokenizer.n_colors)
    n_kept = config.train.keep_last + len(config.train.checkpoint_at)
    shape = Shape.of_run(config, tokenizer.n_colors)
    check_room(folder, parameter_count(config.model, shape), n_kept=n_kept)
    facts: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "data": data.source,
        "data_digest": data.digest,
        "source_px": data.manifest.get("source_px", 0),
        "split": {"seed": data.seed, "valid_fraction": data.valid_fraction},
        "palette_digest": tokenizer.digest,
        "command": command,
        "commands": [command],
        **versions(),
    }
    if len(sets) > 1:
        facts["mixed"] = [other.facts() for other in sets[1:]]
    if start:
        facts["init_from"] = {"model": start.place, "digest": start.digest}
        _say_of_split(start, data, facts)
    if isinstance(tokenizer, Palette):
        tokenizer.save(folder / "palette.npy")
    images = [
        other.packed.trained_images(fold_validation=config.data.fold_validation) for other in sets
    ]
    if sum(map(len, images)) <= MOST:
        write_seen(folder, united(*map(fingerprints, images), start.seen if start else None))
    write_run(folder, config, facts)


def _new_tokenizer(config: RunConfig, sets: Sequence[Ingredient]) -> Tokenizer:
    if config.data.tokens == "raw":
        return RawTokens()
    if config.data.palette is not None:
        return Palette.load(config.data.palette)
    return fitted_palette(config, sets)


def _say_of_split(start: Start, data: PackedSet, facts: Mapping[str, Any]) -> None:
    """Say where images that now validate were trained on by the model that the run starts from."""
    trained = start.trained
    if start.seen is not None:
        if (n := n_seen(data.images("valid"), start.seen)) and trained[
            "data_digest"
        ] != data.digest:
            say(
                f"warning: --init-from {start.place} was trained on {n} of the {data.n('valid')} "
                "images that validate here: the validation loss is too low"
            )
        return
    before = trained.get("split") or {key: trained.get(key) for key in ("seed", "valid_fraction")}
    if name_of(str(trained.get("data"))) == name_of(facts["data"]) and before != facts["split"]:
        say(
            f"warning: --init-from {start.place} was trained on another split of {facts['data']}: "
            f"it has seen some of the images that validate here; --seed {before['seed']} has its "
            "split"
        )


def _go_on(folder: Path, config: RunConfig, at: Standing, command: str) -> None:
    """Write a resumed run's settings, and set aside the checkpoints that it does not go on from."""
    stored, facts = read_run(folder)
    for line in at.damaged:
        say(f"warning: {line}")
    for step, path in checkpoint.all_steps(folder):
        if step > at.step:
            intact = fault_of(path) is None
            # Those of an end that is no longer the run's are whole, and may be wanted.
            reason = f"of-{stored.train.total_steps}" if intact else "damaged"
            say(f"{path} is set aside as {set_aside(path, reason).name}")
    clear_parts(folder)
    commands = [*facts.get("commands", [facts.get("command", "")]), command]
    write_run(folder, config, {**facts, "commands": commands})


def go_back(trainer: Trainer, at: Standing) -> None:
    """Go back to the moment at which a run stands; without a checkpoint that is step 0."""
    if at.checkpoint:
        state = restore(trainer, at.checkpoint, checked=True)
        say_what_differs(trainer, state)
    if trainer.world.is_first:
        owes = trainer.owes_validation
        drop_metrics_after(trainer.folder, trainer.step, owes_validation=owes)
    say(f"resuming at step {trainer.step} of {trainer.config.train.total_steps}")


# What it leaves.


def _exported(folder: Path, config: RunConfig, step: int, world: World) -> Run:
    """The finished run, its model written where it is not there yet."""
    with world.first_alone():
        if world.is_first and exported_step(folder) != step:
            export_run(folder)
    folds = config.data.fold_validation
    name = valid_name(fold_validation=folds)
    found = [line[name] for line in read_metrics(folder) if name in line]
    last = float(found[-1]) if found else None
    return Run(
        folder=folder,
        config=config,
        step=step,
        valid_nats=None if folds else last,
        folded_nats=last if folds else None,
    )
