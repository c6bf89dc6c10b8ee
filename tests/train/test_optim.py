import dataclasses

import pytest
import torch

from igpt.config import TrainConfig
from igpt.errors import UserError
from igpt.train.optim import (
    Muon,
    Optimizer,
    clip_gradients,
    level_steps,
    lr_factor_at,
    orthogonal,
    warmup_steps_of,
)
from tests.strategies import lively_gpt, random_tokens


def config(**changes):
    return dataclasses.replace(TrainConfig(), **changes)


def test_warm_up_is_one_epoch_but_at_most_a_twentieth():
    # Paper §3.4: batch 128 on the 1,229,920-image split is 9,609 steps.
    assert warmup_steps_of(config(), n_images=1_229_920) == 9609
    assert warmup_steps_of(config(total_steps=1000), n_images=1_229_920) == 50
    assert warmup_steps_of(config(warmup_steps=7), n_images=10) == 7


def test_rate_rises_in_a_line_then_falls_as_a_cosine_to_zero():
    settings = config(total_steps=110)
    factors = [lr_factor_at(step, settings, 10) for step in range(110)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001
    assert sorted(factors[10:], reverse=True) == factors[10:]


def test_constant_and_linear_schedules():
    assert lr_factor_at(99, config(total_steps=100, schedule="constant"), 5) == 1.0
    linear = config(total_steps=100, schedule="linear", decay_fraction=0.5)
    assert lr_factor_at(49, linear, 0) == 1.0
    assert lr_factor_at(75, linear, 0) == pytest.approx(0.5)


@pytest.mark.parametrize("decay_fraction", [0.07, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("warmup", [0, 3, 10])
def test_level_steps_are_those_that_a_longer_run_begins_with(decay_fraction, warmup):
    def factors(schedule, n):
        settings = config(total_steps=n, schedule=schedule, decay_fraction=decay_fraction)
        return [lr_factor_at(step, settings, warmup) for step in range(41)], settings

    for schedule in ("linear", "cosine", "constant"):
        (here, settings), (longer, _) = factors(schedule, 41), factors(schedule, 4100)
        same = next((i for i in range(41) if here[i] != longer[i]), 41)
        level = level_steps(settings, warmup)
        if schedule == "cosine":  # the warm-up is the same, but nothing is promised
            assert level == 0 and same == warmup + 1
        elif schedule == "constant":
            assert level > 10**9 and same == 41
        else:
            assert level == same


def test_a_run_shorter_than_its_warm_up_only_rises():
    settings = config(total_steps=5)
    assert [lr_factor_at(step, settings, 10) for step in range(5)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert warmup_steps_of(config(total_steps=10), n_images=10**6) == 1


def test_gradients_are_scaled_to_the_norm_or_only_measured():
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    for max_norm, scale in ((0.5, 0.1), (7.0, 1.0), (0.0, 1.0)):
        for weight, values in zip(weights, ([0.0, 3.0], [4.0]), strict=True):
            weight.grad = torch.tensor(values)
        assert float(clip_gradients(weights, max_norm)) == pytest.approx(5)
        found = torch.cat([weight.grad for weight in weights])
        torch.testing.assert_close(found, scale * torch.tensor([0.0, 3.0, 4.0]))


def updates_of(settings, steps=4):
    network = lively_gpt().train()
    optimizer = Optimizer(network, settings)
    for step in range(steps):
        network(random_tokens(network, 2, seed=step)).square().mean().backward()
        clip_gradients(network.parameters(), settings.grad_clip_norm)
        optimizer.step(0.5)
    return network, optimizer


def test_adamw_is_torchs_own_at_the_configured_rate():
    settings = config(lr=0.01, grad_clip_norm=0.5)
    ours, _ = updates_of(settings)
    theirs = lively_gpt().train()
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.005, betas=(0.9, 0.95), weight_decay=0)
    for step in range(4):
        adamw.zero_grad()
        theirs(random_tokens(theirs, 2, seed=step)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp32", 0.02)])
def test_muon_is_torchs_own_to_the_rounding_of_its_products(precision, tolerance):
    shapes = [(12, 4), (4, 4), (4, 16), (12, 4), (4, 16)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.3, "adjust_lr_fn": "match_rms_adamw"}
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    pair = Muon(ours, dtype=dtype, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        assert (a - first).norm() > 0.05
        assert (a - b).norm() < tolerance * (a - first).norm()
        momenta = (part.state[p]["momentum_buffer"] for part, p in zip(pair, (a, b), strict=True))
        torch.testing.assert_close(*momenta)


def test_orthogonal_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices, (3.4445, -4.775, 2.0315), n_steps=5, eps=1e-7)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert ((found * (left @ right)).sum((1, 2)) > 0.9 * found.norm(dim=(1, 2)) * 8**0.5).all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_goes_out_and_in_without_a_trace(optimizer):
    settings = config(lr=0.01, optimizer=optimizer)
    network, first = updates_of(settings)
    copy = lively_gpt().train()
    copy.load_state_dict(network.state_dict())
    second = Optimizer(copy, settings)
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second.load_tensors(tensors, where="file")
    for model, opt in ((network, first), (copy, second)):
        model(random_tokens(model, 2, seed=9)).square().mean().backward()
        opt.step(1.0)
    for a, b in zip(network.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("sos/exp_avg"), "file: tensor sos/exp_avg is missing"),
        (lambda s: s.update({"x/exp_avg": torch.zeros(1)}), "tensor x/exp_avg is not part of"),
        (lambda s: s.update({"sos/step": torch.zeros(2)}), r"tensor sos/step is \(2,\), this"),
    ],
)
def test_state_that_does_not_fit_is_refused_by_name(optimizer, change, message):
    settings = config(lr=0.01, optimizer=optimizer)
    network, first = updates_of(settings)
    tensors = first.tensors()
    change(tensors)
    with pytest.raises(UserError, match=message):
        Optimizer(network, settings).load_tensors(tensors, where="file")


def test_muon_moves_block_matrices_only():
    settings = config(lr=1e-9, muon_lr=0.01, optimizer="muon")
    network, _ = updates_of(settings)
    before = lively_gpt().state_dict()
    for name, tensor in network.state_dict().items():
        moved = (tensor - before[name]).abs().max().item() > 1e-5
        assert moved == (name.startswith("h.") and tensor.ndim == 2), name
