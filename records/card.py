"""The model card of the model that ships, and its tables for RESULTS.md, from the record book."""

from pathlib import Path
from typing import Any

from keeping import read_figures

from igpt.pixelmodel import PixelModel

HERE = Path(__file__).parent
SHIPPED, RIVALS, RUN = (
    read_figures(HERE / name) for name in ("shipped.json", "rivals.json", "run.json")
)
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
    for key, text in POOLINGS.items():
        found = SHIPPED[f"probe, {key}"]
        rows.append(_probe_row(text, found, "-" if key == "raw pixels" else str(found["layer"])))
        if joined := found.get("joined"):
            first, *_, last = joined["layers"]
            rows.append(_probe_row(f"{text}, joined", joined, f"{first} to {last}"))
    for name, found in RIVALS.items():
        if name.startswith("kmeans"):
            patch = f"{found['patch_px']} x {found['patch_px']}"
            text = f"k-means, {found['n_centers']} centres of {patch}"
            rows.append(_probe_row(text, found, "-"))
    return rows


def _probe_row(text: str, found: dict[str, Any], layer: str) -> str:
    test = share(found["test_accuracy"], found["test_accuracy_se"])
    return f"| {text} | {layer} | {share(found['valid_accuracy'])} | {test} |"


def few_rows() -> list[str]:
    """Few labels: mean and spread over subsets, and the gain over raw pixels."""
    steps = RIVALS["wide-resnet-4"]["steps"]
    rows = [
        "| labels a class | mean (the paper's) | bands | raw pixels | bands / raw "
        f"| Wide ResNet 28-2 from scratch, {steps} steps |",
        "|---|---|---|---|---|---|",
    ]
    for count in COUNTS:
        found = {key: SHIPPED[f"few labels, {count}, {key}"] for key in POOLINGS}
        cells = [share(value["mean"], value["sd"]) for value in found.values()]
        ratio = found["bands"]["mean"] / found["raw pixels"]["mean"]
        rival = RIVALS.get(f"wide-resnet-{count}")
        cells += [f"{ratio:.2f}", "-" if rival is None else share(rival["mean"], rival["sd"])]
        rows.append(f"| {count} | {' | '.join(cells)} |")
    return rows


def nats_rows() -> list[str]:
    """Nats per token beside simple models of the same tokens."""
    simple = ("bigram", "gzip", "png", "unigram")
    rows = ["| model of the same tokens, test | nats per token |", "|---|---|"]
    rows.append(_nats_row("**this model**", SHIPPED["nats, test"]))
    rival = RIVALS["pixelcnn"]
    text = f"PixelCNN, {rival['total_steps']} steps of {rival['batch_size']}, first 2,000 images"
    rows.append(f"| {text} | {rival['nats_per_token']:.4f} |")
    rows += [f"| {name} | {RIVALS['nats-ours'][name]:.4f} |" for name in simple]
    if found := SHIPPED.get("nats after repalette, test"):
        extra = f"{found['steps']:,} more steps ({found['images']:,} images) under it"
        text = f"the authors' palette: this model after {extra}"
        rows.append(_nats_row(text, found))
        rows += [
            f"| the authors' palette: {name} | {RIVALS['nats-authors'][name]:.4f} |"
            for name in simple
        ]
    return rows


def _nats_row(text: str, found: dict[str, Any]) -> str:
    return f"| {text} | {found['nats_per_token']:.4f} ± {found['nats_per_token_se']:.4f} |"


def checkpoint_rows() -> list[str]:
    """Loss and quick probe of the run's checkpoints."""
    found = [value for name, value in SHIPPED.items() if name.startswith("checkpoint, ")]
    if not found:
        return []
    rows = [
        "| images seen | nats per token, 1,000 validation images "
        "| quick probe (3,000 labels, judged on validation), mean | bands |",
        "|---|---|---|---|",
    ]
    for value in sorted(found, key=lambda value: value["images"]):
        accuracies = f"{share(value['mean'])} | {share(value['bands'])}"
        rows.append(f"| {value['images']:,} | {value['valid_nats']:.4f} | {accuracies} |")
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
    parts = [probe_rows(), few_rows(), nats_rows(), checkpoint_rows(), transfer_rows()]
    return "\n\n".join("\n".join(rows) for rows in parts if rows)


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
