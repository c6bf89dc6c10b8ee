"""Two gloo ranks, started as a user would; TARGETS, Reliability row 5."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from igpt.errors import UserError
from igpt.loading import load
from igpt.progress import n_ranks, own_rank
from igpt.report.grids import N_COMPLETED, grids
from igpt.train.distributed import World, is_launched
from igpt.train.folder import read_metrics

OPTIONS = (
    "--data.image-size 8 --data.n-colors 17 --model.n-layer 2 --model.n-head 2 --model.n-embd 16 "
    "--train.batch-size 7 --train.lr 0.01 --train.log-every 1 --train.valid-every 6 "
    "--train.valid-images 5 --train.checkpoint-every 5 --train.precision fp32 --train.compile off"
).split()


# Three blocks over two ranks: some stacks have no matrix for one of them.
MUON = ("--model.n-layer", "3", "--train.muon-lr", "0.01", "--train.optimizer", "muon")


def command(folder, ranks, *options):
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, "-m", "igpt", "pretrain", "digits", str(folder), *OPTIONS, *options]


LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")


def test_empty_variables_of_a_launcher_are_none(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.setenv(name, "")
    assert not is_launched() and n_ranks() == 1 and own_rank() == 0
    monkeypatch.setenv("RANK", "0")
    assert not is_launched() and n_ranks() == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two', not a number: unset it"),
        ("RANK", "-1", "RANK is '-1', not a number: unset it"),
        ("MASTER_ADDR", "", "WORLD_SIZE is 2, but MASTER_ADDR is not set: start with torchrun"),
        ("LOCAL_RANK", "", "WORLD_SIZE is 2, but LOCAL_RANK is not set: start with torchrun"),
    ],
)
def test_variables_that_torchrun_would_not_set_are_named(monkeypatch, name, value, words):
    for variable, sound in zip(LAUNCHED, ("0", "2", "0", "1234", "here"), strict=True):
        monkeypatch.setenv(variable, sound)
    assert is_launched() and n_ranks() == 2
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        is_launched()


def run(folder, ranks, *options):
    found = subprocess.run(command(folder, ranks, *options), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found


def start(folder, *options):
    return subprocess.Popen(
        command(folder, 2, "--train.total-steps", "1000000", *options),
        stderr=subprocess.PIPE,
        text=True,
    )


def curve(folder):
    return [line.get("loss_nats", line.get("valid_nats")) for line in read_metrics(folder)]


def pid_of_rank(folder, rank, launcher):
    """The process of a rank, once the run has begun to step."""
    deadline_s = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists():
        assert time.monotonic() < deadline_s
        assert launcher.poll() is None, launcher.stderr.read()
        time.sleep(0.1)
    for process in os.listdir("/proc"):
        if process.isdigit():
            try:
                with open(f"/proc/{process}/environ", "rb") as file:
                    environ = file.read().split(b"\0")
                with open(f"/proc/{process}/cmdline", "rb") as file:
                    ours = str(folder).encode() in file.read().split(b"\0")
            except OSError:
                continue
            if ours and f"RANK={rank}".encode() in environ:
                return int(process)
    raise AssertionError("no such rank")


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    """A run of one process, which no number of ranks may differ from."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, 1, "--train.total-steps", "12")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--train.parallel", "ddp", "--train.micro-batch", "2"), id="ddp"),
        pytest.param(
            ("--recipe", "igpt-xl", "--train.parallel", "fsdp"),
            id="fsdp-xl-made-tiny",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--train.parallel", "fsdp", "--train.micro-batch", "2", "--train.objective", "bert"),
            id="fsdp-bert",
            marks=pytest.mark.slow,
        ),
        pytest.param(("--train.parallel", "fsdp", *MUON), id="fsdp-muon"),
    ],
)
def test_two_ranks_learn_what_one_does(alone, tmp_path, options):
    if own := {"bert": ("--train.objective", "bert"), "muon": MUON}.get(options[-1]):
        alone = tmp_path / "one"
        run(alone, 1, "--train.total-steps", "12", *own)
    found = run(tmp_path / "two", 2, "--train.total-steps", "12", *options)
    assert curve(tmp_path / "two") == pytest.approx(curve(alone), abs=1e-5)
    assert found.stdout.count("validation") == 1
    one, two = load(alone / "model").network, load(tmp_path / "two" / "model").network
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_number_of_ranks_may_change_between_runs(alone, tmp_path, parallel):
    folder = tmp_path / "run"
    steps = ("--train.total-steps", "12", "--train.parallel", parallel)
    stop_after(folder, 2, 3, *steps)
    stop_after(folder, 1, 7, *steps, "--resume")
    found = run(folder, 2, *steps, "--resume")
    assert "world_size 1 -> 2" in found.stderr
    assert curve(folder) == pytest.approx(curve(alone), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_draw_what_their_model_draws(digits, tmp_path, parallel):
    folder = tmp_path / "run"
    drawing = ("--train.draw-every", "2", "--train.parallel", parallel)
    run(folder, 2, "--train.total-steps", "4", *drawing)
    pictures = folder / "pictures" / "training"
    names = [f"{kind}-{step:07d}.png" for kind in ("completions", "samples") for step in (2, 4)]
    assert sorted(path.name for path in pictures.iterdir()) == names
    originals = digits.images("valid")[:N_COMPLETED]
    for name, picture in grids(load(folder / "model"), originals, seed=0).items():
        drawn = np.asarray(Image.open(pictures / f"{name}-0000004.png").convert("RGB"))
        np.testing.assert_array_equal(drawn, picture)


STOPPING = """
import os, signal, sys
from igpt.cli.main import main
from igpt.train import loop
plain = loop.train_step
def stopping(trainer, batch):
    result = plain(trainer, batch)
    if trainer.step == {step} and trainer.world.rank == trainer.world.size - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return result
loop.train_step = stopping
main()
"""


def stop_after(folder, ranks, step, *options):
    """Train, and have the last rank told to stop at a step; all must stop together."""
    script = folder.parent / "stopping.py"
    script.write_text(STOPPING.format(step=step))
    words = command(folder, ranks, *options)
    where = len(words) - 1 - words[::-1].index("igpt") - 1
    words[where : where + 2] = [str(script)]
    found = subprocess.run(words, capture_output=True, text=True)
    assert f"stopped after step {step}, which is saved" in found.stderr, found.stderr
    assert max(line["step"] for line in read_metrics(folder)) == step


def test_a_killed_rank_ends_the_job_with_its_name(digits, tmp_path):
    launcher = start(tmp_path / "run")
    os.kill(pid_of_rank(tmp_path / "run", 1, launcher), signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert re.search(r"igpt: error: rank 1 gave no sign of life for .*; go on with --res", stderr)
    assert stderr.count("igpt: error") == 1


@pytest.mark.slow
def test_a_stalled_rank_ends_the_job_with_its_name(digits, tmp_path):
    launcher = start(tmp_path / "run", "--train.timeout-s", "6")
    pid = pid_of_rank(tmp_path / "run", 1, launcher)
    os.kill(pid, signal.SIGSTOP)
    try:
        line = next(line for line in launcher.stderr if "igpt: error" in line)
    finally:
        os.kill(pid, signal.SIGKILL)
    launcher.communicate(timeout=60)
    assert re.search(r"rank 1 gave no sign of life for \d+ s at step \d+: the job ends", line)


FAULT = """
import sys
from igpt.cli.main import main
from igpt.errors import {error}
from igpt.train import loop
plain = loop.train_step
def faulty(trainer, batch):
    if trainer.step == 3 and trainer.world.rank in {ranks}:
        raise {error}("cannot write it: No space left on device")
    return plain(trainer, batch)
loop.train_step = faulty
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("error", "ranks"), [("UserError", [0]), ("Diverged", [0, 1])])
def test_a_fault_while_training_is_said_once(digits, tmp_path, error, ranks):
    (tmp_path / "faulty.py").write_text(FAULT.format(error=error, ranks=ranks))
    words = command(tmp_path / "run", 2, "--train.total-steps", "100")
    where = len(words) - 1 - words[::-1].index("igpt") - 1
    words[where : where + 2] = [str(tmp_path / "faulty.py")]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode != 0
    assert found.stderr.count("igpt: error") == 1, found.stderr
    assert "igpt: error: cannot write it: No space left on device" in found.stderr


@pytest.mark.slow
def test_two_ranks_search_the_learning_rate_together(digits, tmp_path):
    found = run(tmp_path / "search", 2, "--train.total-steps", "3", "--search-lr", "--json")
    (document,) = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    table = json.loads((tmp_path / "search" / "search.json").read_text())
    assert [trial["lr"] for trial in document["trials"]] == [t["lr"] for t in table["trials"]]
    assert len(table["trials"]) >= 2


@pytest.mark.slow
def test_ranks_of_a_cut_up_network_compute_in_bf16_and_learn(digits, tmp_path):
    options = [word for word in OPTIONS if word != "fp32"]
    options[options.index("--train.precision")] = "--train.precision=bf16"
    words = command(tmp_path / "run", 2)
    words = [*words[: -len(OPTIONS)], *options, "--train.parallel", "fsdp"]
    done = subprocess.run([*words, "--train.total-steps", "30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [line["loss_nats"] for line in read_metrics(tmp_path / "run") if "lr" in line]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow
def test_a_fault_before_training_is_said_once(tmp_path):
    words = command(tmp_path / "run", 2)
    words[words.index("digits")] = str(tmp_path / "nowhere")
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode != 0
    assert found.stderr.count("igpt: error") == 1


@pytest.mark.slow
def test_state_of_a_sharded_checkpoint_is_json_and_safetensors_only(digits, tmp_path):
    run(tmp_path / "run", 2, "--train.total-steps", "2", "--train.parallel", "fsdp")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "state.json").read_text())["world_size"] == 2


@pytest.mark.parametrize(
    ("batch_size", "size", "micro_batch"), [(7, 2, 3), (128, 3, 10), (4, 4, 4)]
)
def test_every_rank_has_as_many_micro_batches_and_each_slot_once(batch_size, size, micro_batch):
    worlds = [World(rank, size) for rank in range(size)]
    cuts = [world.parts(batch_size, micro_batch) for world in worlds]
    assert len({len(cut) for cut in cuts}) == 1
    seen = [
        world.slots(batch_size).start + slot
        for world, cut in zip(worlds, cuts, strict=True)
        for part in cut
        for slot in range(part.start, part.stop)
    ]
    assert seen == list(range(batch_size))
    assert all(part.stop - part.start <= micro_batch for cut in cuts for part in cut)
