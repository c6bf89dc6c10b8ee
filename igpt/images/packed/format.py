"""The manifest of a packed set: which files it has, and everything known of them."""

from pathlib import Path
from typing import Any

from igpt.errors import UserError
from igpt.files import read_json

MANIFEST = "manifest.json"
FORMAT = "igpt-packed"
SCHEMA_VERSION = 1


def is_packed(folder: Path) -> bool:
    """Whether a folder says that it is a packed set."""
    return (folder / MANIFEST).is_file() and (folder / "splits.npy").exists()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, every field of it checked.

    Raises:
        UserError: there is none, or it is of something else, or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is not a packed set (no {MANIFEST}): make one with igpt prepare")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not of a packed set: make one with igpt prepare")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} is of another igpt version: prepare the images again")
    try:
        _check_manifest(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}): prepare the images again") from error
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    entries = [*manifest["shards"], manifest["labels"], manifest["splits"]]
    if originals := manifest.get("originals"):  # igpt 0.1 did not note them
        entries += [originals["rows"], originals["names"]]
        if not isinstance(originals["root"], str) or not isinstance(originals["beside"], str):
            raise ValueError("originals")
    for entry in entries:
        if Path(entry["file"]).name != entry["file"] or type(entry["n"]) is not int:
            raise ValueError(entry["file"])
        bytes.fromhex(entry["sha256"])
    for key in ("image_size", "views", "seed"):
        if type(manifest[key]) is not int or manifest[key] < 0:
            raise ValueError(key)
    if not 0 < manifest["valid_fraction"] < 1 or not manifest["shards"]:
        raise ValueError("valid_fraction or shards")
    if manifest["classes"] is not None and not all(isinstance(c, str) for c in manifest["classes"]):
        raise ValueError("classes")
    list(map(int, manifest["own_splits"]))
