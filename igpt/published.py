"""What may leave this machine of the facts that a run records: no place, person, host or command.

Model folders, ONNX exports, cards and reports are passed on, and take their facts from here alone;
the run's own `config.json` keeps all of them.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

# Facts that say nothing of whose machine it was.
_FACTS = (
    "source",
    "checkpoint",
    "data",
    "data_digest",
    "source_px",
    "split",
    "mixed",
    "init_from",
    "palette_digest",
    "recipe",
    "finetuned",
    "finetuned_digest",
    "augment",
    "seed",
    "valid_fraction",
    "step",
    "images",
    "igpt",
    "torch",
    "python",
)
# Of these the text is a place: its name is kept, and what leads there is not.
_PLACES = ("data", "model", "finetuned")
_PLACE = re.compile(r"(?:~|/|\\|\.\.[/\\]|[A-Za-z]:[/\\])")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def published(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a training that a model may carry away from this machine."""
    return {name: _shown(name, facts[name]) for name in _FACTS if name in facts}


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shown(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(name, item) for item in value]
    if isinstance(value, str) and name in _PLACES:
        return name_of(value)
    return shown(value) if isinstance(value, str) else value


def name_of(place: str) -> str:
    """What a place on a disk, in a bucket or at an address is called, without the way there.

    A name on the Hub is public already and stays whole.
    """
    if place.startswith("hf:"):
        return place
    plain = re.split(r"[?#]", place)[0] if "://" in place else place
    name = PureWindowsPath(plain.rstrip("/\\")).name
    return "a folder" if name in ("", "~", "..", _home()) else name


def _home() -> str:
    """The name of the home folder, which is somebody's; empty where there is none."""
    try:
        return Path.home().name
    except RuntimeError:
        return ""


def shown(text: str) -> str:
    """A word, with the name alone of a place that it is or that stands behind `=` or `:`."""
    if "://" in text:
        before, address, rest = re.split(r"(\w+://.*)", text, maxsplit=1)
        return before + name_of(address) + rest
    for match in re.finditer(r"(?:^|[=:])(?=(.*))", text, re.DOTALL):
        if _PLACE.match(match[1]):
            return text[: match.start(1)] + name_of(match[1])
    return text


def shown_command(command: str) -> str:
    """A command line, or a call from Python, with names in place of the ways to them."""
    if not command.startswith("igpt "):
        return _QUOTED.sub(lambda match: repr(shown(match[1] or match[2] or "")), command)
    try:
        return shlex.join(map(shown, shlex.split(command)))
    except ValueError:  # a quote that is not closed: nobody's shell wrote this
        return "igpt"
