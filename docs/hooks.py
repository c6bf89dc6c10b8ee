"""What the site takes from elsewhere, so that nothing is written down twice (mkdocs hooks).

`<!-- commands -->` becomes the `--help` of every command, `<!-- settings -->` every field of the
configuration with its default, `<!-- recipes -->` a table of the recipes, `<!-- page: FILE -->` a
page of the repository's root.
"""

import contextlib
import dataclasses
import io
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = Path(__file__).parent


def on_config(config: Any) -> Any:
    """Called by mkdocs first: pages that the menu does not name come under `More`."""
    menu = repr(config["nav"])
    pages = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    if others := [page for page in pages if f"'{page}'" not in menu]:
        config["nav"].append({"More": others})
    return config


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Called by mkdocs for the text of every page."""
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", _commands())
    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", _settings())
    if "<!-- recipes -->" in markdown:
        markdown = markdown.replace("<!-- recipes -->", _recipes())
    return re.sub(r"<!-- page: ([\w.]+) -->", lambda m: _page(m[1]), markdown)


def _commands() -> str:
    from igpt.cli.main import COMMANDS

    parts = [f"## igpt\n\n{_help()}"]
    parts += [f"## {name}\n\n{_help(name)}" for name in COMMANDS]
    return "\n\n".join(parts)


def _help(*command: str) -> str:
    """What `--help` prints, without the frames, which are for terminals."""
    from igpt.cli.main import main

    os.environ.update(COLUMNS="96", NO_COLOR="1")
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    frame = r"^[│|] ?| *[│|]$|[╭╮╰╯]|[─-]{4,}|^\+|\+$"
    lines = [re.sub(frame, "", line).rstrip() for line in text.getvalue().splitlines()]
    return "```text\n" + "\n".join(line for line in lines if line) + "\n```"


def _settings() -> str:
    from igpt.config import DataConfig, ModelConfig, TrainConfig

    parts = []
    for room in (DataConfig, ModelConfig, TrainConfig):
        name = room.__name__.removesuffix("Config").lower()
        parts.append(f"## {name}\n\n{(room.__doc__ or '').strip()}\n")
        parts.append("| option | default | what it is |\n|---|---|---|")
        about = _docstrings(room)
        for field in dataclasses.fields(room):
            option = f"--{name}.{field.name.replace('_', '-')}"
            parts.append(f"| `{option}` | `{field.default}` | {about[field.name]} |")
        parts.append("")
    return "\n".join(parts)


def _recipes() -> str:
    from igpt.recipes import RECIPES

    rows = ["| recipe | image size | layers, heads, width | optimiser | steps of images |"]
    rows.append("|---|---|---|---|---|")
    for name, config in RECIPES.items():
        model, train = config.model, config.train
        shape = f"{model.n_layer}, {model.n_head}, {model.n_embd:,}"
        steps = f"{train.total_steps:,} of {train.batch_size}"
        rows.append(
            f"| `{name}` | {config.data.image_size} | {shape} | {train.optimizer} | {steps} |"
        )
    return "\n".join(rows)


def _docstrings(room: type) -> dict[str, str]:
    """The line below each field of a dataclass."""
    import inspect

    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', inspect.getsource(room), re.M | re.S)
    return {name: " ".join(text.split()).replace("|", "\\|") for name, text in found}


def _page(name: str) -> str:
    """A page of the root; its links into docs/ become links inside the site."""
    text = (ROOT / name).read_text()
    return text.replace("](docs/", "](")
