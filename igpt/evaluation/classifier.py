"""A network with a head that names classes, and where such a network can come from (paper §2.3).

The head reads the pooled features of one layer; the network is pre-trained or freshly drawn.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from igpt import compute, streams
from igpt.errors import UserError
from igpt.model.gpt import GPT
from igpt.model.head import modal_vote
from igpt.probing.protocol import LabelledImages
from igpt.tokens.masks import bert_masks, own_masks
from igpt.tokens.tokenizer import ImageArray
from igpt.train.distributed import World

Encode = Callable[[np.ndarray], np.ndarray]


def some_of(split: LabelledImages, n: int | None) -> LabelledImages:
    """At most n images, drawn at random: the split's order may be that of the classes."""
    if n is None or n >= len(split.labels):
        return split
    rows = np.sort(streams.stream(0, "some-of").permutation(len(split.labels))[:n])
    return LabelledImages(split.images[rows], split.labels[rows])


class Classifier(nn.Module):
    """A network with a linear head on the pooled features of one layer; the head starts at zero.

    Args:
        network: is trained along.
        n_classes: C.
        layer: whose features are read; none: the last.

    Raises:
        UserError: the network has no such layer.
    """

    def __init__(self, network: GPT, n_classes: int, *, layer: int | None = None) -> None:
        super().__init__()
        last = network.config.n_layer
        if layer is not None and not 0 <= layer <= last:
            raise UserError(f"layer {layer} does not exist: choose from 0 to {last}")
        self.network = network
        self.layer = last if layer is None else layer
        with compute.drawing_apart():
            self.head = nn.Linear(network.config.n_embd, n_classes, bias=False)
        nn.init.zeros_(self.head.weight)  # so the first class loss is exactly ln C
        self.head.to(network.wpe.weight.device)

    @property
    def h(self) -> nn.ModuleList:
        """The network's blocks, which are compiled and cut up one by one."""
        return self.network.h

    def learns_only(self, *, joint: bool) -> None:
        """Leave out of training what the class loss alone does not reach.

        Args:
            joint: whether the generative loss is trained on, too; it reaches everything.
        """
        reached = {self.head.weight}
        if joint:
            reached = set(self.parameters())
        else:
            network, last = self.network, self.layer == len(self.network.h)
            read = [network.wte, network.wpe, *network.h[: self.layer]]
            read.append(network.ln_f if last else network.h[self.layer].ln_1)
            for part in read:
                reached |= set(part.parameters())
            if network.shifted:
                reached.add(network.sos)
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in reached)

    def forward(
        self, tokens: Tensor, masked: Tensor | None = None, *, generate: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Class scores and, where asked for, logits of every token, in one pass.

        Args:
            tokens: (B, T) int64.
            masked: (B, T) bool, BERT only.
            generate: whether logits are wanted; without, nothing past the head's layer is run.

        Returns:
            (B, C) float, and (B, T, K) float or none.
        """
        network = self.network
        if generate:
            network.check_predicts()
        for layer, h in enumerate(network.hidden(tokens, masked)):
            if layer == self.layer:
                scores = self.head(network.normalised(layer, h).mean(dim=1))
                if not generate:
                    return scores, None
        return scores, network.head(network.ln_f(h))


@torch.no_grad()  # not inference mode: FSDP's buffers are used in training again
@compute.eager()
def predict(
    classifier: Classifier,
    images: ImageArray,
    *,
    encode: Encode,
    mask_prob: float,
    n_masks: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    world: World = World(),  # noqa: B008 - it is frozen
) -> np.ndarray:
    """The likeliest class of each image: (N, S, S, 3) uint8 -> (N,) int64 from 0 to C - 1.

    BERT models see masked images, as in training; of several masks the modal answer counts. Ranks
    share the images, and each gets all answers.
    """
    device = classifier.head.weight.device
    dtype = compute.choose_dtype("auto", device)
    bert = classifier.network.objective == "bert"
    votes = torch.zeros(n_masks if bert else 1, len(images), dtype=torch.int64, device=device)
    first = world.slots(len(images)).start
    for cut in world.parts(len(images), batch_size):
        slots = range(first + cut.start, first + cut.stop)
        part = encode(np.asarray(images[slots.start : slots.stop]))
        tokens = torch.from_numpy(part).to(device)
        for row, vote in enumerate(votes):
            masked = None
            if bert:
                of_row = streams.key_of(seed, "vote", row)
                masked = torch.from_numpy(own_masks(part, seed=of_row, mask_prob=mask_prob))
                masked = masked.to(device)
            with compute.autocast(device, dtype):
                scores, _ = classifier(tokens, masked)
            vote[slots.start : slots.stop] = scores.argmax(dim=1)
    voted = world.sum(votes).cpu().numpy()
    return modal_vote(voted, n_classes=classifier.head.out_features, seed=seed)


def masks_for(network: GPT, seed: int, step: int, slots: range, mask_prob: float) -> Tensor | None:
    """(B, T) bool on the network's device; none for an autoregressive network."""
    if network.objective == "ar":
        return None
    drawn = bert_masks(seed, step, slots=slots, seq_len=network.seq_len, mask_prob=mask_prob)
    return torch.from_numpy(drawn).to(network.wpe.weight.device)


def from_scratch(network: GPT, *, seed: int) -> GPT:
    """A network of the same shape with fresh weights: the supervised baseline."""
    fresh = GPT(
        network.config,
        n_colors=network.n_colors,
        seq_len=network.seq_len,
        objective=network.objective,
    )
    generator = torch.Generator().manual_seed(streams.torch_seed(seed, "init"))
    fresh.init_weights(generator)
    fresh.shifted, fresh.predicts = network.shifted, network.predicts
    return fresh.to(network.wpe.weight.device)
