"""Other runtimes on what is exported: torch.export's programs, and onnxruntime on the files."""

import json
import re

import numpy as np
import pytest
import torch

from igpt.cli.main import main
from igpt.errors import UserError
from igpt.formats import onnx
from igpt.formats.onnx import export_features, export_step, write_onnx
from igpt.pixelmodel import PixelModel
from igpt.probing.features import extract_features
from igpt.tokens.tokenizer import RawTokens
from igpt.trained import ModelFacts
from tests.networks import network, pixel_model
from tests.strategies import random_tokens


def close(found, expected):
    expected = torch.as_tensor(expected)
    assert expected.std().item() > 0.2
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-3)


def biased_model():
    model = pixel_model(image_size=4)
    biased = network(n_embd=16, n_colors=27, seq_len=16, bias=True)
    return PixelModel(biased, model.tokenizer, model.facts)


@pytest.mark.parametrize("make", [pixel_model, biased_model])
def test_exported_features_are_the_networks(make):
    model = make()
    tokens = random_tokens(model.network, 5)
    found = export_features(model, 1).module()(tokens)
    close(
        found, extract_features(model.network, tokens, layers=[1], precision="fp32", keep=False)[0]
    )


def test_exported_steps_give_the_logits_of_the_whole_image():
    model = pixel_model(image_size=4)
    step = export_step(model).module()
    tokens = random_tokens(model.network, 3)
    expected = model.logits(tokens)
    keys = values = torch.full((2, 3, 2, 16, 8), 1e6)  # what is not filled yet must not be seen
    before = torch.zeros(3, dtype=torch.int64)
    for t in range(16):
        logits, keys, values = step(before, torch.tensor([t]), keys, values)
        close(logits, expected[:, t])
        before = tokens[:, t]


def test_what_has_no_step_says_so():
    with pytest.raises(UserError, match=r"a bert model has no sampling step"):
        export_step(pixel_model(objective="bert"))


def readme_code(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_onnx_files_do_what_their_readme_says(tmp_path, monkeypatch):
    model = pixel_model(image_size=4)
    folder = model.save(tmp_path / "m")
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(folder), str(tmp_path / "o"), "--to", "onnx", "--layer", "2"])
    assert stop.value.code == 0
    monkeypatch.chdir(tmp_path / "o")
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    names = {"images": images}
    first, second = readme_code(tmp_path / "o")
    exec(first, names)
    assert np.array_equal(names["tokens"], model.encode(images))
    tokens = model.encode(images)
    expected = extract_features(model.network, tokens, layers=[2], precision="fp32", keep=False)
    close(names["features"], expected[0])
    exec(second, names)
    drawn = names["tokens"]
    assert drawn.shape == (4, 16)
    close(names["logits"], model.logits(drawn)[:, -1])
    facts = json.loads((tmp_path / "o" / "model.json").read_text())
    assert facts["feature_layer"] == 2
    assert (facts["feature_pooling"], facts["feature_normalised"]) == ("mean", True)
    assert facts["features_fit_the_saved_probe"] is None
    assert facts["model_digest"] == model.digest()


@pytest.mark.slow
def test_bert_and_raw_models_are_written_too(tmp_path, monkeypatch):
    bert = pixel_model(image_size=4, objective="bert")
    write_onnx(bert, tmp_path / "b")
    assert not (tmp_path / "b" / "step.onnx").exists()
    facts = ModelFacts(objective="ar", image_size=4, tokens="raw", trained={})
    raw = PixelModel(network(n_embd=16, n_colors=256, seq_len=48), RawTokens(), facts)
    write_onnx(raw, tmp_path / "r")
    assert not (tmp_path / "r" / "palette.npy").exists()
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    for model, name in ((bert, "b"), (raw, "r")):
        monkeypatch.chdir(tmp_path / name)
        names = {"images": images}
        exec(readme_code(tmp_path / name)[0], names)
        with torch.no_grad():
            h = list(model.network.hidden(torch.as_tensor(model.encode(images))))[1]
            close(names["features"], model.network.normalised(1, h).mean(1))


def test_numbers_that_differ_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "TOLERANCE", 1e-12)
    with pytest.raises(UserError, match=r"onnxruntime makes other numbers of features.onnx"):
        write_onnx(pixel_model(image_size=4), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_written_is_said_before_any_work(tmp_path, monkeypatch):
    model = pixel_model(image_size=4)
    with pytest.raises(UserError, match=r"layer 3 does not exist: choose from 0 to 2"):
        write_onnx(model, tmp_path / "o", layer=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"full is not empty: choose another place"):
        write_onnx(model, tmp_path / "full")
    monkeypatch.setattr(onnx, "NEEDED", ("a_package_that_is_not_there",))
    with pytest.raises(UserError, match=r"not installed: pip install 'igpt\[onnx\]'"):
        write_onnx(model, tmp_path / "o")
