"""`igpt finetune RUN` as a run: kept, resumed, searched, folded, shared by ranks."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

import igpt
from igpt.errors import Interrupted, UserError
from igpt.evaluation import finetune as steps
from igpt.jobs import finetune as finetuning
from igpt.train.folder import read_metrics
from tests.cli.test_main import run
from tests.images.pictures import class_files, write_tree
from tests.networks import pixel_model

FEW = "--finetune.batch-size 8 --finetune.micro-batch 8 --finetune.precision fp32".split()
FEW += "--max-images 24 --finetune.valid-every 2 --finetune.lr 0.01 --finetune.compile off".split()
STEPS = ["--finetune.total-steps", "4"]


@pytest.fixture
def model(tmp_path, digits):
    return str(pixel_model().save(tmp_path / "tiny"))


def tuned(model, folder, capsys, *options):
    status, out, err = run(
        ["finetune", model, "digits", str(folder), *FEW, *STEPS, *options, "--json"], capsys
    )
    assert status == 0, err
    return json.loads(out), err


def test_a_finished_run_says_so_and_gives_its_result(model, tmp_path, capsys):
    folder = tmp_path / "run"
    first, _ = tuned(model, folder, capsys)
    assert [line["step"] for line in read_metrics(folder) if "valid_accuracy" in line] == [2, 4]
    assert igpt.load(folder).digest() == igpt.load(folder / "model").digest()
    status, _, err = run(["finetune", model, "digits", str(folder), *FEW, *STEPS], capsys)
    assert status == 2
    assert "already holds a run: add --resume" in err
    again, err = tuned(model, folder, capsys, "--resume")
    assert again == first
    assert f"{folder} is finished" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--finetune.lr", "0.02"], "--resume cannot change finetune.lr 0.01 -> 0.02"),
        # A value is given, or it is not: that it equals the default says nothing.
        (["--finetune.lr", "0.0003"], "--resume cannot change finetune.lr 0.01 -> 0.0003"),
        (["--seeds", "2"], "--resume cannot change seeds 1 -> 2"),
        (["--max-images", "23"], "was started with another data (digits"),
    ],
)
def test_a_resumed_run_stays_what_it_is(model, tmp_path, capsys, options, said):
    folder = tmp_path / "run"
    tuned(model, folder, capsys)
    command = ["finetune", model, "digits", str(folder), *FEW, *STEPS, "--resume", *options]
    status, _, err = run(command, capsys)
    assert status == 2
    assert said in err


@pytest.fixture
def stopped_after(monkeypatch):
    """Stops a run after so many looks, as a signal would."""

    def after(n):
        look, left = steps._Looks.__call__, [n]

        def looked(self, trainer):
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGTERM)
            return look(self, trainer)

        monkeypatch.setattr(steps._Looks, "__call__", looked)

    return after


@pytest.mark.parametrize("end", [4, 6])
def test_the_end_of_a_run_may_move(model, tmp_path, capsys, stopped_after, end):
    command = ["finetune", model, "digits", *FEW]
    total = ["--finetune.total-steps", str(end)]
    assert run([*command, str(tmp_path / "whole"), *total], capsys)[0] == 0
    stopped_after(1)
    moved = [*command, str(tmp_path / "moved")]
    assert run([*moved, "--finetune.total-steps", "5"], capsys)[0] == 143
    early = [*moved, "--resume", "--finetune.total-steps", "1"]
    status, _, err = run(early, capsys)
    assert status == 2 and "is at step 3 already: --finetune.total-steps 3 ends it" in err
    assert run([*moved, "--resume", *total], capsys)[0] == 0
    ended = [igpt.load(tmp_path / name).digest() for name in ("whole", "moved")]
    assert ended[0] == ended[1]
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert config["finetune"]["total_steps"] == end
    status, _, err = run([*moved, "--resume", "--finetune.patience", "7"], capsys)
    assert status == 2 and "is finished, its end cannot move" in err


def test_a_run_goes_on_by_its_own_settings(model, tmp_path, capsys, stopped_after):
    folder = str(tmp_path / "run")
    own = ["--scratch", "--image-size", "6", "--finetune.patience", "9", "--finetune.no-joint"]
    stopped_after(1)
    started = ["finetune", model, "digits", folder, *FEW, *STEPS, *own]
    assert run(started, capsys)[0] == 143
    # The plain default of patience moves the end too; --max-images says what the data are.
    again = ["finetune", model, "digits", folder, "--max-images", "24", "--resume"]
    status, out, err = run([*again, "--finetune.patience", "5", "--json"], capsys)
    assert status == 0, err
    found = json.loads(out)
    assert found["scratch"] and found["image_size"] == 6 and not found["joint"]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["finetune"]["patience"] == 5 and stored["finetune"]["lr"] == 0.01
    # Repeating the first command whole says nothing new; in Python neither.
    asked = finetuning.starting(tmp_path / "run", resume=True)[0]
    result = igpt.finetune(model, "digits", folder, max_images=24, resume=True).result
    assert result["test_accuracy"] == found["test_accuracy"] and asked.scratch
    status, _, err = run([*started, "--finetune.patience", "5", "--resume"], capsys)
    assert status == 0, err
    for few in (["--resume", "--help"], ["--help", *again[1:]]):  # help comes in any case
        status, out, err = run(["finetune", *few], capsys)
        assert status == 0 and "--finetune.patience INT" in out, err


def test_a_rate_that_diverges_takes_nothing_with_it(model, tmp_path, capsys):
    folder = tmp_path / "run"
    found, err = tuned(model, folder, capsys, "--rates", "1e30", "0.01")
    table = json.loads((folder / "search.json").read_text())
    assert found["lr"] == 0.01
    assert "learning rate 1e+30 diverged" in err
    assert [trial["valid_accuracy"] is None for trial in table["trials"]] == [True, False]
    assert (folder / "model" / "config.json").is_file()


def test_a_search_is_described_before_its_first_rate(model, tmp_path, capsys, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise Interrupted("stopped: go on with --resume", signal.SIGTERM)

    folder = tmp_path / "run"
    command = ["finetune", model, "digits", str(folder), *FEW, *STEPS, "--rates", "0.01", "0.003"]
    with monkeypatch.context() as patch:
        patch.setattr(steps, "run_steps", stop)
        assert run(command, capsys)[0] == 128 + signal.SIGTERM
    assert json.loads((folder / "search.json").read_text()) == {
        "rates": [0.01, 0.003],
        "trials": [],
    }
    bare = ["finetune", model, "digits", str(folder), "--max-images", "24", "--resume"]
    assert run(bare, capsys)[0] == 0
    assert len(json.loads((folder / "search.json").read_text())["trials"]) == 2


def test_without_a_folder_the_same_command_goes_on(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    command = ["finetune", model, "digits", *FEW, *STEPS, "--json"]
    _, first, err = run(command, capsys)
    assert "the same command goes on with it" in err
    _, again, err = run(command, capsys)
    assert "is finished" in err
    assert again == first


def test_validation_is_folded_back_for_the_final_figure(model, tmp_path, capsys):
    folder = tmp_path / "run"
    found, _ = tuned(model, folder, capsys, "--finetune.fold-validation", "on")
    assert found["folded"]
    lines = read_metrics(folder / "folded")
    assert lines[-1]["step"] == found["step"]
    assert not any("valid_accuracy" in line for line in lines)
    one = igpt.load(folder)
    assert not np.array_equal(one.network.wte.weight, igpt.load(model).network.wte.weight)


def test_from_python(model, tmp_path, capfd):
    lines = []
    small = {"batch_size": 8, "micro_batch": 8, "total_steps": 2, "compile": "off"}
    found = igpt.finetune(
        model, "digits", tmp_path / "run", max_images=24, progress=lines.append, **small
    )
    assert capfd.readouterr() == ("", "")
    assert lines == found.metrics
    assert found.metrics[-1]["step"] == 2
    assert len(found.model.classify(np.zeros((2, 8, 8, 3), np.uint8))) == 2
    with pytest.raises(UserError, match="unknown key 'rate': known: joint, layer, lr"):
        igpt.finetune(model, "digits", rate=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{model}"], "{model} is a model folder, not a run: choose another folder"),
        (["--finetune.betas", "0.9", "2"], "finetune.betas is (0.9, 2.0): each must be from 0 to"),
        (["--finetune.grad-clip-norm", "-1"], "finetune.grad_clip_norm is -1.0: it must not be"),
        (["--finetune.lr", "inf"], "finetune.lr is inf: it must be a finite number"),
        (["--rates", "0.01", "0"], "--rates has 0.0: each must be a finite number above 0"),
        (["--finetune.augment", "imagenet"], "has no image files to crop anew"),
    ],
)
def test_bad_input_is_said_before_any_work(model, tmp_path, capsys, options, said):
    before = sorted(tmp_path.rglob("*"))
    options = [option.format(model=model) for option in options]
    status, _, err = run(["finetune", model, "digits", *options, "--max-images", "24"], capsys)
    assert status == 2
    assert said.format(model=model) in err
    assert err.count("igpt: error") == 1
    assert sorted(tmp_path.rglob("*")) == before


# 48 and 64 pixels are the paper's (§4.3), by a position table that is resampled from 32.
@pytest.mark.parametrize(
    ("parallel", "side", "new_side"),
    [
        ("ddp", 8, 8),
        ("fsdp", 8, 8),
        pytest.param("fsdp", 8, 12, marks=pytest.mark.slow),
        pytest.param("fsdp", 32, 48, marks=pytest.mark.slow),
        pytest.param("fsdp", 32, 64, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_have_the_curve_of_one(tmp_path, parallel, side, new_side):
    model = str(pixel_model(image_size=side).save(tmp_path / "tiny"))
    data = write_tree(tmp_path / "photos", class_files(20, side=64))
    curves = []
    for ranks in (1, 2):
        launcher = [sys.executable, "-m"]
        if ranks > 1:
            launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
        folder = tmp_path / f"{parallel}-{ranks}"
        options = [*FEW, "--finetune.total-steps", "5", "--finetune.micro-batch", "3"]
        options += ["--finetune.parallel", parallel, "--finetune.log-every", "1", "--json"]
        options += ["--image-size", str(new_side)]
        command = [*launcher, "igpt", "finetune", model, str(data), str(folder), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout)
        losses = [line["loss_nats"] for line in read_metrics(folder) if "loss_nats" in line]
        curves.append([*losses, figures["valid_accuracy"], figures["test_accuracy"]])
    assert len(curves[0]) == 7
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    tuned = igpt.load(folder)
    assert tuned.image_size == new_side and tuned.network.seq_len == new_side**2
