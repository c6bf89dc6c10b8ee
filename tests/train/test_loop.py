import dataclasses
import os
import random
import signal
import threading

import pytest
import torch

from igpt.errors import Interrupted, UserError
from igpt.jobs import pretrain as run
from igpt.train import checkpoint, loop, saving, settings
from igpt.train.feeding import Ingredient
from igpt.train.folder import read_metrics, read_run
from igpt.train.optim import lr_factor_at
from igpt.train.saving import Saver, save
from igpt.train.stopping import stopping_softly
from igpt.train.validate import validation_nats
from tests.train import killing
from tests.train.making import TINY, resumed, start, take_steps, tiny


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
    take_steps(whole)

    broken = start(config, digits, tmp_path / "broken")
    for batch in broken.stream.prefetch(0, stop_at):
        loop.train_step(broken, batch)
    save(broken)
    again = resumed(digits, tmp_path / "broken")
    assert again.step == stop_at
    take_steps(again)
    assert_same(weights(whole), weights(again))


def test_a_checkpoint_holds_the_moment_that_it_was_asked_for(digits, tmp_path, monkeypatch):
    trainer, go_on = start(tiny(), digits, tmp_path / "run"), threading.Event()
    write = checkpoint.save

    def slow(*args, **kwargs):
        go_on.wait(10)
        write(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(saving, "SMALL_BYTES", 0)  # nothing is waited for
    trainer.owes_validation, trainer.memory = True, {"best": 1.5}
    before, saver = weights(trainer), Saver(trainer)
    saver.save()
    trainer.owes_validation, trainer.memory = False, {}
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(1)
    assert checkpoint.newest(tmp_path / "run")[0] is None
    go_on.set()
    saver.wait()
    again = resumed(digits, tmp_path / "run")
    assert_same(before, weights(again))
    assert (again.owes_validation, again.memory) == (True, {"best": 1.5})


def test_a_checkpoint_without_debts_or_memory_leaves_none(digits, tmp_path):
    trainer = start(tiny(), digits, tmp_path / "run")
    save(trainer)
    trainer.owes_validation, trainer.memory = True, {"best": 1.5}
    saving.restore(trainer, checkpoint.folder_of(tmp_path / "run", 0))
    assert (trainer.owes_validation, trainer.memory) == (False, {})


def test_each_save_deletes_what_is_neither_new_nor_chosen(digits, tmp_path):
    trainer = start(tiny(keep_last=2, checkpoint_at=(3,)), digits, tmp_path / "run")
    stands = []
    for trainer.step in (3, 4, 5, 6):
        save(trainer)
        stands.append(sorted(step for step, _ in checkpoint.all_steps(tmp_path / "run")))
    assert stands == [[3], [3, 4], [3, 4, 5], [3, 5, 6]]


def test_a_save_that_failed_is_told_once_where_it_is_waited_for(digits, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise UserError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", full)
    saver = Saver(start(tiny(), digits, tmp_path / "run"))
    saver.save()
    with pytest.raises(UserError, match="the disk is full"):
        saver.save()
    saver.wait()


def test_weights_that_are_not_finite_are_not_saved(digits, tmp_path):
    trainer = start(tiny(), digits, tmp_path / "run")
    with torch.no_grad():
        trainer.network.head.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"not finite after step 0: .* lower --train\.lr"):
        save(trainer)
    assert checkpoint.newest(tmp_path / "run")[0] is None


def test_what_differs_from_a_checkpoint_is_named(digits, tmp_path, capsys):
    trainer = start(tiny(), digits, tmp_path / "run")
    capsys.readouterr()
    saving.say_what_differs(trainer, dict(trainer.facts))
    assert capsys.readouterr().err == ""
    key = next(iter(trainer.facts))
    saving.say_what_differs(trainer, {key: "other"})
    said = capsys.readouterr().err
    assert f"warning: {key} other -> {trainer.facts[key]}: the weights will not be bit" in said
    assert said.count("warning") == 1


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
    take_steps(trainer)
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
    take_steps(trainer)
    assert set(seen) == {torch.bfloat16}
    assert before.dtype == torch.float32
    state = [*trainer.network.state_dict().values(), *trainer.optimizer.tensors().values()]
    assert {tensor.dtype for tensor in state} == {torch.float32}


def test_a_step_and_validation_need_no_float64(digits, tmp_path, monkeypatch):
    """As Apple's GPUs, which have none: whatever makes such a tensor fails."""
    trainer = start(tiny(), digits, tmp_path / "run")
    wanted = [float(loop.loss_of(trainer, trainer.stream.at(0))), validation_nats(trainer)]
    monkeypatch.setattr("igpt.compute.sums_dtype", lambda _: torch.float32)
    for name in ("tensor", "zeros"):
        make = getattr(torch, name)

        def checked(*args, make=make, **kwargs):
            made = make(*args, **kwargs)
            assert made.dtype != torch.float64
            return made

        monkeypatch.setattr(torch, name, checked)
    found = [float(loop.loss_of(trainer, trainer.stream.at(0))), validation_nats(trainer)]
    assert found == pytest.approx(wanted, rel=1e-6)


STOPS = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "USR1", "USR2")]


def test_a_second_ctrl_c_ends_at_once_and_the_handlers_are_put_back(digits, tmp_path):
    before = [signal.getsignal(number) for number in STOPS]
    trainer = start(tiny(), digits, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), stopping_softly(trainer, Saver(trainer)):
        signal.raise_signal(signal.SIGINT)
        assert trainer.stop_signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in STOPS] == before


@pytest.mark.parametrize("number", STOPS[1:])
def test_other_signals_ask_to_stop_however_often_they_come(digits, tmp_path, number):
    trainer = start(tiny(), digits, tmp_path / "run")
    with stopping_softly(trainer, Saver(trainer)):
        for _ in range(3):
            signal.raise_signal(number)
    assert trainer.stop_signal == number


def test_a_signal_that_is_ignored_or_used_otherwise_stays_so(digits, tmp_path):
    trainer, seen = start(tiny(), digits, tmp_path / "run"), []
    before = (
        signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(1)),
    )
    try:
        with stopping_softly(trainer, Saver(trainer)):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR1, before[1])
    assert (trainer.stop_signal, seen) == (None, [1])


def test_a_run_in_another_thread_takes_no_signal(digits, tmp_path):
    trainer = start(tiny(), digits, tmp_path / "run")
    thread = threading.Thread(target=take_steps, args=(trainer,))
    thread.start()
    thread.join()
    assert trainer.step == 8


def test_a_loss_that_is_not_finite_stops_with_step_batch_and_last_good_checkpoint(digits, tmp_path):
    trainer = start(tiny(), digits, tmp_path / "run")
    take_steps(trainer)
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
        take_steps(trainer)
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
        take_steps(trainer)
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
        take_steps(trainer)


def test_metrics_after_the_checkpoint_are_dropped_at_resume(digits, tmp_path):
    trainer = start(tiny(), digits, tmp_path / "run")
    take_steps(trainer)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss_nats": 1}\n{"ste')
    resumed(digits, tmp_path / "run")
    assert max(line["step"] for line in read_metrics(tmp_path / "run")) == 8


def test_a_folder_that_holds_something_is_left_alone(digits, tmp_path):
    start(TINY, digits, tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run: add --resume to go on with it"):
        start(TINY, digits, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty \(thesis.txt, ...\): choose another folder"):
        start(TINY, digits, tmp_path / "other")


def test_resume_names_and_refuses_what_would_make_it_another_run():
    changed = dataclasses.replace(tiny(lr=0.5, batch_size=7), seed=3)
    with pytest.raises(UserError) as refusal:
        settings.taken_up(TINY, changed)
    for text in ("seed 0 -> 3", "train.batch_size 6 -> 7", "train.lr 0.01 -> 0.5"):
        assert text in str(refusal.value)
    free = tiny(log_every=1, checkpoint_every=2, keep_last=5)
    assert settings.taken_up(TINY, free) == free


def test_resume_warns_where_bits_may_differ(capsys):
    settings.taken_up(tiny(micro_batch=6), tiny(micro_batch=3))
    assert "warning: train.micro_batch 6 -> 3: the weights will not be" in capsys.readouterr().err


def test_auto_and_none_at_resume_mean_what_is_stored(capsys):
    stored = tiny(micro_batch=3, precision="bf16", compile="off", parallel="ddp", warmup_steps=2)
    asked = tiny(
        micro_batch="auto", precision="auto", compile="auto", parallel="auto", warmup_steps=None
    )
    assert settings.taken_up(stored, asked) == stored
    assert capsys.readouterr().err == ""


def test_steps_kept_for_good_stay_promised():
    found = settings.taken_up(tiny(checkpoint_at=(2, 3)), tiny(checkpoint_at=(10, 2)))
    assert found.train.checkpoint_at == (2, 3, 10)


@pytest.mark.parametrize("step", [0, 2, 6])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_end_may_move_while_the_rate_is_level(step, schedule):
    stored, asked = (tiny(schedule=schedule, total_steps=n).train for n in (40, 10))
    assert settings.last_common_step(stored, asked, step=step) == step


@pytest.mark.parametrize(("total", "step", "back_to"), [(12, 7, 6), (12, 8, 6), (9, 8, 6)])
def test_a_longer_end_goes_back_to_before_the_rate_fell(total, step, back_to):
    stored, asked = (tiny(schedule="linear", total_steps=n).train for n in (8, total))
    assert lr_factor_at(back_to - 1, stored, 2) == 1 > lr_factor_at(back_to, stored, 2)
    assert settings.last_common_step(stored, asked, step=step) == back_to


@pytest.mark.parametrize(
    ("schedule", "before", "after", "step", "said"),
    [
        ("linear", 40, 8, 7, "--resume cannot change train.total_steps 40 -> 8: drop it"),
        ("linear", 40, 4, 6, "--resume cannot change train.total_steps 40 -> 4: drop it"),
        ("constant", 40, 4, 6, "--resume cannot change train.total_steps 40 -> 4: drop it"),
        ("cosine", 8, 12, 1, "under train.schedule cosine every step depends on the last one; "),
    ],
)
def test_the_end_may_not_move_where_steps_were_made_for_another(
    schedule, before, after, step, said
):
    stored, asked = (tiny(schedule=schedule, total_steps=n).train for n in (before, after))
    with pytest.raises(UserError, match=said):
        settings.last_common_step(stored, asked, step=step)


def test_output_projections_start_at_zero_only_where_asked(digits, tmp_path):
    for zero in (False, True):
        trainer = start(tiny(zero_outputs=zero), digits, tmp_path / str(zero))
        outputs = [p for n, p in trainer.network.named_parameters() if n.endswith("c_proj.weight")]
        assert len(outputs) == 4
        assert all(bool(p.any()) is not zero for p in outputs)


def test_auto_settings_are_resolved_and_stored(digits, tmp_path):
    asked = tiny(precision="auto", compile="auto", micro_batch="auto", warmup_steps=None)
    run.begin(tmp_path / "run", asked, [Ingredient(packed=digits, augment="none")], command="test")
    config, facts = read_run(tmp_path / "run")
    assert config.train.precision in ("fp32", "bf16")
    assert config.train.micro_batch == 6
    assert config.train.warmup_steps == 1
    assert facts["data_digest"] == digits.digest


def test_micro_batch_shrinks_to_the_memory_at_hand(monkeypatch):
    monkeypatch.setattr("igpt.compute.free_memory_bytes", lambda device: 40_000_000)
    config = settings.resolve(tiny(batch_size=128), n_images=1000, n_colors=17)
    assert 1 <= config.train.micro_batch < 128


def test_killed_at_random_moments_and_resumed_the_weights_are_bit_identical(digits, tmp_path):
    """TARGETS, Reliability row 1, quick form: 2 kills; the 50 are in test_soak."""
    config = tiny(total_steps=300, checkpoint_every=5, log_every=50, valid_every=200)
    killing.train(tmp_path / "whole", config, "digits")
    context, rng = killing.forks(), random.Random(0)
    for _ in range(2):
        wait_s = 0.3 * rng.random()
        assert killing.killed_after(context, wait_s, tmp_path / "broken", config, "digits")
    assert 0 < killing.newest_step(tmp_path / "broken") < 300
    killing.train(tmp_path / "broken", config, "digits")
    whole = killing.final_weights(tmp_path / "whole", 300)
    assert killing.final_weights(tmp_path / "broken", 300) == whole
