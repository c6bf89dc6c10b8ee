"""Model folders and runs on disk: a network, its tokeniser and its facts, written and read.

A model folder holds `config.json`, `model.safetensors` and `preprocessor_config.json`. Where
`transformers`' ImageGPT can express the model, the folder is one that it opens, and our own facts
stand under the one key `igpt`; otherwise `model_type` is `igpt` and the tensors have our names.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from igpt import files
from igpt.config import ModelConfig, RunConfig
from igpt.errors import UserError
from igpt.files import read_json, refuse_pointer, write_json
from igpt.images.packed import seen
from igpt.model.gpt import GPT
from igpt.model.imagegpt import from_imagegpt, has_biases, imagegpt_config, to_imagegpt
from igpt.model.sizes import Shape, check_held
from igpt.published import published
from igpt.tokens.palette import Palette
from igpt.tokens.tokenizer import RawTokens, Tokenizer
from igpt.train import checkpoint
from igpt.train.folder import exported_step, read_run
from igpt.train.standing import standing, tokenizer_of
from igpt.train.tensors import check_finite, load_weights
from igpt.trained import ModelFacts, Trained

SCHEMA_VERSION = 1
# What makes a model folder; a card and pictures may lie beside it.
KIND = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "probe.json",
    "probe.safetensors",
    seen.NAME,
)


def write_folder(folder: Path, parts: Trained) -> None:
    """Write the files of a model into a folder that is there."""
    network = parts.network
    state = {name: t.detach().cpu() for name, t in network.state_dict().items()}
    check_finite(state, where="the model to save")
    config = _own_config(network, parts.facts)
    if transformers_class(network):
        state = to_imagegpt(state)
        theirs = imagegpt_config(network.config, n_colors=network.n_colors, seq_len=network.seq_len)
        config = {**theirs, "igpt": config["igpt"]}
    write_json(folder / "config.json", config)
    write_preprocessor(folder, parts.tokenizer, parts.facts.image_size)
    write_tensors(folder, state)
    if parts.seen is not None:
        seen.write_seen(folder, parts.seen)


def transformers_class(network: GPT) -> str | None:
    """The class of transformers that opens what `write_folder` writes, if one does."""
    is_theirs = network.shifted and network.predicts
    return "ImageGPTForCausalImageModeling" if is_theirs else None


def write_tensors(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` as transformers does."""
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    data = safetensors.torch.save(whole, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(data)


def write_preprocessor(folder: Path, tokenizer: Tokenizer, image_size: int) -> None:
    """Write what transformers' ImageGPTImageProcessor reads: the size and the colours."""
    settings: dict[str, Any] = {
        "image_processor_type": "ImageGPTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 2,
        "do_normalize": True,
        "do_color_quantize": True,
    }
    if isinstance(tokenizer, Palette):
        settings["clusters"] = tokenizer.colors.tolist()
    write_json(folder / "preprocessor_config.json", settings)


def is_model_folder(path: Path) -> bool:
    """Whether igpt wrote a model into a folder, as its config.json or the list of files says."""
    if "config.json" in files.listed_in(path):
        return True
    try:
        document = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    facts = document.get("igpt") if isinstance(document, dict) else None
    return isinstance(facts, dict) and "schema_version" in facts


def check_may_replace(path: Path) -> None:
    """Refuse a place where something else stands.

    Raises:
        UserError: it is neither new, nor empty, nor a model folder of ours.
    """
    is_taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if is_taken and not is_model_folder(path):
        raise UserError(f"{path} is not a model folder of igpt: choose another place")


def _own_config(network: GPT, facts: ModelFacts) -> dict[str, Any]:
    facts = dataclasses.replace(facts, trained=published(facts.trained))
    return {
        "model_type": "igpt",
        "model": dataclasses.asdict(network.config),
        "n_colors": network.n_colors,
        "igpt": {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(facts)},
    }


def read_newest(folder: Path, *, step: int | None = None) -> Trained:
    """The model of a run's newest intact checkpoint, or of the one after `step` updates.

    Where all checkpoints were deleted, the model that the run exported stands for them; so does
    that of the last step where all are damaged.

    Raises:
        UserError: the run has none.
    """
    config, facts = read_run(folder)
    path, rejected = checkpoint.newest(folder)
    if step is not None:
        path = checkpoint.folder_of(folder, step)
    done = exported_step(folder)
    if path is None and done and (not rejected or done >= config.train.total_steps):
        return read_folder(folder / "model", read_json(folder / "model" / "config.json"))
    if path is None:
        standing(folder, config)  # refuses where --resume would
        raise UserError(f"{folder} has saved no checkpoint yet: train it with --resume")
    tokenizer = tokenizer_of(folder, config, facts)
    held = checkpoint.load(path, checked=step is None)
    shape = Shape.of_run(config, tokenizer.n_colors)
    network = _network(config.model, shape, held.model, where=str(folder / "config.json"))
    load_weights(network, held.model, where=str(path / "model.safetensors"))
    trained = {
        **facts,
        "recipe": config.recipe,
        "seed": config.seed,
        "valid_fraction": config.data.valid_fraction,
        "step": held.step,
        "images": held.step * config.train.batch_size,
    }
    return Trained(
        network,
        tokenizer,
        _facts_of_run(config, trained),
        folder=folder / "model",
        seen=seen.read_seen(folder),
    )


def _facts_of_run(config: RunConfig, trained: dict[str, Any]) -> ModelFacts:
    return ModelFacts(
        objective=config.train.objective,
        image_size=config.data.image_size,
        tokens=config.data.tokens,
        trained=trained,
        mask_prob=config.train.mask_prob,
    )


def _network(
    config: ModelConfig, shape: Shape, tensors: Mapping[str, Tensor], *, where: str
) -> GPT:
    """A network without its weights, which must be large enough for it."""
    n_values = sum(tensor.numel() for tensor in tensors.values())
    check_held(config, shape, n_tensors=len(tensors), n_values=n_values, where=where)
    return GPT(config, n_colors=shape.n_colors, seq_len=shape.seq_len, objective=shape.objective)


def read_folder(path: Path, document: dict[str, Any]) -> Trained:
    """The model of a folder that `write_folder` wrote.

    Args:
        path: of the folder.
        document: its config.json.

    Raises:
        UserError: it is none, of another version, or a file is missing or damaged.
    """
    where = str(path / "config.json")
    if document.get("model_type") not in ("imagegpt", "igpt") or "igpt" not in document:
        raise UserError(f"{where} does not describe a model of igpt: check the path")
    version = document["igpt"].get("schema_version") if isinstance(document["igpt"], dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{where} has schema version {version}: use the igpt that wrote it")
    tensors = _read_tensors(path / "model.safetensors")
    try:
        network, facts = _described(document, tensors, where=where)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} is damaged ({error!r}): restore the model folder") from error
    if document["model_type"] == "imagegpt":
        tensors = from_imagegpt(tensors, bias=network.config.bias)
    is_raw = facts.tokens == "raw"
    tokenizer: Tokenizer = RawTokens() if is_raw else read_palette(path, n_colors=network.n_colors)
    load_weights(network, tensors, where=str(path / "model.safetensors"))
    return Trained(network, tokenizer, facts, folder=path, seen=seen.read_seen(path))


def _described(
    document: dict[str, Any], tensors: Mapping[str, Tensor], *, where: str
) -> tuple[GPT, ModelFacts]:
    """The network that a config.json of ours describes, without its weights, and the facts."""
    facts = ModelFacts(**{k: v for k, v in document["igpt"].items() if k != "schema_version"})
    if document["model_type"] == "imagegpt":
        sizes = {key: document[key] for key in ("n_layer", "n_head", "n_embd")}
        config = described_config(sizes, bias=has_biases(tensors), where=where)
        n_colors = document["vocab_size"] - 1
    else:
        config = described_config(document["model"], where=where)
        n_colors = document["n_colors"]
    seq_len = facts.image_size**2 * (3 if facts.tokens == "raw" else 1)
    shape = Shape(n_colors=n_colors, seq_len=seq_len, objective=facts.objective)
    return _network(config, shape, tensors, where=where), facts


def described_config(sizes: Mapping[str, Any], *, where: str, **more: bool) -> ModelConfig:
    """The network's shape as the file `where` gives it.

    Raises:
        UserError: it is outside what a network can be.
    """
    try:
        return ModelConfig(**sizes, **more)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing: restore the model folder")
    refuse_pointer(path)
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): restore the model folder") from error


def read_palette(folder: Path, *, n_colors: int) -> Palette:
    """The colours in a folder's preprocessor_config.json, as transformers keeps them.

    Raises:
        UserError: the file is missing or has other clusters than `n_colors` colours.
    """
    where = folder / "preprocessor_config.json"
    if not where.is_file():
        raise UserError(f"{where} is missing: its `clusters` are the model's colours")
    settings = read_json(where)
    clusters = settings.get("clusters") if isinstance(settings, dict) else None
    if clusters is None:
        raise UserError(f"{where} has no clusters: they are the model's colours")
    try:
        colors = np.asarray(clusters, np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: clusters are no (K, 3) numbers: restore the file") from error
    if colors.shape != (n_colors, 3):
        raise UserError(f"{where}: clusters are {colors.shape}, the model has ({n_colors}, 3)")
    try:
        return Palette(colors)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
