"""The model card of the model that ships, and its tables for RESULTS.md, from the record book."""

import json
from pathlib import Path
from typing import Any

from igpt.pixelmodel import PixelModel

HERE = Path(__file__).parent
SHIPPED = json.loads((HERE / "shipped.json").read_text())
RIVALS = json.loads((HERE / "rivals.json").read_text())
RUN = json.loads((HERE / "run.json").read_text())
POOLINGS = {
    "mean": "features, mean (the paper's)",
    "bands": "features, bands",
    "raw pixels": "raw pixels",
}
COUNTS = (4, 25, 400)


def share(value: float, error: float | None = None) -> str:
    """A share as per cent, with what it is uncertain by."""
    return f"{100 * value:.2f} %" + ("" if error is None else f" ± {100 * error:.2f}")


def probe_rows() -> list[str]:
    """One row a classifier: what it sees, its layer, validation, test."""
    rows = ["| probe on | layer | validation | test (10,000) |", "|---|---|---|---|"]
    named = {f"probe, {key}": text for key, text in POOLINGS.items()}
    for name in SHIPPED:
        if name.startswith("probe, ") and "joined" in name:
            named[name] = f"{POOLINGS[name.split(', ')[1]]}, layers 3 to 5 joined"
    for name, text in named.items():
        rows.append(_row(text, SHIPPED.get(name), "raw" not in name))
    for name, found in RIVALS.items():
        if name.startswith("kmeans"):
            patch = f"{found['patch_px']} x {found['patch_px']}"
            text = f"k-means, {found['n_centers']} centres of {patch}"
            rows.append(_row(text, found, False))
    return [row for row in rows if row]


def _row(text: str, found: dict[str, Any] | None, has_layer: bool) -> str:
    if found is None:
        return ""
    layer = found["layer"] if has_layer else "-"
    test = share(found["test_accuracy"], found["test_accuracy_se"])
    return f"| {text} | {layer} | {share(found['valid_accuracy'])} | {test} |"


def few_rows() -> list[str]:
    """Few labels: mean and spread over subsets, and the gain over raw pixels."""
    rows = [
        "| labels a class | mean (the paper's) | bands | raw pixels | bands / raw |",
        "|---|---|---|---|---|",
    ]
    for count in COUNTS:
        found = {key: SHIPPED.get(f"few labels, {count}, {key}") for key in POOLINGS}
        if any(value is None for value in found.values()):
            continue
        cells = [share(value["mean"], value["sd"]) for value in found.values() if value]
        ratio = found["bands"]["mean"] / found["raw pixels"]["mean"]
        rows.append(f"| {count} | {' | '.join(cells)} | {ratio:.2f} |")
    return rows


def nats_rows() -> list[str]:
    """Nats per token beside simple models of the same tokens."""
    ours, rows = (
        RIVALS["nats-ours"],
        ["| model of the same tokens, test | nats per token |", "|---|---|"],
    )
    found = SHIPPED["nats, test"]
    rows.append(f"| **this model** | **{found['nats_per_token']:.4f}** ± {found['se']:.4f} |")
    if "pixelcnn" in RIVALS:
        rival = RIVALS["pixelcnn"]
        text = (
            f"PixelCNN, {rival['total_steps']} steps of {rival['batch_size']}, first 2,000 images"
        )
        rows.append(f"| {text} | {rival['nats_per_token']:.4f} |")
    for name in ("bigram", "gzip", "png", "unigram"):
        rows.append(f"| {name} | {ours[name]:.4f} |")
    return rows


def transfer_rows() -> list[str]:
    """The same probes elsewhere."""
    rows = ["| data | mean (the paper's) | bands | raw pixels |", "|---|---|---|---|"]
    names = dict.fromkeys(key.split(", ")[1] for key in SHIPPED if key.startswith("transfer"))
    for name in names:
        found = [SHIPPED[f"transfer, {name}, {key}"] for key in POOLINGS]
        cells = [share(value["test_accuracy"], value["test_accuracy_se"]) for value in found]
        sizes = f"{found[0]['n_train'] + found[0]['n_valid']:,} / {found[0]['n_test']:,} images"
        rows.append(f"| {name}, {sizes} | {' | '.join(cells)} |")
    return rows


def table() -> str:
    """Everything measured."""
    parts = [probe_rows(), few_rows(), nats_rows(), transfer_rows()]
    return "\n\n".join("\n".join(rows) for rows in parts)


def card(model: PixelModel, name: str) -> str:
    """README.md of the shipped folder."""
    config, trained = model.network.config, model.facts.trained
    n_parameters = sum(p.numel() for p in model.network.parameters())
    text = (HERE / "card.md").read_text()
    return text.format(
        name=name,
        depth=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        side=model.image_size,
        parameters=f"{n_parameters:,}",
        recipe=trained["recipe"],
        seed=trained["seed"],
        steps=f"{trained['step']:,}",
        images=f"{trained['images']:,}",
        table=table(),
        **RUN,
    )
