import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.config import (
    DataConfig,
    ModelConfig,
    ProbeConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    check_acts,
    overlaid,
)
from igpt.errors import UserError
from igpt.recipes import RECIPES


@given(
    seed=st.integers(0, 2**31),
    lr=st.floats(1e-6, 1),
    steps=st.integers(1, 10**6),
    micro_batch=st.sampled_from(["auto", 1, 64]),
    kept=st.lists(st.integers(1, 10**6), max_size=3),
)
def test_json_and_back_is_the_identity(seed, lr, steps, micro_batch, kept):
    config = RunConfig(
        seed=seed,
        train=TrainConfig(
            lr=lr, total_steps=steps, micro_batch=micro_batch, checkpoint_at=tuple(kept)
        ),
    )
    document = json.loads(json.dumps(config.to_dict()))
    assert RunConfig.from_dict(document, where="x") == config


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    document = json.loads(json.dumps(RECIPES[name].to_dict()))
    assert RunConfig.from_dict(document, where="x") == RECIPES[name]


def changed(path, value):
    document = RunConfig().to_dict()
    place = document
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.lrr", 1.0, r"c.json: unknown key 'train.lrr': did you mean lr\?"),
        ("train.lr", None, "c.json: key 'train.lr' is missing: write the file anew"),
        ("train.lr", "fast", "train.lr is 'fast', which is not what this setting takes"),
        ("train.objective", "gan", "train.objective is 'gan'"),
        ("data", 3, "data. must be an object of settings"),
        ("schema_version", 99, "c.json has schema version 99, this igpt reads 1"),
        ("model.n_layer", True, "model.n_layer is True"),
    ],
)
def test_foreign_documents_are_refused(path, value, message):
    with pytest.raises(UserError, match=message):
        RunConfig.from_dict(changed(path, value), where="c.json")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            ModelConfig,
            {"n_embd": 10, "n_head": 3},
            "model.n_head 3 does not divide model.n_embd 10",
        ),
        (ModelConfig, {"n_layer": 0}, "model.n_layer is 0"),
        (DataConfig, {"image_size": 0}, "data.image_size is 0"),
        (DataConfig, {"valid_fraction": 1.0}, "data.valid_fraction is 1.0"),
        (DataConfig, {"n_colors": 1}, "data.n_colors is 1"),
        (TrainConfig, {"total_steps": 0}, "train.total_steps is 0"),
        (TrainConfig, {"lr": -1.0}, "train.lr is -1.0: it must be above 0"),
        (TrainConfig, {"batch_size": 4, "micro_batch": 8}, "train.micro_batch is 8: choose from 1"),
        (TrainConfig, {"mask_prob": 0.0}, "train.mask_prob is 0.0"),
        (TrainConfig, {"betas": (0.9, 1.0)}, "train.betas is"),
        (TrainConfig, {"warmup_steps": 11, "total_steps": 10}, "train.warmup_steps is 11"),
        (TrainConfig, {"checkpoint_at": (0,)}, "train.checkpoint_at is"),
        (TrainConfig, {"decay_fraction": 0.0}, "train.decay_fraction is 0.0"),
        (TrainConfig, {"grad_clip_norm": -1.0}, "train.grad_clip_norm is -1.0"),
        (SampleConfig, {"temperature": -1.0}, "temperature is -1.0: it must not be negative"),
        (SampleConfig, {"top_k": 0}, "top_k is 0: it must be at least 1"),
        (SampleConfig, {"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_bad_settings_fail_before_any_work(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_a_setting_younger_than_a_file_takes_its_default():
    document = json.loads(json.dumps(changed("train.draw_every", None)))
    assert RunConfig.from_dict(document, where="c.json") == RunConfig()


def test_every_setting_says_what_it_is():
    """A field without a docstring would be an option without help."""
    import ast
    import inspect

    import igpt.config

    for node in ast.parse(inspect.getsource(igpt.config)).body:
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(after, ast.Expr), f"{node.name}.{field.target.id}"


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3


@pytest.mark.parametrize(
    ("asked", "allows"),
    [
        ({"train.muon_lr": 0.5}, {"train.optimizer": "muon"}),
        ({"train.mask_prob": 0.5}, {"train.objective": "bert"}),
        ({"train.decay_fraction": 0.2}, {"train.schedule": "linear"}),
        ({"data.tokens": "raw", "data.palette": "p.npy"}, {"data.tokens": "palette"}),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(asked, allows):
    name = list(asked)[-1]
    with pytest.raises(UserError, match=f"{name} .* would do nothing: it acts under "):
        check_acts(overlaid(RunConfig(), asked), RunConfig())
    check_acts(overlaid(RunConfig(), {**asked, **allows}), RunConfig())
    check_acts(
        overlaid(RunConfig(), asked), overlaid(RunConfig(), asked)
    )  # of a recipe, or at resume


def test_what_a_probe_would_not_look_at_is_refused():
    for asked in ({"sgd_steps": 5}, {"layer_images": 5}):
        with pytest.raises(UserError, match=r"--(sgd-steps|layer-images) 5 would do nothing"):
            check_acts(ProbeConfig(**asked), ProbeConfig())
        check_acts(ProbeConfig(**asked, large=True), ProbeConfig())
