"""Tokens kept beside the images of a packed set, so that training need not encode them again."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from igpt.errors import UserError
from igpt.files import read_json, sha256_of, sync_folder, write_json
from igpt.images.packed.read import PackedSet
from igpt.images.packed.write import writing_into
from igpt.manifest import damaged
from igpt.tokens.tokenizer import Tokenizer

_AT_ONCE = 4096  # images


class StoredTokens:
    """Tokens of some images, read from the file only where they are asked for: (N, T).

    Args:
        tokens: (n, T) uint8 or uint16, of every image of the set.
        rows: (N,) int64, which of them.
    """

    ndim = 2

    def __init__(self, tokens: NDArray[np.unsignedinteger], rows: NDArray[np.int64]) -> None:
        self._tokens, self._rows = tokens, rows
        self.shape = (len(rows), tokens.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, ids: Any) -> NDArray[np.unsignedinteger]:
        return np.asarray(self._tokens[self._rows[ids]])


def store_tokens(packed: PackedSet, tokenizer: Tokenizer) -> Path:
    """Write the tokens of every image of a set into its folder, a block of images at a time.

    Returns:
        the file; the one that is there, where these tokens were stored before.

    Raises:
        UserError: the folder cannot be written.
    """
    path = _place(packed, tokenizer)
    if _opened(packed, tokenizer) is not None:
        return path
    n = int(packed.manifest["n_images"])
    images = packed.images_at(np.arange(n))
    first = tokenizer.encode_compact(images[:1])
    part = path.with_name(path.name + ".part")
    with writing_into(packed.folder):
        tokens = open_memmap(part, "w+", first.dtype, (n, first.shape[1]))
        for start in range(0, n, _AT_ONCE):
            tokens[start : start + _AT_ONCE] = tokenizer.encode_compact(
                images[start : start + _AT_ONCE]
            )
        tokens.flush()
        del tokens
        part.replace(path)
        about = {"palette": tokenizer.digest, "of": _content(packed), "sha256": sha256_of(path)}
        sync_folder(packed.folder)
        write_json(path.with_suffix(".json"), about)
    return path


def stored_tokens(
    packed: PackedSet, tokenizer: Tokenizer, rows: NDArray[np.int64]
) -> StoredTokens | None:
    """The tokens of some images of a set, if `store_tokens` wrote them; else none.

    Raises:
        UserError: they are there, but damaged or of other images.
    """
    tokens = _opened(packed, tokenizer)
    return None if tokens is None else StoredTokens(tokens, rows)


def _place(packed: PackedSet, tokenizer: Tokenizer) -> Path:
    return packed.folder / f"tokens-{tokenizer.digest[:16]}.npy"


def _content(packed: PackedSet) -> list[str]:
    return [entry["sha256"] for entry in packed.manifest["shards"]]


def _opened(packed: PackedSet, tokenizer: Tokenizer) -> NDArray[np.unsignedinteger] | None:
    path = _place(packed, tokenizer)
    if not path.with_suffix(".json").is_file():  # written last
        return None
    about = read_json(path.with_suffix(".json"))
    remedy = f"delete {path} and the .json beside it"
    try:
        tokens = np.load(path, mmap_mode="r")
        known = about["palette"] == tokenizer.digest and about["of"] == _content(packed)
        changed = damaged(packed.folder, {path.name: about["sha256"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged: {remedy}") from error
    if not known or tokens.ndim != 2 or len(tokens) != packed.manifest["n_images"]:
        raise UserError(f"{path} holds tokens of other images: {remedy}")
    if changed:
        raise UserError(f"{path} does not match its checksum: {remedy}")
    return np.asarray(tokens)
