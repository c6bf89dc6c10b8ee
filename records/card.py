"""The card of a model that ships, and its tables for RESULTS.md, from the record book."""

from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from keeping import SHIPPED, read_figures

from igpt.pixelmodel import PixelModel

HERE = Path(__file__).parent
POOLINGS = {
    "mean": "features, mean (the paper's)",
    "bands": "features, bands",
    "raw pixels": "raw pixels",
}
COUNTS = (4, 25, 400)
# Labelled images of CIFAR-10 beside its test split.
N_LABELS = 50_000
# What rivals of features are called, by the name of their figures.
RIVALS = {
    "kmeans-240": "k-means, 240 centres of 6 x 6 (Coates, Lee and Ng)",
    "kmeans-720": "k-means, 720 centres",
    "patches": "512 patches and nearest neighbours (Thiry et al.)",
    "scattering": "scattering, two orders (Bruna and Mallat)",
    "contrast": "SimCLR, Wide ResNet 28-2",
    "supervised": "supervised from scratch, Wide ResNet 28-2, 2,000 updates of 64",
}
# Lines of a table before its first row.
N_HEAD = 2


@dataclass(frozen=True, slots=True)
class Book:
    """What was measured of one model; a row that was not measured is not shown.

    Args:
        figures: of the model, by name.
        rivals: of what needs no Transformer, on the same images.
        run: what its training cost, written by hand.
    """

    figures: dict[str, Any]
    rivals: dict[str, Any]
    run: dict[str, Any]

    @classmethod
    def of(cls, name: str) -> Self:
        """The book of the model of this name."""
        files = ("figures", "rivals", "run")
        return cls(**{file: read_figures(SHIPPED / name / f"{file}.json") for file in files})

    def checkpoints(self) -> list[dict[str, Any]]:
        """Loss and quick probe of the run's checkpoints, as training went."""
        found = [v for name, v in self.figures.items() if name.startswith("checkpoint, ")]
        return sorted(found, key=lambda value: value["images"])

    def probe_rows(self) -> list[str]:
        """One row a classifier: what it sees, its layer, validation, test."""
        sizes = [self.figures.get(f"probe, {key}", {}) for key in POOLINGS]
        n = max((found["n_train"] + found["n_valid"] for found in sizes if found), default=0)
        of = "" if n == N_LABELS else f", {n:,} of {N_LABELS:,} labels"
        rows = [f"| probe on{of} | layer | validation | test (10,000) |", "|---|---|---|---|"]
        for key, text in POOLINGS.items():
            found = self.figures.get(f"probe, {key}")
            if found is None:
                continue
            rows.append(_probe_row(text, found, "-" if key == "raw pixels" else found["layer"]))
            if joined := found.get("joined"):
                first, *_, last = joined["layers"]
                rows.append(_probe_row(f"{text}, joined", joined, f"{first} to {last}"))
        kmeans = [found for name, found in self.rivals.items() if name.startswith("kmeans")]
        for found in sorted(kmeans, key=itemgetter("n_centers")):
            patch = f"{found['patch_px']} x {found['patch_px']}"
            text = f"k-means, {found['n_centers']} centres of {patch}"
            if (own := found["n_train"] + found["n_valid"]) != n:
                text += f", {own:,} labels"
            rows.append(_probe_row(text, found, "-"))
        return rows

    def few_rows(self) -> list[str]:
        """Few labels: mean and spread over subsets, and the gain over raw pixels."""
        columns = "mean (the paper's) | bands | raw pixels | bands / raw |"
        if kmeans := self.rivals.get("few-labels-kmeans"):
            columns += f" k-means, {kmeans['n_centers']} centres |"
        if resnet := self.rivals.get("wide-resnet-4"):
            columns += f" Wide ResNet 28-2 from scratch, {resnet['steps']} steps |"
        rows = [f"| labels a class | {columns}", "|---|" + columns.count("|") * "---|"]
        for count in COUNTS:
            keys = [f"few labels, {count}, {key}" for key in POOLINGS]
            if not all(key in self.figures for key in keys):
                continue
            found = dict(zip(POOLINGS, (self.figures[key] for key in keys), strict=True))
            cells = [share(value["mean"], value["sd"]) for value in found.values()]
            cells.append(f"{found['bands']['mean'] / found['raw pixels']['mean']:.2f}")
            if kmeans:
                cells.append(share(kmeans[str(count)]["mean"], kmeans[str(count)]["sd"]))
            if resnet:
                rival = self.rivals.get(f"wide-resnet-{count}")
                cells.append("-" if rival is None else share(rival["mean"], rival["sd"]))
            rows.append(f"| {count} | {' | '.join(cells)} |")
        return rows

    def nats_rows(self) -> list[str]:
        """Nats per token beside simple models of the same tokens."""
        simple = ("bigram", "gzip", "png", "unigram")
        rows = ["| model of the same tokens, test | nats per token |", "|---|---|"]
        rows.append(_nats_row("**this model**", self.figures["nats, test"]))
        if rival := self.rivals.get("pixelcnn"):
            cost = f"{rival['total_steps']} steps of {rival['batch_size']}, first 2,000 images"
            rows.append(f"| PixelCNN, {cost} | {rival['nats_per_token']:.4f} |")
        if ours := self.rivals.get("nats-ours"):
            rows += [f"| {name} | {ours[name]:.4f} |" for name in simple]
        if found := self.figures.get("nats after repalette, test"):
            extra = f"{found['steps']:,} more steps ({found['images']:,} images) under it"
            rows.append(_nats_row(f"the authors' palette: this model after {extra}", found))
            theirs = self.rivals["nats-authors"]
            rows += [f"| the authors' palette: {name} | {theirs[name]:.4f} |" for name in simple]
        return rows

    def checkpoint_rows(self) -> list[str]:
        """Loss and quick probe of the run's checkpoints."""
        rows = [
            "| images seen | nats per token, 1,000 validation images "
            "| quick probe (3,000 labels, judged on validation), mean | bands |",
            "|---|---|---|---|",
        ]
        for value in self.checkpoints():
            accuracies = f"{share(value['mean'])} | {share(value['bands'])}"
            rows.append(f"| {value['images']:,} | {value['valid_nats']:.4f} | {accuracies} |")
        return rows

    def transfer_rows(self) -> list[str]:
        """The same probes elsewhere."""
        keys = [key for key in self.figures if key.startswith("transfer")]
        columns = [*POOLINGS, "k-means"]
        if not any(key.endswith(", k-means") for key in keys):
            columns.remove("k-means")
        heads = ["data", "mean (the paper's)", *columns[1:]]
        rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name in dict.fromkeys(key.split(", ")[1] for key in keys):
            held = [self.figures.get(f"transfer, {name}, {key}") for key in columns]
            cells = [share(v["test_accuracy"], v["test_accuracy_se"]) if v else "-" for v in held]
            found = [value for value in held if value]
            sizes = f"{found[0]['n_train'] + found[0]['n_valid']:,} / {found[0]['n_test']:,} images"
            rows.append(f"| {name}, {sizes} | {' | '.join(cells)} |")
        return rows

    def cost_rows(self) -> list[str]:
        """What this model's features and others' give and take, the cheapest first."""
        rows = [
            "| all labels, test | CPU minutes in all | numbers an image | accuracy | and besides |",
            "|---|---|---|---|---|",
        ]
        all_minutes = self.run["learning_cpu_minutes"] + self.run["probing_cpu_minutes"]
        bands = self.figures["probe, bands"]
        besides = "likelihood, samples, completions"
        found = [
            (all_minutes, "**this model, frozen**: one layer, bands", bands, besides),
            (all_minutes, "**this model, frozen**: three layers", bands["joined"], besides),
        ]
        for name, text in RIVALS.items():
            if held := self.rivals.get(name):
                found.append((held["cpu_s"] / 60, text, held, "-"))
        for minutes, text, held, besides in sorted(found, key=lambda row: row[0]):
            accuracy = held["test_accuracy"]
            error = (accuracy * (1 - accuracy) / held["n_test"]) ** 0.5
            width = f"{held['n_features']:,}" if "n_features" in held else "-"
            rows.append(
                f"| {text} | {minutes:,.0f} | {width} | {share(accuracy, error)} | {besides} |"
            )
        return rows

    def table(self) -> str:
        """Everything measured."""
        parts = (
            *(self.probe_rows(), self.few_rows(), self.nats_rows()),
            *(self.checkpoint_rows(), self.transfer_rows()),
        )
        return "\n\n".join("\n".join(rows) for rows in parts if len(rows) > N_HEAD)


def share(value: float, error: float | None = None) -> str:
    """A share as per cent, with what it is uncertain by."""
    return f"{100 * value:.2f} %" + ("" if error is None else f" ± {100 * error:.2f}")


def _probe_row(text: str, found: dict[str, Any], layer: int | str) -> str:
    test = share(found["test_accuracy"], found["test_accuracy_se"])
    return f"| {text} | {layer} | {share(found['valid_accuracy'])} | {test} |"


def _nats_row(text: str, found: dict[str, Any]) -> str:
    return f"| {text} | {found['nats_per_token']:.4f} ± {found['nats_per_token_se']:.4f} |"


def card(model: PixelModel, name: str) -> str:
    """README.md of the shipped folder."""
    book = Book.of(name)
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
        seed=trained["seed"],
        steps=f"{trained['step']:,}",
        images=f"{trained['images']:,}",
        recipe=", then ".join(f"`{command}`" for command in book.run["commands"]),
        table=book.table(),
        **book.run,
    )
