"""What a foreign checkpoint can have wrong with it: status 2, one line, the file and the reason."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from igpt.cli.main import main
from igpt.interop.transformers import write_transformers
from igpt.tokens.palette import Palette
from tests.interop.test_openai import released
from tests.networks import pixel_model
from tests.oracles import bundle


def theirs(folder):
    return write_transformers(pixel_model(image_size=4), folder / "m")


def checkpoint(folder):
    bundle.write_bundle(folder / "model.ckpt-9", released(), n_shards=2)
    Palette(np.random.default_rng(1).uniform(-1, 1, (8, 3))).save(folder / "kmeans_centers.npy")
    return folder / "model.ckpt-9"


def neither_format(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder, "config.json does not describe a model"


def no_model(folder):
    return folder, "holds no model (config.json is missing)"


def wrong_shape(folder):
    path = theirs(folder)
    tensors = load_file(path / "model.safetensors")
    tensors["transformer.wpe.weight"] = torch.zeros(3, 16)
    save_file(tensors, path / "model.safetensors")
    return path, "model.safetensors: tensor transformer.wpe.weight is (3, 16)"


def no_clusters(folder):
    path = theirs(folder)
    (path / "preprocessor_config.json").write_text("{}")
    return path, "preprocessor_config.json has no clusters"


def truncated_shard(folder):
    path = checkpoint(folder)
    shard = folder / "model.ckpt-9.data-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:-5])
    return path, "model.ckpt-9.data-00001-of-00002 is cut short"


def bad_checksum(folder):
    path = checkpoint(folder)
    shard = folder / "model.ckpt-9.data-00000-of-00002"
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    return path, "model.ckpt-9.data-00000-of-00002 is damaged: the checksum of"


def bin_with_more_than_tensors(folder):
    path = theirs(folder)
    (path / "model.safetensors").unlink()
    torch.save({"wte": print}, path / "pytorch_model.bin")
    return path, "pytorch_model.bin holds something else than tensors"


def hub_id_offline(folder):
    return "nobody/nothing", "nobody/nothing is no folder here, and HF_HUB_OFFLINE forbids asking"


@pytest.mark.parametrize("command", ["info", "convert"])
@pytest.mark.parametrize(
    "make",
    [neither_format, no_model, wrong_shape, no_clusters, truncated_shard, bad_checksum,
     bin_with_more_than_tensors, hub_id_offline],
)  # fmt: skip
def test_it_is_one_line_that_names_the_file_and_the_reason(
    make, command, tmp_path, capsys, monkeypatch
):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name, reason = make(tmp_path)
    if command == "info" and make is no_model:
        reason = "is no run, model folder, packed set or palette"
    out = [str(tmp_path / "out")] if command == "convert" else []
    with pytest.raises(SystemExit) as stop:
        main([command, str(name), *out])
    told = capsys.readouterr()
    assert stop.value.code == 2
    assert told.out == ""
    assert told.err.startswith("igpt: error: ")
    assert told.err.count("\n") == 1
    assert reason in told.err
    assert str(name) in told.err
    assert not (tmp_path / "out").exists()
