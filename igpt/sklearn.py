"""scikit-learn estimators: a model's features as a transformer, and a few-label classifier.

X is images, one a sample: a list of paths, PIL images or arrays; an array (N, H, W), (N, H, W, C)
or (N, C, H, W) of levels or floats (`igpt.images.levels`); a column of paths, or a table of one
column, as a `ColumnTransformer` hands it on; or images of the model's size as rows,
`images.reshape(N, -1)`. An estimator holds the name of its model, never the weights, so it is
cloned, pickled and sent to workers in no time; the name must mean the same model wherever it is
used.
"""

from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
from PIL import Image
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data

from igpt.config import Pooling
from igpt.errors import UserError
from igpt.images.levels import images_of
from igpt.images.taking import Images, each_image
from igpt.loading import load
from igpt.model.head import log_softmax
from igpt.pixelmodel import PixelModel
from igpt.probing.fewlabel import choose_inside
from igpt.probing.protocol import Labelled, fit_standardised

# Stronger ones change no answer, but the numbers of classes that a plane parts grow without end.
NO_PENALTY = 1e6

__all__ = ["IGPTClassifier", "IGPTFeatures"]


class _OnFeatures(BaseEstimator):  # type: ignore[misc]
    """What both share: the model by its name, and how X becomes features of one layer."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "model": [str, Path],
        "layer": [Interval(Integral, 0, None, closed="left"), StrOptions({"best"})],
        "pooling": [StrOptions({"mean", "bands"}), None],
    }

    def __init__(
        self,
        model: str | Path,
        *,
        layer: int | str = "best",
        pooling: Pooling | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pooling = pooling

    def _fit_choice(self, X: Any) -> Images:
        """Take the model, the layer and the pooling as they are now; the images of X."""
        self._validate_params()
        images = self._images(X, reset=True)
        model = _opened(self.model)
        choice = model.feature_choice(self.layer, self.pooling)
        self.layer_, self.pooling_ = choice.layer, choice.pooling
        self._normalised = choice.normalised
        self.model_digest_ = model.digest()
        self._n_features_out = choice.width
        return images

    def _features(self, X: Any) -> np.ndarray:
        """Features of X by the fitted model and layer, (N, D) float32."""
        check_is_fitted(self, "model_digest_")
        model = _opened(self.model)
        if model.digest() != self.model_digest_:
            raise UserError(f"{self.model} is another model than the one fitted on: fit again")
        return self._features_of(self._images(X, reset=False))

    def _features_of(self, images: Images) -> np.ndarray:
        return _opened(self.model).features(
            images, self.layer_, normalised=self._normalised, pooling=self.pooling_
        )

    def _images(self, X: Any, *, reset: bool) -> Images:
        if _holds_images(X):
            return images_of(X) if isinstance(X, np.ndarray) and X.ndim > 2 else list(each_image(X))
        rows = validate_data(self, X, reset=reset)
        return self._as_pictures(rows)

    def _as_pictures(self, rows: np.ndarray) -> np.ndarray:
        """(N, 3 S S) levels -> (N, S, S, 3) uint8."""
        side = _opened(self.model).image_size
        if rows.shape[1] != 3 * side**2:
            raise UserError(
                f"X has rows of {rows.shape[1]} numbers: this model reads images, or rows of "
                f"{3 * side**2} ({side} x {side} pixels of 3 levels)"
            )
        levels = rows.astype(np.uint8)
        if not np.array_equal(levels, rows):
            raise UserError("X has rows that are no levels: give whole numbers from 0 to 255")
        return levels.reshape(-1, side, side, 3)


class IGPTFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _OnFeatures):  # type: ignore[misc]
    """Pooled features of one layer of a model (paper §2.4), as a scikit-learn transformer.

    Args:
        model: a run, a model folder, a shipped name or hf:owner/name.
        layer: from 0 to L; "best": the saved probe's, or the middle one where none is saved.
        pooling: over positions: mean, the paper's, or bands (five numbers a channel); none: the
            saved probe's where `layer` is "best", else mean.

    Attributes:
        layer_: the layer taken.
        pooling_: the pooling taken.
        model_digest_: of the model that was fitted on; another one is refused afterwards.
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Look the model up; nothing is learned from X.

        Raises:
            UserError: there is no such model or layer, or X holds no images.
        """
        del y
        self._fit_choice(X)
        return self

    def __sklearn_tags__(self) -> Tags:
        """Features are float32, whatever X is."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return cast(Tags, tags)

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """The same as `fit` and then `transform`, in one pass."""
        del y
        return self._features_of(self._fit_choice(X))

    def transform(self, X: Any) -> np.ndarray:
        """Features of images: (N, D) float32.

        Raises:
            UserError: an image cannot be read, or the model was changed.
        """
        return self._features(X)


class IGPTClassifier(ClassifierMixin, _OnFeatures):  # type: ignore[misc]
    """Logistic regression on a model's features: good with a few labels a class.

    Args:
        model: a run, a model folder, a shipped name or hf:owner/name.
        layer: from 0 to L; "best": the saved probe's, or the middle one where none is saved.
        pooling: over positions: mean, the paper's, or bands (five numbers a channel); none: the
            saved probe's where `layer` is "best", else mean.
        C: inverse of the L2 strength on standardised features, as scikit-learn's, where infinity
            is no penalty; none: chosen by cross-validation on the images fitted on.

    Attributes:
        classes_: (C,) the classes, sorted.
        coef_: (C, D) float32, for the features as they are.
        intercept_: (C,) float32.
        C_: the strength used.
        layer_: the layer taken.
        pooling_: the pooling taken.
        model_digest_: of the model that was fitted on; another one is refused afterwards.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_OnFeatures._parameter_constraints,
        "C": [Interval(Real, 0, None, closed="right"), None],
    }

    def __init__(
        self,
        model: str | Path,
        *,
        layer: int | str = "best",
        pooling: Pooling | None = None,
        C: float | None = None,
    ) -> None:
        super().__init__(model, layer=layer, pooling=pooling)
        self.C = C

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to images and their classes, numbers or names.

        Raises:
            UserError: there is no such model or layer, or an image cannot be read.
        """
        features = self._features_of(self._fit_choice(X))
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        y = check_array(column_or_1d(y, warn=True), ensure_2d=False, dtype=None, input_name="y")
        check_classification_targets(y)
        if len(y) != len(features):
            raise ValueError(f"X has {len(features)} images but y {len(y)} classes")
        self.classes_, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(counts) == 1:  # always that class
            self.coef_ = np.zeros((1, features.shape[1]), np.float32)
            self.intercept_ = np.zeros(1, np.float32)
            return self
        few = Labelled(features[None], codes)
        self.C_ = choose_inside(few, int(counts.min()))[1] if self.C is None else float(self.C)
        weights, biases = fit_standardised(features, codes, [min(self.C_, NO_PENALTY)], "cpu")
        self.coef_, self.intercept_ = weights[0], biases[0]
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores: (N, C) float32, or (N,) of the second class above the first where C is 2."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes: (N, C) float64."""
        return np.asarray(np.exp(log_softmax(self._scores(X).astype(np.float64))))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each image: (N,)."""
        codes = self._scores(X).argmax(axis=1)
        return np.asarray(self.classes_[codes])

    def _scores(self, X: Any) -> np.ndarray:
        scores: np.ndarray = self._features(X) @ self.coef_.T + self.intercept_  # (N, C)
        return scores


def _holds_images(X: Any) -> bool:
    """Whether X is images and not rows of numbers.

    Raises:
        UserError: it is one image.
    """
    is_file = isinstance(X, str | Path | bytes | Image.Image)
    if is_file or (isinstance(X, np.ndarray) and X.ndim == 3 and X.shape[2] == 3):
        raise UserError("X is a single image: pass a list of images")
    if isinstance(X, np.ndarray) and X.ndim > 2:
        return True
    if hasattr(X, "toarray"):  # sparse: scikit-learn says what it needs
        return False
    held = X.to_numpy() if hasattr(X, "to_numpy") else X
    try:
        first = held[0] if isinstance(held, Sequence) else np.asarray(held, object).reshape(-1)[0]
    except (IndexError, TypeError, ValueError, KeyError):
        return False
    is_pixels = getattr(first, "ndim", 0) >= 2
    return is_pixels or isinstance(first, str | Path | bytes | Image.Image)


def _opened(model: str | Path) -> PixelModel:
    """The model of a name, kept while its files are unchanged."""
    return _kept(str(model), _stamp(Path(model)))


@lru_cache(maxsize=2)
def _kept(model: str, stamp: tuple[tuple[str, int], ...]) -> PixelModel:
    del stamp  # only tells one state of the files from another
    return load(model)


def _stamp(path: Path) -> tuple[tuple[str, int], ...]:
    """Names and times of what lies in a folder, and in a run's `checkpoints`."""
    if not path.is_dir():
        return ()
    files = [*path.iterdir(), *path.glob("checkpoints/*")]
    return tuple(sorted((str(file), file.stat().st_mtime_ns) for file in files))
