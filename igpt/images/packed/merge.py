"""Parts of a packed set, prepared apart, made one."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from igpt.errors import UserError
from igpt.files import FolderLock, sync_folder, write_json, writing
from igpt.images.packed.format import MANIFEST, is_packed
from igpt.images.packed.originals import NAME
from igpt.images.packed.read import PackedSet
from igpt.images.packed.write import LOCK, GrowingArray, writing_into
from igpt.images.sources.source import Part

# What every part must have alike.
_COMMON = ("image_size", "source", "views", "seed", "valid_fraction", "own_splits")


def part_folder(out: Path, part: Part) -> Path:
    """Where one part of a packed set is prepared."""
    return out / f"part-{part.index:02d}-of-{part.count:02d}"


def missing_parts(out: Path, count: int) -> list[int]:
    """Numbers of the parts that are not finished."""
    parts = (Part(index, count) for index in range(1, count + 1))
    return [part.index for part in parts if not is_packed(part_folder(out, part))]


def merge_parts(out: Path, count: int) -> None:
    """Make a packed set of its finished parts, which then go; a merge cut off starts over.

    Images are moved by hard links where the file system has them.

    Raises:
        UserError: the parts were prepared in different ways, or `out` cannot be written.
    """
    with FolderLock(out, wait=True):
        if is_packed(out):  # another process was faster
            return
        folders = [part_folder(out, Part(index, count)) for index in range(1, count + 1)]
        parts = [PackedSet.open(folder) for folder in folders]
        _check_alike(parts)
        with writing_into(out):
            manifest = {
                **parts[0].manifest,
                "n_images": sum(part.manifest["n_images"] for part in parts),
                "classes": _classes(parts),
                "shards": _link_shards(out, parts),
                "labels": _joined(out, "labels", "<i4", parts),
                "splits": _joined(out, "splits", "|u1", parts),
                "originals": _join_originals(out, parts),
                "source_px": max(part.manifest.get("source_px", 0) for part in parts),
                "n_read": sum(part.manifest["n_read"] for part in parts),
                "rejects": _reasons(parts),
            }
            _join_rejects(out, parts)
            sync_folder(out)
            write_json(out / MANIFEST, manifest)
            (out / LOCK).unlink(missing_ok=True)
            for folder in folders:
                shutil.rmtree(folder)


def _check_alike(parts: list[PackedSet]) -> None:
    for part in parts[1:]:
        for key in _COMMON:
            if part.manifest[key] != parts[0].manifest[key]:
                raise UserError(
                    f"{part.folder} was prepared with another {key} than {parts[0].folder}: "
                    "delete the wrong one and prepare it again"
                )


def _classes(parts: list[PackedSet]) -> list[str] | None:
    """Numbered classes grow with the labels seen, so the longest list holds the others."""
    names: list[list[str]] = [part.manifest["classes"] or [] for part in parts]
    return max(names, key=len) or None


def _link_shards(out: Path, parts: list[PackedSet]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for part in parts:
        for entry in part.manifest["shards"]:
            target = out / f"images-{len(entries):05d}.npy"
            _link(part.folder / entry["file"], target)
            entries.append({**entry, "file": target.name})
    return entries


def _link(file: Path, target: Path) -> None:
    """The same bytes at another place: a hard link, or a copy where there are none."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        with writing(target) as copy:
            shutil.copyfile(file, copy)


def _joined(out: Path, name: str, dtype: str, parts: list[PackedSet]) -> dict[str, Any]:
    array = GrowingArray(out / f"{name}.npy", (), dtype)
    for part in parts:
        array.append(np.load(part.folder / part.manifest[name]["file"], mmap_mode="r"))
    return array.close()


def _join_originals(out: Path, parts: list[PackedSet]) -> dict[str, Any] | None:
    """Names one after another, rows that point to them, kept copies by links."""
    entries = [entry for part in parts if (entry := part.manifest.get("originals"))]
    if len(entries) < len(parts):
        return None
    rows = GrowingArray(out / "originals.npy", (4,), "<i8")
    names = GrowingArray(out / "original-names.npy", (), "|u1")
    for part, entry in zip(parts, entries, strict=True):
        own = np.load(part.folder / entry["rows"]["file"], mmap_mode="r")
        for start in range(0, len(own), 2**16):
            moved = own[start : start + 2**16].copy()
            moved[moved[:, NAME] >= 0, NAME] += names.n_rows
            rows.append(moved)
        names.append(np.load(part.folder / entry["names"]["file"], mmap_mode="r"))
        for tar in sorted(part.folder.glob("kept-*.tar")):
            _link(tar, out / tar.name)
    roots = [entry["root"] for entry in entries]
    root = os.path.commonpath(roots) if all(roots) else ""
    beside = os.path.relpath(root, out.absolute()) if root else ""
    return {"rows": rows.close(), "names": names.close(), "root": root, "beside": beside}


def _reasons(parts: list[PackedSet]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for reason, n in part.manifest["rejects"].items():
            total[reason] = total.get(reason, 0) + n
    return total


def _join_rejects(out: Path, parts: list[PackedSet]) -> None:
    with writing(out / "rejects.csv") as path, path.open("wb") as file:
        for i, part in enumerate(parts):
            with (part.folder / "rejects.csv").open("rb") as rejects:
                header = rejects.readline()
                file.write(b"" if i else header)
                shutil.copyfileobj(rejects, file)
