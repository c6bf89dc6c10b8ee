"""Named starting values for a run: `--recipe NAME`; single options override them."""

import dataclasses
import difflib

from igpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from igpt.errors import UserError

PAPER_CHECKPOINTS = (65_000, 131_000, 262_000, 524_000, 1_000_000)

# The paper's runs (§3.3, §3.4). Rates: PAPER.md, Table 5; only S has a second source.
# Command: igpt pretrain IMAGENET RUN --recipe igpt-s (torchrun for m, l, xl).
# Cost in the paper: 128 M images; L took about 2,500 V100-days. Not run here.
_IGPT = {
    "igpt-s": (ModelConfig(n_layer=24, n_head=8, n_embd=512), 0.003),
    "igpt-m": (ModelConfig(n_layer=36, n_head=8, n_embd=1024), 0.003),
    "igpt-l": (ModelConfig(n_layer=48, n_head=16, n_embd=1536), 0.001),
}


def _paper_recipe(model: ModelConfig, lr: float) -> RunConfig:
    return RunConfig(
        data=DataConfig(image_size=32, augment="imagenet"),
        model=model,
        train=TrainConfig(
            lr=lr, grad_clip_norm=0.0, checkpoint_at=PAPER_CHECKPOINTS, draw_every=10_000
        ),
    )


RECIPES: dict[str, RunConfig] = {
    name: _paper_recipe(model, lr) for name, (model, lr) in _IGPT.items()
}
# Batch 64 for 2 M updates; the paper does not state XL's heads.
RECIPES["igpt-xl"] = RunConfig(
    data=DataConfig(image_size=64, augment="none"),
    model=ModelConfig(n_layer=60, n_head=48, n_embd=3072),
    train=TrainConfig(
        lr=0.0003,
        batch_size=64,
        total_steps=2_000_000,
        grad_clip_norm=0.0,
        checkpoint_activations=True,
    ),
)
# What `records/` found to teach a small network most in little time: next-pixel prediction at
# 16 x 16, without labels.
_RECORD = RunConfig(
    data=DataConfig(image_size=16, augment="flip"),
    train=TrainConfig(
        optimizer="muon",
        lr=3e-3,
        muon_lr=8e-3,
        zero_outputs=True,
        batch_size=16,
        schedule="linear",
    ),
)
# Command: igpt demo --train. 22,400 images: with the probe's 60,000 forward passes, 64 TFLOP.
RECIPES["demo"] = dataclasses.replace(
    _RECORD,
    model=ModelConfig(n_layer=4, n_head=4, n_embd=128),
    train=dataclasses.replace(
        _RECORD.train,
        total_steps=1400,
        warmup_steps=50,
        valid_every=350,
        valid_images=500,
        checkpoint_every=350,
    ),
)
# The model that ships. `linear` lets a run choose its end late: --resume --train.total-steps N,
# until the rate begins to fall.
RECIPES["cifar10-record"] = dataclasses.replace(
    _RECORD,
    model=ModelConfig(n_layer=6, n_head=3, n_embd=192),
    train=dataclasses.replace(
        _RECORD.train,
        total_steps=14_400,
        warmup_steps=100,
        decay_fraction=0.25,
        valid_every=1000,
        valid_images=1000,
        checkpoint_every=500,
        checkpoint_at=(250, 500, 1000, 2000, 4000, 8000),
    ),
)
# `cifar10-32`: 5,000 steps from `cifar10-small`'s weights (--init-from), 6,400 from those, and
# 6,400 more at half the rates, falling from the first step on.
RECIPES["record-32"] = dataclasses.replace(
    RECIPES["cifar10-record"],
    data=dataclasses.replace(_RECORD.data, image_size=32),
    train=dataclasses.replace(
        RECIPES["cifar10-record"].train,
        total_steps=25_000,
        batch_size=8,
        valid_every=500,
        valid_images=200,
    ),
)
# The paper's architecture, initial values and optimiser (§3.3, §3.4) on the same network, images
# and steps: what `cifar10-record` is measured against. The paper's CIFAR-10 protocol augments only
# when fine-tuning.
RECIPES["cifar10-paper"] = dataclasses.replace(
    RECIPES["cifar10-record"],
    data=dataclasses.replace(_RECORD.data, augment="none"),
    train=dataclasses.replace(
        RECIPES["cifar10-record"].train,
        optimizer="adamw",
        zero_outputs=False,
        schedule="cosine",
        grad_clip_norm=0.0,
        warmup_steps=None,
    ),
)


def recipe(name: str) -> RunConfig:
    """The recipe of this name.

    Raises:
        UserError: there is none; the known ones are listed.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(RECIPES)}"
        raise UserError(f"there is no recipe {name!r}: {hint}")
    return dataclasses.replace(RECIPES[name], recipe=name)
