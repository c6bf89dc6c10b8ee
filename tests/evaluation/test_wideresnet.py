"""Wide ResNet: the published size, and that it learns."""

import numpy as np
import torch

from igpt.evaluation.wideresnet import WideResNet, WideResNetConfig, train_wide_resnet
from igpt.probing.fewlabel import evaluate_supervised
from igpt.probing.protocol import LabelledImages


def split(n: int, seed: int) -> LabelledImages:
    """Bright images and dark ones, noisy."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = 80 + 90 * labels[:, None, None, None] + rng.integers(-60, 60, (n, 8, 8, 3))
    return LabelledImages(images.astype(np.uint8), labels)


def test_28_2_has_the_published_number_of_parameters() -> None:
    network = WideResNet(10, depth=28, widen=2)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 1_467_610  # the 1.5 M of the few-label literature
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(c.kernel_size == (3, 3) for c in convolutions) == 25


def test_scores_do_not_depend_on_the_image_size() -> None:
    network = WideResNet(5, depth=10, widen=1).eval()
    for side in (8, 16, 32):
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 5)


def test_it_learns_from_a_few_labels_and_repeats_itself() -> None:
    config = WideResNetConfig(depth=10, widen=1, total_steps=15, batch_size=16)
    result = evaluate_supervised(
        split(60, 0),
        split(40, 1),
        fit=lambda few, subset: train_wide_resnet(few, n_classes=2, config=config),
        labels_per_class=8,
        n_subsets=2,
    )
    assert result.mean > 0.8
    assert result.layers == ()
    test = split(40, 1).images
    one, other = (train_wide_resnet(split(60, 0), n_classes=2, config=config) for _ in range(2))
    assert np.array_equal(one(test), other(test))
