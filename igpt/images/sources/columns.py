"""Parquet and Arrow files as `datasets` writes them: a column of images, perhaps one of labels.

The column of images is the one declared as such (`datasets` notes it), else the first of a usual
name that holds bytes, else the first of which a value is an image. A row without bytes but with a
path means that file. Labels, splits and file names follow `igpt.images.sources.labels`,
`igpt.images.splits` and `igpt.images.sources.names`.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igpt.errors import UserError
from igpt.images.decode import open_image
from igpt.images.sources.labels import Numbering, label_key, label_of, ordered, said_of_labels
from igpt.images.sources.names import find_named
from igpt.images.sources.remote import present
from igpt.images.sources.source import BLOCK_IMAGES, Block, BlockBuilder, Part, Source, Span
from igpt.images.splits import TRAIN, file_codes, said_of_splits

SUFFIXES = (".parquet", ".arrow")
NO_BYTES = "no image in the row"
_IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes")


def open_columns(paths: list[Path], *, name: str, unlabelled: bool = False) -> Source:
    """Images of one or several files.

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
    codes, held, without = _codes(paths), list[Path](), list[UserError]()
    n_rows: Counter[int] = Counter()
    label: str | None = None
    names: tuple[str, ...] = ()
    values: Counter[str | None] = Counter()
    for path in paths:
        with _reading(path):
            schema, n = _open(path)
        try:
            _image_column(schema, path, name if len(paths) == 1 else str(path))
        except UserError as error:
            without.append(error)
            continue
        held.append(path)
        n_rows[codes[path]] += n
        found, declared = (None, ()) if unlabelled else _label_column(schema)
        label, names = label or found, names or declared
        if found and not declared:
            values.update(_values(path, found))
    if not held:
        raise without[0]
    numbering = Numbering(
        names or ordered(v for v in values if v is not None), are_places=bool(names)
    )
    is_labelled = label is not None and bool(numbering.classes)

    def blocks(part: Part) -> Iterator[Block]:
        shared = len(held) >= part.count
        chosen = list(part.share(held)) if shared else held
        every = (
            block
            for path in sorted(chosen, key=lambda path: codes[path])
            for block in _blocks(path, name, numbering if is_labelled else None, codes[path])
        )
        return every if shared else part.share(every)

    decided = [said_of_splits("the names of files", dict(n_rows))] if len(n_rows) > 1 else []
    if is_labelled:
        total = sum(n_rows.values())
        labelled = total if names else total - values[None]
        counts = {"n_labelled": labelled, "n_images": total, "n_classes": len(numbering.classes)}
        decided.append(said_of_labels(f"the column {label}", **counts))
    elif not unlabelled:
        decided.append("labels: none, as no column of words or numbers is named like one")
    decided += [f"left out: {error}" for error in without]
    return Source(
        name=name,
        blocks=blocks,
        classes=numbering.classes if is_labelled else None,
        own_splits=frozenset(n_rows),
        n_images=sum(n_rows.values()),
        decided=tuple(decided),
    )


def _codes(paths: Sequence[Path]) -> dict[Path, int]:
    """The split of every file, by its name and the folders that not all of them lie in."""
    top = Path(os.path.commonpath([path.parent for path in paths]))
    names = {path: path.relative_to(top).as_posix() for path in paths}
    said = file_codes(list(names.values()))
    return {path: said.get(name, TRAIN) for path, name in names.items()}


def _values(path: Path, column: str) -> Iterator[str | None]:
    with _reading(path):
        for batch in _batches(path, [column]):
            yield from map(label_of, batch.column(column).to_pylist())


def has_images(path: Path) -> bool:
    """Whether a file has a column of encoded images, as tables of addresses have not."""
    try:
        with _reading(path):
            _image_column(_open(path)[0], path, str(path))
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


def _image_column(schema: Any, path: Path, name: str) -> str:
    """Which column holds the images: by declared type, by name, by trying to decode."""
    declared = [
        column
        for column, feature in _features(schema).items()
        if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    if declared:
        return str(declared[0])
    held = [field.name for field in schema if _holds_bytes(field.type)]
    named = [known for known in _IMAGE_NAMES if known in held]
    for column in (*named, *held):
        if column in named or len(held) == 1 or _decodes(path, column):
            return str(column)
    raise UserError(
        f"{name} has no column of encoded images (binary, or a struct with bytes): "
        f"its columns are {', '.join(schema.names)}"
    )


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _decodes(path: Path, column: str) -> bool:
    """Whether the first value of a column is an image."""
    with _reading(path):
        for batch in _batches(path, [column]):
            for cell in batch.column(column):
                data = _encoded(cell.as_py(), path.parent)
                if isinstance(data, bytes):
                    try:
                        with open_image(data):
                            return True
                    except UserError:
                        return False
    return False


def _encoded(held: Any, folder: Path) -> bytes | Span | None:
    """What a cell holds: bytes, or the path of a file; None: neither."""
    if not isinstance(held, Mapping):
        return held or None
    if held.get("bytes"):
        return bytes(held["bytes"])
    return Span(find_named(folder, str(held["path"]))) if held.get("path") else None


def _label_column(schema: Any) -> tuple[str | None, tuple[str, ...]]:
    """Name of the column of labels, and the names that it declares for its numbers."""
    import pyarrow as pa

    for column, feature in _features(schema).items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            return column, tuple(map(str, feature.get("names") or ()))

    def is_plain(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
        return any(test(kind) for test in (*tests, pa.types.is_floating, pa.types.is_boolean))

    return label_key(field.name for field in schema if is_plain(field.type)), ()


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` notes of each column."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}
    known = isinstance(features, dict)
    return {k: v for k, v in features.items() if k in schema.names} if known else {}


def _blocks(path: Path, name: str, numbering: Numbering | None, code: int) -> Iterator[Block]:
    builder = BlockBuilder(labelled=numbering is not None)
    row = 0
    with _reading(path):
        schema = _open(path)[0]
        image = _image_column(schema, path, name)
        label = None if numbering is None else _label_column(schema)[0]
        for batch in _batches(path, [image] if label is None else [image, label]):
            labels = [None] * batch.num_rows if label is None else batch.column(label).to_pylist()
            for cell, value in zip(batch.column(image), labels, strict=True):
                key, row = f"{path.name}/{row}", row + 1
                data = _encoded(cell.as_py(), path.parent)
                if data is None:
                    builder.reject(key, NO_BYTES)
                    continue
                try:
                    number = -1 if numbering is None else numbering.number(value)
                except UserError as error:
                    builder.reject(key, str(error))
                    continue
                yield from builder.add(data, key, number, code)
    yield from builder.rest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): fetch it again") from error
