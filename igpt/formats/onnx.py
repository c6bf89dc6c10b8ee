"""A model for other runtimes: its feature extractor and one step of its sampler, as ONNX.

`export_features` and `export_step` give `torch.export` programs; `write_onnx` writes them as ONNX
and compares what onnxruntime makes of the files with the network itself before the folder appears.
"""

import copy
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from igpt.errors import UserError
from igpt.files import write_json, writing_folder
from igpt.model.cache import LayerCache
from igpt.model.gpt import GPT, Block
from igpt.progress import say
from igpt.published import published
from igpt.tokens.palette import Palette
from igpt.trained import Trained

NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Of the two runtimes' numbers, relative to their size.
TOLERANCE = 1e-3
# A file of protocol buffers must stay below 2 GiB; larger weights stand in a file of their own.
MAX_FILE_BYTES = 2**30
_EXAMPLE_BATCH = 2


_README = """\
# A model of igpt for ONNX runtimes

`features.onnx` turns tokens into the features of one layer, the mean over positions; `model.json`
says which layer, all sizes, and whether a saved probe reads the same. `images` is (N, S, S, 3)
uint8 at the model's size:

```python
import numpy as np
import onnxruntime

{encode}
feed = {{"tokens": tokens}}{masked}
features = onnxruntime.InferenceSession("features.onnx").run(None, feed)[0]  # (N, D) float32
```
"""
_ENCODE_PALETTE = """\
palette = np.load("palette.npy").astype(np.float64)  # (K, 3) in [-1, 1]
pixels = images.reshape(len(images), -1, 1, 3) / 127.5 - 1
tokens = ((pixels - palette) ** 2).sum(-1).argmin(-1)  # (N, T) int64"""
_ENCODE_RAW = "tokens = images.reshape(len(images), -1).astype(np.int64)  # (N, T)"
_MASKED = """
feed["masked"] = np.zeros(tokens.shape, bool)  # True: not shown to the model"""
_README_STEP = """\
`step.onnx` takes one step of drawing images; keys and values go out and in again:

```python
import json
from pathlib import Path

sizes = json.loads(Path("model.json").read_text())
L, _, H, T, E = sizes["caches"]
step = onnxruntime.InferenceSession("step.onnx")
n, rng = 4, np.random.default_rng(0)
token, drawn = np.zeros(n, np.int64), []
keys = values = np.zeros((L, n, H, T, E), np.float32)
for t in range(T):
    feed = {"token": token, "position": np.array([t]), "keys": keys, "values": values}
    logits, keys, values = step.run(None, feed)
    gumbel = -np.log(-np.log(rng.random(logits.shape)))  # argmax of logits + gumbel draws by them
    token = (logits + gumbel).argmax(1)
    drawn.append(token)
tokens = np.stack(drawn, 1)  # (n, T)
```
"""


class _Features(nn.Module):
    """Pooled features of one layer (paper §2.4), and nothing behind it."""

    def __init__(self, network: GPT, layer: int) -> None:
        super().__init__()
        self.network = network
        self.layer = layer

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """(B, T) int64, for BERT also (B, T) bool -> (B, D) float32."""
        h = self.network.embed(tokens[:, :-1] if self.network.shifted else tokens, masked)
        for block in cast(list[Block], list(self.network.h)[: self.layer]):
            h = block(h)
        return self.network.normalised(self.layer, h).mean(dim=1)


class _Step(nn.Module):
    """One token further: what the sampler does T times, with the caches going in and out."""

    def __init__(self, network: GPT) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the token at `position`.

        Args:
            token: (B,) int64, the one before; at position 0 it is not looked at.
            position: (1,) int64, from 0 to T - 1.
            keys: (L, B, H, T, E) float32; what lies from `position` on is not looked at.
            values: the same.

        Returns:
            (B, K) float32, and keys and values with this position filled.
        """
        network = self.network
        h = torch.where(position == 0, network.sos, network.wte(token))  # (B, D)
        h = (h + network.wpe(position)).unsqueeze(1)  # (B, 1, D)
        seen = (torch.arange(keys.shape[3], device=keys.device) <= position).unsqueeze(0)  # (1, T)
        layers = [
            LayerCache(k.clone(), v.clone(), position, seen)
            for k, v in zip(keys, values, strict=True)
        ]
        logits = network.after(h, layers)
        return (
            logits,
            torch.stack([c.keys for c in layers]),
            torch.stack([c.values for c in layers]),
        )


def export_features(model: Trained, layer: int) -> ExportedProgram:
    """The feature extractor: `tokens`, for BERT also `masked`, to `features`, for any batch.

    Args:
        model: any.
        layer: from 0 to L.
    """
    network = _plain(model)
    tokens = torch.zeros(_EXAMPLE_BATCH, network.seq_len, dtype=torch.int64)
    args = (tokens,) if network.objective == "ar" else (tokens, tokens.bool())
    shapes = tuple({0: Dim("batch")} for _ in args)
    return _exported(_Features(network, layer), args, shapes)


def export_step(model: Trained) -> ExportedProgram:
    """One sampling step: `token`, `position`, `keys`, `values` to `logits` and the new caches.

    Raises:
        UserError: the model draws nothing.
    """
    network = _plain(model)
    if network.objective == "bert":
        raise UserError("a bert model has no sampling step: it predicts masked tokens only")
    network.check_predicts()
    keys = torch.zeros(_cache_shape(network, _EXAMPLE_BATCH), dtype=torch.float32)
    token = torch.zeros(_EXAMPLE_BATCH, dtype=torch.int64)
    args = (token, torch.ones(1, dtype=torch.int64), keys, keys.clone())
    batch = Dim("batch")
    return _exported(_Step(network), args, ({0: batch}, None, {1: batch}, {1: batch}))


def _plain(model: Trained) -> GPT:
    """The network where the exporter works, on the CPU."""
    network = model.network
    return network if model.device.type == "cpu" else copy.deepcopy(network).cpu()


def _cache_shape(network: GPT, batch_size: int) -> tuple[int, ...]:
    """(L, B, H, T, E)."""
    config = network.config
    head = config.n_embd // config.n_head
    return config.n_layer, batch_size, config.n_head, network.seq_len, head


def _exported(module: nn.Module, args: tuple[Any, ...], shapes: Any) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, args, dynamic_shapes=shapes)


def write_onnx(model: Trained, folder: Path, *, layer: int | None = None) -> Path:
    """Write `features.onnx`, for autoregressive models `step.onnx`, the palette and `model.json`.

    Args:
        model: any.
        folder: to write; it appears whole or not at all.
        layer: of the features; none: the saved probe's, or the middle one where none is saved.

    Raises:
        UserError: the extra onnx is not installed, the folder holds something, or no such layer.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"{missing[0]} is not installed: pip install 'igpt[onnx]'")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another place")
    n_layer = model.network.config.n_layer
    layer = model.best_layer() if layer is None else layer
    if not 0 <= layer <= n_layer:
        raise UserError(f"layer {layer} does not exist: choose from 0 to {n_layer}")
    with writing_folder(folder) as part:
        _write_program(export_features(model, layer), part / "features.onnx", _FEATURES_NAMES)
        _prove_features(model, part / "features.onnx", layer)
        if model.network.objective == "ar" and model.network.predicts:
            _write_program(export_step(model), part / "step.onnx", _STEP_NAMES)
            _prove_step(model, part / "step.onnx")
        fits = _fits_the_probe(model, layer)
        _write_facts(model, part, layer, fits=fits)
    if fits is False:
        say(
            f"features.onnx gives layer {layer} pooled by mean, the saved probe reads other "
            "features: it cannot be used on them (model.json says so)"
        )
    return folder


def _fits_the_probe(model: Trained, layer: int) -> bool | None:
    """Whether the saved probe reads just what `features.onnx` gives; none: there is no probe."""
    head = model.own_probe()
    if head is None:
        return None
    return (head.layer, head.pooling, head.normalised) == (layer, "mean", True)


_FEATURES_NAMES = (("tokens", "masked"), ("features",))
_STEP_NAMES = (("token", "position", "keys", "values"), ("logits", "new_keys", "new_values"))


def _write_program(
    program: ExportedProgram, path: Path, names: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    inputs, outputs = names
    n_inputs = len(program.graph_signature.user_inputs)
    n_bytes = sum(t.nbytes for t in program.state_dict.values())
    with _quiet():
        made = torch.onnx.export(
            program, (), input_names=inputs[:n_inputs], output_names=outputs, verbose=False
        )
        assert made is not None
        _forget_where(made.model)
        made.save(str(path), external_data=n_bytes > MAX_FILE_BYTES)


def _forget_where(model: Any) -> None:
    """Drop what the exporter notes of each node: lines of code, with the paths of this machine."""
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    model.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own parts and of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_facts(model: Trained, folder: Path, layer: int, *, fits: bool | None) -> None:
    """`model.json` and README.md say what the files take; the colours are the authors' way."""
    network, tokenizer = model.network, model.tokenizer
    if isinstance(tokenizer, Palette):
        tokenizer.save(folder / "palette.npy")
    facts = {
        "objective": network.objective,
        "image_size": model.image_size,
        "tokens": model.facts.tokens,
        "n_colors": network.n_colors,
        "seq_len": network.seq_len,
        "feature_layer": layer,
        "feature_pooling": "mean",
        "feature_normalised": True,
        "features_fit_the_saved_probe": fits,
        "caches": list(_cache_shape(network, 1)),
        "model_digest": model.digest(),
        "trained": published(model.facts.trained),
    }
    write_json(folder / "model.json", facts)
    encode = _ENCODE_PALETTE if isinstance(tokenizer, Palette) else _ENCODE_RAW
    has_masks = network.objective == "bert"
    parts = [_README.format(encode=encode, masked=_MASKED if has_masks else "")]
    if (folder / "step.onnx").is_file():
        parts.append(_README_STEP)
    (folder / "README.md").write_text("\n".join(parts))


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _some_tokens(network: GPT, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, network.n_colors, (n, network.seq_len))


def _prove_features(model: Trained, path: Path, layer: int) -> None:
    """Compare on a batch of another size than the exported one."""
    network = _plain(model)
    tokens = _some_tokens(network, 3)
    feed: dict[str, np.ndarray] = {"tokens": tokens}
    if network.objective == "bert":
        feed["masked"] = np.random.default_rng(1).random(tokens.shape) < model.facts.mask_prob
    with torch.inference_mode():
        expected = _Features(network, layer)(*map(torch.from_numpy, feed.values()))
    _check_close(_session(path).run(None, feed)[0], expected.numpy(), path)


def _prove_step(model: Trained, path: Path) -> None:
    """Compare the first steps' logits with those of the whole network."""
    network, session = _plain(model), _session(path)
    tokens = _some_tokens(network, 3)
    with torch.inference_mode():
        expected = network(torch.from_numpy(tokens)).numpy()
    keys = np.zeros(_cache_shape(network, 3), np.float32)
    values, before = keys, np.zeros(3, np.int64)
    for t in range(min(4, network.seq_len)):
        feed = {"token": before, "position": np.array([t]), "keys": keys, "values": values}
        logits, keys, values = session.run(None, feed)
        _check_close(logits, expected[:, t], path)
        before = tokens[:, t]


def _check_close(found: np.ndarray, expected: np.ndarray, path: Path) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    gap = float(np.abs(found - expected).max()) / scale
    if math.isnan(gap) or gap > TOLERANCE:
        raise UserError(
            f"onnxruntime makes other numbers of {path.name} ({gap:.1e} off): "
            "install the versions that igpt[onnx] names"
        )
