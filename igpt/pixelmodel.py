"""`PixelModel`: a network, its tokeniser and its facts as one thing; load and save it.

`igpt.modelfolder` says what a model folder holds.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt import compute, shipped
from igpt.config import N_POOLED, Pooling, SampleConfig, whole
from igpt.errors import UserError
from igpt.files import read_json, writing_folder
from igpt.images.taking import Images, as_squares
from igpt.model.gpt import GPT
from igpt.modelfolder import (
    KIND,
    ModelFacts,
    ModelParts,
    check_may_replace,
    read_folder,
    read_newest,
    transformers_class,
    write_folder,
)
from igpt.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from igpt.probe.saved import SavedProbe


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


# Models of before 0.2 know the name of their set only.
_SMALL_SETS_PX = {"cifar10": 32, "cifar100": 32, "digits": 32, "fashion-mnist": 28, "stl10": 96}


class PixelModel:
    """A pixel Transformer with its palette: features, likelihood, samples, completions.

    `images` is one or many: paths, bytes, open files, PIL images, arrays or tensors
    (`igpt.images.taking`); another size than the model's is cut to its centre square and reduced as
    `igpt prepare` does.

    Args:
        network: the Transformer.
        tokenizer: colours to tokens and back.
        facts: objective, image size and provenance.
        folder: where it was loaded from, if anywhere; a probe saved there is used.
        classifier: the class head that it was loaded with, used where no probe is saved.
    """

    def __init__(
        self,
        network: GPT,
        tokenizer: Tokenizer,
        facts: ModelFacts,
        *,
        folder: Path | None = None,
        classifier: "SavedProbe | None" = None,
    ) -> None:
        self.network = network.eval()
        self.network.shifted = facts.objective == "ar" and facts.shifted
        self.network.predicts = facts.predicts
        self.tokenizer = tokenizer
        self.facts = facts
        self.folder = folder
        self.classifier = classifier
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

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray | Tensor) -> Tensor:
        """(N, T) tokens -> (N, T, K) float32 logits; slot t predicts token t."""
        network = self.network.in_float32()
        return cast(Tensor, network(torch.as_tensor(tokens).to(self.device)))

    def features(
        self,
        images: Images,
        layer: int | str = "best",
        *,
        normalised: bool | None = None,
        pooling: Pooling | None = None,
    ) -> np.ndarray:
        """Pooled activations of one layer (paper §2.4).

        Args:
            images: any images.
            layer: 0 to L; "best" is the saved probe's, or the middle one where none is saved.
            normalised: the paper's features; otherwise the raw residual stream; none: as `pooling`.
            pooling: over positions; bands gives five numbers a channel (`features.banded`); none:
                the saved probe's where `layer` is "best", else mean.

        Returns:
            (N, D) float32, bands: 5 D.
        """
        from igpt.probe.features import extract_features

        chosen = self.feature_choice(layer, pooling, normalised=normalised)
        found = extract_features(
            self.network.in_float32(),
            self.encode(images),
            layers=[chosen.layer],
            normalised=chosen.normalised,
            pooling=chosen.pooling,
            mask_prob=self.facts.mask_prob,
            keep=False,
        )
        return cast(np.ndarray, found[0])

    def feature_choice(
        self,
        layer: int | str = "best",
        pooling: Pooling | None = None,
        *,
        normalised: bool | None = None,
    ) -> "FeatureChoice":
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

    def probe(self) -> "SavedProbe | None":
        """The probe saved with this model, else the class head it was loaded with, if any.

        Raises:
            UserError: it was saved for another model or palette.
        """
        from igpt.probe.saved import SavedProbe

        if self.folder is None or not (self.folder / "probe.json").is_file():
            return self.classifier
        return SavedProbe.load(self.folder, model_digest=self.digest())

    def _own_probe(self) -> "SavedProbe | None":
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
        from igpt.probe.saved import SavedProbe

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

    def classify(self, images: Images) -> list[str]:
        """The class name that the saved probe gives each image.

        Raises:
            UserError: no probe is saved with this model.
        """
        probe = self.probe()
        if probe is None:
            raise UserError(
                f"{self.folder or 'this model'} has no probe: run `igpt probe MODEL DATA` first"
            )
        features = self.features(
            images, layer=probe.layer, normalised=probe.normalised, pooling=probe.pooling
        )
        return probe.classify(features)

    def nats(self, images: Images) -> np.ndarray:
        """Nats per token of each image, over all T tokens: (N,) float64."""
        return cast(np.ndarray, self.token_nats(images).mean(1, dtype=np.float64))

    def surprise(self, images: Images) -> np.ndarray:
        """-log p of each pixel (raw tokens: summed over its channels), nats: (N, S, S) float64.

        A BERT model predicts each pixel from most of the others, so that this is no likelihood.
        """
        nats, side = self.token_nats(images), self.image_size
        by_pixel = nats.reshape(len(nats), side, side, -1)
        return cast(np.ndarray, by_pixel.sum(-1, dtype=np.float64))

    def token_nats(self, images: Images) -> np.ndarray:
        """-log p of each token, nats: (N, T) float32."""
        from igpt.evaluate.surprise import whole_surprise

        tokens, mask_prob = self.encode(images), self.facts.mask_prob
        return whole_surprise(self.network.in_float32(), tokens, mask_prob=mask_prob)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        temperature: float = SampleConfig().temperature,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray:
        """Draw n images: (n, S, S, 3) uint8; the same seed gives the same images."""
        from igpt.generate.sample import sample

        config = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        n, seed = whole(n, "n"), whole(seed, "seed")
        return self.decode(sample(self.network, n, seed=seed, config=config))

    def complete(
        self,
        images: Images,
        *,
        keep_rows: float | None = None,
        keep: np.ndarray | None = None,
        n: int = 1,
        seed: int = 0,
        temperature: float = SampleConfig().temperature,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> np.ndarray:
        """Draw what is not kept of each image, n times.

        Args:
            images: any images.
            keep_rows: share of the rows kept from the top; the paper's figure keeps half.
            keep: (S, S) bool, True where a pixel is kept; in place of `keep_rows`.
            n: completions an image.
            seed: of the draws.
            temperature: divides the logits.
            top_k: draw among the k likeliest colours only.
            top_p: draw among the likeliest colours that hold this share of the probability.

        Returns:
            (N, n, S, S, 3) uint8.
        """
        from igpt.generate.complete import complete, rows_kept

        side, n, seed = self.image_size, whole(n, "n"), whole(seed, "seed")
        if (keep is None) == (keep_rows is None):
            raise UserError("give either keep_rows or keep: a share of the rows or a mask")
        if keep is None:
            assert keep_rows is not None
            keep = rows_kept(side, keep_rows)
        config = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        tokens = self.encode(images)
        per_token = self.token_mask(np.asarray(keep))
        drawn = complete(self.network, tokens, per_token, n=n, seed=seed, config=config)
        return self.decode(drawn).reshape(len(tokens), n, side, side, 3)

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
        from igpt.probe.features import weights_digest

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

    def save(self, folder: str | Path) -> Path:
        """Write a model folder with its card and its probe; it appears whole or not at all.

        In a model folder that is there, what igpt did not write stays, an edited card too.

        Raises:
            UserError: the folder exists and is no model folder of ours, or cannot be written.
        """
        from igpt.interop.card import model_card

        path, probe = Path(folder), self._own_probe()
        check_may_replace(path)
        with writing_folder(path, kind=KIND, keep_others=True) as part:
            write_folder(part, ModelParts(self.network, self.tokenizer, self.facts))
            if probe is not None:
                probe.save(part)
            card = model_card(
                self,
                name=path.name,
                architecture=transformers_class(self.network),
                classifies=probe is not None,
            )
            (part / "README.md").write_text(card)
        return path


def _layer_number(layer: int | str, network: GPT) -> int:
    n_layer = network.config.n_layer
    try:
        number = whole(layer, "layer")
    except UserError:
        number = -1
    if not 0 <= number <= n_layer:
        raise UserError(f"layer {layer!r} does not exist: choose 0 to {n_layer}, or 'best'")
    return number


def load(source: str | Path, *, device: str | torch.device | None = None) -> PixelModel:
    """A model by name: a shipped one, a run, a model folder, a foreign checkpoint or a Hub id.

    Args:
        source: the name of a model that ships (`cifar10-small`); a path to a run, a model folder,
            a transformers folder or a TensorFlow checkpoint of the authors' (folder, prefix or any
            of its files); or `owner/name` on the Hub.
        device: where its weights go; none: the first accelerator, else the CPU.

    Raises:
        UserError: there is nothing of the kind, or a file in it is missing or damaged.
    """
    from igpt.interop.openai import find_checkpoint, read_openai

    prefix = find_checkpoint(str(source))
    device = device or compute.default_device()
    model = _load_folder(_folder_of(source), device) if prefix is None else read_openai(prefix)
    model.network.to(device)
    return model


def _folder_of(source: str | Path) -> Path:
    """Where the model of a name lies; one on the Hub is fetched."""
    if (path := Path(source)).is_dir():
        return path
    if (known := shipped.names()) and str(source) in known:
        return shipped.folder_of(str(source))
    from igpt.interop.hub import fetch, is_hub_id

    if not is_hub_id(str(source)):
        raise UserError(
            f"{source} is neither a run nor a model folder: check the path, or take a model that "
            f"ships ({', '.join(known) or 'none in this installation'})"
        )
    return fetch(str(source))


def _load_folder(path: Path, device: str | torch.device) -> PixelModel:
    document = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no model (config.json is missing): check the path")
    if "finetune" in document:  # its checkpoints hold a class head, too
        if not (path / "model" / "config.json").is_file():
            raise UserError(f"{path} is a fine-tuning that is not finished: add --resume to it")
        return _load_folder(path / "model", device)
    if "facts" in document:
        return load_run(path, device=device)
    if _is_from_transformers(document):
        from igpt.interop.transformers import read_transformers

        return read_transformers(path, document)
    parts = read_folder(path, document)
    return PixelModel(parts.network, parts.tokenizer, parts.facts, folder=path)


def _is_from_transformers(document: dict[str, Any]) -> bool:
    """Whether transformers wrote a folder last; our own facts may have come through it."""
    has_facts = "schema_version" in (document.get("igpt") or {})
    ours = has_facts and "transformers_version" not in document
    return document.get("model_type") == "imagegpt" and not ours


def load_run(
    folder: Path, *, step: int | None = None, device: str | torch.device | None = None
) -> PixelModel:
    """The model of a run's newest intact checkpoint, or of the one after `step` updates."""
    parts = read_newest(folder, step=step)
    parts.network.to(device or compute.default_device())
    return PixelModel(parts.network, parts.tokenizer, parts.facts, folder=folder / "model")


def export_run(folder: Path) -> Path:
    """Write the newest checkpoint of a run as its `model/` folder."""
    return load_run(folder).save(folder / "model")
