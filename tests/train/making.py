"""Trainers of tiny runs, made and taken up again without the command."""

import dataclasses

from igpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from igpt.jobs import pretrain as run
from igpt.progress import Ticker
from igpt.train import folder as run_folder
from igpt.train import log, loop
from igpt.train.feeding import Ingredient
from igpt.train.standing import standing, tokenizer_of
from igpt.train.trainer import make_trainer

TINY = RunConfig(
    data=DataConfig(image_size=8, n_colors=17),
    model=ModelConfig(n_layer=2, n_head=2, n_embd=16),
    train=TrainConfig(
        total_steps=8,
        batch_size=6,
        lr=0.01,
        warmup_steps=2,
        log_every=2,
        valid_every=4,
        valid_images=20,
        checkpoint_every=3,
        precision="fp32",
        compile="off",
    ),
)
QUIET = Ticker(None, None, "")


def tiny(**train):
    return dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **train))


def start(config, data, folder):
    """A trainer of a new run."""
    sets = [Ingredient(packed=data, augment=config.data.augment)]
    run.begin(folder, config, sets, command="test")
    return opened(data, folder)


def opened(data, folder):
    """A trainer of a run that is there, at step 0."""
    config, facts = run_folder.read_run(folder)
    tokenizer = tokenizer_of(folder, config, facts)
    return make_trainer(config, data, folder, tokenizer=tokenizer)


def resumed(data, folder):
    """A trainer of a run that is there, where it stands."""
    trainer = opened(data, folder)
    run.go_back(trainer, standing(folder, trainer.config))
    return trainer


def take_steps(trainer, **options):
    """Train to the end, with the trackers that the settings name."""
    with log.tracking(trainer) as trackers:
        loop.run_steps(trainer, QUIET, trackers=trackers, **options)


def trained(config, folder, **options):
    """A whole run on the digits, as the command makes it."""
    return run.train_run("digits", folder, config, command="test", **options)
