"""The authors' released files: TensorFlow checkpoints, and images as tokens (PAPER §C).

Checkpoints (tensor bundles) are read without TensorFlow: `PREFIX.index` is a sorted table of
blocks, as LevelDB has it: the empty key holds a `BundleHeaderProto`, each tensor's name a
`BundleEntryProto` that says where in the shards `PREFIX.data-IIIII-of-NNNNN` its bytes lie. Every
block and tensor has a checksum (CRC-32C); all are checked. A CRC is linear over GF(2): many
stretches are read side by side, from state 0, and joined by the operator that lets zero bytes pass,
so numpy reads hundreds of megabytes in seconds.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from igpt.config import ModelConfig, Objective
from igpt.errors import UserError
from igpt.formats.folder import described_config
from igpt.formats.tensors import warn_of_zero_head
from igpt.model.gpt import GPT
from igpt.model.sizes import Shape, check_held
from igpt.tokens.palette import Palette
from igpt.train.tensors import load_weights
from igpt.trained import ModelFacts, Trained

_BLOCK = re.compile(r"h(\d+)/(ln_1/g|ln_2/g|attn/[qkvc]_proj|mlp/c_fc/w|mlp/c_proj/w)")
# Adam's moments and the counters of training: two thirds of the released files.
_OF_TRAINING = re.compile(r"(^|/)(adam|beta[12]_power)|_step(_\d+)?$", re.IGNORECASE)
# The files of one checkpoint, by what follows its prefix.
_PART = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_OUTER = {"wte": "wte.weight", "wpe": "wpe.weight", "wtet": "head.weight", "sos": "sos"}


def find_checkpoint(name: str) -> Path | None:
    """The prefix of the TensorFlow checkpoint that a path means; none where it means another thing.

    Args:
        name: the prefix itself, as in `model.ckpt-1000000`; any one of its files; or a folder
            that holds one.

    Raises:
        UserError: the folder holds several.
    """
    path = Path(name)
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) > 1:
            raise UserError(
                f"{name} holds several checkpoints: name one, as {found[-1].with_suffix('')}"
            )
        return found[0].with_suffix("") if found else None
    prefix = path.with_name(_PART.sub("", path.name))
    is_one = prefix != path or Path(f"{prefix}.index").is_file()
    return prefix if is_one else None


def read_openai(prefix: Path, palette: str | None = None) -> Trained:
    """The model of a released checkpoint; without `sos` among its tensors it is a BERT one.

    Args:
        prefix: as `find_checkpoint` gives it.
        palette: the authors' kmeans_centers.npy; none: the file of that name beside it.

    Raises:
        UserError: no palette, a damaged or missing file, a tensor missing, extra or of a shape
            that fits no image GPT.
    """
    beside = prefix.with_name("kmeans_centers.npy")
    if palette is None and not beside.is_file():
        raise UserError(
            f"{prefix} has no colours: put the authors' kmeans_centers.npy beside it, "
            "or name them by igpt convert --palette"
        )
    colors = Palette.load(palette or beside)
    bundle = Bundle(prefix)
    where = f"{prefix}.index"
    held = {
        full.removeprefix("model/"): bundle.read(full)
        for full in bundle.entries
        if not _OF_TRAINING.search(full)
    }
    score = held.pop("clf/wclf", None)
    network = _network(held, where)
    if colors.n_colors != network.n_colors:
        raise UserError(
            f"{palette or beside} has {colors.n_colors} colours, {where} {network.n_colors}"
        )
    facts = ModelFacts(
        objective=network.objective,
        image_size=math.isqrt(network.seq_len),
        tokens="palette",
        trained={"source": "openai/image-gpt", "checkpoint": prefix.name},
    )
    warn_of_zero_head(network.head.weight, where=where)
    model = Trained(network, colors, facts)
    if score is not None and score.any():
        classes = [str(label) for label in range(len(score))]
        model.take_class_head(score, classes, protocol="the class head of the checkpoint")
    return model


def _network(held: dict[str, np.ndarray], where: str) -> GPT:
    try:
        (n_colors, width), seq_len = held["wte"].shape, len(held["wpe"])
        n_head = held["h0/attn/q_proj"].shape[0]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{where} holds no image GPT: wte, wpe or h0/attn/q_proj is wrong"
        ) from error
    if math.isqrt(seq_len) ** 2 != seq_len:
        raise UserError(f"{where}: {seq_len} positions make no square image")
    n_layer = len({int(match[1]) for name in held if (match := _BLOCK.fullmatch(name))})
    objective: Objective = "ar" if "sos" in held else "bert"
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": width}
    config = described_config(sizes, where=where)
    check_held(
        config,
        Shape(n_colors=n_colors, seq_len=seq_len, objective=objective),
        n_tensors=len(held),
        n_values=sum(array.size for array in held.values()),
        where=where,
    )
    network = GPT(config, n_colors=n_colors, seq_len=seq_len, objective=objective)
    load_weights(network, _renamed(held, config, where), where=where)
    return network


def _renamed(held: dict[str, np.ndarray], config: ModelConfig, where: str) -> dict[str, Tensor]:
    """Their tensors under our names, in our shapes."""
    D, H = config.n_embd, config.n_head
    ours: dict[str, np.ndarray] = {}
    for name, array in held.items():
        match = _BLOCK.fullmatch(name)
        if "_proj" in name and "attn" in name and array.shape != (H, D // H, D):
            raise UserError(f"{where}: {name} is {array.shape}, not ({H}, {D // H}, {D})")
        if match is None:
            ours[_OUTER.get(name, "ln_f.weight" if name == "ln_f/g" else name)] = array
        elif match[2].startswith("ln"):
            ours[f"h.{match[1]}.{match[2][:4]}.weight"] = array
        elif match[2].startswith("mlp"):
            ours[f"h.{match[1]}.{match[2][:-2].replace('/', '.')}.weight"] = array.T
        elif match[2] == "attn/c_proj":
            ours[f"h.{match[1]}.attn.c_proj.weight"] = array.reshape(D, D).T
    for layer in range(config.n_layer):
        names = [f"h{layer}/attn/{part}_proj" for part in "qkv"]
        for name in names:
            if name not in held:
                raise UserError(f"{where}: tensor model/{name} is missing: use a whole checkpoint")
        joined = np.concatenate([held[name].reshape(D, D) for name in names])  # (3 D, D)
        ours[f"h.{layer}.attn.c_attn.weight"] = joined
    return {name: torch.tensor(array) for name, array in ours.items()}


MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
TRAILER_BYTES = 5
MAX_INDEX_BYTES = 1 << 28
# iGPT-XL with its optimiser has 2,500 tensors, and names of 60 letters.
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 1_000
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where one tensor lies."""

    dtype: int
    """TensorFlow's number of the type."""
    shape: tuple[int, ...]
    shard: int
    offset: int
    n_bytes: int
    crc: int
    """Masked CRC-32C of its bytes."""
    sliced: bool
    """Whether it is kept in slices, which are not read here."""


class Bundle:
    """The tensors of a checkpoint, by name; only the table is read at first.

    Args:
        prefix: the path up to `.index`.

    Raises:
        UserError: the table is missing, damaged, or of another kind.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._index = Path(f"{prefix}.index")
        try:
            if self._index.stat().st_size > MAX_INDEX_BYTES:
                raise self._fault("is too large for a table of tensors")
            data = self._index.read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read {self._index}: {error.strerror}: check the path"
            ) from error
        try:
            values = dict(self._table(data))
            header = _Message(values.pop(b""))
            self._n_shards = header.number(1, 1)
            self.entries = {key.decode(): _entry(value) for key, value in values.items()}
        except (KeyError, IndexError, ValueError, struct.error) as error:
            raise self._fault(f"is damaged ({error})") from error
        self._claimed = Counter[int]()  # bytes of all tensors in a shard
        self._last: dict[int, str] = {}  # the tensor that ends it
        for name, entry in sorted(self.entries.items(), key=lambda item: _end(item[1])):
            self._claimed[entry.shard] += entry.n_bytes
            self._last[entry.shard] = name
        if header.number(2) != 0:
            raise self._fault("was written on a big-endian machine, which is not read")

    def read(self, name: str) -> np.ndarray:
        """The tensor called `name`.

        Raises:
            UserError: its shard is missing or too short, its checksum differs, or it is of a type
                that is not read.
        """
        entry = self.entries[name]
        path = Path(f"{self.prefix}.data-{entry.shard:05d}-of-{self._n_shards:05d}")
        if entry.sliced or entry.dtype not in DTYPES:
            raise self._fault(f"holds {name} in slices or as type {entry.dtype}, which is not read")
        dtype = np.dtype(DTYPES[entry.dtype])
        if int(np.prod(entry.shape, dtype=object)) * dtype.itemsize != entry.n_bytes:
            raise self._fault(f"gives {name} a shape that does not fit its size")
        try:
            self._check_room(entry.shard, path.stat().st_size, path)
            with path.open("rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.n_bytes)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}: fetch every shard") from error
        if crc32c(data) != unmasked(entry.crc):
            raise UserError(f"{path} is damaged: the checksum of {name} differs: fetch it again")
        return np.frombuffer(data, dtype).reshape(entry.shape)

    def _check_room(self, shard: int, n_bytes: int, path: Path) -> None:
        """Refuse tensors beyond the end of a shard, or over one another: they fill any memory."""
        last = self._last[shard]
        if n_bytes < _end(self.entries[last]):
            raise UserError(f"{path} is cut short, before the end of {last}: fetch it again")
        if n_bytes < self._claimed[shard]:
            raise self._fault(f"gives its tensors more bytes than {path.name} has")

    def _table(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        if len(data) < FOOTER_BYTES or struct.unpack_from("<Q", data, len(data) - 8)[0] != MAGIC:
            raise self._fault("does not end as the index of a TensorFlow checkpoint does")
        footer = data[-FOOTER_BYTES:]
        at = _varint(footer, _varint(footer, 0)[1])[1]  # past the handle of the meta-index
        n_bytes = n_entries = 0
        for _, handle in self._block(data, footer[at:]):
            n_bytes += _varint(handle, _varint(handle, 0)[1])[0]
            if n_bytes > len(data):
                raise self._fault("is damaged: its blocks lie over one another")
            for entry in self._block(data, handle):
                n_entries += 1
                if n_entries > MAX_TENSORS:
                    raise self._fault(f"lists more than {MAX_TENSORS} tensors")
                yield entry

    def _block(self, data: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The keys and values of the block at a handle: its offset and size as varints."""
        offset, at = _varint(handle, 0)
        end = offset + _varint(handle, at)[0]
        if end + TRAILER_BYTES > len(data):
            raise self._fault("is damaged: a block lies beyond its end")
        if crc32c(data[offset : end + 1]) != unmasked(struct.unpack_from("<I", data, end + 1)[0]):
            raise self._fault("is damaged: the checksum of a block differs")
        if data[end] != 0:
            raise self._fault("is compressed, which is not read")
        block = data[offset:end]
        restarts = struct.unpack_from("<I", block, len(block) - 4)[0]
        stop, at, key = len(block) - 4 * (restarts + 1), 0, b""
        while at < stop:
            shared, at = _varint(block, at)
            own, at = _varint(block, at)
            size, at = _varint(block, at)
            if min(shared, len(key)) + own > MAX_NAME_BYTES:
                raise self._fault(f"has a name of more than {MAX_NAME_BYTES} bytes")
            key = key[:shared] + block[at : at + own]
            yield key, block[at + own : at + own + size]
            at += own + size

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self._index} {what}: fetch it again")


def _end(entry: Entry) -> int:
    return entry.offset + entry.n_bytes


def _entry(data: bytes) -> Entry:
    message = _Message(data)
    shape = message.fields.get(2, b"")
    if isinstance(shape, int):
        raise ValueError("a shape that is a number")
    dims = (dim for number, dim in _fields(shape) if number == 2 and isinstance(dim, bytes))
    return Entry(
        dtype=message.number(1),
        shape=tuple(_Message(dim).number(1) for dim in dims),
        shard=message.number(3),
        offset=message.number(4),
        n_bytes=message.number(5),
        crc=message.number(6),
        sliced=7 in message.fields,
    )


class _Message:
    """The fields of a protocol buffer; of one that comes twice, the last."""

    def __init__(self, data: bytes) -> None:
        self.fields = dict(_fields(data))

    def number(self, field: int, default: int = 0) -> int:
        """A field that must be a number, whatever the file says that it is."""
        value = self.fields.get(field, default)
        if isinstance(value, bytes):
            raise ValueError(f"field {field} is not a number")
        return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers and values of a protocol buffer's fields."""
    at = 0
    value: int | bytes
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif kind == 5:
            value, at = struct.unpack_from("<I", message, at)[0], at + 4
        else:
            raise ValueError(f"field of kind {kind}")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, seven bits a byte, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


_POLYNOMIAL = 0x82F63B78
_MOST_LANES_LOG2 = 14


def crc32c(data: bytes) -> int:
    """The checksum of some bytes, from 0 to 2^32 - 1."""
    state = _joined(np.frombuffer(data, np.uint8))
    return (
        state ^ int(_apply(_passing(len(data)), np.array([0xFFFFFFFF], np.uint32))[0]) ^ (2**32 - 1)
    )


def unmasked(stored: int) -> int:
    """A checksum as TensorFlow stores it, rotated and shifted, made plain again."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def _table() -> np.ndarray:
    """(256,) uint32: the state that each byte leaves."""
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


_TABLE = _table()


def _joined(data: np.ndarray) -> int:
    """The state after (n,) uint8 from state 0, in which leading zeros change nothing."""
    log2 = min(_MOST_LANES_LOG2, len(data).bit_length() // 2)
    length = -(-len(data) // (1 << log2))
    padded = np.zeros(length << log2, np.uint8)
    padded[len(padded) - len(data) :] = data
    state = np.zeros(1 << log2, np.uint32)
    for column in np.ascontiguousarray(padded.reshape(1 << log2, length).T):
        state = _TABLE[(state ^ column) & 255] ^ (state >> 8)
    operator = _passing(length)
    while len(state) > 1:
        state = _apply(operator, state[::2]) ^ state[1::2]
        operator = _apply(operator, operator)
    return int(state[0])


def _passing(n_bytes: int) -> np.ndarray:
    """(32,) uint32: what `n_bytes` zero bytes make of each single bit of a state."""
    result = np.uint32(1) << np.arange(32, dtype=np.uint32)
    square = _TABLE[result & 255] ^ (result >> 8)
    while n_bytes:
        if n_bytes & 1:
            result = _apply(square, result)
        square = _apply(square, square)
        n_bytes >>= 1
    return result


def _apply(operator: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The operator's (32,) images of single bits, summed for each of the states (n,) uint32."""
    result = np.zeros_like(states)
    for bit in range(32):
        result ^= np.where((states >> np.uint32(bit)) & 1, operator[bit], np.uint32(0))
    return result
