"""transformers itself on the folders written here, and its own folders read here."""

import numpy as np
import pytest
import torch

import igpt
from igpt.errors import UserError
from igpt.formats.transformers import write_transformers
from igpt.probing.features import extract_features
from tests.networks import pixel_model
from tests.strategies import random_tokens

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers")

N = 6


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3)).astype(np.uint8)


def opened(kind, folder):
    """A network of theirs, every tensor of which came from the folder."""
    network, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return network.eval()


def with_sos(tokens, network):
    sos = torch.full((len(tokens), 1), network.config.vocab_size - 1)
    return torch.cat([sos, torch.as_tensor(tokens)[:, :-1]], 1)


def close(ours, theirs):
    assert theirs.std().item() > 0.3
    assert (torch.as_tensor(ours) - theirs).abs().max().item() < 1e-4


@pytest.mark.parametrize("write", [lambda m, f: m.save(f), write_transformers])
@torch.no_grad()
def test_our_folders_open_there_with_the_same_logits_and_tokens(write, images, tmp_path):
    ours = pixel_model()
    folder = write(ours, tmp_path / "m")
    theirs = opened(transformers.ImageGPTForCausalImageModeling, folder)
    processor = transformers.ImageGPTImageProcessor.from_pretrained(folder)
    tokens = np.asarray(processor(list(images))["input_ids"])
    assert np.array_equal(tokens, ours.encode(images))
    close(ours.logits(tokens), theirs(with_sos(tokens, theirs)).logits)


@torch.no_grad()
def test_greedy_completions_are_the_same(images, tmp_path):
    ours = pixel_model()
    theirs = opened(transformers.ImageGPTForCausalImageModeling, ours.save(tmp_path / "m"))
    drawn = ours.complete(images[:2], keep_rows=0.5, temperature=0.0)[:, 0]
    half = torch.as_tensor(ours.encode(images[:2]))[:, :32]
    start = torch.cat([torch.full((2, 1), ours.network.n_colors), half], 1)
    made = theirs.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=32,
                           do_sample=False, eos_token_id=None, pad_token_id=0)  # fmt: skip
    assert np.array_equal(ours.decode(made[:, 1:].numpy()), drawn)


@torch.no_grad()
def test_an_exported_classifier_gives_the_same_scores_when_fed_sos(images, tmp_path):
    ours = pixel_model()
    weights = np.random.default_rng(1).normal(0, 1, (3, 16)).astype(np.float32)
    ours.take_class_head(weights, ["cat", "dog", "emu"], protocol="drawn at random")
    folder = write_transformers(ours, tmp_path / "m", classes=True)
    theirs = opened(transformers.ImageGPTForImageClassification, folder)
    tokens = ours.encode(images)
    scores = theirs(with_sos(tokens, theirs)).logits
    features = extract_features(ours.network, tokens, layers=[2], precision="fp32", keep=False)[0]
    close(features @ weights.T, scores)
    named = [theirs.config.id2label[code] for code in scores.argmax(1).tolist()]
    assert named == ours.classify(images)


def their_config():
    return transformers.ImageGPTConfig(
        vocab_size=28, n_positions=64, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, num_labels=3,
    )  # fmt: skip


def their_folder(kind, folder):
    """What `save_pretrained` writes of a network that was trained there: no bias is zero."""
    torch.manual_seed(0)
    network = kind(their_config()).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.4)
    network.save_pretrained(folder)
    clusters = np.random.default_rng(2).uniform(-1, 1, (27, 3))
    size = {"height": 8, "width": 8}
    transformers.ImageGPTImageProcessor(clusters=clusters, size=size).save_pretrained(folder)
    return network


@torch.no_grad()
def test_their_causal_model_is_read_with_its_biases(images, tmp_path):
    theirs = their_folder(transformers.ImageGPTForCausalImageModeling, tmp_path)
    ours = igpt.load(tmp_path)
    assert ours.network.config.bias
    tokens = random_tokens(ours.network, 3)
    close(ours.logits(tokens), theirs(with_sos(tokens, theirs)).logits)
    processor = transformers.ImageGPTImageProcessor.from_pretrained(tmp_path)
    assert np.array_equal(ours.encode(images), np.asarray(processor(list(images))["input_ids"]))


@torch.no_grad()
def test_their_classifier_keeps_its_own_convention(images, tmp_path):
    theirs = their_folder(transformers.ImageGPTForImageClassification, tmp_path / "theirs")
    ours = igpt.load(tmp_path / "theirs")
    for model in (ours, igpt.load(ours.save(tmp_path / "ours"))):
        tokens = model.encode(images)
        features = extract_features(model.network, tokens, precision="fp32", keep=False)[-1]
        close(features @ model.probe().weights.T, theirs(torch.as_tensor(tokens)).logits)
    again = write_transformers(ours, tmp_path / "again", classes=True)
    back = opened(transformers.ImageGPTForImageClassification, again)
    tokens = torch.as_tensor(ours.encode(images))
    assert torch.equal(back(tokens).logits, theirs(tokens).logits)


@torch.no_grad()
def test_the_bare_network_gives_features_and_draws_nothing(images, tmp_path):
    theirs = their_folder(transformers.ImageGPTModel, tmp_path)
    ours = igpt.load(tmp_path)
    tokens = ours.encode(images)
    h = theirs(with_sos(tokens, theirs)).last_hidden_state  # after the final norm
    close(extract_features(ours.network, tokens, precision="fp32", keep=False)[-1], h.mean(1))
    with pytest.raises(UserError, match=r"without an output head"):
        ours.sample(1)


def test_what_they_wrote_again_keeps_our_facts(tmp_path):
    ours = pixel_model()
    ours.facts.trained["data"] = "cifar10"
    kind = transformers.ImageGPTForCausalImageModeling
    opened(kind, ours.save(tmp_path / "m")).save_pretrained(tmp_path / "n")
    transformers.ImageGPTImageProcessor.from_pretrained(tmp_path / "m").save_pretrained(
        tmp_path / "n"
    )
    back = igpt.load(tmp_path / "n")
    assert back.facts.trained == {"source": "transformers", "data": "cifar10"}
    assert back.digest() == ours.digest()
