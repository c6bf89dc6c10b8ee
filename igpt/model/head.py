"""A class head on pooled features: a fitted probe, as two files in its model's folder."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from igpt import files, streams
from igpt.config import Pooling
from igpt.errors import UserError
from igpt.published import shown

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedProbe:
    """A fitted classifier on pooled features, bound to the model and colours it was fitted on."""

    weights: np.ndarray
    """(C, D) float32."""
    biases: np.ndarray
    """(C,) float32."""
    layer: int
    normalised: bool
    pooling: Pooling = "mean"
    """Over positions."""
    strength: float
    labels: tuple[int, ...]
    """The data set's number of each of the C classes."""
    classes: tuple[str, ...]
    """The name of each of the C classes."""
    model_digest: str
    """`Trained.digest`: of the weights and the colours."""
    protocol: str
    """One sentence: on what it was fitted and how it was chosen."""

    def log_prob(self, features: np.ndarray) -> np.ndarray:
        """(N, D) features -> (N, C) float32 log-probabilities."""
        return log_softmax(features @ self.weights.T + self.biases)

    def classify(self, features: np.ndarray) -> list[str]:
        """(N, D) features -> the likeliest class of each image."""
        return [self.classes[code] for code in self.log_prob(features).argmax(axis=1)]

    def save(self, folder: Path) -> None:
        """Write `probe.safetensors`, then `probe.json` that names its hash, into a model folder."""
        facts = dataclasses.asdict(self)
        facts["protocol"] = " ".join(map(shown, self.protocol.split(" ")))
        tensors = {name: np.ascontiguousarray(facts.pop(name)) for name in ("weights", "biases")}
        data = save(tensors)
        digest = hashlib.sha256(data).hexdigest()
        files.write_bytes(folder / "probe.safetensors", data)
        document = {"schema_version": SCHEMA_VERSION, **facts, "sha256": digest}
        files.write_json(folder / "probe.json", document)

    @classmethod
    def load(cls, folder: Path, *, model_digest: str) -> Self:
        """The probe in a model folder.

        Raises:
            UserError: there is none, it is damaged, or it was fitted on another model or palette.
        """
        facts = files.read_json(folder / "probe.json")
        if not isinstance(facts, dict) or facts.get("model_digest") != model_digest:
            raise UserError(
                f"the probe in {folder} was fitted on another model or palette: "
                "run igpt probe on this one"
            )
        try:
            data = (folder / "probe.safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                raise ValueError("probe.safetensors is not the file that probe.json names")
            return cls._from(facts, load(data))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the probe in {folder} is damaged ({error}): run igpt probe again"
            ) from error

    @classmethod
    def _from(cls, facts: dict[str, Any], tensors: dict[str, np.ndarray]) -> Self:
        if facts["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {facts['schema_version']}")
        probe = cls(
            weights=tensors["weights"],
            biases=tensors["biases"],
            layer=int(facts["layer"]),
            normalised=bool(facts["normalised"]),
            pooling="bands" if facts["pooling"] == "bands" else "mean",
            strength=float(facts["strength"]),
            labels=tuple(int(label) for label in facts["labels"]),
            classes=tuple(str(name) for name in facts["classes"]),
            model_digest=str(facts["model_digest"]),
            protocol=str(facts["protocol"]),
        )
        n_classes = len(probe.classes)
        fits = probe.weights.ndim == 2 and len(probe.labels) == len(probe.weights) == n_classes
        if not fits or probe.biases.shape != (n_classes,):
            raise ValueError("shapes do not fit")
        return probe


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


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
