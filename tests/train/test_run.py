"""A run from its beginning to its end: what may not be lost, however it is stopped and resumed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import igpt
from igpt.errors import UserError
from igpt.jobs.pretrain import _check_start, overlaid
from igpt.tokens.palette import Palette
from igpt.train import checkpoint, loop, standing
from igpt.train.folder import check_new, read_metrics, read_run
from igpt.train.settings import last_common_step
from igpt.train.trainer import Trainer
from tests.train.killing import final_weights
from tests.train.making import TINY, tiny, trained

LINEAR = tiny(schedule="linear", total_steps=8, log_every=1)


class Lost(BaseException):
    """As if the process were killed."""


def lost_at(monkeypatch, step):
    """Lose the process when it is to make the step after `step`."""
    take = loop.train_step

    def until(trainer: Trainer, batch):
        if trainer.step == step:
            raise Lost
        return take(trainer, batch)

    monkeypatch.setattr(loop, "train_step", until)


def cut_off(monkeypatch, config, folder, *, at, **options):
    """A run that is lost."""
    with monkeypatch.context() as patch:
        lost_at(patch, at)
        with pytest.raises(Lost):
            trained(config, folder, **options)


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A run that is done; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    trained(LINEAR, folder)
    return folder


def test_a_run_from_other_weights_lost_before_its_first_checkpoint_ends_with_the_same_bits(
    finished, tmp_path, monkeypatch
):
    config = tiny(checkpoint_every=100)
    trained(config, tmp_path / "whole", init_from=str(finished))
    cut_off(monkeypatch, config, tmp_path / "cut", at=3, init_from=str(finished))
    assert checkpoint.all_steps(tmp_path / "cut")[-1][0] == 0
    trained(read_run(tmp_path / "cut")[0], tmp_path / "cut", resume=True)
    assert final_weights(tmp_path / "cut", 8) == final_weights(tmp_path / "whole", 8)


def test_weights_to_start_from_are_read_again_where_not_even_step_0_was_saved(
    finished, tmp_path, monkeypatch
):
    trained(tiny(), tmp_path / "whole", init_from=str(finished))
    cut_off(monkeypatch, tiny(), tmp_path / "cut", at=1, init_from=str(finished))
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    trained(tiny(), tmp_path / "cut", resume=True)
    assert final_weights(tmp_path / "cut", 8) == final_weights(tmp_path / "whole", 8)


def test_a_start_from_another_resolution_is_resampled(finished, tmp_path):
    config = dataclasses.replace(tiny(), data=dataclasses.replace(TINY.data, image_size=4))
    assert trained(config, tmp_path / "run", init_from=str(finished)).model.image_size == 4


def test_init_from_at_resume_must_be_true_of_the_run(finished, tmp_path):
    with pytest.raises(UserError, match="was started without --init-from: drop it"):
        trained(LINEAR, finished, resume=True, init_from=str(finished))
    began = {"command": "igpt pretrain", "init_from": {"model": "a/b"}}
    for same in ("a/b", "a/b/", "./a/b", None):
        _check_start(tmp_path, began, same)
    with pytest.raises(UserError, match="was started with --init-from a/b, not a/c"):
        _check_start(tmp_path, began, "a/c")


def test_what_a_resumed_run_cannot_change_is_what_was_asked_for(tmp_path):
    stored, asked = tiny(schedule="cosine").train, tiny(schedule="cosine", decay_fraction=0.1).train
    with pytest.raises(UserError, match=r"cannot change train\.decay_fraction 0\.5 -> 0\.1: under"):
        last_common_step(stored, asked, step=3)
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(UserError, match="holds a search: add --search-lr --resume"):
        check_new(tmp_path)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_finished_run_that_is_lengthened_ends_as_one_of_that_length(tmp_path, schedule):
    short, long = (tiny(schedule=schedule, total_steps=n, keep_last=1) for n in (8, 14))
    trained(short, tmp_path / "run")
    trained(long, tmp_path / "run", resume=True)
    trained(long, tmp_path / "whole")
    assert final_weights(tmp_path / "run", 14) == final_weights(tmp_path / "whole", 14)
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if "loss_nats" in line]
    assert steps == [2, 4, 6, 8, 10, 12, 14]


def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(finished, tmp_path):
    folder = copied(finished, tmp_path)
    for _, path in checkpoint.all_steps(folder):
        (path / "model.safetensors").write_bytes(b"")
    assert igpt.load(folder).facts.trained["step"] == 8  # by the model of its last step
    shutil.rmtree(folder / "model")
    before = (folder / "metrics.jsonl").read_bytes()
    n = len(checkpoint.all_steps(folder))
    for use in (igpt.load, lambda folder: trained(LINEAR, folder, resume=True)):
        with pytest.raises(UserError, match=f"has {n} checkpoints and none is intact"):
            use(folder)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_damaged_newer_checkpoints_are_set_aside_by_name(finished, tmp_path, monkeypatch):
    folder = copied(finished, tmp_path)
    (newest, path), (older, _), *_ = checkpoint.all_steps(folder)
    (path / "state.json").write_text("{}")
    trained(LINEAR, folder, resume=True)
    assert (folder / "checkpoints" / f"{path.name}.damaged").is_dir()
    assert final_weights(folder, newest) == final_weights(finished, newest)
    assert older < newest


@pytest.mark.parametrize("also", ["", "metrics.jsonl"])
def test_a_finished_run_without_its_checkpoints_is_finished(finished, tmp_path, also, capsys):
    folder = copied(finished, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    if also:
        (folder / also).unlink()
    run = trained(LINEAR, folder, resume=True)
    assert run.step == 8
    assert (run.valid_nats is None) is bool(also)
    assert "is finished: all 8 steps are done" in capsys.readouterr().err
    assert igpt.load(folder).facts.trained["step"] == 8


@pytest.mark.parametrize(
    ("done", "logged", "step"),
    [(0, [], 0), (0, [2, 6], 0), (0, [7], None), (0, [2, 7], None), (1, [], None), (8, [], 8)],
)
def test_a_run_that_lost_its_checkpoints_starts_only_if_it_had_none(
    tmp_path, monkeypatch, done, logged, step
):
    config = tiny(checkpoint_every=3)  # the first checkpoint is there after 6 steps at the latest
    monkeypatch.setattr(standing, "exported_step", lambda folder: done)
    monkeypatch.setattr(standing, "read_metrics", lambda folder: [{"step": n} for n in logged])
    if step is None:
        said = f"was trained for {max(done, *logged, 0)} steps, but its checkpoints are gone"
        with pytest.raises(UserError, match=said):
            standing.standing(tmp_path, config)
    else:
        found = standing.standing(tmp_path, config)
        assert (found.step, found.checkpoint, found.damaged) == (step, None, [])


def test_where_a_run_stands_names_the_damaged_and_holds_the_state_of_the_intact(
    tmp_path, monkeypatch
):
    for step in (3, 6):
        state = {"step": step, "memory": {"best": step / 2}}
        tensors = {"model": {"w": torch.zeros(2)}, "optimizer": {}}
        checkpoint.save(checkpoint.folder_of(tmp_path, step), **tensors, state=state)
    older, newer = (checkpoint.folder_of(tmp_path, step) for step in (3, 6))
    (newer / "model.safetensors").write_bytes(b"")
    found = standing.standing(tmp_path, tiny())
    assert (found.step, found.checkpoint) == (3, older)
    assert found.state["memory"] == {"best": 1.5}
    (line,) = found.damaged
    assert newer.name in line

    (older / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(standing, "exported_step", lambda folder: 8)  # done, by its model
    found = standing.standing(tmp_path, tiny())
    assert (found.step, found.checkpoint, len(found.damaged)) == (8, None, 2)


def test_another_palette_is_refused_wherever_the_run_is_opened(finished, tmp_path):
    folder = copied(finished, tmp_path)
    palette = Palette.load(folder / "palette.npy")
    Palette(palette.colors[::-1].copy()).save(folder / "palette.npy")
    for use in (igpt.load, lambda folder: trained(LINEAR, folder, resume=True)):
        with pytest.raises(UserError, match="is not the palette that the run was started with"):
            use(folder)


def test_the_commands_of_a_run_are_all_kept(finished, tmp_path, monkeypatch):
    cut_off(monkeypatch, tiny(), tmp_path / "run", at=4)
    trained(tiny(), tmp_path / "run", resume=True)
    assert read_run(tmp_path / "run")[1]["commands"] == ["test", "test"]


def test_what_validates_nothing_is_not_called_validation(tmp_path):
    data = dataclasses.replace(TINY.data, fold_validation=True)
    run = trained(dataclasses.replace(TINY, data=data), tmp_path / "run")
    assert run.valid_nats is None
    assert run.folded_nats > 0
    assert not any("valid_nats" in line for line in run.metrics)


def test_pretrain_is_a_function_that_prints_nothing(tmp_path, capfd):
    lines = []
    run = igpt.pretrain(
        "digits",
        tmp_path / "run",
        config=TINY,
        train={"total_steps": np.int64(4)},
        progress=lines.append,
        **{"train.log_every": 1},
    )
    assert capfd.readouterr() == ("", "")
    assert (run.step, run.config.train.total_steps) == (4, 4)
    assert [line["step"] for line in lines if "loss_nats" in line] == [1, 2, 3, 4]
    assert json.loads(json.dumps(run.metrics)) == [json.loads(json.dumps(line)) for line in lines]
    assert run.model.sample(1).shape == (1, 8, 8, 3)
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        igpt.pretrain("digits", tmp_path / "run", config=TINY)
    assert igpt.pretrain("digits", tmp_path / "run", resume=True).step == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": {"lrr": 1.0}}, r"unknown key 'train.lrr': did you mean lr\?"),
        ({"train.lr": "high"}, "train.lr is 'high', which is not what this setting takes"),
        ({"train.lr": float("inf")}, "train.lr is inf: it must be a finite number"),
        ({"nonsense.deep": 1}, "unknown key 'nonsense'"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(UserError, match=said):
        overlaid(TINY, settings)


@pytest.mark.parametrize(
    ("name", "value"), [(None, 5), ("palette_digest", None), ("command", []), ("mixed", "x")]
)
def test_facts_of_another_kind_are_named(finished, tmp_path, name, value):
    run = shutil.copytree(finished, tmp_path / "run")
    document = json.loads((run / "config.json").read_text())
    document["facts"] = value if name is None else {**document["facts"], name: value}
    (run / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"config\.json is damaged: facts"):
        read_run(run)


def test_lines_of_metrics_that_are_none_are_left_out(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = read_metrics(run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'5\nnull\n[]\n{}\n{"step": null}\n' + b"[" * 9999 + b"\n\0\0\0\xff")
    assert read_metrics(run) == before
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        read_metrics(run)
