"""Parquet and Arrow files as `datasets` writes them: a column of images, perhaps one of labels.

The column of images is the one declared as such (`datasets` notes it), else the first of a usual
name that holds bytes, else the first of which a value is an image. A row without bytes but with a
path means that file. Labels, splits and file names follow `igpt.images.sources.labels`,
`igpt.images.splits` and `igpt.images.sources.names`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from igpt.errors import UserError
from igpt.files import refuse_pointer
from igpt.images.decode import open_image
from igpt.images.rejects import MAX_FILE_BYTES
from igpt.images.sources.labels import (
    Numbering,
    label_key,
    note_label,
    ordered,
    said_of_labels,
    said_of_odd,
)
from igpt.images.sources.names import find_named
from igpt.images.sources.remote import present
from igpt.images.sources.source import BLOCK_IMAGES, Block, BlockBuilder, Part, Source, Span
from igpt.images.splits import (
    COLUMN_NAMES,
    TRAIN,
    codes_of_cells,
    codes_of_files,
    said_alone,
    said_of_splits,
)

SUFFIXES = (".parquet", ".arrow", ".feather")
NO_BYTES = "no image in the row"
# Of encoded images that are in memory at a time.
_BATCH_BYTES = 2**27
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
    survey = _survey(paths, name, unlabelled=unlabelled)
    numbering = Numbering(
        survey.names or ordered(v for v in survey.values if v is not None),
        are_places=bool(survey.names),
    )
    is_labelled = survey.label is not None and bool(numbering.classes)

    def blocks(part: Part) -> Iterator[Block]:
        shared = len(survey.held) >= part.count
        chosen = list(part.share(survey.held)) if shared else survey.held
        every = (
            block
            for path in sorted(chosen, key=lambda path: survey.codes[path])
            for block in _blocks(
                path, name, numbering if is_labelled else None, survey.places(path)
            )
        )
        return every if shared else part.share(every)

    return Source(
        name=name,
        blocks=blocks,
        classes=numbering.classes if is_labelled else None,
        own_splits=frozenset(survey.by_split()),
        n_images=survey.n_rows.total(),
        decided=_decided(survey, len(numbering.classes) * is_labelled, unlabelled=unlabelled),
    )


@dataclass(slots=True)
class _Survey:
    """What the files and their schemas say, and a pass over the labels."""

    codes: dict[Path, int]
    """The split of each file by its name."""
    cells: Counter[str] = field(default_factory=Counter)
    """Rows by what the column of splits holds."""
    splits: dict[str, int] = field(default_factory=dict)
    """The code of each cell; empty: the names of files say the splits."""
    held: list[Path] = field(default_factory=list)
    """The files that have a column of images."""
    without: list[UserError] = field(default_factory=list)
    """Why each of the others has none."""
    n_rows: Counter[int] = field(default_factory=Counter)
    """By split."""
    label: str | None = None
    """The column of labels."""
    names: tuple[str, ...] = ()
    """Of the classes, where the files declare them."""
    values: Counter[str | None] = field(default_factory=Counter)
    """Rows of each label, where they do not."""
    odd: Counter[str] = field(default_factory=Counter)
    """Rows of what can be no label, by reason."""

    def places(self, path: Path) -> dict[str, int]:
        """The code of each cell of splits in a file; of `""` for all others."""
        return self.splits or {"": self.codes[path]}

    def by_split(self) -> Counter[int]:
        """Rows of each split."""
        if not self.splits:
            return self.n_rows
        found: Counter[int] = Counter()
        for cell, n in self.cells.items():
            found[self.splits.get(cell, TRAIN)] += n
        return found


def _survey(paths: list[Path], name: str, *, unlabelled: bool) -> _Survey:
    said = codes_of_files(paths)
    found = _Survey({path: said.get(path, TRAIN) for path in paths})
    for path in paths:
        with _reading(path):
            schema, n = _open(path)
        try:
            _image_column(schema, path, name if len(paths) == 1 else str(path))
        except UserError as error:
            found.without.append(error)
            continue
        found.held.append(path)
        found.n_rows[found.codes[path]] += n
        label, declared = (None, ()) if unlabelled else _label_column(schema)
        found.label, found.names = found.label or label, found.names or declared
        if label and not declared:
            for value in _values(path, label):
                note_label(value, found.values, found.odd)
        if split := _split_column(schema):
            found.cells.update(_cell(value) for value in _values(path, split))
        else:
            found.cells[""] += n
    if not found.held:
        raise found.without[0]
    found.splits = codes_of_cells(found.cells, name)
    return found


def _decided(survey: _Survey, n_classes: int, *, unlabelled: bool) -> tuple[str, ...]:
    lines = list(said_alone(path.name for path in survey.held))
    if len(by_split := survey.by_split()) > 1:
        where = "the column of splits" if survey.splits else "the names of files"
        lines = [said_of_splits(where, by_split)]
    if n_classes:
        total = survey.n_rows.total()
        labelled = total if survey.names else total - survey.values[None]
        counts = {"n_labelled": labelled, "n_images": total, "n_classes": n_classes}
        lines.append(said_of_labels(f"the column {survey.label}", **counts))
    elif not unlabelled and not survey.odd:
        lines.append("labels: none, as no column of words or numbers is named like one")
    lines += said_of_odd(f"the column {survey.label}", survey.odd)
    return (*lines, *(f"left out: {error}" for error in survey.without))


def _values(path: Path, column: str) -> Iterator[Any]:
    with _reading(path):
        for batch in _batches(path, column):
            yield from _column(batch, column).to_pylist()


def _cell(value: Any) -> str:
    """What a cell of a column of splits says, if anything."""
    return "" if value is None else str(value).strip().lower()


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The names of the columns of words and numbers, as keys, and then every row of them."""
    with _reading(path):
        names = [name for name, kind in _leaves(_open(path)[0]) if _is_plain(kind)]
        yield dict.fromkeys(names)
        for batch in _batches(path, *names) if names else ():
            columns = [_column(batch, name).to_pylist() for name in names]
            yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


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
    if path.suffix.lower() == ".parquet":
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


def _batches(path: Path, *columns: str | None) -> Iterator[Any]:
    """Some rows at a time, of these columns (or those that hold them)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [column for column in columns if column is not None]
    path = present(path)
    if path.suffix.lower() == ".parquet":
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(_rows_at_once(file.metadata), columns=wanted):
            yield _checked(batch)
        return
    with pa.memory_map(str(path)) as source:
        for batch in _arrow_batches(_arrow_reader(pa, source)):
            names = batch.schema.names
            tops = [name if name in names else name.split(".")[0] for name in wanted]
            chosen = _checked(batch.select(list(dict.fromkeys(tops))))
            for start in range(0, batch.num_rows, BLOCK_IMAGES):
                yield chosen.slice(start, BLOCK_IMAGES)


def _checked(batch: Any) -> Any:
    """Rows whose offsets lie in their buffers: pyarrow reads wherever a damaged one points."""
    batch.validate(full=True)
    return batch


def _rows_at_once(metadata: Any) -> int:
    """Rows of a parquet file that take little memory, by what it says of its groups of rows."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    largest = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
    return max(1, min(BLOCK_IMAGES, _BATCH_BYTES // max(1, largest)))


def _image_column(schema: Any, path: Path, name: str) -> str:
    """Which column holds the images: by declared type, by name, by trying to decode."""
    declared = [
        column
        for column, feature in _features(schema).items()
        if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    if declared:
        return str(declared[0])
    held = [leaf for leaf, kind in _leaves(schema) if _holds_bytes(kind)]
    by_name = {leaf.rpartition(".")[2].lower(): leaf for leaf in reversed(held)}
    named = [by_name[known] for known in _IMAGE_NAMES if known in by_name]
    for column in (*named, *held):
        if column in named or len(held) == 1 or _decodes(path, column):
            return str(column)
    raise UserError(
        f"{name} has no column of encoded images (binary, or a struct with bytes): "
        f"its columns are {', '.join(schema.names)}"
    )


def _leaves(fields: Iterable[Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every column and its type; of one that is a record of others, `name.inner` for each."""
    import pyarrow as pa

    for column in fields:
        name = f"{above}{column.name}"
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") < 0:
            yield from _leaves(column.type, f"{name}.")
        else:
            yield name, column.type


def _holds_bytes(kind: Any) -> bool:
    """Whether a column of this type may hold an image, or a list of them, in each row."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, pa.types.is_binary_view))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _column(batch: Any, name: str) -> Any:
    """A column by the name that `_leaves` gives it."""
    import pyarrow.compute as pc

    if name in batch.schema.names:
        return batch.column(name)
    first, *inner = name.split(".")
    return pc.struct_field(batch.column(first), inner)


def _cells(held: Any) -> list[Any]:
    """The images of one row."""
    return held if isinstance(held, list) else [held]


def _decodes(path: Path, column: str) -> bool:
    """Whether the first value of a column is an image."""
    with _reading(path):
        for batch in _batches(path, column):
            for cell in chain.from_iterable(_cells(row.as_py()) for row in _column(batch, column)):
                data = _encoded(cell, path.parent)
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
        return _bytes(held) if held else None
    if held.get("bytes"):
        return _bytes(held["bytes"])
    return Span(find_named(folder, str(held["path"]))) if held.get("path") else None


def _bytes(held: bytes) -> bytes:
    if len(held) > MAX_FILE_BYTES:
        raise UserError(f"more than {MAX_FILE_BYTES} bytes")
    return held


def _label_column(schema: Any) -> tuple[str | None, tuple[str, ...]]:
    """Name of the column of labels, and the names that it declares for its numbers."""
    for column, feature in _features(schema).items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            return column, tuple(map(str, feature.get("names") or ()))
    plain = _plain(schema)
    if (key := label_key(plain)) is None:  # perhaps a list of one, or what can be said to be none
        plain = {n.rpartition(".")[2]: n for n, kind in _leaves(schema) if not _holds_bytes(kind)}
        key = label_key(plain)
    return (None if key is None else plain[key]), ()


def _split_column(schema: Any) -> str | None:
    """Name of the column of splits."""
    plain = {name.strip().lower(): leaf for name, leaf in _plain(schema).items()}
    return next((plain[known] for known in COLUMN_NAMES if known in plain), None)


def _plain(schema: Any) -> dict[str, str]:
    """The columns of words and numbers, by their own names."""
    return {leaf.rpartition(".")[2]: leaf for leaf, kind in _leaves(schema) if _is_plain(kind)}


def _is_plain(kind: Any) -> bool:
    """Whether a column of this type holds a word or a number in each row."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    return any(test(kind) for test in (*tests, pa.types.is_floating, pa.types.is_boolean))


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` notes of each column."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}
    known = isinstance(features, dict)
    return {k: v for k, v in features.items() if k in schema.names} if known else {}


def _blocks(
    path: Path, name: str, numbering: Numbering | None, places: Mapping[str, int]
) -> Iterator[Block]:
    builder = BlockBuilder(labelled=numbering is not None)
    with _reading(path):
        schema = _open(path)[0]
        image = _image_column(schema, path, name)
        label = None if numbering is None else _label_column(schema)[0]
        split = _split_column(schema)
        columns = (image, label, split)
        rows = chain.from_iterable(map(partial(_rows, *columns), _batches(path, *columns)))
        for row, (held, value, cell_of_split) in enumerate(rows):
            code = places.get(_cell(cell_of_split), places.get("", TRAIN))
            cells = _cells(held)
            for i, cell in enumerate(cells or [None]):
                key = f"{path.name}/{row}" + (f"/{i}" if len(cells) > 1 else "")
                try:
                    data = _encoded(cell, path.parent)
                    number = -1 if numbering is None else numbering.number(value)
                except UserError as error:
                    builder.reject(key, str(error))
                    continue
                if data is None:
                    builder.reject(key, NO_BYTES)
                    continue
                yield from builder.add(data, key, number, code)
    yield from builder.rest()


def _rows(
    image: str, label: str | None, split: str | None, batch: Any
) -> Iterator[tuple[Any, Any, Any]]:
    """Image, label and split of each row."""
    nothing = [None] * batch.num_rows
    labels = nothing if label is None else _column(batch, label).to_pylist()
    splits = nothing if split is None else _column(batch, split).to_pylist()
    return zip((cell.as_py() for cell in _column(batch, image)), labels, splits, strict=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        refuse_pointer(path)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): fetch it again") from error
