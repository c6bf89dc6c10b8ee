"""What a foreign checkpoint can have wrong with it: status 2, one line, the file and the reason."""

import json
import re
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from igpt.cli.main import main
from igpt.errors import UserError
from igpt.formats.openai import MAGIC
from igpt.formats.transformers import write_transformers
from igpt.loading import load
from igpt.tokens.palette import Palette
from tests.formats.test_openai import released
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
    return "hf:nobody/nothing", "cannot fetch hf:nobody/nothing: HF_HUB_OFFLINE forbids asking"


def changed(path, document, file="config.json"):
    """A model folder whose description says something else than its weights."""
    held = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(held | document))
    return path


def a_billion_layers(folder):
    return changed(theirs(folder), {"n_layer": 10**9}), "config.json: model.n_layer is 1000000000"


def more_layers_than_weights(folder):
    return changed(theirs(folder), {"n_layer": 900}), "describes 900 layers of width 16"


def a_width_that_fills_memory(folder):
    path = changed(theirs(folder), {"n_embd": 2**16})
    return path, "describes 2 layers of width 65536 on 16 tokens of 27 colours, but its weights are"


def a_billion_positions(folder):
    path = changed(theirs(folder), {"n_positions": 10**10})
    tensors = load_file(path / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    save_file(tensors, path / "model.safetensors")
    return path, "model.safetensors: transformer.h.0.attn.bias is not the causal mask"


def ours(folder, **facts):
    path = pixel_model(image_size=4).save(folder / "m")
    held = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(held | {"igpt": held["igpt"] | facts}))
    return path


def an_unknown_objective(folder):
    return ours(folder, objective="x"), "config.json is damaged (ValueError(\"objective is 'x'\"))"


def a_side_of_a_billion(folder):
    return ours(folder, image_size=10**9), "config.json is damaged (ValueError('image_size is 1"


def fewer_colours_than_none(folder):
    path = changed(ours(folder), {"vocab_size": -64, "n_colors": -65})
    return path, "on 16 tokens of -65 colours, but its weights are"


def a_pointer_in_place_of_weights(folder):
    path = ours(folder)
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    return path, "model.safetensors: a Git LFS pointer, not the file itself: run git lfs pull"


def nothing_but_brackets(folder):
    path = theirs(folder)
    (path / "config.json").write_text("[" * 100_000)
    return path, "config.json is not valid JSON"


def as_bin(path, **tensors):
    held = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(held | tensors, path / "pytorch_model.bin")
    return path / "pytorch_model.bin"


def bin_that_unpacks_to_more(folder):
    path = theirs(folder)
    file = as_bin(path)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data + bytes(10**6))
    return path, "pytorch_model.bin is compressed, as torch writes no file"


def bin_of_one_number_a_billion_times(folder):
    path = theirs(folder)
    as_bin(path, **{"lm_head.weight": torch.ones(1).expand(10**9)})
    return path, "pytorch_model.bin: tensor lm_head.weight is larger than its numbers"


def index(folder, entries, *, times=1):
    """The index of a TensorFlow checkpoint: entries of (shared, own bytes, value) in one block."""
    checkpoint(folder)
    varint = bundle.varint

    def block(some):
        body = b"".join(
            varint(shared) + varint(len(own)) + varint(len(value)) + own + value
            for shared, own, value in some
        ) + struct.pack("<II", 0, 1)
        return body + b"\0" + struct.pack("<I", bundle.masked(body + b"\0"))

    first = block([(0, b"", b"\x08\x01"), *entries])
    handle = varint(0) + varint(len(first) - 5)
    second, meta = block([(0, b"z", handle)] * times), block([])
    at = len(first)
    footer = varint(at + len(second)) + varint(len(meta) - 5) + varint(at) + varint(len(second) - 5)
    data = first + second + meta + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    path = folder / "model.ckpt-9"
    path.with_name(path.name + ".index").write_bytes(data)
    return path


def keys_that_grow(folder):
    path = index(folder, [(i, b"a", b"") for i in range(1500)])
    return path, "index has a name of more than 1000 bytes"


def one_block_many_times(folder):
    path = index(folder, [(0, b"a" * 99, b"")], times=50)
    return path, "index is damaged: its blocks lie over one another"


def an_offset_that_is_text(folder):
    path = index(folder, [(0, b"a", bundle.field(4, b"x"))])
    return path, "index is damaged (field 4 is not a number)"


def tensors_over_one_another(folder):
    with (folder / "model.ckpt-9.data-00000-of-00001").open("wb") as file:
        file.truncate(10**9)  # takes no room on the disk
    entry = bundle.field(2, bundle.field(2, bundle.field(1, 250_000_000)))
    path = index(
        folder,
        [(0, b"%03d" % i, bundle.field(1, 1) + entry + bundle.field(5, 10**9)) for i in range(200)],
    )
    return path, "gives its tensors more bytes than model.ckpt-9.data-00000-of-00001 has"


CLAIMS = [
    a_billion_layers, more_layers_than_weights, a_width_that_fills_memory, a_billion_positions,
    an_unknown_objective, a_side_of_a_billion, fewer_colours_than_none,
    a_pointer_in_place_of_weights, nothing_but_brackets, bin_that_unpacks_to_more,
    bin_of_one_number_a_billion_times, keys_that_grow, one_block_many_times,
    an_offset_that_is_text, tensors_over_one_another,
]  # fmt: skip


@pytest.mark.parametrize("make", CLAIMS)
def test_claims_are_compared_with_what_is_there_before_memory_is_taken(make, tmp_path):
    path, reason = make(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=re.escape(reason)) as refusal:
        load(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


def test_class_names_may_be_a_list(tmp_path):
    model = pixel_model(image_size=4)
    model.take_class_head(np.ones((2, 16), np.float32), ["cat", "dog"], protocol="a test")
    path = write_transformers(model, tmp_path / "m", classes=True)
    changed(path, {"id2label": ["cat", "dog"]})
    assert load(path).probe().classes == ("cat", "dog")


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
