"""What leaves the machine in a model folder: no path, command line or login of somebody."""

import json

import igpt
from igpt.trained import published
from tests.networks import pixel_model


def test_of_a_local_path_only_its_name_is_published():
    facts = {
        "data": "/home/someone/secret/photos",
        "id": "0123",
        "command": "igpt pretrain /home/someone/secret/photos run",
        "commands": ["igpt pretrain /home/someone/secret/photos run"],
        "init_from": {"model": "secret/run", "digest": "ab"},
        "mixed": [{"data": "../secret/more", "weight": 0.5}],
        "finetuned": "hf:owner/name@main",
        "steps": 3,
    }
    assert published(facts) == {
        "data": "photos",
        "init_from": {"model": "run", "digest": "ab"},
        "mixed": [{"data": "more", "weight": 0.5}],
        "finetuned": "hf:owner/name@main",
        "steps": 3,
    }
    assert published("https://me:key@host/a.tar?token=x") == "https://host/a.tar"
    assert published("cifar10 (npm mirror)") == "cifar10 (npm mirror)"


def test_no_file_of_a_saved_model_names_a_place(tmp_path):
    model = pixel_model(image_size=4)
    model.facts.trained.update(data="/secret/photos", command="igpt pretrain /secret/photos")
    folder = model.save(tmp_path / "model")
    for path in folder.iterdir():
        assert b"secret" not in path.read_bytes(), path
    held = json.loads((folder / "config.json").read_text())["igpt"]["trained"]
    assert held["data"] == "photos"
    assert igpt.load(folder).digest() == model.digest()
