"""`Trained`: a network with its tokeniser and facts, which every room can take.

`igpt.pixelmodel.PixelModel` adds what users do with one; `igpt.formats` reads and writes them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from igpt.config import N_POOLED, Objective, Pooling, TrainConfig, whole
from igpt.config import Tokenizer as TokenizerKind
from igpt.errors import UserError
from igpt.images.taking import Images, as_squares
from igpt.model.gpt import GPT, weights_digest
from igpt.model.head import SavedProbe
from igpt.tokens.tokenizer import Tokenizer

# Attention over the pixels of a larger image fits no machine.
MAX_SIDE = 4096

# Models of before 0.2 know the name of their set only.
_SMALL_SETS_PX = {"cifar10": 32, "cifar100": 32, "digits": 32, "fashion-mnist": 28, "stl10": 96}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model folder records beside its weights, under the key `igpt`."""

    objective: Objective
    image_size: int
    """Side S of the input, pixels."""
    tokens: TokenizerKind
    trained: dict[str, Any]
    """Where the weights come from: data, seed, steps, command; empty when unknown."""
    mask_prob: float = TrainConfig().mask_prob
    """BERT only: the share of positions masked, in training and so wherever it is judged."""
    shifted: bool = True
    """False: an imported classifier that reads the image unshifted, without `sos` (PAPER §D)."""
    predicts: bool = True
    """False: an imported classifier, which came without an output head."""

    def __post_init__(self) -> None:
        for name, sound in (
            ("objective", self.objective in get_args(Objective)),
            ("tokens", self.tokens in get_args(TokenizerKind)),
            ("image_size", type(self.image_size) is int and 1 <= self.image_size <= MAX_SIDE),
            ("trained", isinstance(self.trained, dict)),
            ("mask_prob", isinstance(self.mask_prob, float) and 0 <= self.mask_prob <= 1),
            ("shifted", isinstance(self.shifted, bool)),
            ("predicts", isinstance(self.predicts, bool)),
        ):
            if not sound:
                raise ValueError(f"{name} is {getattr(self, name)!r}"[:80])


@dataclass(frozen=True, slots=True)
class FeatureChoice:
    """Which of a model's features are meant."""

    layer: int
    """0 to L."""
    pooling: Pooling
    """Over positions."""
    normalised: bool
    """The paper's, or the raw residual stream."""
    n_embd: int
    """Channels D of the model."""

    def __post_init__(self) -> None:
        if self.pooling not in N_POOLED:
            raise UserError(
                f"pooling {self.pooling!r} does not exist: choose from {', '.join(N_POOLED)}"
            )

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.n_embd * N_POOLED[self.pooling]


class Trained:
    """A network, its tokeniser and its facts: all that a folder of a model says.

    Args:
        network: the Transformer.
        tokenizer: colours to tokens and back.
        facts: objective, image size and provenance.
        folder: where it was loaded from, if anywhere; a probe saved there is used.
        classifier: the class head that it was loaded with, used where no probe is saved.
        seen: sorted fingerprints of the images that it was trained on; none: not known.
    """

    def __init__(
        self,
        network: GPT,
        tokenizer: Tokenizer,
        facts: ModelFacts,
        *,
        folder: Path | None = None,
        classifier: SavedProbe | None = None,
        seen: np.ndarray | None = None,
    ) -> None:
        self.network = network.eval()
        self.network.shifted = facts.objective == "ar" and facts.shifted
        self.network.predicts = facts.predicts
        self.tokenizer = tokenizer
        self.facts = facts
        self.folder = folder
        self.classifier = classifier
        self.seen = seen
        self._digested: tuple[object, str] = (None, "")

    @property
    def image_size(self) -> int:
        """Side S of the input, pixels."""
        return self.facts.image_size

    @property
    def source_px(self) -> int:
        """Shorter side of the largest image that it was trained on, in pixels; 0: not known."""
        told = self.facts.trained.get("source_px")
        name = str(self.facts.trained.get("data", "")).split(" ")[0]
        return int(told or _SMALL_SETS_PX.get(name, 0))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def pixels(self, images: Images) -> np.ndarray:
        """Any images as one array at the model's size: (N, S, S, 3) uint8.

        Raises:
            UserError: an image cannot be read or has another shape or type.
        """
        return as_squares(images, self.image_size, source_px=self.source_px)

    def encode(self, images: Images) -> NDArray[np.int64]:
        """Tokens of images: (N, T) int64."""
        return self.tokenizer.encode(self.pixels(images))

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Images of tokens: (N, T) -> (N, S, S, 3) uint8."""
        return self.tokenizer.decode(tokens)

    def feature_choice(
        self,
        layer: int | str = "best",
        pooling: Pooling | None = None,
        *,
        normalised: bool | None = None,
    ) -> FeatureChoice:
        """Which features are meant; args are those of `features`.

        Raises:
            UserError: there is no such layer or pooling.
        """
        probe = self.probe() if layer == "best" else None
        if layer != "best":
            chosen = _layer_number(layer, self.network)
        else:  # the middle one where no probe is saved (paper §4.1)
            chosen = self.network.config.n_layer // 2 if probe is None else probe.layer
        if pooling is None:
            pooling = "mean" if probe is None else probe.pooling
        if normalised is None:
            normalised = True if probe is None else probe.normalised
        return FeatureChoice(chosen, pooling, normalised, self.network.config.n_embd)

    def best_layer(self) -> int:
        """The saved probe's layer; where none is saved, the middle one (paper §4.1)."""
        return self.feature_choice().layer

    def probe(self) -> SavedProbe | None:
        """The probe saved with this model, else the class head it was loaded with, if any.

        Raises:
            UserError: it was saved for another model or palette.
        """
        if self.folder is None or not (self.folder / "probe.json").is_file():
            return self.classifier
        return SavedProbe.load(self.folder, model_digest=self.digest())

    def own_probe(self) -> SavedProbe | None:
        """`probe`, but one that belongs to other weights is left out with a warning."""
        try:
            return self.probe()
        except UserError as error:  # such as one that an earlier state of the weights left behind
            warnings.warn(f"saved without its probe: {error}", stacklevel=2)
            return self.classifier

    def take_class_head(
        self,
        weights: np.ndarray,
        classes: Sequence[str],
        *,
        layer: int | None = None,
        protocol: str,
    ) -> None:
        """Classify by a linear head without bias on one layer's features (paper §2.3).

        Args:
            weights: (C, D) float32.
            classes: the name of each of the C classes.
            layer: from 0 to L; none: the last.
            protocol: one sentence: where the head comes from.
        """
        self.classifier = SavedProbe(
            weights=weights,
            biases=np.zeros(len(weights), np.float32),
            layer=self.network.config.n_layer if layer is None else layer,
            normalised=True,
            strength=0.0,
            labels=tuple(range(len(weights))),
            classes=tuple(classes),
            model_digest=self.digest(),
            protocol=protocol,
        )

    def token_mask(self, mask: np.ndarray) -> np.ndarray:
        """(S, S) bool of pixels as (T,) bool of tokens.

        Raises:
            UserError: the mask has another shape.
        """
        side = self.image_size
        if mask.shape != (side, side):
            raise UserError(f"the mask is {mask.shape}: this model needs ({side}, {side}) pixels")
        if not np.isin(mask, (0, 1)).all():
            raise UserError("the mask holds other values than True and False")
        return np.repeat(mask.astype(bool).reshape(-1), self.network.seq_len // side**2)

    def digest(self) -> str:
        """Hash of every weight and of the palette: what a saved probe belongs to."""
        # Whatever writes into a tensor raises its version; another tensor lies elsewhere.
        state = (
            self.network.shifted,
            *(
                (value.data_ptr(), value._version, value.dtype)
                for value in self.network.state_dict(keep_vars=True).values()
            ),
        )
        if self._digested[0] != state:
            self._digested = state, weights_digest(self.network)
        return self._digested[1] + self.tokenizer.digest[:16]


def _layer_number(layer: int | str, network: GPT) -> int:
    n_layer = network.config.n_layer
    try:
        number = whole(layer, "layer")
    except UserError:
        number = -1
    if not 0 <= number <= n_layer:
        raise UserError(f"layer {layer!r} does not exist: choose 0 to {n_layer}, or 'best'")
    return number


def resampled(network: GPT, *, image_size: int, new_image_size: int) -> GPT:
    """The same network for images of another size: position embeddings are interpolated.

    Args:
        network: reads `image_size`.
        image_size: side S of its images, pixels.
        new_image_size: side wanted, pixels.

    Raises:
        UserError: the network does not read images of `image_size`.
    """
    per_pixel, rest = divmod(network.seq_len, image_size**2)
    if rest:
        raise UserError(f"the network's {network.seq_len} tokens are no {image_size} px image")
    state = dict(network.state_dict())
    width = network.config.n_embd
    grid = state["wpe.weight"].view(1, image_size, image_size, per_pixel * width)
    size = (new_image_size, new_image_size)
    moved = F.interpolate(
        grid.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False, antialias=True
    )
    seq_len = new_image_size**2 * per_pixel
    state["wpe.weight"] = moved.permute(0, 2, 3, 1).reshape(seq_len, width)
    made = GPT(
        network.config, n_colors=network.n_colors, seq_len=seq_len, objective=network.objective
    )
    made.load_state_dict(state)
    made.shifted, made.predicts = network.shifted, network.predicts
    return made.to(network.wpe.weight.device)
