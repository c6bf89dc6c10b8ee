"""`igpt pretrain`."""

import dataclasses
import json as json_format
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import UseAppendAction

from igpt.cli.arguments import Config, Data, Run
from igpt.config import RunConfig
from igpt.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from igpt.images.live import LiveImages
    from igpt.images.packed.read import PackedSet
    from igpt.pixelmodel import PixelModel
    from igpt.tokens.tokenizer import Tokenizer
    from igpt.train.feeding import Ingredient
    from igpt.train.trainer import Trainer


def pretrain(
    data: Data,
    run: Run,
    *,
    config: Config,
    mix: UseAppendAction[tuple[str, ...]] = (),
    workers: int = 0,
    resume: bool = False,
    init_from: str | None = None,
    search_lr: bool = False,
    plan: bool = False,
    json: bool = False,
) -> None:
    """Train a model on images without labels (paper §3.4).

    Args:
        data: a name (cifar10), a packed set, a folder of images, a tar, a parquet or csv file.
        run: folder to write; must be new unless --resume.
        config: every setting of the run.
        mix: WEIGHT:AUGMENT:DATA mixes other images in; may come several times. 0.5:none:web.tar
            draws half as many images from web.tar as from DATA and leaves them as they are;
            validation stays that of DATA.
        workers: processes that decode images anew under augment imagenet; 0: one a core.
        resume: go on from the newest intact checkpoint.
        init_from: a run or model folder whose weights and palette to start from.
        search_lr: train with 0.01, 0.003, 0.001, ... until the final validation loss rises; every
            run is kept in RUN/lr-*, and RUN/search.json is the table.
        plan: only say what the run would cost: parameters, operations, memory and time.
        json: print the result as one JSON document.
    """
    if plan:
        _print_plan(config, json=json)
        return
    from igpt.cli.rates import print_search, search_rates
    from igpt.train.distributed import joined

    def train(folder: Path, config: RunConfig, goes_on: bool) -> dict[str, Any]:
        return train_run(
            data, folder, config, mix=mix, workers=workers, resume=goes_on, init_from=init_from
        )

    with joined() as world:
        if search_lr:
            result = search_rates(train, Path(run), config, resume=resume, is_first=world.is_first)
        else:
            result = train(Path(run), config, resume)
    if not world.is_first:
        return
    if search_lr:
        print_search(result, json=json)
    elif json:
        print(json_format.dumps(result))
    else:
        print(
            f"{run}: step {result['step']}, validation {result['valid_nats']:.4f} nats per token; "
            f"model in {result['model']}"
        )


def _print_plan(config: RunConfig, *, json: bool) -> None:
    from igpt import compute
    from igpt.train.plan import plan_of

    compute.set_threads()
    plan = plan_of(config)
    print(json_format.dumps(dataclasses.asdict(plan)) if json else "\n".join(plan.lines()))


def train_run(
    data: str,
    folder: Path,
    config: RunConfig,
    *,
    mix: Sequence[str] = (),
    workers: int = 0,
    resume: bool = False,
    init_from: str | None = None,
) -> dict[str, Any]:
    """Train to the last step and export the model folder; with all ranks where there are several.

    Returns:
        `step`, `valid_nats` (on the validation images used during training), `model`.

    Raises:
        UserError: the folder, the data or a setting does not allow it.
        Interrupted: a signal stopped it after a checkpoint.
    """
    from igpt import compute
    from igpt.files import FolderLock
    from igpt.pixelmodel import export_run
    from igpt.progress import say
    from igpt.train.distributed import default_world
    from igpt.train.feeding import originals
    from igpt.train.resume import check_same_data
    from igpt.train.setup import create_run, read_run, store_config
    from igpt.train.trackers import check_trackers

    compute.set_threads()
    check_trackers(config.train.track)
    world = default_world()
    exists = bool(world.from_first((folder / "config.json").exists()))
    if exists:
        _check_may_go_on(folder, config, resume=resume)
    elif resume:
        say(f"{folder} holds no run yet: a new one starts")
    start = None if init_from is None or exists else _start_from(init_from, config)
    with world.first_alone():
        first, *mixed = _open_all(data, mix, config)
    with (
        originals(config, [first, *mixed], workers=workers) as live,
        FolderLock(folder) if world.is_first else nullcontext(),
    ):
        with world.first_alone():
            if exists:
                check_same_data(folder, first.packed, mixed)
                if world.is_first:
                    store_config(config, folder)
            elif world.is_first:
                tokenizer = start.tokenizer if start else None
                create_run(config, first.packed, folder, tokenizer=tokenizer, mixed=mixed)
        # What is stored has no `auto` left; a resumed run may have changed a free setting.
        config = config if exists else read_run(folder)[0]
        trainer = _ready(config, folder, [first, *mixed], live, start=start)
        _train(trainer, resume=exists)
        with world.first_alone():
            if world.is_first:
                export_run(folder)
    nats = _last_valid_nats(folder)
    return {"step": trainer.step, "valid_nats": nats, "model": str(folder / "model")}


def _last_valid_nats(folder: Path) -> float:
    from igpt.train.tracking import read_metrics

    # A rank that is not the first reads what the first has written before the model.
    found = [line["valid_nats"] for line in read_metrics(folder) if "valid_nats" in line]
    return float(found[-1])


def _check_may_go_on(folder: Path, config: RunConfig, *, resume: bool) -> None:
    from igpt.train.resume import check_resumable, steps_done
    from igpt.train.setup import read_run

    if not resume:
        raise UserError(
            f"{folder} already holds a run: add --resume to go on with it, or choose another folder"
        )
    check_resumable(read_run(folder)[0], config, step=steps_done(folder))


def _ready(
    config: RunConfig,
    folder: Path,
    ingredients: "Sequence[Ingredient]",
    live: "Sequence[LiveImages | None]",
    *,
    start: "PixelModel | None",
) -> "Trainer":
    """A trainer at step 0 of a run that is there."""
    from igpt.train.feeding import training_stream
    from igpt.train.memory import saying_what_to_lower
    from igpt.train.setup import make_trainer, tokenizer_of_run

    packed, tokenizer = ingredients[0].packed, tokenizer_of_run(folder, config)
    with saying_what_to_lower(config):
        trainer = make_trainer(
            config,
            packed,
            folder,
            tokenizer=tokenizer,
            initial=start.network.state_dict() if start else None,
            batches=training_stream(config, ingredients, tokenizer, live),
        )
    trainer.draw = _drawer(trainer, packed, tokenizer)
    return trainer


def _drawer(
    trainer: "Trainer", data: "PackedSet", tokenizer: "Tokenizer"
) -> Callable[[], dict[str, "np.ndarray"]] | None:
    """What draws grids with the network as it is when called; none where none are wanted."""
    config = trainer.config
    if not config.train.draw_every:
        return None
    from igpt.generate.grids import N_COMPLETED, grids
    from igpt.modelfolder import ModelFacts
    from igpt.pixelmodel import PixelModel
    from igpt.train.setup import whole_network

    facts = ModelFacts(
        objective=config.train.objective,
        image_size=config.data.image_size,
        tokens=config.data.tokens,
        trained={},
        mask_prob=config.train.mask_prob,
    )
    originals = data.images("valid")[:N_COMPLETED]

    def draw() -> dict[str, "np.ndarray"]:
        network = whole_network(trainer)
        if network is None:
            return {}
        found: dict[str, np.ndarray] = grids(
            PixelModel(network, tokenizer, facts), originals, seed=config.seed
        )
        trainer.network.train()  # which the model's making ends
        return found

    return draw


def _train(trainer: "Trainer", *, resume: bool) -> None:
    """Take the steps that are left."""
    from igpt.progress import say, ticking
    from igpt.train.loop import run_steps
    from igpt.train.memory import saying_what_to_lower
    from igpt.train.resume import resume as go_back

    if resume:
        go_back(trainer)
    if trainer.step >= trainer.config.train.total_steps:
        say(f"{trainer.folder} is finished: all {trainer.step} steps are done")
        return
    with ticking("training") as ticker, saying_what_to_lower(trainer.config):
        run_steps(trainer, ticker)


def _open_all(data: str, mix: Sequence[str], config: RunConfig) -> "list[Ingredient]":
    """DATA and what is mixed in, prepared where needed.

    Raises:
        UserError: one cannot be read, or is not written as it must be.
    """
    from igpt.images.prepare import open_data
    from igpt.train.feeding import Ingredient, parse_mix

    asked = [(1.0, config.data.augment, data), *map(parse_mix, mix)]
    return [
        Ingredient(
            packed=open_data(
                name,
                image_size=config.data.image_size,
                seed=config.seed,
                valid_fraction=config.data.valid_fraction,
            ),
            augment=augment,
            weight=weight,
            data=name,
        )
        for weight, augment, name in asked
    ]


def _start_from(place: str, config: RunConfig) -> "PixelModel":
    """The model to start from, after checking that it is of the same kind."""
    from igpt.pixelmodel import load

    model = load(place)
    if model.facts.objective != config.train.objective:
        raise UserError(
            f"--init-from {place} was trained with objective {model.facts.objective}: "
            f"add --train.objective {model.facts.objective}"
        )
    if model.image_size != config.data.image_size:
        raise UserError(
            f"--init-from {place} sees {model.image_size} pixels a side: "
            f"add --data.image-size {model.image_size}"
        )
    return model
