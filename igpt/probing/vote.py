"""The modal answer of several looks at an image: BERT with several masks (paper §4.6)."""

import numpy as np

from igpt import streams


def modal_vote(votes: np.ndarray, *, n_classes: int, seed: int) -> np.ndarray:
    """The most frequent answer of each image, ties broken at random.

    Args:
        votes: (V, N) int64 classes from 0 to n_classes - 1, one row a mask.
        n_classes: C.
        seed: of the ties.

    Returns:
        (N,) int64.
    """
    counts = np.zeros((votes.shape[1], n_classes))
    for vote in votes:
        counts[np.arange(len(vote)), vote] += 1
    if len(votes) > 1:
        counts += 0.5 * streams.stream(seed, "vote").random(counts.shape)
    return counts.argmax(axis=1)  # type: ignore[no-any-return]


def voted_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    weights: np.ndarray,
    biases: np.ndarray,
    present: np.ndarray,
    seed: int,
) -> float:
    """Accuracy of a linear probe's modal answer over several masks.

    Args:
        features: (V, N, D), the images behind V masks (`extract_features` with V mask seeds).
        labels: (N,) int64.
        weights: (C, D) of the probe.
        biases: (C,) of the probe.
        present: (C,) int64, the label that each row of the probe is for.
        seed: of the ties.
    """
    votes = np.stack([(rows @ weights.T + biases).argmax(axis=1) for rows in features])
    codes = modal_vote(votes, n_classes=len(biases), seed=seed)
    return float((present[codes] == labels).mean())
