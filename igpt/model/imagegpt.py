"""The tensor names and shapes of `transformers`' ImageGPT, and the way to and from ours.

Theirs keeps `sos` as the last row of `wte`, stores linear maps as (in, out) and always has biases
in the blocks, which are zero in the paper's models (PAPER §D).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from igpt.config import ModelConfig

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
