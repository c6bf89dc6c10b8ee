"""The authors' released files: TensorFlow checkpoints, and images as tokens (PAPER §C)."""

import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from igpt.config import ModelConfig, Objective
from igpt.errors import UserError
from igpt.formats.bundle import Bundle
from igpt.formats.folder import described_config
from igpt.formats.tensors import warn_of_zero_head
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, check_held
from igpt.tokens.palette import Palette
from igpt.train.tensors import load_weights
from igpt.trained import ModelFacts, Trained

_BLOCK = re.compile(r"h(\d+)/(ln_1/g|ln_2/g|attn/[qkvc]_proj|mlp/c_fc/w|mlp/c_proj/w)")
# Adam's moments and the counters of training: two thirds of the released files.
_OF_TRAINING = re.compile(r"(^|/)(adam|beta[12]_power)|_step(_\d+)?$", re.IGNORECASE)
# The files of one checkpoint, by what follows its prefix.
_PART = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_OUTER = {"wte": "wte.weight", "wpe": "wpe.weight", "wtet": "head.weight", "sos": "sos"}


def find_checkpoint(name: str) -> Path | None:
    """The prefix of the TensorFlow checkpoint that a path means; none where it means another thing.

    Args:
        name: the prefix itself, as in `model.ckpt-1000000`; any one of its files; or a folder
            that holds one.

    Raises:
        UserError: the folder holds several.
    """
    path = Path(name)
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) > 1:
            raise UserError(
                f"{name} holds several checkpoints: name one, as {found[-1].with_suffix('')}"
            )
        return found[0].with_suffix("") if found else None
    prefix = path.with_name(_PART.sub("", path.name))
    is_one = prefix != path or Path(f"{prefix}.index").is_file()
    return prefix if is_one else None


def read_openai(prefix: Path, palette: str | None = None) -> Trained:
    """The model of a released checkpoint; without `sos` among its tensors it is a BERT one.

    Args:
        prefix: as `find_checkpoint` gives it.
        palette: the authors' kmeans_centers.npy; none: the file of that name beside it.

    Raises:
        UserError: no palette, a damaged or missing file, a tensor missing, extra or of a shape
            that fits no image GPT.
    """
    beside = prefix.with_name("kmeans_centers.npy")
    if palette is None and not beside.is_file():
        raise UserError(
            f"{prefix} has no colours: put the authors' kmeans_centers.npy beside it, "
            "or name them by igpt convert --palette"
        )
    colors = Palette.load(palette or beside)
    bundle = Bundle(prefix)
    where = f"{prefix}.index"
    held = {
        full.removeprefix("model/"): bundle.read(full)
        for full in bundle.entries
        if not _OF_TRAINING.search(full)
    }
    score = held.pop("clf/wclf", None)
    network = _network(held, where)
    if colors.n_colors != network.n_colors:
        raise UserError(
            f"{palette or beside} has {colors.n_colors} colours, {where} {network.n_colors}"
        )
    facts = ModelFacts(
        objective=network.objective,
        image_size=math.isqrt(network.seq_len),
        tokens="palette",
        trained={"source": "openai/image-gpt", "checkpoint": prefix.name},
    )
    warn_of_zero_head(network.head.weight, where=where)
    model = Trained(network, colors, facts)
    if score is not None and score.any():
        classes = [str(label) for label in range(len(score))]
        model.take_class_head(score, classes, protocol="the class head of the checkpoint")
    return model


def _network(held: dict[str, np.ndarray], where: str) -> GPT:
    try:
        (n_colors, width), seq_len = held["wte"].shape, len(held["wpe"])
        n_head = held["h0/attn/q_proj"].shape[0]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{where} holds no image GPT: wte, wpe or h0/attn/q_proj is wrong"
        ) from error
    if math.isqrt(seq_len) ** 2 != seq_len:
        raise UserError(f"{where}: {seq_len} positions make no square image")
    n_layer = len({int(match[1]) for name in held if (match := _BLOCK.fullmatch(name))})
    objective: Objective = "ar" if "sos" in held else "bert"
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": width}
    config = described_config(sizes, where=where)
    check_held(
        config,
        Shape(n_colors=n_colors, seq_len=seq_len, objective=objective),
        n_tensors=len(held),
        n_values=sum(array.size for array in held.values()),
        where=where,
    )
    network = GPT(config, n_colors=n_colors, seq_len=seq_len, objective=objective)
    load_weights(network, _renamed(held, config, where), where=where)
    return network


def _renamed(held: dict[str, np.ndarray], config: ModelConfig, where: str) -> dict[str, Tensor]:
    """Their tensors under our names, in our shapes."""
    D, H = config.n_embd, config.n_head
    ours: dict[str, np.ndarray] = {}
    for name, array in held.items():
        match = _BLOCK.fullmatch(name)
        if "_proj" in name and "attn" in name and array.shape != (H, D // H, D):
            raise UserError(f"{where}: {name} is {array.shape}, not ({H}, {D // H}, {D})")
        if match is None:
            ours[_OUTER.get(name, "ln_f.weight" if name == "ln_f/g" else name)] = array
        elif match[2].startswith("ln"):
            ours[f"h.{match[1]}.{match[2][:4]}.weight"] = array
        elif match[2].startswith("mlp"):
            ours[f"h.{match[1]}.{match[2][:-2].replace('/', '.')}.weight"] = array.T
        elif match[2] == "attn/c_proj":
            ours[f"h.{match[1]}.attn.c_proj.weight"] = array.reshape(D, D).T
    for layer in range(config.n_layer):
        names = [f"h{layer}/attn/{part}_proj" for part in "qkv"]
        for name in names:
            if name not in held:
                raise UserError(f"{where}: tensor model/{name} is missing: use a whole checkpoint")
        joined = np.concatenate([held[name].reshape(D, D) for name in names])  # (3 D, D)
        ours[f"h.{layer}.attn.c_attn.weight"] = joined
    return {name: torch.tensor(array) for name, array in ours.items()}
