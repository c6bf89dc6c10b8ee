import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.config import ModelConfig
from igpt.model.gpt import GPT
from igpt.model.imagegpt import imagegpt_config, to_imagegpt
from tests.oracles import numpy_gpt
from tests.strategies import lively_gpt, model_configs, random_tokens


def fresh(objective="ar", n_colors=512, seq_len=16):
    network = GPT(
        ModelConfig(n_layer=2, n_head=2, n_embd=16),
        n_colors=n_colors,
        seq_len=seq_len,
        objective=objective,
    )
    network.init_weights(torch.Generator().manual_seed(0))
    return network


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_first_loss_is_exactly_ln_k(objective):
    network = fresh(objective)
    tokens = random_tokens(network, 3)
    logits = network(tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=1e-6)


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_a_network_is_made_without_drawing(objective):
    config, before = ModelConfig(n_layer=1, n_head=2, n_embd=16, bias=True), torch.get_rng_state()
    network = GPT(config, n_colors=8, seq_len=9, objective=objective)
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in network.named_parameters():
        assert (weight == float("ln_" in name)).all(), name
        assert weight.requires_grad


def test_initial_weights_have_the_released_spread():
    network = GPT(ModelConfig(n_layer=4, n_head=4, n_embd=256), n_colors=512, seq_len=1024)
    network.init_weights(torch.Generator().manual_seed(0))
    expected = {
        "wte.weight": 0.02,
        "wpe.weight": 0.01,
        "sos": 0.02,
        "h.1.attn.c_attn.weight": 1 / 16,
        "h.1.attn.c_proj.weight": 1 / 32,
        "h.1.mlp.c_fc.weight": 0.02,
        "h.1.mlp.c_proj.weight": 0.02,
    }
    state = network.state_dict()
    for name, std in expected.items():
        assert float(state[name].std()) == pytest.approx(std, rel=0.15), name
        assert abs(float(state[name].mean())) < 0.2 * std, name
    assert not state["head.weight"].any()
    assert bool((state["h.0.ln_1.weight"] == 1).all())


@settings(max_examples=15, deadline=None)
@given(config=model_configs(), objective=st.sampled_from(["ar", "bert"]), seed=st.integers(0, 99))
def test_logits_equal_float64_loops_over_the_papers_formulas(config, objective, seed):
    network = lively_gpt(config, n_colors=7, seq_len=6, objective=objective, seed=seed)
    tokens = random_tokens(network, 1, seed=seed)
    masked = None
    if objective == "bert":
        masked = torch.rand(1, 6, generator=torch.Generator().manual_seed(seed)) < 0.3
    state = {k: v.double().numpy() for k, v in network.state_dict().items()}
    expected = numpy_gpt.logits(
        state,
        tokens[0].numpy(),
        n_layer=config.n_layer,
        n_head=config.n_head,
        objective=objective,
        masked=None if masked is None else masked[0].numpy(),
    )
    assert np.abs(network(tokens, masked)[0].detach().numpy() - expected).max() < 1e-4


@settings(max_examples=15, deadline=None)
@given(config=model_configs(), slot=st.integers(0, 8), seed=st.integers(0, 99))
def test_no_logit_sees_its_own_or_a_later_token(config, slot, seed):
    network = lively_gpt(config, n_colors=5, seq_len=9, seed=seed)
    tokens = random_tokens(network, 2, seed=seed)
    changed = tokens.clone()
    changed[:, slot] = (changed[:, slot] + 1) % 5
    before, after = network(tokens), network(changed)
    assert before.std().item() >= 1
    assert torch.equal(before[:, : slot + 1], after[:, : slot + 1])
    later = (before - after)[:, slot + 1 :].abs().amax((0, 2))
    assert bool((later > 0).all())


def test_first_slot_is_the_same_for_every_image():
    network = lively_gpt()
    logits = network(random_tokens(network, 4))
    assert torch.equal(logits[0, 0], logits[3, 0])


def test_bert_masked_token_has_no_effect_and_others_reach_every_slot():
    network = lively_gpt(objective="bert")
    tokens = random_tokens(network, 1)
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    masked[0, 5] = True
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % network.n_colors
    assert torch.equal(network(tokens, masked), network(changed, masked))
    difference = (network(tokens) - network(changed)).abs().amax((0, 2))
    assert bool((difference > 0).all())


def test_bert_has_no_sos():
    assert "sos" not in fresh("bert").state_dict()
    assert (
        len(fresh("ar").state_dict()) == 6 * 2 + 5
    )  # 8L + 5 in the paper, where q, k, v are three


def test_hidden_can_be_stopped_early_and_ends_with_forwards_input():
    network = lively_gpt()
    tokens = random_tokens(network, 2)
    layers = list(network.hidden(tokens))
    assert len(layers) == network.config.n_layer + 1
    assert torch.equal(network.head(network.normalised(2, layers[2])), network(tokens))
    first = next(network.hidden(tokens))
    assert torch.equal(first, layers[0])


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        network = lively_gpt().train()
        network.checkpoint_activations = recompute
        network(random_tokens(network, 2)).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-6)


def test_state_survives_a_round_trip_in_float64():
    network = lively_gpt().double()
    assert network(random_tokens(network, 1)).dtype == torch.float64


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("n_layer", "n_head", "head_size", "n_colors", "seq_len", "bias"),
    [
        (2, 2, 8, 11, 9, False),
        (3, 1, 12, 5, 16, False),
        (1, 3, 5, 512, 7, False),
        (2, 4, 6, 30, 25, True),
    ],
)
def test_logits_equal_transformers(n_layer, n_head, head_size, n_colors, seq_len, bias):
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(n_layer=n_layer, n_head=n_head, n_embd=n_head * head_size, bias=bias)
    ours = lively_gpt(config, n_colors=n_colors, seq_len=seq_len)
    settings_ = imagegpt_config(config, n_colors=n_colors, seq_len=seq_len)
    theirs = transformers.ImageGPTForCausalImageModeling(
        transformers.ImageGPTConfig(**{k: v for k, v in settings_.items() if k != "model_type"})
    ).eval()
    missing = theirs.load_state_dict(to_imagegpt(ours.state_dict()), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("attn.bias") for key in missing.missing_keys)
    tokens = random_tokens(ours, 3)
    sos = torch.full((3, 1), n_colors)
    expected = theirs(input_ids=torch.cat([sos, tokens[:, :-1]], 1)).logits
    assert expected.std().item() >= 1
    assert (ours(tokens) - expected).abs().max().item() < 1e-4
