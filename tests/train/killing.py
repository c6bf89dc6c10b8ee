"""A training run in a process of its own, to be killed at a chosen moment."""

import multiprocessing
import os
import time
from pathlib import Path

from igpt.errors import UserError
from igpt.jobs import pretrain as run
from igpt.jobs.finetune import finetune
from igpt.train import checkpoint


def train(folder, config, data, **options):
    """Start or resume the run in `folder` and train it to its end."""
    run.train_run(data, folder, config, command="test", resume=True, **options)


def tune(folder, config, data, *, model):
    """Start or resume the fine-tuning in `folder` and carry it to its end."""
    finetune(model, data, folder, resume=True, **config)


def train_in_silence(folder, config, data, threads, options, work):
    """`train`, or other work, in a child that prints nothing."""
    import torch

    torch.set_num_threads(threads)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    work(folder, config, data, **options)


def forks():
    """A server that has imported torch once and forks quickly from then on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.killing"])
    return context


def killed_after(
    context, wait_s, folder, config, data, *, from_start=False, threads=1, work=train, **options
):
    """Train in a child and kill it `wait_s` after its first checkpoint, or after its start.

    Returns:
        Whether it still ran then.
    """
    before = newest_step(folder)
    args = (folder, config, data, threads, options, work)
    child = context.Process(target=train_in_silence, args=args)
    child.start()
    deadline_s = time.monotonic() + 300
    while not from_start and child.is_alive() and newest_step(folder) <= before:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    child.join(wait_s)
    child.kill()
    child.join()
    return child.exitcode == -9


def train_in_child(context, folder, config, data, *, threads=1, work=train, **options):
    """Train to the end as a child that is killed does, from the same server."""
    args = (folder, config, data, threads, options, work)
    child = context.Process(target=train_in_silence, args=args)
    child.start()
    child.join()
    assert child.exitcode == 0


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, -1 where there is none."""
    steps = checkpoint.all_steps(folder)
    return steps[0][0] if steps else -1


def final_weights(folder, total_steps):
    """The bytes of the weights that a finished run left, of its last step and as its model."""
    path, _ = checkpoint.newest(folder)
    if path is None or checkpoint.step_of(path) != total_steps:
        raise UserError(f"{folder} is not finished: {path}")
    return [(place / "model.safetensors").read_bytes() for place in (path, folder / "model")]
