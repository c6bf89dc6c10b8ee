"""The weights of a transformers folder: one file or many, safetensors or the older `.bin`.

Names and shapes are those of `transformers`' ImageGPT, with the way to and from ours: theirs keeps
`sos` as the last row of `wte`, stores linear maps as (in, out) and always has biases in the blocks,
which are zero in the paper's models (PAPER §D).
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from igpt.config import ModelConfig
from igpt.errors import UserError
from igpt.files import read_json, refuse_pointer

_LINEAR = re.compile(r"h\.\d+\.(attn|mlp)\.(c_attn|c_proj|c_fc)\.weight")


def to_imagegpt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our autoregressive network's tensors under their names, in their shapes."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "wte.weight":
            rows = [tensor, state["sos"].unsqueeze(0)]
            theirs["transformer.wte.weight"] = torch.cat(rows)  # (K + 1, D)
        elif name == "head.weight":
            theirs["lm_head.weight"] = tensor
        elif _LINEAR.fullmatch(name):
            theirs[f"transformer.{name}"] = tensor.T.contiguous()  # (in, out)
            bias = name.removesuffix("weight") + "bias"
            if bias not in state:
                theirs[f"transformer.{bias}"] = tensor.new_zeros(tensor.shape[0])
        elif name != "sos":
            theirs[f"transformer.{name}"] = tensor
    return theirs


def from_imagegpt(theirs: Mapping[str, Tensor], *, bias: bool) -> dict[str, Tensor]:
    """Their tensors under our names, in our shapes; biases only where `bias` asks for them."""
    ours: dict[str, Tensor] = {}
    for full_name, tensor in theirs.items():
        name = full_name.removeprefix("transformer.")
        if name == "wte.weight":
            ours["wte.weight"], ours["sos"] = tensor[:-1], tensor[-1]
        elif full_name == "lm_head.weight":
            ours["head.weight"] = tensor
        elif _LINEAR.fullmatch(name):
            ours[name] = tensor.T.contiguous()  # (out, in)
        elif bias or not name.endswith(".bias"):
            ours[name] = tensor
    return ours


def has_biases(theirs: Mapping[str, Tensor]) -> bool:
    """Whether any bias is not zero, so that it must be kept."""
    return any(bool(t.any()) for name, t in theirs.items() if name.endswith(".bias"))


def imagegpt_config(config: ModelConfig, *, n_colors: int, seq_len: int) -> dict[str, object]:
    """The settings of their `config.json` that describe our network exactly."""
    return {
        "model_type": "imagegpt",
        "architectures": ["ImageGPTForCausalImageModeling"],
        "vocab_size": n_colors + 1,
        "n_positions": seq_len,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": "quick_gelu",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Every tensor of a folder, and the file that was read or that lists the files.

    Raises:
        UserError: there is no weight file, or one is missing, damaged or holds anything else.
    """
    for name in NAMES:
        path = folder / name
        if path.is_file():
            return (_read_sharded(path) if path.suffix == ".json" else _read(path)), path
    raise UserError(f"{folder} holds no weights: it needs one of {', '.join(NAMES)}")


def warn_of_zero_head(head: Tensor, *, where: str) -> None:
    """Say that a model cannot predict yet: (K, D) zeros are the output head's initial state."""
    if not head.any():
        warnings.warn(
            f"{where}: the output head is all zero, so it was never trained: samples, completions "
            "and likelihoods will mean nothing",
            stacklevel=2,
        )


def _read_sharded(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index lists, each from the file that it names."""
    document = read_json(index)
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f"{index} has no weight_map of tensor names to files: restore it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{index} names {name!r}, which lies outside its folder: restore it")
        shard = _read(index.parent / name)
        listed = {tensor for tensor, place in places.items() if place == name}
        if odd := sorted(listed ^ set(shard)):
            raise UserError(f"{index.parent / name} and {index.name} disagree on {odd[0]}")
        tensors |= shard
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing: restore the model folder")
    refuse_pointer(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): restore the model folder") from error


def _read_bin(path: Path) -> dict[str, Tensor]:
    """A pickle, of which nothing but tensors is ever built."""
    _check_zip(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds something else than tensors, so it is not read") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged: restore the model folder") from error
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise UserError(f"{path} holds something else than named tensors, so it is not read")
    for name, tensor in held.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: tensor {name} is larger than its numbers: restore the file")
    return dict(held)


def _check_zip(path: Path) -> None:
    """Refuse what unpacks to more than the file: torch itself never compresses.

    Raises:
        UserError: it is no zip file, or one with compressed parts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise UserError(f"{path} is compressed, as torch writes no file: restore it")
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is damaged, or of torch before 1.6: restore it, or save it as safetensors"
        ) from error
