"""A head that attends over the positions of a frozen network's features.

The paper's probe reads the mean of all positions. Here one learned query a head chooses what to
look at, and a linear classifier reads the answers, as where features like these are used today.
Features of single positions are many times larger than their means and are never stored: the frozen
network is run on each batch anew. That is nearly all of the cost, so all rates learn in one pass.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt import compute, streams
from igpt.errors import UserError
from igpt.images.packed.read import PackedSet
from igpt.model.gpt import GPT
from igpt.probing.exact import Seen, checked_labels
from igpt.probing.features import BATCH_TOKENS, EncodedImages, cut, token_batch
from igpt.probing.protocol import present_labels
from igpt.progress import Counter, ticking
from igpt.tokens.batches import BatchStream
from igpt.train.distributed import ALONE, World
from igpt.trained import Trained

RATES = (3e-3, 1e-3, 3e-4)
BATCH_SIZE = 128


class AttentiveHead(nn.Module):
    """Pools positions by learned queries, then classifies; untrained scores are all 0.

    Args:
        width: D of the features.
        n_head: queries, each over its own D / n_head channels.
        n_classes: C.
        seed: of the initial values.
    """

    def __init__(self, width: int, n_head: int, n_classes: int, *, seed: int) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(streams.torch_seed(seed, "attentive"))
        self.query = nn.Parameter(torch.randn(n_head, width // n_head, generator=drawn) * 0.02)
        with compute.drawing_apart():
            self.key_value = nn.Linear(width, 2 * width)
            self.classes = nn.Linear(width, n_classes)
        with torch.no_grad():
            self.key_value.weight.normal_(std=width**-0.5, generator=drawn)
            for zero in (self.key_value.bias, self.classes.weight, self.classes.bias):
                zero.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) float32 -> (B, C)."""
        B, T, _ = features.shape
        n_head, own = self.query.shape
        key, value = self.key_value(features).view(B, T, 2, n_head, own).permute(2, 0, 3, 1, 4)
        query = self.query[:, None].expand(B, -1, -1, -1)  # (B, H, 1, D / H)
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.classes(pooled.flatten(1))  # type: ignore[no-any-return]


def probe_attentive(
    model: Trained,
    data: PackedSet,
    layer: int,
    *,
    seen: Seen,
    steps: int,
    world: World = ALONE,
) -> dict[str, Any]:
    """Train the head on one layer: rate chosen on validation, again on both, one look at test.

    Args:
        model: whose network stays as it is.
        data: labelled images at its size.
        layer: 0 to L; its normalised features, or the raw residual stream, as in `seen`.
        seen: which features; their pooling is the head's own.
        steps: updates of `BATCH_SIZE` images, each time the head is trained.
        world: processes that share every batch; all of them get the figures.

    Raises:
        UserError: labels are missing or too few, or no rate keeps the loss finite.
    """
    labels = checked_labels(data)
    work = _Work(model, data, layer, seen, world)
    heads = work.trained(data.rows("train"), labels["train"], RATES, steps=steps)
    tried = work.accuracies(heads, data.rows("valid"), labels["valid"])
    best = int(np.argmax(tried))
    both = np.concatenate([data.rows("train"), data.rows("valid")])
    of_both = np.concatenate([labels["train"], labels["valid"]])
    final = work.trained(both, of_both, RATES[best : best + 1], steps=steps)
    (share,) = work.accuracies(final, data.rows("test"), labels["test"])
    return {
        "layer": layer,
        "steps": steps,
        "lr": RATES[best],
        "valid_accuracy": tried[best],
        "test_accuracy": share,
        "test_accuracy_se": math.sqrt(share * (1 - share) / len(labels["test"])),
    }


class _Work:
    """The frozen network, and heads on one layer of it."""

    def __init__(
        self, model: Trained, data: PackedSet, layer: int, seen: Seen, world: World
    ) -> None:
        self._model, self._data, self._layer = model, data, layer
        self._seen, self._world = seen, world
        self._network = model.network.eval()
        self._device = self._network.wpe.weight.device
        self._dtype = compute.choose_dtype(seen["precision"], self._device)
        self._at_once = max(
            1, compute.batch_of(BATCH_TOKENS, self._device) // self._network.seq_len
        )
        self._present = np.empty(0, np.int64)

    def trained(
        self, rows: np.ndarray, labels: np.ndarray, rates: tuple[float, ...], *, steps: int
    ) -> list[AttentiveHead]:
        """A head of each rate, AdamW with a cosine to 0, all on the same batches."""
        present = present_labels(labels)
        self._present = present
        config = self._network.config
        heads = [
            AttentiveHead(config.n_embd, config.n_head, len(present), seed=0).to(self._device)
            for _ in rates
        ]
        optimizers = [
            torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.0, fused=True)
            for head, lr in zip(heads, rates, strict=True)
        ]
        size = min(BATCH_SIZE, len(rows))
        stream = BatchStream(
            self._data.images_at(rows),
            np.searchsorted(present, labels),
            self._model.tokenizer,
            batch_size=size,
            seed=0,
            name="attentive",
        )
        own = self._world.slots(size)
        with ticking("attentive head") as ticker:
            progress = Counter(ticker, steps)
            for batch in stream.prefetch(0, steps, own):
                assert batch.labels is not None
                self._add_gradients(heads, batch.tokens, batch.labels, size)
                factor = 0.5 * (1 + math.cos(math.pi * batch.step / steps))
                for head, optimizer, lr in zip(heads, optimizers, rates, strict=True):
                    self._share(head)
                    optimizer.param_groups[0]["lr"] = lr * factor
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                progress(1)
        if not all(p.isfinite().all() for head in heads for p in head.parameters()):
            raise UserError("the attentive head is no longer finite: try --raw-residual or none")
        return heads

    def _add_gradients(
        self, heads: list[AttentiveHead], tokens: np.ndarray, codes: np.ndarray, size: int
    ) -> None:
        """Of the mean loss of a batch of `size`, this process's part."""
        for part in cut(len(tokens), self._at_once):
            features = self._features(tokens, part)
            truth = torch.from_numpy(codes[part]).to(self._device)
            for head in heads:
                (F.cross_entropy(head(features), truth, reduction="sum") / size).backward()

    def _share(self, head: AttentiveHead) -> None:
        """Add the gradients of all processes."""
        for parameter in head.parameters():
            if parameter.grad is None:  # more processes than images in a batch
                parameter.grad = torch.zeros_like(parameter)
            self._world.sum(parameter.grad)

    @torch.no_grad()
    def accuracies(
        self, heads: list[AttentiveHead], rows: np.ndarray, labels: np.ndarray
    ) -> list[float]:
        """The share that each head names right, all processes sharing the images."""
        own = self._world.slots(len(rows))
        images = EncodedImages(self._data.images_at(rows[own]), self._model.tokenizer.encode)
        truth = labels[own]
        right = torch.zeros(len(heads), dtype=torch.float64)
        for part in cut(len(truth), self._at_once):
            features = self._features(images[part], slice(None))
            for place, head in enumerate(heads):
                answers = self._present[head(features).argmax(dim=1).cpu().numpy()]
                right[place] += int((answers == truth[part]).sum())
        shares: list[float] = (self._world.sum(right) / len(rows)).tolist()
        return shares

    @torch.no_grad()
    def _features(self, tokens: np.ndarray, rows: slice) -> Tensor:
        """(n, T, D) float32 of the layer, for some rows of (N, T) tokens."""
        network: GPT = self._network
        batch, masked = token_batch(network, tokens, rows, self._model.facts.mask_prob, 0)
        with compute.autocast(self._device, self._dtype):
            h = next(itertools.islice(network.hidden(batch, masked), self._layer, None))
        found = network.normalised(self._layer, h) if self._seen["normalised"] else h
        return found.float()
