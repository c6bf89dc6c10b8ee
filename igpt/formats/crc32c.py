"""CRC-32C (Castagnoli), which guards every block and tensor of a TensorFlow checkpoint.

A CRC is linear over GF(2): many stretches are read side by side, from state 0, and then joined by
the operator that lets zero bytes pass. So numpy reads hundreds of megabytes in seconds.
"""

import numpy as np

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
