"""Small models with random weights, and the obvious way to sample from them."""

import numpy as np
import torch

from igpt.config import ModelConfig, Objective, SampleConfig
from igpt.generate.sample import draw
from igpt.model.gpt import GPT
from igpt.model.head import SavedProbe
from igpt.pixelmodel import PixelModel
from igpt.tokens.palette import Palette
from igpt.trained import ModelFacts
from tests.strategies import lively_gpt


def network(*, n_layer=2, n_head=2, n_embd=12, bias=False, n_colors=7, **shape) -> GPT:
    """Random weights whose logits spread as a trained network's do."""
    config = ModelConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, bias=bias)
    return lively_gpt(config, n_colors=n_colors, **shape)


def pixel_model(*, image_size: int = 8, objective: Objective = "ar") -> PixelModel:
    """A model of 27 evenly spread colours."""
    levels = np.linspace(-1, 1, 3, dtype=np.float32)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    shape = {"n_colors": 27, "seq_len": image_size**2, "objective": objective}
    facts = ModelFacts(objective=objective, image_size=image_size, tokens="palette", trained={})
    return PixelModel(network(n_embd=16, **shape), Palette(colors), facts)


def probe_of(model: PixelModel, chances: tuple[float, float] = (0.5, 0.5)) -> SavedProbe:
    """A saved probe of `pixel_model` that gives every image these chances of cat and dog."""
    return SavedProbe(
        weights=np.zeros((2, 16), np.float32),
        biases=np.log(np.array(chances, np.float32)),
        layer=1,
        normalised=True,
        strength=1.0,
        labels=(0, 1),
        classes=("cat", "dog"),
        model_digest=model.digest(),
        protocol="by hand",
    )


def drawn_without_cache(model: GPT, uniform: np.ndarray, config: SampleConfig) -> np.ndarray:
    """The obvious way: the whole network anew for every token."""
    B, T = uniform.shape
    tokens = torch.zeros(B, T, dtype=torch.int64)
    for t in range(T):
        with torch.no_grad():
            logits = model(tokens)[:, t]
        tokens[:, t] = draw(logits, torch.from_numpy(uniform[:, t]), config)
    return tokens.numpy()
