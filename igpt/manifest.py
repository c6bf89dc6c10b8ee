"""Folders whose files are told intact: `manifest.json` holds the sha256 of each and of itself.

Large files that stay (packed images, stored tokens, features) are compared once a machine, and
again whenever size or time of change differ from then (`damaged`).
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igpt.errors import UserError
from igpt.files import cache_folder, sha256_of

SCHEMA_VERSION = 1
# What igpt writes into such a folder, and so may remove from it.
KIND = ("*.safetensors", "*.json")


def write_manifest(folder: Path, digests: Mapping[str, str] | None = None) -> None:
    """Close a folder with the sha256 of each file in it; those that are known need not be read."""
    if digests is None:
        digests = {file.name: sha256_of(file) for file in folder.iterdir()}
    (folder / "manifest.json").write_bytes(_manifest_bytes(dict(sorted(digests.items()))))


def _manifest_bytes(digests: Mapping[str, str]) -> bytes:
    content = {"schema_version": SCHEMA_VERSION, "sha256": dict(digests)}
    document = {**content, "own_sha256": _own_digest(content)}
    return (json.dumps(document, indent=2) + "\n").encode()


def _own_digest(content: Mapping[str, Any]) -> str:
    others = {key: value for key, value in content.items() if key != "own_sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def fault_of(path: Path) -> str | None:
    """Why the folder at `path` may not be used; none where it is intact.

    Raises:
        UserError: a newer igpt wrote it, so that this one cannot tell.
    """
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return "manifest.json is missing"
    try:
        content = json.loads(manifest.read_bytes())
        version, digests = content["schema_version"], content["sha256"]
        names = sorted(digests)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is damaged"
    if version != SCHEMA_VERSION and _own_digest(content) == content.get("own_sha256"):
        raise UserError(
            f"{path} has schema version {version}, this igpt reads {SCHEMA_VERSION}: "
            "use the igpt version that wrote it"
        )
    if manifest.read_bytes() != _manifest_bytes(digests):
        return "manifest.json is damaged"
    for name in names:
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_of(path / name) != digests[name]:
            return f"{name} is damaged (its sha256 differs from the manifest's)"
    return None


def damaged(folder: Path, digests: Mapping[str, str]) -> str | None:
    """The first of some files that does not have its sha256; none where all have.

    A file that had it is not read again while its size and its times stay.

    Args:
        folder: that holds them.
        digests: sha256 as hex, by name.

    Raises:
        OSError: a file is missing.
    """
    note = _note_of(folder)
    known, found = _noted(note), {}
    for name, digest in digests.items():
        stat = (folder / name).stat()
        found[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest]
        if known.get(name) != found[name] and sha256_of(folder / name) != digest:
            return name
    if any(known.get(name) != state for name, state in found.items()):
        _write_note(note, {**known, **found})
    return None


def _note_of(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:24]
    return cache_folder() / "verified" / f"{name}.json"


def _noted(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _write_note(note: Path, known: Mapping[str, Any]) -> None:
    """Without a sync, as what is lost is only looked at again; without the cache likewise."""
    part = note.with_name(f"{note.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known))
        part.replace(note)
