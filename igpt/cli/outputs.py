"""The files and folders that commands write, at places that their user names; shared options."""

import json
import math
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from tyro.conf import Positional, arg

from igpt.config import RunConfig
from igpt.errors import UserError
from igpt.files import plain, try_place
from igpt.system import at_home

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np

    from igpt.generate.pictures import Decode
    from igpt.generate.sample import Progress

# Beyond these a picture, or the frames of an animation together, would not fit in memory.
MAX_PICTURE_PIXELS = 2**27
MAX_FRAME_PIXELS = 2**22


def print_json(document: "Mapping[str, Any]") -> None:
    """What `--json` prints: one line, always JSON; what is no number is null."""
    print(json.dumps(plain(document), allow_nan=False))


def print_facts(facts: "Mapping[str, Any]") -> None:
    """A line a fact, named at its beginning; of a list a line each."""
    width = max(map(len, facts))
    for key, value in facts.items():
        lines = _in_words(value).split("\n")
        for name, line in zip_longest([key], lines, fillvalue=""):
            print(f"{name:<{width}}  {line}")


def _in_words(value: Any) -> str:
    """A fact for a person: nothing of Python's own forms; of a list a line each."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "\n".join(map(_in_words, value))
    return "none" if value is None else str(value)


def show(document: "Mapping[str, Any]", lines: "Iterable[str]", *, json: bool) -> None:
    """A result as one JSON document, or in lines for a person."""
    if json:
        print_json(document)
    else:
        print("\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where the results go; what is none is not written."""

    picture: Path
    animation: Path | None
    tokens: Path | None

    @classmethod
    def checked(cls, *, out: str, gif: str | None, tokens: str | None, force: bool) -> Self:
        """The files that were asked for, refused before any work is done if they cannot be.

        Raises:
            UserError: an ending that says no kind that can be written, a folder, or, without
                `force`, a file that exists.
        """
        return cls(
            picture=checked(out, "--out", (".png",), force=force),
            animation=checked(gif, "--gif", (".gif", ".webp"), force=force)
            if gif is not None
            else None,
            tokens=checked(tokens, "--tokens", (".npz",), force=force)
            if tokens is not None
            else None,
        )

    def enlargement(self, n: int, side: int) -> int:
        """What each pixel of n images becomes where nobody says it: seen well, and still held."""
        from igpt.images.grid import enlargement

        most = MAX_FRAME_PIXELS if self.animation else MAX_PICTURE_PIXELS
        return max(1, min(enlargement(side), math.isqrt(most // max(1, n)) // side))

    def check_size(self, n_pixels: int) -> None:
        """Refuse, before anything is drawn, a picture that is too large to be held.

        Raises:
            UserError: it has too many pixels, for a picture or for a frame of an animation.
        """
        for path, most in ((self.picture, MAX_PICTURE_PIXELS), (self.animation, MAX_FRAME_PIXELS)):
            if path and n_pixels > most:
                raise UserError(
                    f"{path} would have {n_pixels / 1e6:.0f} million pixels: draw fewer images, "
                    f"or smaller ones, for at most {most / 1e6:.0f} million"
                )

    def write(
        self, picture: "np.ndarray", animation: list["np.ndarray"], **tokens: "np.ndarray"
    ) -> None:
        """Write the picture, (H, W, 3) uint8, and what else was asked for."""
        from igpt.files import write_bytes
        from igpt.generate.pictures import save_animation, save_tokens
        from igpt.images.grid import to_png_bytes

        write_bytes(self.picture, to_png_bytes(picture))
        if self.animation:
            save_animation(self.animation, animation)
        if self.tokens:
            save_tokens(self.tokens, **tokens)

    def report(self, facts: dict[str, Any], *, json: bool) -> None:
        """Say what was drawn and where it lies."""
        named = {"picture": self.picture, "animation": self.animation, "tokens": self.tokens}
        files = {name: str(path) for name, path in named.items() if path}
        if json:
            print_json({**facts, **files})
            return
        for name, path in files.items():
            print(f"{name:<10}{path}")


def checked(
    name: str, option: str, suffixes: tuple[str, ...], *, force: bool | None = None
) -> Path:
    """Where to write, from what the user gave for `option`; tried before the work.

    Args:
        name: of a file.
        option: what it was given for.
        suffixes: one of which it must have, in small letters or capitals.
        force: whether a file that exists is replaced; none: the command never does.

    Raises:
        UserError: as `Outputs.checked` says.
    """
    path = at_home(name)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {name}: choose a name that ends in {' or '.join(suffixes)}")
    try_place(path)
    if path.is_dir():
        raise UserError(f"{option} {name} is a folder: choose a file name")
    if path.exists() and not force:
        remedy = "or remove it" if force is None else "or replace it with --force"
        raise UserError(f"{option} {name} exists: choose another name, {remedy}")
    return path


def empty_folder(name: str, option: str = "OUT") -> Path:
    """Where to write a model folder: a place that is new or empty, so that no model is lost.

    Raises:
        UserError: something stands there, no name was given, or nothing can be written there.
    """
    path = folder_to_fill(name, option)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{name} is not empty: choose another place")
    return path


def folder_to_fill(name: str, option: str = "OUT") -> Path:
    """Where to write a folder, tried before the work.

    Raises:
        UserError: no name was given, or nothing can be written there.
    """
    if not name:
        raise UserError(f"{option} is empty: name a folder")
    path = at_home(name)
    try_place(path)
    if path.is_dir():
        try_place(path / "config.json")
    return path


def watch(
    steps: "Iterator[Progress]", decode: "Decode", *, label: str, record: bool
) -> "tuple[Progress, list[np.ndarray]]":
    """Draw to the end under a progress bar.

    Returns:
        the last progress and, if `record`, some looks on the way, (n, S, S, 3) uint8 each.
    """
    from igpt.compute import default_device
    from igpt.generate.pictures import look, some
    from igpt.model.native import missing
    from igpt.progress import say, ticking

    if default_device().type == "cpu" and (reason := missing("decode")):
        say(f"drawing takes several times as long: {reason}")

    recorded: list[np.ndarray] = []
    with ticking(label) as ticker:
        for progress in some(steps):
            ticker.update(int(progress.drawn.sum()), progress.drawn.size, "tokens")
            if record:
                recorded.append(look(progress, decode))
    return progress, recorded


Data = Positional[Annotated[str, arg(metavar="DATA")]]
Run = Positional[Annotated[str, arg(metavar="RUN")]]
Model = Positional[Annotated[str, arg(metavar="MODEL")]]
Source = Positional[Annotated[str, arg(metavar="SRC")]]
Out = Positional[Annotated[str, arg(metavar="OUT")]]
Config = Annotated[RunConfig, arg(name="")]
