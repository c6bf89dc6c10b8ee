"""`igpt pretrain` from the command line: what it refuses, with its exact line, and its searches."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from igpt.cli.main import main
from igpt.manifest import write_manifest
from igpt.train import checkpoint
from igpt.train.folder import read_metrics
from tests.full_disk import digests

OPTIONS = (
    "--data.image-size 8 --data.n-colors 17 --model.n-layer 2 --model.n-head 2 --model.n-embd 16 "
    "--train.total-steps 6 --train.batch-size 6 --train.valid-images 20 --train.checkpoint-every 3 "
    "--train.log-every 2 --train.warmup-steps 2 --train.precision fp32 --train.compile off"
).split()


def run(capsys, *words):
    """Status, standard output and the lines of standard error that are complaints."""
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "digits", *map(str, words)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def complaint(capsys, *words):
    """The line of a command that must be refused with status 2."""
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("igpt: error: ")]
    assert err.splitlines()[-1] == line
    return line.removeprefix("igpt: error: ")


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A run that is done; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "digits", str(folder), *OPTIONS])
    assert stop.value.code == 0
    return folder


@pytest.fixture
def stopped(finished, tmp_path):
    """The same run as it was after its third step."""
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints" / "step-0000006")
    shutil.rmtree(folder / "model")
    return folder


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--model.n-head", "3"],
            "model.n_head 3 does not divide model.n_embd 16: "
            "choose a width that is a multiple of the heads",
        ),
        (["--train.total-steps", "0"], "train.total_steps is 0: it must be at least 1"),
        (["--train.lr", "-0.001"], "train.lr is -0.001: it must be above 0"),
        (["--train.muon-lr", "0"], "train.muon_lr is 0.0: it must be above 0"),
        (
            ["--train.micro-batch", "7"],
            "train.micro_batch is 7: choose from 1 to train.batch_size (6)",
        ),
        (
            ["--train.warmup-steps", "7"],
            "train.warmup_steps is 7: choose from 0 to train.total_steps (6)",
        ),
        (["--train.draw-every", "-1"], "train.draw_every is -1: it must not be negative"),
    ],
)
def test_bad_settings_fail_before_any_work(capsys, tmp_path, options, line):
    assert complaint(capsys, tmp_path / "run", *OPTIONS, *options) == line
    assert not (tmp_path / "run").exists()


def test_resuming_with_changed_settings_names_each_and_changes_nothing(capsys, finished):
    before = digests(finished)
    changes = ["--train.lr", "0.5", "--seed", "3", "--model.n-layer", "3"]
    assert complaint(capsys, finished, "--resume", *changes) == (
        "--resume cannot change seed 0 -> 3, model.n_layer 2 -> 3, train.lr 0.003 -> 0.5: "
        "drop it, or start another run folder"
    )
    assert digests(finished) == before


def test_a_run_that_is_there_is_not_written_over(capsys, finished):
    assert complaint(capsys, finished, *OPTIONS) == (
        f"{finished} already holds a run: add --resume to go on with it, or choose another folder"
    )


def test_resuming_a_finished_run_says_so(capsys, finished):
    status, out, err = run(capsys, finished, "--resume")
    assert status == 0
    assert f"{finished} is finished: all 6 steps are done" in err
    assert "step 6, validation" in out


def test_resuming_on_other_images_is_refused(capsys, stopped, tmp_path):
    with pytest.raises(SystemExit):
        main(["prepare", "digits", str(tmp_path / "set"), "--image-size", "8", "--seed", "5"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", str(tmp_path / "set"), str(stopped), "--resume"])
    assert stop.value.code == 2
    assert f"{stopped} was trained on " in capsys.readouterr().err


def test_a_run_that_a_live_process_holds_is_not_touched(capsys, finished):
    before = digests(finished)
    code = (
        "import sys, time; from pathlib import Path; from igpt.files import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", code, str(finished)]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert complaint(capsys, finished, "--resume") == (
            f"{finished} is in use by process {holder.pid} on {socket.gethostname()}: "
            "wait for it, stop it, or choose another folder"
        )
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert digests(finished) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("ln_f.weight"), "tensor ln_f.weight is missing: use a matching file"),
        (lambda s: s.update(more=torch.zeros(1)), "tensor more is not part of this network"),
        (
            lambda s: s.update(sos=torch.zeros(3)),
            "tensor sos is (3,), this network has (16,): check the model settings",
        ),
    ],
)
def test_a_checkpoint_whose_tensors_do_not_fit_is_refused_by_name(capsys, stopped, change, said):
    path, _ = checkpoint.newest(stopped)
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    change(tensors)
    (path / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    (path / "manifest.json").unlink()
    write_manifest(path)
    assert said in complaint(capsys, stopped, "--resume")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--train.objective", "bert"],
            "--init-from {place} has train.objective ar, this run bert: add --train.objective ar",
        ),
        (
            ["--model.n-layer", "3"],
            "--init-from {place} has model.n_layer 2, this run 3: add --model.n-layer 2",
        ),
        (
            ["--data.n-colors", "33"],
            "--init-from {place} has data.n_colors 17, this run 33: add --data.n-colors 17",
        ),
    ],
)
def test_a_start_from_another_kind_of_model_is_refused(capsys, finished, tmp_path, options, line):
    place = finished / "model"
    found = complaint(capsys, tmp_path / "run", *OPTIONS, *options, "--init-from", place)
    assert found == line.format(place=place)


def test_a_run_starts_from_the_weights_of_another(capsys, finished, tmp_path):
    options = [*OPTIONS, "--train.lr", "1e-9", "--json"]
    status, out, _ = run(capsys, tmp_path / "run", *options, "--init-from", finished)
    assert status == 0
    last = [line["valid_nats"] for line in read_metrics(finished) if "valid_nats" in line][-1]
    assert json.loads(out)["valid_nats"] == pytest.approx(last, abs=1e-4)


def test_search_lr_keeps_every_run_and_a_table_and_goes_on_where_it_was(capsys, tmp_path):
    folder = tmp_path / "search"
    status, out, _ = run(capsys, folder, *OPTIONS, "--search-lr", "--json")
    assert status == 0
    found = json.loads(out)
    trials = found["trials"]
    losses = [trial["valid_nats"] for trial in trials]
    assert [trial["lr"] for trial in trials] == [0.01, 0.003, 0.001, 0.0003, 0.0001][: len(trials)]
    assert losses[-1] > losses[-2]
    assert found["best"] == min(trials, key=lambda trial: trial["valid_nats"])
    stored = json.loads((folder / "search.json").read_text())["trials"]
    assert [{**trial, "run": str(folder / trial["run"])} for trial in stored] == trials
    for trial in trials:
        assert (folder / f"lr-{trial['lr']:g}" / "model" / "model.safetensors").is_file()

    assert complaint(capsys, folder, *OPTIONS, "--search-lr") == (
        f"{folder} already holds a search: add --resume to go on with it, or choose another folder"
    )
    assert complaint(capsys, folder, "--search-lr", "--resume", "--seed", "1") == (
        f"{folder} was searched with other settings: give none of them anew, "
        "or choose another folder"
    )
    # Without its table's last line the last run is taken up again, and found finished.
    table = json.loads((folder / "search.json").read_text())
    table["trials"].pop()
    (folder / "search.json").write_text(json.dumps(table))
    status, out, err = run(capsys, folder, "--search-lr", "--resume", "--json")
    assert status == 0
    assert json.loads(out) == found
    assert err.count("is finished: all 6 steps are done") == 1


def test_search_lr_leaves_a_folder_with_something_in_it_alone(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert complaint(capsys, tmp_path, *OPTIONS, "--search-lr") == (
        f"{tmp_path} is not empty (thesis.txt, ...): choose another folder"
    )


def test_a_rate_that_diverges_is_in_the_table_and_the_search_goes_on(capsys, tmp_path, monkeypatch):
    from igpt.errors import Diverged
    from igpt.train import loop

    plain = loop.train_step

    def exploding(trainer, batch):
        if trainer.config.train.lr == 0.01 and trainer.step == 2:
            raise Diverged("loss nan and gradient norm nan at step 3")
        return plain(trainer, batch)

    monkeypatch.setattr(loop, "train_step", exploding)
    status, out, err = run(capsys, tmp_path / "search", *OPTIONS, "--search-lr")
    assert status == 0
    assert "learning rate 0.01 diverged: loss nan" in err
    assert out.splitlines()[1].split()[:2] == ["0.01", "diverged"]
    assert out.splitlines()[-1].startswith("best: 0.00")
