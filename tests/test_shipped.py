"""Models inside the package: found by name, checked before use, never written to."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import igpt
from igpt import shipped
from igpt.cli.demo import photograph_pieces
from igpt.errors import UserError
from igpt.images.sources import find
from igpt.probing.exact import probe_model
from igpt.trained import Trained
from tests.cli.test_main import run
from tests.networks import pixel_model

MEGABYTE = 2**20
FILES = {
    *("README.md", "config.json", "manifest.json", "model.safetensors"),
    *("preprocessor_config.json", "probe.json", "probe.safetensors"),
}


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A stand-in for the package's own folder of models, with one in it."""
    monkeypatch.setattr(shipped, "MODELS", tmp_path / "models")
    model = pixel_model()
    parts = Trained(model.network, model.tokenizer, model.facts)
    shipped.write_shipped(tmp_path / "models" / "tiny", parts, {"README.md": b"card"})
    return tmp_path / "models" / "tiny"


def test_a_name_loads_the_model_with_weights_rounded_to_float16(box, digits):
    model = igpt.load("tiny")
    pictures = digits.images("test")[:4]
    np.testing.assert_allclose(model.nats(pictures), pixel_model().nats(pictures), atol=0.02)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    n_numbers = sum(p.numel() for p in model.network.parameters())
    assert (box / "model.safetensors").stat().st_size < 3 * n_numbers


def test_a_name_that_does_not_exist_lists_the_known_ones(box, capsys):
    status, _, err = run(["info", "nothing-such"], capsys)
    assert status == 2
    status, out, err = run(["sample", "nothing-such"], capsys)
    assert (status, out) == (2, "")
    assert err == (
        "igpt: error: nothing-such is neither a run nor a model folder: check the path, take a "
        "model that ships (tiny), or one on the Hub by hf:owner/name\n"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_harmed_file_of_the_installation_is_one_line(box, name, harm, capsys):
    path = box / name
    if harm == "missing":
        path.unlink()
        fault = f"{name} is missing"
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        fault = f"{name} is damaged (its sha256 differs from the manifest's)"
    status, out, err = run(["sample", "tiny"], capsys)
    assert (status, out) == (2, "")
    assert err == (
        f"igpt: error: the shipped model tiny cannot be used: {fault} in {box}: "
        "install igpt again (pip install --force-reinstall igpt)\n"
    )


def test_a_damaged_manifest_is_no_licence_to_load(box):
    document = json.loads((box / "manifest.json").read_text())
    del document["sha256"]["model.safetensors"]
    (box / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        igpt.load("tiny")


def test_probing_writes_nothing_into_the_installation(box, digits):
    before = {path.name: path.read_bytes() for path in box.iterdir()}
    result = probe_model(igpt.load("tiny"), digits, n_centers=6)
    assert result["test_accuracy"] > 0.3
    assert result["kmeans"]["test_accuracy"] > 0.3
    assert {path.name: path.read_bytes() for path in box.iterdir()} == before


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache on a machine without a network."""
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IGPT_OFFLINE", "1")


def check_demo(out, folder):
    lines = out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[:2]] == [
        "4 labels a class",
        "25 labels a class",
    ]
    assert lines[-1].endswith("igpt demo --train")
    for name in ("completions.png", "samples.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_demo_shows_the_shipped_model_on_cifar10(box, fresh, tmp_path, monkeypatch, capsys):
    images = find.NAMED["digits"]()
    fake = dataclasses.replace(images, name="cifar10 (fake)")
    monkeypatch.setitem(find.NAMED, "cifar10", lambda: fake)
    monkeypatch.delitem(find.NAMED, "digits")
    status, out, err = run(["demo", "--out", str(tmp_path / "out")], capsys)
    assert status == 0
    assert "cannot be had" not in err
    assert "counted on 150 images that were not trained on" in err
    check_demo(out, tmp_path / "out")


def test_where_cifar10_cannot_be_had_the_demo_shows_what_is_at_hand(box, fresh, tmp_path, capsys):
    status, out, err = run(["demo", "--out", str(tmp_path / "out")], capsys)
    assert status == 0
    assert "CIFAR-10 cannot be had (" in err
    assert "showing scikit-learn's digits and pieces of its photographs instead" in err
    check_demo(out, tmp_path / "out")


def test_photographs_are_cut_into_unlike_pieces():
    pieces = photograph_pieces(16)
    assert pieces.shape == (8, 16, 16, 3)
    assert len(np.unique(pieces.reshape(8, -1), axis=0)) == 8


def test_without_a_model_demo_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "MODELS", tmp_path)
    status, _, err = run(["demo"], capsys)
    assert status == 2
    assert err == ("igpt: error: no model ships with this installation: run `igpt demo --train`\n")


def test_images_unlike_those_of_training_get_a_warning_line_once(capsys, monkeypatch):
    monkeypatch.setattr("igpt.images.taking._said", set())
    model = pixel_model()  # 8 x 8
    rng = np.random.default_rng(0)
    large, small, good = (
        rng.integers(0, 256, (side, side + 3, 3)).astype(np.uint8) for side in (65, 7, 64)
    )
    model.encode([good])
    assert capsys.readouterr().err == ""
    model.encode([large, good, small])  # what it was trained on is not known: only 7 is too small
    assert capsys.readouterr().err == (
        "warning: of 3 images 1 differ much in size from those that this model was trained on (7 "
        "pixels on the shorter side; there at least 8 pixels): detail is lost or made up, and "
        "features and likelihoods mean less\n"
    )
    model.encode([small])
    assert capsys.readouterr().err == ""


def test_what_ships_keeps_to_its_size():
    files = [path for path in shipped.MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 28 * MEGABYTE
    assert all(path.stat().st_size <= 14 * MEGABYTE for path in files)


@pytest.mark.parametrize("name", shipped.names())
def test_every_model_that_ships_loads_and_knows_its_classes(name):
    model = igpt.load(name)
    pieces = photograph_pieces(model.image_size)
    assert len(model.classify(pieces)) == 8
    assert model.nats(pieces).mean() < 3  # an untrained one: 6.2
    assert "igpt.load" in (shipped.MODELS / name / "README.md").read_text()


@pytest.mark.parametrize("name", shipped.names())
def test_no_images_ship(name):
    assert {path.name for path in (shipped.MODELS / name).iterdir()} == FILES
