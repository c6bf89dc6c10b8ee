import dataclasses
import importlib.machinery
import sys
import types

import numpy as np
import pytest
from PIL import Image

from igpt.errors import UserError
from igpt.train import log, loop
from igpt.train.folder import read_metrics
from igpt.train.log import countdown
from igpt.train.saving import save
from igpt.train.trainer import Look
from tests.train.making import resumed, start, take_steps, tiny, trained

DRAWS = Look(8, lambda: {"samples": np.zeros((4, 5, 3), np.uint8)})


def test_grids_are_drawn_when_due_and_do_not_change_the_run(digits, tmp_path):
    plain = trained(tiny(), tmp_path / "plain")
    drawn = trained(tiny(draw_every=5), tmp_path / "drawn")
    assert drawn.valid_nats == plain.valid_nats
    found = {path.name for path in (tmp_path / "drawn" / "pictures" / "training").iterdir()}
    assert found == {
        "samples-0000005.png",
        "completions-0000005.png",
        "samples-0000008.png",
        "completions-0000008.png",
    }
    with Image.open(tmp_path / "drawn" / "pictures" / "training" / "samples-0000008.png") as image:
        # 4 x 4 images of 8 x 8 pixels, enlarged by 12, with gaps of 2 pixels.
        assert image.size == (4 * 98 + 2, 4 * 98 + 2)


def test_bert_draws_completions_only(digits, tmp_path):
    trained(tiny(objective="bert", draw_every=8, total_steps=8), tmp_path / "run")
    (picture,) = (tmp_path / "run" / "pictures" / "training").iterdir()
    assert picture.name == "completions-0000008.png"


def test_tensorboard_holds_the_figures_and_pictures_and_goes_on_after_resuming(digits, tmp_path):
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = start(tiny(track=("tensorboard",)), digits, tmp_path / "run")
    for batch in trainer.stream.prefetch(0, 4):
        loop.train_step(trainer, batch)
    save(trainer)
    take_steps(resumed(digits, tmp_path / "run"), looks=[DRAWS])
    events = accumulation.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {line["step"]: line for line in read_metrics(tmp_path / "run") if "lr" in line}
    for name in ("loss_nats", "lr", "grad_norm", "tokens_per_s", "mfu"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({step: line[name] for step, line in logged.items()})
    assert [image.step for image in events.Images("samples")] == [8]


def test_a_tracker_that_is_not_installed_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refusal:
        trained(tiny(track=("wandb",)), tmp_path / "run")
    assert str(refusal.value) == (
        "train.track wandb needs the package wandb: pip install 'igpt[tracking]'"
    )
    assert not (tmp_path / "run").exists()


def test_wandb_writes_below_the_run_offline(digits, tmp_path, monkeypatch):
    """A stand-in for the package takes down what the tracker asks of it."""
    begun, rows, ended = [], [], []

    class Run:
        def log(self, values, step):
            rows.append((step, values))

        def finish(self):
            ended.append(True)

    stand_in = types.ModuleType("wandb")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    stand_in.init = lambda **settings: begun.append(settings) or Run()
    stand_in.Settings = lambda **settings: settings
    stand_in.Image = lambda picture: ("image", picture.shape)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    take_steps(start(tiny(track=("wandb",)), digits, tmp_path / "run"), looks=[DRAWS])
    (settings,) = begun
    assert settings["mode"] == "offline" and settings["dir"] == tmp_path / "run"
    assert settings["settings"]["disable_git"] and not settings["settings"]["save_code"]
    logged = [line for line in read_metrics(tmp_path / "run") if "loss_nats" in line]
    for line in logged:
        figures = {name: value for name, value in line.items() if name != "step"}
        assert (line["step"], figures) in rows
    assert (8, {"samples": ("image", (4, 5, 3))}) in rows
    assert ended == [True]


@pytest.mark.parametrize(
    ("span_s", "text"),
    [(12.3, "12 s"), (99, "99 s"), (720, "12 min"), (11_100, "3 h 05 min"), (187_200, "2 d 04 h")],
)
def test_time_left_reads_as_a_person_says_it(span_s, text):
    assert countdown(span_s) == text


def test_time_left_falls_to_nothing(digits, tmp_path):
    trainer = start(dataclasses.replace(tiny()), digits, tmp_path / "run")
    take_steps(trainer)
    left = [line["left_s"] for line in read_metrics(tmp_path / "run") if "left_s" in line]
    assert left[0] > 0
    assert left[-1] == 0
