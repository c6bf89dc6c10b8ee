"""What the readers of tar and zip archives have in common."""

from dataclasses import dataclass
from typing import Literal

MAX_RATIO = 100
"""What is compressed may grow to so many times its size, beyond `FREE_BYTES`: images do not."""
FREE_BYTES = 2**25

Kind = Literal["file", "folder", "link", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of an archive."""

    name: str
    kind: Kind
    start: int
    """First byte of its content in the (unpacked) archive."""
    size: int
    """Bytes of its content, holes included."""
    target: str = ""
    """Of a link: the name in the archive that it stands for, `..` where that lies outside."""
    archive: int = 0
    """Which of several archives joined one behind another."""
    pieces: tuple[tuple[int, int, int], ...] | None = None
    """Of a file with holes: where each piece lies in the archive, in the file, and its size."""
    is_packed: bool = False
    """Its content is compressed on its own, so that it is no part of the archive's bytes."""


def target_of(name: str, linked: str, *, is_hard: bool) -> str:
    """The name in the archive that a link means, or `..` for what lies outside."""
    if not is_hard and linked.startswith("/"):
        return ".."
    parts: list[str] = []
    folder = "" if is_hard else name.rpartition("/")[0]
    for part in f"{folder}/{linked}".split("/"):
        if part == ".." and not parts:
            return ".."
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or ".."
