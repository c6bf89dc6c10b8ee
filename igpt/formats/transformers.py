"""Models of `transformers`' ImageGPT, in and out (PAPER §D lists how it differs from the paper).

Theirs expects the caller to put `sos` first; ours does that itself. Their classifier is trained
without it, so an imported one keeps reading the image unshifted, and the model's facts say so; a
classifier that we export is marked in its config, so that we read it back as it was trained.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igpt.errors import UserError
from igpt.files import read_json, write_json, writing_folder
from igpt.formats.card import model_card
from igpt.formats.folder import (
    described_config,
    read_palette,
    write_preprocessor,
    write_tensors,
)
from igpt.formats.tensors import read_weights, warn_of_zero_head
from igpt.model.gpt import GPT
from igpt.model.imagegpt import from_imagegpt, has_biases, imagegpt_config, to_imagegpt
from igpt.model.sizes import Shape, check_held
from igpt.train.tensors import load_weights
from igpt.trained import ModelFacts, Trained

# What a config.json may leave out, as transformers 5.23 fills it in.
SHAPE = {"vocab_size": 513, "n_positions": 1024, "n_embd": 512, "n_layer": 24, "n_head": 8}
# Settings that change the function, with the only value that this network computes.
FIXED = {
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": False,
}


def read_transformers(folder: Path, document: Mapping[str, Any]) -> Trained:
    """The model of a folder that `save_pretrained` wrote, every tensor accounted for.

    Args:
        folder: with config.json, preprocessor_config.json and the weights.
        document: its config.json.

    Raises:
        UserError: a setting that this network cannot compute, missing colours, a tensor that is
            missing, extra or of another shape.
    """
    shape = _shape(folder / "config.json", document)
    side = math.isqrt(shape["n_positions"])
    palette = read_palette(folder, n_colors=shape["vocab_size"] - 1)
    tensors, file = read_weights(folder)
    tensors = _without_masks(tensors, shape["n_positions"], where=str(file))
    if "wte.weight" in tensors:  # ImageGPTModel: the network alone, its names without a prefix
        tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    score, predicts = tensors.pop("score.weight", None), "lm_head.weight" in tensors
    if score is not None and predicts:
        raise UserError(f"{file} has both lm_head.weight and score.weight: it needs one of them")
    sizes = {key: shape[key] for key in ("n_layer", "n_head", "n_embd")}
    where = str(folder / "config.json")
    config = described_config(sizes, bias=has_biases(tensors), where=where)
    check_held(
        config,
        Shape(n_colors=palette.n_colors, seq_len=shape["n_positions"], objective="ar"),
        n_tensors=len(tensors),
        n_values=sum(tensor.numel() for tensor in tensors.values()),
        where=where,
    )
    if not predicts:
        tensors["lm_head.weight"] = torch.zeros(shape["vocab_size"] - 1, shape["n_embd"])
    network = GPT(config, n_colors=palette.n_colors, seq_len=shape["n_positions"])
    _load(network, tensors, where=str(file))
    ours = _mapping(document.get("igpt"))
    source = {"source": "transformers", **_mapping(ours.get("trained"))}
    facts = ModelFacts(
        objective="ar",
        image_size=side,
        tokens="palette",
        trained=source,
        shifted=score is None or ours.get("shifted") is True,
        predicts=predicts,
    )
    model = Trained(network, palette, facts, folder=folder)
    if score is not None and score.any():  # a head of zeros was never trained
        _take_classes(model, score, document, where=str(file))
    elif predicts:
        warn_of_zero_head(network.head.weight, where=str(file))
    return model


def _mapping(value: Any) -> dict[str, Any]:
    """What a foreign file may hold under a key of ours."""
    return value if isinstance(value, dict) else {}


def _shape(where: Path, document: Mapping[str, Any]) -> dict[str, int]:
    for name, value in FIXED.items():
        if document.get(name, value) != value:
            raise UserError(
                f"{where}: {name} is {document[name]!r}; this network computes {value!r} only"
            )
    shape = {name: document.get(name, value) for name, value in SHAPE.items()}
    for name, value in shape.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{where}: {name} is {value!r}: it must be a whole number above 0")
    width = shape["n_embd"]
    if document.get("n_inner") not in (None, 4 * width):
        raise UserError(f"{where}: n_inner is {document['n_inner']}; this network has {4 * width}")
    if math.isqrt(shape["n_positions"]) ** 2 != shape["n_positions"]:
        raise UserError(f"{where}: {shape['n_positions']} positions make no square image")
    return shape


def _without_masks(
    tensors: Mapping[str, Tensor], n_positions: int, *, where: str
) -> dict[str, Any]:
    """The weights in float32, without the constants of older files, which must be what they were.

    Until transformers 5 each attention kept its causal mask and the value masked scores took.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".attn.masked_bias"):
            continue  # no weight: the score of what is masked, which ours sets to -inf
        if name.endswith(".attn.bias"):
            side = (n_positions, n_positions)
            is_square = tensor.shape[-2:] == side and tensor.numel() == n_positions**2
            if not is_square or not torch.equal(tensor.reshape(side).float(), _mask(n_positions)):
                raise UserError(f"{where}: {name} is not the causal mask: attention would differ")
            continue
        weights[name] = tensor.float()
    return weights


def _mask(n_positions: int) -> Tensor:
    return torch.ones(n_positions, n_positions).tril()


def _load(network: GPT, tensors: Mapping[str, Tensor], *, where: str) -> None:
    expected = {name: t.shape for name, t in to_imagegpt(network.state_dict()).items()}
    for name, size in expected.items():
        if name not in tensors:
            raise UserError(f"{where}: tensor {name} is missing: restore the file")
        if tensors[name].shape != size:
            raise UserError(
                f"{where}: tensor {name} is {tuple(tensors[name].shape)}, "
                f"config.json means {tuple(size)}"
            )
    for name in tensors:
        if name not in expected:
            raise UserError(f"{where}: tensor {name} is not part of ImageGPT")
    load_weights(network, from_imagegpt(tensors, bias=network.config.bias), where=where)


def _take_classes(
    model: Trained, score: Tensor, document: Mapping[str, Any], *, where: str
) -> None:
    """Their class head, (C, D): linear in the last layer's pooled features, without a bias."""
    width = model.network.config.n_embd
    if score.ndim != 2 or score.shape[1] != width:
        raise UserError(f"{where}: score.weight is {tuple(score.shape)}, not (classes, {width})")
    names = document.get("id2label")
    names = dict(enumerate(names)) if isinstance(names, list) else _mapping(names)
    names = {str(label): str(name) for label, name in names.items()}
    classes = [names.get(str(label), f"LABEL_{label}") for label in range(len(score))]
    protocol = "the class head of ImageGPTForImageClassification, as imported"
    model.take_class_head(score.numpy(), classes, protocol=protocol)


def write_transformers(model: Trained, folder: Path, *, classes: bool = False) -> Path:
    """Write a folder that transformers opens, and prove it by reading it back.

    Args:
        model: autoregressive, with a palette.
        folder: to write; it appears whole or not at all.
        classes: as ImageGPTForImageClassification, with the model's class head in place of the
            output head; otherwise as ImageGPTForCausalImageModeling.

    Raises:
        UserError: transformers' ImageGPT cannot express the model.
    """
    if model.facts.objective == "bert":
        raise UserError("transformers' ImageGPT has no bert objective: convert an ar model")
    if model.facts.tokens == "raw":
        raise UserError("transformers' ImageGPT needs a palette: a model of raw tokens has none")
    if not classes:
        model.network.check_predicts()
    head = _class_head(model) if classes else None
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another place")
    with writing_folder(folder) as part:
        _write(model, part, head, name=folder.name)
        _prove(model, part, head)
    return folder


@dataclass(frozen=True, slots=True)
class _ClassHead:
    """What `score.weight` and `id2label` hold."""

    weights: np.ndarray
    """(C, D) float32."""
    classes: tuple[str, ...]


def _class_head(model: Trained) -> _ClassHead:
    head = model.probe()
    last = model.network.config.n_layer
    if head is None:
        raise UserError("this model has no class head: fine-tune it, or convert it without classes")
    if head.pooling != "mean":
        raise UserError(
            "transformers' class head reads the mean over positions; this one reads features "
            f"pooled by {head.pooling}: probe or fine-tune again without --pooling"
        )
    if head.layer != last or not head.normalised or head.biases.any():
        raise UserError(
            f"transformers' class head reads layer {last} and has no bias; this one reads layer "
            f"{head.layer}{' with a bias' if head.biases.any() else ''}: fine-tune instead"
        )
    return _ClassHead(head.weights, head.classes)


def _write(model: Trained, folder: Path, head: _ClassHead | None, *, name: str) -> None:
    network = model.network
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    tensors = to_imagegpt(state)
    config: dict[str, Any] = imagegpt_config(
        network.config, n_colors=network.n_colors, seq_len=network.seq_len
    )
    if head is not None:
        del tensors["lm_head.weight"]
        tensors["score.weight"] = torch.from_numpy(head.weights)
        config["architectures"] = ["ImageGPTForImageClassification"]
        config["id2label"] = {str(label): name for label, name in enumerate(head.classes)}
        config["label2id"] = {name: label for label, name in enumerate(head.classes)}
        # Read by us alone: whether [sos, tokens[:-1]] is what these weights were trained on.
        config["igpt"] = {"shifted": model.facts.shifted}
    write_json(folder / "config.json", config)
    write_preprocessor(folder, model.tokenizer, model.image_size)
    write_tensors(folder, tensors)
    architecture = config["architectures"][0]
    card = model_card(model, name=name, architecture=architecture, classifies=head is not None)
    (folder / "README.md").write_text(card)


def _prove(model: Trained, folder: Path, head: _ClassHead | None) -> None:
    """Check that what was written reads back as the same weights, colours and classes."""
    found = read_transformers(folder, read_json(folder / "config.json"))
    state, back = model.network.state_dict(), found.network.state_dict()
    names = set(state) - ({"head.weight"} if head is not None else set())
    for name in names:
        zero_bias = name.endswith("bias") and name not in back and not state[name].any()
        assert zero_bias or torch.equal(state[name].cpu(), back[name]), name
    assert found.tokenizer.digest == model.tokenizer.digest
    if head is not None:
        assert found.classifier is not None
        assert np.array_equal(found.classifier.weights, head.weights)
        assert found.classifier.classes == head.classes
