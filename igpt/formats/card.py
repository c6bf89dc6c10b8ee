"""The model card: README.md of a model folder, made from what the model and its run recorded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from igpt.model.gpt import GPT
from igpt.published import name_of, published
from igpt.trained import Trained

Records = Mapping[str, Mapping[str, Any]]

_FACTS = {
    "source": "source",
    "data": "data",
    "data_digest": "data, sha256",
    "source_px": "largest image, shorter side in pixels",
    "recipe": "recipe",
    "finetuned": "fine-tuned on",
    "seed": "seed",
    "step": "steps",
    "images": "images seen, with repeats",
    "valid_fraction": "share kept for validation",
    "igpt": "igpt",
    "torch": "torch",
}
# How transformers gives our numbers; what the network is called, and what it is fed, is filled in.
_FEEDING = """\
import torch
from transformers import {architecture}, ImageGPTImageProcessor

network = {architecture}.from_pretrained({name})
tokens = torch.as_tensor(ImageGPTImageProcessor.from_pretrained({name})(images)["input_ids"])
{fed}
"""
_WITH_SOS = """\
sos = torch.full((len(tokens), 1), network.config.vocab_size - 1)
{result} = network(torch.cat([sos, tokens[:, :-1]], 1)).logits"""
_UNSHIFTED = "{result} = network(tokens).logits"


def model_card(
    model: Trained,
    *,
    name: str,
    architecture: str | None,
    classifies: bool = False,
    records: Records | None = None,
    pictures: Sequence[str] = (),
    license_name: str | None = None,
) -> str:
    """README.md in Markdown, with the head of facts that the Hub reads.

    Args:
        model: what it is about.
        name: the title; for a model on the Hub `owner/name`.
        architecture: the class of transformers that opens the folder, if one does.
        classifies: whether a probe or a class head lies beside the card.
        records: figures by name, as `report.record.read_records` gives them.
        pictures: file names of pictures that lie beside the card.
        license_name: of the weights, as the Hub writes it; none: not stated.
    """
    parts = [
        _head(model, license_name),
        f"# {name}",
        _what(model),
        _use(model, name, classifies=classifies),
        _in_transformers(model, name, architecture),
        _facts(model),
        _figures(model, records or {}),
        _samples(pictures),
        _limits(model.network),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(model: Trained, license_name: str | None) -> str:
    draws = model.network.objective == "ar" and model.network.predicts
    task = "unconditional-image-generation" if draws else "image-feature-extraction"
    lines = ["library_name: igpt", f"pipeline_tag: {task}"]
    if license_name:
        lines.append(f"license: {json.dumps(license_name)}")
    return "\n".join(["---", *lines, "tags:", "- image-gpt", "- pixels", "---"])


def _what(model: Trained) -> str:
    network, side = model.network, model.image_size
    config = network.config
    n = sum(p.numel() for p in network.parameters())
    kind = "autoregressive" if network.objective == "ar" else "BERT"
    colours = "raw bytes" if model.facts.tokens == "raw" else f"{network.n_colors} colours"
    return (
        f"An Image GPT (Chen et al., *Generative Pretraining from Pixels*, 2020) with the {kind} "
        f"objective: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, "
        f"{n:,} parameters; it reads images of {side} x {side} pixels as {network.seq_len} tokens "
        f"of {colours}."
    )


def _use(model: Trained, name: str, *, classifies: bool) -> str:
    lines = ["import igpt", "", f"model = igpt.load({json.dumps(name)})"]
    lines.append('vectors = model.features(["cat.jpg", "dog.jpg"])')
    if model.network.objective == "ar" and model.network.predicts:
        lines.append("pictures = model.sample(4)")
    if classifies:
        lines.append('classes = model.classify(["cat.jpg", "dog.jpg"])')
    return "## Use\n\n" + _code("\n".join(lines))


def _in_transformers(model: Trained, name: str, architecture: str | None) -> str:
    if architecture is None or model.facts.tokens == "raw":
        return ""
    if model.facts.shifted:
        told = (
            "It must be fed the start token and all tokens but the last, `[sos, tokens[:-1]]`, "
            "for the same numbers"
        )
    else:
        told = "It was trained by transformers' own rule and is fed the tokens as they are"
    fed = (_WITH_SOS if model.facts.shifted else _UNSHIFTED).format(
        result="scores" if "Classification" in architecture else "logits"
    )
    code = _FEEDING.format(architecture=architecture, name=json.dumps(name), fed=fed)
    return (
        f"transformers opens this folder as `{architecture}`. {told}; `images` must have "
        f"{model.image_size} x {model.image_size} pixels already, as it resizes otherwise:\n\n"
        f"{_code(code)}"
    )


def _code(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```"


def _facts(model: Trained) -> str:
    trained = published(model.facts.trained)
    found = ((label, trained.get(key)) for key, label in _FACTS.items())
    rows = [(label, value) for label, value in found if value not in (None, "")]
    if model.network.objective == "bert":
        rows.append(("share of positions masked", model.facts.mask_prob))
    if not rows:
        return "## Training\n\nNot recorded."
    return "## Training\n\n" + _table(("fact", "value"), rows)


def _figures(model: Trained, records: Records) -> str:
    """A table of every figure whose record is of these very weights."""
    digest = model.digest()
    rows = []
    for name, record in sorted(records.items()):
        about = (record.get("data"), record.get("split"))
        if record.get("model") == digest:
            figures = [*_likelihood(record), *_accuracy(name, record)]
            rows += [(*figure, *_shown(*about)) for figure in figures]
    if not rows:
        return ""
    note = "± is the standard error over the images of the split."
    header = ("figure", "value", "data", "split")
    return f"## Figures\n\n{_table(header, rows)}\n\n{note}"


def _shown(data: Any, split: Any) -> tuple[str, str]:
    return name_of(str(data)) if data else "", str(split or "")


def _likelihood(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    if (nats := record.get("nats_per_token")) is None:
        return []
    rows = [("nats per token", f"{nats:.4f} ± {record['nats_per_token_se']:.4f}")]
    if bits := record.get("bits_per_pixel"):
        rows.append(("bits per pixel, under this palette", f"{bits:.4f}"))
    return rows


def _accuracy(name: str, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    if (accuracy := record.get("test_accuracy")) is None:
        return []
    what = {"probe": f"linear probe of layer {record.get('layer')}"}.get(name, name)
    return [(f"accuracy, {what}", f"{accuracy:.2%} ± {record['test_accuracy_se']:.2%}")]


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _samples(pictures: Sequence[str]) -> str:
    if not pictures:
        return ""
    shown = [f"![{Path(name).stem}]({name})" for name in pictures]
    return "\n\n".join(["## Pictures", "The first ones drawn, none picked out.", *shown])


def _limits(network: GPT) -> str:
    text = (
        "## Limits\n\nThe model knows nothing but the images that it was trained on, and repeats "
        "what they hold. Unlike GPT-2, its norm is RMS without centring, no layer has a bias"
    )
    if network.config.bias:
        text = text.replace("no layer has a bias", "its linear maps have biases as imported")
    text += ", its activation is x sigmoid(1.702 x) and its output head is untied"
    if network.objective == "ar":
        text += "; a learned start vector stands before the first pixel"
    return text + "."
