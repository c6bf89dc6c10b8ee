import dataclasses
import os
import random
import signal
import threading

import pytest
import torch

from igpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from igpt.errors import Interrupted, UserError
from igpt.progress import Ticker
from igpt.train import checkpoint, loop, resume, setup
from igpt.train.stopping import stopping_softly
from igpt.train.tracking import read_metrics
from tests.train import killing

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
    config = setup.create_run(config, data, folder)
    tokenizer = setup.tokenizer_of_run(folder, config)
    return setup.make_trainer(config, data, folder, tokenizer=tokenizer)


def resumed(data, folder):
    config, _ = setup.read_run(folder)
    tokenizer = setup.tokenizer_of_run(folder, config)
    trainer = setup.make_trainer(config, data, folder, tokenizer=tokenizer)
    resume.resume(trainer)
    return trainer


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def assert_same(one, other):
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("objective", ["ar", "bert"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_run_resumed_at_any_step_ends_with_the_same_bits(
    digits, tmp_path, objective, optimizer, stop_at
):
    config = tiny(objective=objective, optimizer=optimizer)
    whole = start(config, digits, tmp_path / "whole")
    loop.run_steps(whole, QUIET)

    broken = start(config, digits, tmp_path / "broken")
    for batch in broken.stream.prefetch(0, stop_at):
        loop.train_step(broken, batch)
    resume.save(broken)
    again = resumed(digits, tmp_path / "broken")
    assert again.step == stop_at
    loop.run_steps(again, QUIET)
    assert_same(weights(whole), weights(again))


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_micro_batches_change_the_gradient_by_rounding_only(digits, tmp_path, objective):
    gradients = []
    for micro_batch in (6, 4, 1):
        config = tiny(objective=objective, micro_batch=micro_batch)
        trainer = start(config, digits, tmp_path / str(micro_batch))
        loss = loop.loss_of(trainer, trainer.stream.at(0))
        gradients.append([loss, *(p.grad for p in trainer.network.parameters())])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_loss_falls_and_metrics_hold_what_they_promise(digits, tmp_path):
    trainer = start(tiny(total_steps=30), digits, tmp_path / "run")
    loop.run_steps(trainer, QUIET)
    lines = read_metrics(tmp_path / "run")
    logged = [line for line in lines if "loss_nats" in line]
    valid = [line["valid_nats"] for line in lines if "valid_nats" in line]
    assert [line["step"] for line in logged] == list(range(2, 31, 2))
    assert logged[-1]["loss_nats"] < logged[0]["loss_nats"] - 0.5
    assert valid[-1] < valid[0]
    for key in ("lr", "grad_norm", "images_per_s", "tokens_per_s", "mfu", "memory_bytes"):
        assert logged[0][key] > 0


def test_bf16_is_for_products_only(digits, tmp_path):
    trainer = start(tiny(precision="bf16"), digits, tmp_path / "run")
    seen = []
    trainer.network.h[0].mlp.c_fc.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    before = loop.loss_of(trainer, trainer.stream.at(0))
    trainer.network.zero_grad()
    loop.run_steps(trainer, QUIET)
    assert set(seen) == {torch.bfloat16}
    assert before.dtype == torch.float32
    state = [*trainer.network.state_dict().values(), *trainer.optimizer.tensors().values()]
    assert {tensor.dtype for tensor in state} == {torch.float32}


def test_a_second_signal_ends_at_once_and_the_handlers_are_put_back(digits, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = start(tiny(), digits, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), stopping_softly(trainer):
        signal.raise_signal(signal.SIGTERM)
        assert trainer.stop_signal == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_is_not_finite_stops_with_step_batch_and_last_good_checkpoint(digits, tmp_path):
    trainer = start(tiny(), digits, tmp_path / "run")
    loop.run_steps(trainer, QUIET)
    trainer.step = 6
    before = weights(trainer)
    with torch.no_grad():
        trainer.network.head.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"at step 7 \(images \d+, .*last good checkpoint: .*0008"):
        loop.train_step(trainer, trainer.stream.at(6))
    after = weights(trainer)
    after["head.weight"][0, 0] = before["head.weight"][0, 0]
    assert_same(before, after)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_says_how_to_go_on(digits, tmp_path, number):
    trainer = start(tiny(total_steps=100_000, checkpoint_every=10**6), digits, tmp_path / "run")
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    with pytest.raises(Interrupted, match="is saved: go on with --resume") as stop:
        loop.run_steps(trainer, QUIET)
    assert stop.value.signal_number == number
    path, _ = checkpoint.newest(tmp_path / "run")
    assert path == checkpoint.folder_of(tmp_path / "run", trainer.step)


@pytest.mark.parametrize("step", [0, 3])
def test_ctrl_c_that_breaks_the_compiler_too_still_ends_in_one_line(
    digits, tmp_path, monkeypatch, step
):
    """A terminal sends it to the processes that compile, and the step that waits for them fails."""
    trainer = start(tiny(), digits, tmp_path / "run")
    take = loop.train_step

    def broken_step(trainer, batch):
        if trainer.step < step:
            return take(trainer, batch)
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("CppCompileError")

    monkeypatch.setattr(loop, "train_step", broken_step)
    with pytest.raises(Interrupted) as stop:
        loop.run_steps(trainer, QUIET)
    assert stop.value.signal_number == signal.SIGINT
    path, _ = checkpoint.newest(tmp_path / "run")
    if step:
        assert path == checkpoint.folder_of(tmp_path / "run", step)
        assert "stopped after step 3, which is saved" in str(stop.value)
    else:
        assert path is None
        assert "stopped before the first step: start over with --resume" in str(stop.value)


def test_a_step_that_fails_without_a_signal_is_not_hidden(digits, tmp_path, monkeypatch):
    trainer = start(tiny(), digits, tmp_path / "run")

    def broken_step(trainer, batch):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(loop, "train_step", broken_step)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        loop.run_steps(trainer, QUIET)


def test_metrics_after_the_checkpoint_are_dropped_at_resume(digits, tmp_path):
    trainer = start(tiny(), digits, tmp_path / "run")
    loop.run_steps(trainer, QUIET)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss_nats": 1}\n{"ste')
    resumed(digits, tmp_path / "run")
    assert max(line["step"] for line in read_metrics(tmp_path / "run")) == 8


def test_a_folder_that_holds_something_is_left_alone(digits, tmp_path):
    start(TINY, digits, tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run: add --resume to go on with it"):
        setup.create_run(TINY, digits, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty \(thesis.txt, ...\): choose another folder"):
        setup.create_run(TINY, digits, tmp_path / "other")


def test_resume_names_and_refuses_what_would_make_it_another_run():
    changed = dataclasses.replace(tiny(lr=0.5, batch_size=7), seed=3)
    with pytest.raises(UserError) as refusal:
        resume.check_resumable(TINY, changed, step=4)
    for text in ("seed 0 -> 3", "train.batch_size 6 -> 7", "train.lr 0.01 -> 0.5"):
        assert text in str(refusal.value)
    resume.check_resumable(TINY, tiny(log_every=1, checkpoint_every=2, keep_last=5), step=4)


def test_resume_warns_where_bits_may_differ(capsys):
    resume.check_resumable(tiny(micro_batch=6), tiny(micro_batch=3), step=4)
    assert "warning: train.micro_batch 6 -> 3: the weights will not be" in capsys.readouterr().err


@pytest.mark.parametrize("step", [0, 2, 6])
def test_the_end_may_move_while_the_rate_is_level(step):
    long = tiny(schedule="linear", total_steps=40, decay_fraction=0.5)
    resume.check_resumable(
        long, tiny(schedule="linear", total_steps=10, decay_fraction=0.5), step=step
    )


@pytest.mark.parametrize(
    ("stored", "asked", "step"),
    [
        ({"schedule": "linear", "total_steps": 8}, {"schedule": "linear", "total_steps": 12}, 7),
        ({"schedule": "linear", "total_steps": 40}, {"schedule": "linear", "total_steps": 8}, 7),
        ({"schedule": "linear", "total_steps": 40}, {"schedule": "linear", "total_steps": 4}, 6),
        ({"schedule": "cosine", "total_steps": 8}, {"schedule": "cosine", "total_steps": 12}, 1),
    ],
)
def test_the_end_may_not_move_once_the_rate_has_felt_it(stored, asked, step):
    with pytest.raises(UserError, match="--resume cannot change train"):
        resume.check_resumable(tiny(**stored), tiny(**asked), step=step)


def test_output_projections_start_at_zero_only_where_asked(digits, tmp_path):
    for zero in (False, True):
        trainer = start(tiny(zero_outputs=zero), digits, tmp_path / str(zero))
        outputs = [p for n, p in trainer.network.named_parameters() if n.endswith("c_proj.weight")]
        assert len(outputs) == 4
        assert all(bool(p.any()) is not zero for p in outputs)


def test_auto_settings_are_resolved_and_stored(digits, tmp_path):
    config = setup.create_run(
        tiny(precision="auto", compile="auto", micro_batch="auto", warmup_steps=None),
        digits,
        tmp_path / "run",
    )
    stored, facts = setup.read_run(tmp_path / "run")
    assert stored == config
    assert config.train.precision in ("fp32", "bf16")
    assert config.train.micro_batch == 6
    assert config.train.warmup_steps == 1
    assert facts["data_digest"] == digits.digest


def test_micro_batch_shrinks_to_the_memory_at_hand(monkeypatch):
    monkeypatch.setattr("igpt.compute.free_memory_bytes", lambda device: 40_000_000)
    config = setup.resolve(tiny(batch_size=128), n_images=1000, n_colors=17)
    assert 1 <= config.train.micro_batch < 128


def test_killed_at_random_moments_and_resumed_the_weights_are_bit_identical(digits, tmp_path):
    """TARGETS, Reliability row 1, quick form: 4 kills; the 50 are in test_soak."""
    config = tiny(total_steps=400, checkpoint_every=5, log_every=50, valid_every=200)
    killing.train(tmp_path / "whole", config, digits)
    context, rng = killing.forks(), random.Random(0)
    for _ in range(4):
        wait_s = 0.3 * rng.random()
        assert killing.killed_after(context, wait_s, tmp_path / "broken", config, digits)
    assert 0 < killing.newest_step(tmp_path / "broken") < 400
    killing.train(tmp_path / "broken", config, digits)
    whole = killing.final_weights(tmp_path / "whole", 400)
    assert killing.final_weights(tmp_path / "broken", 400) == whole
