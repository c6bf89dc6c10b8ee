"""No number that is not one: every setting, every public function, what scikit-learn hands on."""

import dataclasses
import json
import math

import numpy as np
import pytest

import igpt
from igpt import compute
from igpt.config import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    whole,
)
from igpt.errors import UserError
from tests.networks import pixel_model

CONFIGS = (DataConfig, FinetuneConfig, ModelConfig, SampleConfig, TrainConfig)
FIELDS = [
    (kind, field.name)
    for kind in CONFIGS
    for field in dataclasses.fields(kind)
    if isinstance(field.default, float | tuple) or "float" in str(field.type)
]
NONE = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_every_setting_refuses_what_is_no_number(kind, name, value):
    default = getattr(kind(), name) if kind is not SampleConfig else None
    given = (value, *default[1:]) if isinstance(default, tuple) and default else value
    if isinstance(default, tuple) and not all(isinstance(x, float) for x in default):
        pytest.skip("no numbers")
    with pytest.raises(UserError, match=rf"{name} is .*: .*"):
        kind(**{name: given})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"betas": (2, 0.9)}, "each must be from 0 to below 1"),
        ({"grad_clip_norm": -1.0}, "must not be negative"),
        ({"lr": 0.0}, "must be above 0"),
    ],
)
@pytest.mark.parametrize("kind", [FinetuneConfig, TrainConfig])
def test_numbers_out_of_bounds_are_refused(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), np.uint8(3)])
def test_whole_numbers_of_any_kind_are_one(value):
    assert whole(value, "n") == 3 and type(whole(value, "n")) is int


@pytest.mark.parametrize("value", [3.5, "3", None, True, np.bool_(True), *NONE, [3], 1j])
def test_what_is_no_whole_number_is_refused_by_name(value):
    with pytest.raises(UserError, match=r"n is .*: give a whole number"):
        whole(value, "n")


CALLS = {
    "sample n": lambda m, x, v: m.sample(v),
    "sample seed": lambda m, x, v: m.sample(1, seed=v),
    "sample temperature": lambda m, x, v: m.sample(1, temperature=v),
    "sample top_k": lambda m, x, v: m.sample(1, top_k=v),
    "sample top_p": lambda m, x, v: m.sample(1, top_p=v),
    "complete n": lambda m, x, v: m.complete(x, keep_rows=0.5, n=v),
    "complete seed": lambda m, x, v: m.complete(x, keep_rows=0.5, seed=v),
    "complete keep_rows": lambda m, x, v: m.complete(x, keep_rows=v),
    "complete keep": lambda m, x, v: m.complete(x, keep=np.full((8, 8), v)),
    "features layer": lambda m, x, v: m.features(x, v),
}


SETTINGS = [name for name in CALLS if name not in ("complete keep", "features layer")]
NO_NUMBERS = ("3", [3], np.array([3]), True, "", 1j)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_function_refuses_what_is_of_another_type(model, images, name):
    for value in NO_NUMBERS if "keep_rows" in name else (*NO_NUMBERS, 2 + 1e-9j):
        with pytest.raises(UserError, match=r"give a whole number|must be a finite number"):
            CALLS[name](model, images, value)


def test_what_is_asked_of_runs_and_figures_is_checked_alike(model):
    from igpt import evaluate, load
    from igpt.jobs.finetune import Asked, FinetuneConfig

    asks = [
        *(lambda v=v: evaluate(model, "digits", max_images=v) for v in (math.nan, 1.5, "3")),
        *(lambda v=v: Asked(config=FinetuneConfig(), seeds=v) for v in (1.5, "2", math.nan)),
        *(lambda v=v: Asked(config=FinetuneConfig(), rates=(v,)) for v in ("x", None, math.inf)),
        *(lambda v=v: load(v) for v in (None, 5, "x" * 300, "x" * 5000)),
        lambda: load("cifar10-small", device="nope"),
        lambda: compute.choose_dtype("fp8", model.device),
        lambda: model.features("~nobody/" + "x" * 300),
    ]
    for ask in asks:
        with pytest.raises(UserError):
            ask()


@pytest.fixture(scope="module")
def model():
    return pixel_model()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("value", [*NONE, np.float32("nan"), np.float64("inf")], ids=repr)
@pytest.mark.parametrize("name", CALLS)
def test_every_function_refuses_what_is_no_number(model, images, name, value):
    with pytest.raises(UserError):
        CALLS[name](model, images, value)


@pytest.mark.parametrize("name", ["sample n", "sample seed", "complete n", "complete seed",
                                  "features layer"])  # fmt: skip
def test_every_function_takes_whole_numbers_of_any_kind_alike(model, images, name):
    expected = CALLS[name](model, images, 2)
    for value in (2.0, np.int64(2), np.uint8(2)):
        assert np.array_equal(CALLS[name](model, images, value), expected)


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, monkeypatch):
    broken = pixel_model()
    folder = broken.save(tmp_path / "m")
    broken.network.h[0].ln_1.weight.data[3] = math.nan
    said = r"tensor h\.0\.ln_1\.weight holds what is no number"
    with pytest.raises(UserError, match=said):
        broken.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for judge in (broken.nats, broken.surprise, broken.features):
        with pytest.raises(UserError, match="is not finite"):
            judge(np.zeros((1, 8, 8, 3), np.uint8))
    monkeypatch.setattr("igpt.formats.folder.check_finite", lambda *_, **__: None)
    broken.save(folder)
    with pytest.raises(UserError, match=said):
        igpt.load(folder)


def test_json_is_always_json(tmp_path):
    from igpt import files

    files.write_json(tmp_path / "a", {"a": math.nan, "b": [1.0, math.inf], "c": np.float32(2)})
    found = json.loads((tmp_path / "a").read_text(), parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1.0, None], "c": 2.0}


def test_run_configs_refuse_them_from_files_too():
    values = json.loads(json.dumps(RunConfig().to_dict()))
    values["train"]["lr"] = math.inf
    with pytest.raises(UserError, match=r"train\.lr is inf"):
        RunConfig.from_dict(values, where="config.json")
