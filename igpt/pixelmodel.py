"""`PixelModel`: what users do with a trained model: features, likelihood, samples, completions."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from igpt.config import Pooling, SampleConfig, whole
from igpt.errors import UserError
from igpt.evaluation.likelihood import whole_surprise
from igpt.files import writing_folder
from igpt.formats.card import model_card
from igpt.formats.folder import KIND, check_may_replace, transformers_class, write_folder
from igpt.generate.complete import complete, rows_kept
from igpt.generate.sample import sample
from igpt.images.taking import Images
from igpt.probing.features import extract_features
from igpt.system import at_home
from igpt.trained import Trained


class PixelModel(Trained):
    """A pixel Transformer with its palette: features, likelihood, samples, completions.

    `images` is one or many: paths, bytes, open files, PIL images, arrays or tensors
    (`igpt.images.taking`); another size than the model's is cut to its centre square and reduced as
    `igpt prepare` does.

    Its arguments are those of `igpt.trained.Trained`.
    """

    def __repr__(self) -> str:
        network, config = self.network, self.network.config
        name = "" if self.folder is None else f" {self.folder.name}"
        side = self.image_size
        return (
            f"<PixelModel{name}: {network.objective}, {side} x {side} pixels, "
            f"{network.n_colors} colours, {config.n_layer} layers of {config.n_embd}>"
        )

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

    def save(self, folder: str | Path) -> Path:
        """Write a model folder with its card and its probe; it appears whole or not at all.

        In a model folder that is there, what igpt did not write stays, an edited card too.

        Raises:
            UserError: the folder exists and is no model folder of ours, or cannot be written.
        """
        path, probe = at_home(folder), self.own_probe()
        check_may_replace(path)
        with writing_folder(path, kind=KIND, keep_others=True) as part:
            write_folder(part, self)
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
