"""Folders of transformers' ImageGPT: every key accounted for, and what cannot be read refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

import igpt
from igpt.errors import UserError
from igpt.formats.transformers import write_transformers
from igpt.pixelmodel import PixelModel
from tests.networks import network, pixel_model
from tests.strategies import random_tokens


@pytest.fixture
def folder(tmp_path):
    return write_transformers(pixel_model(image_size=4), tmp_path / "theirs")


def tensors_of(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def write_tensors(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def change_json(path, **changes):
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def same_logits(a, b):
    tokens = random_tokens(a.network, 3)
    return torch.equal(a.logits(tokens), b.logits(tokens))


def test_what_is_written_reads_back_the_same(folder):
    ours, back = pixel_model(image_size=4), igpt.load(folder)
    assert same_logits(ours, back)
    assert back.digest() == ours.digest()
    assert back.facts.trained["source"] == "transformers"


def test_biases_are_kept_where_one_is_not_zero(tmp_path):
    model = pixel_model(image_size=4)
    biased = network(n_embd=16, n_colors=27, seq_len=16, bias=True)
    with_bias = PixelModel(biased, model.tokenizer, model.facts)
    back = igpt.load(write_transformers(with_bias, tmp_path / "out"))
    assert back.network.config.bias
    assert same_logits(with_bias, back)


def test_bin_files_and_shards_give_the_same_model(folder, tmp_path):
    tensors = tensors_of(folder)
    names = sorted(tensors)
    halves = {"a.{}": names[: len(names) // 2], "b.{}": names[len(names) // 2 :]}
    for kind, index in (
        ("safetensors", "model.safetensors.index.json"),
        ("bin", "pytorch_model.bin.index.json"),
    ):
        copy = tmp_path / kind
        shutil.copytree(folder, copy)
        (copy / "model.safetensors").unlink()
        places = {}
        for pattern, part in halves.items():
            name = pattern.format(kind)
            places |= dict.fromkeys(part, name)
            save = safetensors.torch.save_file if kind == "safetensors" else torch.save
            save({key: tensors[key] for key in part}, copy / name)
        (copy / index).write_text(json.dumps({"weight_map": places}))
        assert same_logits(igpt.load(folder), igpt.load(copy))


def test_old_bin_with_half_precision_and_causal_masks_is_read(folder):
    tensors = {name: t.half() for name, t in tensors_of(folder).items()}
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril().to(torch.uint8)
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    model = igpt.load(folder)
    assert not model.network.config.bias
    assert model.network.wpe.weight.dtype == torch.float32
    tensors["transformer.h.0.attn.bias"][0, 0, 0, 1] = 1
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"not the causal mask"):
        igpt.load(folder)


def classifier():
    model = pixel_model(image_size=4)
    weights = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    model.take_class_head(weights, ["cat", "dog", "emu"], protocol="drawn at random")
    return model


def foreign_classifier(folder):
    """As transformers itself trains and writes one: nothing of ours in its config."""
    write_transformers(classifier(), folder, classes=True)
    document = json.loads((folder / "config.json").read_text())
    del document["igpt"]
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def test_a_classifier_of_ours_reads_back_as_it_was_trained(tmp_path):
    ours = classifier()
    back = igpt.load(write_transformers(ours, tmp_path / "out", classes=True))
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(back.features(images, 2), ours.features(images, 2))
    assert back.classify(images) == ours.classify(images)
    with pytest.raises(UserError, match=r"without an output head"):
        back.sample(1)
    again = igpt.load(back.save(tmp_path / "again"))
    assert again.classify(images) == ours.classify(images)
    with pytest.raises(UserError, match=r"without an output head"):
        again.sample(1)


def test_the_card_says_how_an_exported_classifier_is_fed(tmp_path):
    folder = write_transformers(classifier(), tmp_path / "out", classes=True)
    card = (folder / "README.md").read_text()
    assert "opens this folder as `ImageGPTForImageClassification`" in card
    assert "`[sos, tokens[:-1]]`" in card
    foreign = igpt.load(foreign_classifier(tmp_path / "theirs"))
    card = (write_transformers(foreign, tmp_path / "back", classes=True) / "README.md").read_text()
    assert "fed the tokens as they are" in card
    assert not igpt.load(tmp_path / "back").facts.shifted


def test_an_imported_classifier_reads_the_image_unshifted(tmp_path):
    model = igpt.load(foreign_classifier(tmp_path / "out"))
    tokens = random_tokens(model.network, 2)
    *_, h = model.network.hidden(tokens)
    x = model.network.wte(tokens) + model.network.wpe.weight
    for block in model.network.h:
        x = block(x)
    torch.testing.assert_close(h, x)
    assert not model.facts.shifted


def test_an_imported_classifier_classifies_is_saved_and_draws_nothing(tmp_path):
    model = igpt.load(foreign_classifier(tmp_path / "out"))
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8)
    names = model.classify(images)
    assert set(names) <= {"cat", "dog", "emu"}
    back = igpt.load(model.save(tmp_path / "ours"))
    assert not back.facts.shifted
    assert back.classify(images) == names
    for use in (
        lambda: model.sample(1),
        lambda: model.nats(images),
        lambda: model.complete(images, keep_rows=0.5),
        lambda: write_transformers(model, tmp_path / "again"),
    ):
        with pytest.raises(UserError, match=r"without an output head"):
            use()


def test_untrained_heads_are_not_taken_for_trained_ones(tmp_path):
    folder = foreign_classifier(tmp_path / "c")
    tensors = tensors_of(folder)
    write_tensors(folder, {**tensors, "score.weight": torch.zeros(3, 16)})
    model = igpt.load(folder)
    with pytest.raises(UserError, match=r"c has no probe: run `igpt probe MODEL DATA` first"):
        model.classify(np.zeros((1, 4, 4, 3), np.uint8))
    folder = write_transformers(pixel_model(image_size=4), tmp_path / "m")
    tensors = tensors_of(folder)
    write_tensors(folder, {**tensors, "lm_head.weight": torch.zeros(27, 16)})
    with pytest.warns(UserWarning, match=r"model.safetensors: the output head is all zero"):
        igpt.load(folder)


def test_the_convention_changes_the_digest(tmp_path):
    model = igpt.load(foreign_classifier(tmp_path / "out"))
    before = model.digest()
    model.network.shifted = True
    assert model.digest() != before


def test_what_transformers_cannot_express_is_refused_by_name(tmp_path):
    bert = pixel_model(image_size=4, objective="bert")
    with pytest.raises(UserError, match=r"no bert objective"):
        write_transformers(bert, tmp_path / "out")
    with pytest.raises(UserError, match=r"no class head"):
        write_transformers(pixel_model(image_size=4), tmp_path / "out", classes=True)
    model = classifier()
    model.classifier.biases[0] = 1
    with pytest.raises(UserError, match=r"has no bias; this one reads layer 2 with a bias"):
        write_transformers(model, tmp_path / "out", classes=True)
    model = classifier()
    model.classifier = dataclasses.replace(model.classifier, pooling="bands")
    with pytest.raises(UserError, match=r"this one reads features pooled by bands"):
        write_transformers(model, tmp_path / "out", classes=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 7}, "n_inner is 7; this network has 64"),
        ({"n_positions": 15}, "15 positions make no square image"),
        ({"n_embd": "wide"}, "n_embd is 'wide'"),
        ({"n_embd": 32}, "tensor transformer.wte.weight is .28, 16., config.json means .28, 32."),
        ({"vocab_size": 29}, r"clusters are \(27, 3\), the model has \(28, 3\)"),
        ({"model_type": "gpt2"}, "does not describe a model"),
    ],
)
def test_other_settings_are_refused_by_name(folder, changes, message):
    change_json(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message) as error:
        igpt.load(folder)
    assert "\n" not in str(error.value)
    assert "config.json" in str(error.value)


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    tensors = tensors_of(folder)
    name = "transformer.h.1.mlp.c_fc.weight"
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != name}, f"tensor {name} is missing"),
        ({**tensors, "transformer.h.9.x": torch.ones(1)}, "tensor transformer.h.9.x is not part"),
        ({**tensors, name: tensors[name][:3].clone()}, rf"tensor {name} is \(3, 64\)"),
        (
            {**tensors, "score.weight": torch.ones(3, 16)},
            "has both lm_head.weight and score.weight",
        ),
    ):
        write_tensors(folder, changed)
        with pytest.raises(UserError, match=message):
            igpt.load(folder)


def test_damaged_and_missing_files_are_named(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        igpt.load(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"holds no weights"):
        igpt.load(folder)
    weights.write_bytes(whole)
    change_json(folder / "preprocessor_config.json", clusters=None)
    with pytest.raises(UserError, match=r"has no clusters"):
        igpt.load(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json is missing"):
        igpt.load(folder)


class Harmful:
    def __reduce__(self):
        return (print, ("code was run",))


def test_a_bin_with_anything_but_tensors_is_refused_unread(folder, capsys):
    (folder / "model.safetensors").unlink()
    for held in ({"wte": Harmful()}, {"wte": 3}, [1, 2]):
        torch.save(held, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"pytorch_model.bin holds something else than"):
            igpt.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match=r"pytorch_model.bin"):
        igpt.load(folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {"a": "../model.safetensors"}}, "outside its folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors is missing"),
        ({"weight_map": {"a": "b.safetensors"}}, "disagree on a"),
    ],
)
def test_bad_indices_are_refused(folder, document, message):
    tensors = tensors_of(folder)
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    assert min(tensors) > "a"
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=message):
        igpt.load(folder)
