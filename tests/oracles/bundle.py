"""Writes TensorFlow checkpoints by the published format, bit by bit, with no thought of speed."""

import struct


def crc(data):
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def masked(data):
    plain = crc(data)
    return (((plain >> 15) | (plain << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value) if value else b""  # proto3 leaves zeros out


def block_of(pairs, restart_every):
    body, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % restart_every == 0:
            restarts.append(len(body))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value))
        body += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return body + b"".join(struct.pack("<I", r) for r in [*restarts, len(restarts)])


def write_table(path, pairs, block_bytes, restart_every=16):
    out, index = b"", []

    def put(block):
        nonlocal out
        handle = varint(len(out)) + varint(len(block))
        out += block + b"\0" + struct.pack("<I", masked(block + b"\0"))
        return handle

    while pairs:
        n = 1
        while n < len(pairs) and len(block_of(pairs[:n], restart_every)) < block_bytes:
            n += 1
        index.append((pairs[n - 1][0], put(block_of(pairs[:n], restart_every))))
        pairs = pairs[n:]
    handles = put(block_of([], 1)) + put(block_of(index, 1))
    path.write_bytes(out + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))


def write_bundle(prefix, tensors, *, n_shards=1, block_bytes=4096):
    shards = [b""] * n_shards
    header = field(1, n_shards) + field(3, field(1, 1))
    pairs = [(b"", header)]
    for i, name in enumerate(sorted(tensors)):
        array = tensors[name]
        data = array.tobytes()
        shard = i % n_shards
        dims = b"".join(field(2, field(1, size)) for size in array.shape)
        entry = field(1, {"float32": 1, "int64": 9}[str(array.dtype)]) + field(2, dims)
        entry += field(3, shard) + field(4, len(shards[shard])) + field(5, len(data))
        entry += varint(6 << 3 | 5) + struct.pack("<I", masked(data))
        pairs.append((name.encode(), entry))
        shards[shard] += data
    write_table(prefix.with_name(prefix.name + ".index"), pairs, block_bytes)
    for i, data in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{n_shards:05d}").write_bytes(data)
