"""CRC-32C (Castagnoli; RFC 3720, B.4), the checksum of TFRecord files, block by block.

Without its initial and final inversion a CRC is linear over GF(2): the CRC of a message is the
exclusive or of contributions of its bytes, each a function of the byte and the number of bytes
after it. All bytes of a block are looked up at once, and CRCs of blocks are joined in pairs. One
core does 200 to 300 MB/s, 40 times as much as byte by byte in Python.
"""

import functools

import numpy as np
from jaxtyping import Integer, UInt32

_POLYNOMIAL = 0x82F63B78  # generator polynomial with reversed bits
_BLOCK = 256  # bytes; the table of a block's contributions takes 256 KiB
_AT_ONCE = 2**10  # blocks that are processed at once


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of any number of bytes."""
    if len(data) < _BLOCK:
        return _bytewise(data)
    count = -(-len(data) // _BLOCK)
    padded = np.zeros(count * _BLOCK, np.uint8)  # leading zeros contribute nothing
    padded[len(padded) - len(data) :] = np.frombuffer(data, np.uint8)
    padded[len(padded) - len(data) :][:4] ^= 255  # initial inversion
    blocks, table = padded.reshape(count, _BLOCK), _contributions()
    at = np.arange(_BLOCK) * 256
    parts = [np.bitwise_xor.reduce(table[blocks[i : i + _AT_ONCE] + at], axis=1) for i in range(0, count, _AT_ONCE)]
    crcs, level = np.concatenate(parts), 0
    while len(crcs) > 1:
        if len(crcs) % 2:
            crcs = np.insert(crcs, 0, 0)
        crcs = _followed_by_zeros(crcs[::2], _shifts(level)) ^ crcs[1::2]
        level += 1
    return int(crcs[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """The masked checksum that TFRecord files store.

    It is rotated and a constant is added, because the CRC of data that contain CRCs is weak.
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _bytewise(data: bytes | memoryview) -> int:
    table, crc = _table_as_list(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> UInt32[np.ndarray, "256"]:
    """CRC of each single byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ _POLYNOMIAL, table >> 1).astype(np.uint32)
    return table


@functools.cache
def _table_as_list() -> list[int]:
    return _table().tolist()


def _followed_by_zero(crcs: UInt32[np.ndarray, "..."]) -> UInt32[np.ndarray, "..."]:
    return _table()[crcs & 255] ^ crcs >> 8


@functools.cache
def _contributions() -> UInt32[np.ndarray, " block_times_256"]:
    """Contribution of byte b at place p of a block, at index 256 p + b."""
    rows = [_table()]
    for _ in range(_BLOCK - 1):
        rows.append(_followed_by_zero(rows[-1]))
    return np.concatenate(rows[::-1])


@functools.cache
def _shifts(level: int) -> UInt32[np.ndarray, "4 256"]:
    """Table of CRCs after 2**level blocks of zeros, for each value of each byte of a CRC."""
    if level:
        half = _shifts(level - 1)
        return _followed_by_zeros(half, half)
    shifts = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(_BLOCK):
        shifts = _followed_by_zero(shifts)
    return shifts


def _followed_by_zeros(crcs: UInt32[np.ndarray, "..."], shifts: UInt32[np.ndarray, "4 256"]) -> UInt32[np.ndarray, "..."]:
    places: list[Integer[np.ndarray, ...]] = [crcs >> 8 * i & 255 for i in range(4)]
    return shifts[0][places[0]] ^ shifts[1][places[1]] ^ shifts[2][places[2]] ^ shifts[3][places[3]]
