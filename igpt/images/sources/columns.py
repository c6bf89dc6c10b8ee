"""Parquet and Arrow files as `datasets` writes them: a column of images, perhaps one of labels."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igpt.errors import UserError
from igpt.images.sources.remote import present
from igpt.images.sources.source import BLOCK_IMAGES, MAX_LABEL, Block, BlockBuilder, Part, Source
from igpt.images.splits import TRAIN, split_codes

SUFFIXES = (".parquet", ".arrow")
NO_BYTES = "no image in the row"
BAD_LABEL = "label is not a known class"
_LABEL_NAMES = ("label", "labels", "class", "fine_label", "target")


def open_columns(paths: list[Path], *, name: str, unlabelled: bool = False) -> Source:
    """Images of one or several files; `train-`, `validation-` and `test-` at the start of names
    are splits.

    Args:
        paths: the files, in order.
        name: of the source.
        unlabelled: leave the labels out.

    Raises:
        UserError: pyarrow is missing, a file is damaged, or there is no column of images.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f"{name} needs pyarrow: pip install 'igpt[parquet]'") from error
    prefixes = {path: re.split(r"[^a-z]", path.name.lower())[0] for path in paths}
    splits = split_codes(set(prefixes.values()))
    n_rows = 0
    schema = None
    for path in paths:
        with _reading(path):
            opened = _open(path)
            schema, n_rows = opened[0], n_rows + opened[1]
    image, label, names = _find_columns(schema, name)
    if unlabelled:
        label = None

    def blocks(part: Part) -> Iterator[Block]:
        shared = len(paths) >= part.count
        chosen = list(part.share(paths)) if shared else paths
        every = (
            block
            for path in sorted(chosen, key=lambda path: splits.get(prefixes[path], TRAIN))
            for block in _blocks(path, image, label, names, splits.get(prefixes[path], TRAIN))
        )
        return every if shared else part.share(every)

    return Source(
        name=name,
        blocks=blocks,
        classes=names if label else None,
        own_splits=frozenset(splits.values()) or frozenset({TRAIN}),
        n_images=n_rows,
    )


def has_images(path: Path) -> bool:
    """Whether a file has a column of encoded images, as tables of addresses have not."""
    try:
        with _reading(path):
            _find_columns(_open(path)[0], str(path))
    except ImportError:
        return False
    except UserError:
        return False
    return True


def _open(path: Path) -> tuple[Any, int]:
    """Schema and number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = present(path)
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        return file.schema_arrow, file.metadata.num_rows
    with pa.memory_map(str(path)) as source:
        reader = _arrow_reader(pa, source)
        return reader.schema, sum(batch.num_rows for batch in _arrow_batches(reader))


def _arrow_reader(pa: Any, source: Any) -> Any:
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source)


def _arrow_batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = present(path)
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(BLOCK_IMAGES, columns=columns)
        return
    with pa.memory_map(str(path)) as source:
        for batch in _arrow_batches(_arrow_reader(pa, source)):
            for start in range(0, batch.num_rows, BLOCK_IMAGES):
                yield batch.slice(start, BLOCK_IMAGES).select(columns)


def _find_columns(schema: Any, name: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Names of the column of images and of labels, and of the classes (empty: numbers)."""
    import pyarrow as pa

    image = None
    for field in schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_struct or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            image = field.name
            break
    if image is None:
        raise UserError(
            f"{name} has no column of encoded images (binary, or a struct with bytes): "
            f"its columns are {', '.join(schema.names)}"
        )
    features = _features(schema)
    for column, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            return image, column, tuple(map(str, feature.get("names") or ()))
    numbered = [n for n in _LABEL_NAMES if n in schema.names and _is_integer(schema.field(n).type)]
    return image, next(iter(numbered), None), ()


def _is_integer(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` notes of each column."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}
    known = isinstance(features, dict)
    return {k: v for k, v in features.items() if k in schema.names} if known else {}


def _blocks(
    path: Path, image: str, label: str | None, names: tuple[str, ...], code: int
) -> Iterator[Block]:
    builder = BlockBuilder(labelled=label is not None)
    n_classes = len(names) or MAX_LABEL + 1
    row = 0
    with _reading(path):
        for batch in _batches(path, [image] if label is None else [image, label]):
            labels = [-1] * batch.num_rows if label is None else batch.column(label).to_pylist()
            for cell, value in zip(batch.column(image), labels, strict=True):
                key, row = f"{path.name}/{row}", row + 1
                held = cell.as_py()
                data = held.get("bytes") if isinstance(held, dict) else held
                if not data:
                    builder.reject(key, NO_BYTES)
                elif label is not None and not (isinstance(value, int) and 0 <= value < n_classes):
                    builder.reject(key, BAD_LABEL)
                else:
                    yield from builder.add(data, key, value, code)
    yield from builder.rest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): fetch it again") from error
