import numpy as np
import pytest
import torch

from igpt.compute import one_thread
from igpt.config import SampleConfig
from igpt.errors import UserError
from igpt.generate import sample as sample_module
from igpt.generate.sample import (
    default_batch_size,
    draw,
    kept_probabilities,
    last,
    sample,
    sampling,
    uniforms,
)
from igpt.model.decoder import open_decoder
from tests.networks import drawn_without_cache, network


def test_a_draw_follows_the_distribution():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = draw(logits.expand(10_000, 4), uniform, SampleConfig(temperature=0.7))
    frequency = torch.bincount(tokens, minlength=4) / 10_000
    torch.testing.assert_close(
        frequency.double(), torch.softmax(logits.double() / 0.7, -1), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_colours_that_are_cut_off_are_never_drawn(uniform):
    logits = torch.tensor([[0.0, 5.0, 1.0, 4.0, 0.0]])
    token = draw(logits, torch.tensor([uniform]).double(), SampleConfig(top_k=2))
    assert int(token) in (1, 3)


def test_top_k_keeps_the_k_likeliest_and_top_p_the_smallest_likely_set():
    logits = torch.log(torch.tensor([0.1, 0.4, 0.3, 0.2]))
    assert (kept_probabilities(logits, SampleConfig(top_k=2)) > 0).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert (kept_probabilities(logits, SampleConfig(top_p=0.65)) > 0).sum() == 2
    assert (kept_probabilities(logits, SampleConfig(top_p=0.75)) > 0).sum() == 3
    assert (kept_probabilities(logits, SampleConfig(top_p=1e-9)) > 0).sum() == 1
    assert (kept_probabilities(logits, SampleConfig(top_k=99, top_p=1.0)) > 0).all()


def test_a_temperature_next_to_nothing_takes_the_likeliest_colour():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -900.0, 1.0]])
    tokens = draw(logits, torch.full((2,), 0.99).double(), SampleConfig(temperature=1e-308))
    assert tokens.tolist() == [1, 0]


def test_temperature_0_takes_the_likeliest_colour():
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 0.0, 1.0]])
    assert draw(logits, torch.zeros(2).double(), SampleConfig(temperature=0.0)).tolist() == [1, 0]


@pytest.mark.parametrize(
    "config", [SampleConfig(), SampleConfig(temperature=0.5, top_k=3, top_p=0.9)]
)
def test_samples_equal_those_of_the_whole_network_run_for_every_token(config):
    model = network()
    uniform = uniforms(5, "sample", slots=[(0, i) for i in range(4)], seq_len=16)
    expected = drawn_without_cache(model, uniform, config)
    np.testing.assert_array_equal(
        sample(model, 4, seed=5, config=config, precision="fp32"), expected
    )


@pytest.mark.parametrize("n_colors", [7, 512])
def test_an_image_is_the_same_alone_and_in_any_batch(n_colors):
    model = network(n_colors=n_colors, n_embd=32)
    together = sample(model, 7, seed=1)
    np.testing.assert_array_equal(sample(model, 7, seed=1, batch_size=3), together)
    for i in range(7):
        np.testing.assert_array_equal(sample(model, 1, seed=1, first=i)[0], together[i])
    assert (sample(model, 7, seed=2) != together).any()


def test_as_many_are_drawn_side_by_side_as_half_of_the_memory_holds(monkeypatch):
    monkeypatch.setattr(sample_module, "free_memory_bytes", lambda device: 2000)
    sizes = [default_batch_size(n, torch.device("cpu")) for n in (1001, 1000, 300, 1)]
    assert sizes == [1, 1, 3, sample_module.LARGEST_BATCH]


def test_the_precision_asked_for_is_the_decoders(monkeypatch):
    asked = []

    def opened(model, *, precision):
        asked.append(precision)
        return open_decoder(model, precision=precision)

    monkeypatch.setattr(sample_module, "open_decoder", opened)
    sample(network(), 1, precision="bf16")
    assert asked == ["bf16"]


def test_nothing_stands_where_nothing_is_drawn_yet():
    progress = next(sampling(network(), 2))
    assert progress.tokens.shape == (2, 16)
    assert not progress.tokens[:, 1:].any()


def test_seed_0_is_drawn_from_its_first_image_on_unless_told_otherwise():
    expected = sample(network(), 2, seed=0, first=0)
    np.testing.assert_array_equal(sample(network(), 2), expected)
    np.testing.assert_array_equal(last(sampling(network(), 2)).tokens, expected)


def test_progress_shows_one_more_token_of_every_image_at_each_step():
    counts = [int(progress.drawn.sum()) for progress in sampling(network(), 3, batch_size=2)]
    assert counts == [*range(2, 33, 2), *range(33, 49)]


def test_no_global_generator_is_touched():
    model = network()
    before = torch.get_rng_state()
    sample(model, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_thread_count_is_as_before_while_drawing_and_after():
    before = torch.get_num_threads()
    for _ in sampling(network(), 2):
        assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError), one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_sampling_from_a_bert_network_is_refused():
    with pytest.raises(UserError, match="trained with the bert objective"):
        sample(network(objective="bert"), 1)


def test_a_network_without_an_output_head_is_refused():
    model = network()
    model.predicts = False
    with pytest.raises(UserError, match="without an output head"):
        sample(model, 1)


def test_asking_for_no_image_is_refused():
    with pytest.raises(UserError, match="n is 0: ask for at least 1 image"):
        sample(network(), 0)


def test_logits_that_are_not_finite_are_refused():
    model = network()
    torch.nn.init.constant_(model.head.weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        sample(model, 1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("top_k", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5)],
)
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(UserError, match=f"{setting} is {value}"):
        SampleConfig(**{setting: value})
