"""The chain of chunk keys as machine code: XXH3 of chunk after chunk, without a call from Python for each.

The router hashes with this `chunk_keys`, which gives the keys of `prompt.chunk_keys` bit for bit and is nothing but it
where numba is missing or chunks are of another size. Nobody else imports this: numba costs 190 MB. Algorithm: XXH3 64-bit
with a seed (Yann Collet, xxHash 0.8), its form for inputs of more than 240 bytes within one block of 1,024.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from penstock_core import prompt

F = TypeVar("F", bound=Callable[..., Any])
Words = NDArray[np.uint64]

njit: Any
try:
    from numba import njit
except ImportError:
    njit = None

COMPILED = njit is not None and sys.byteorder == "little"
CHUNK_BYTES = range(248, 1025, 8)
"""Chunk sizes that are compiled; all others are hashed by `prompt`."""

_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint64,
)
"""XXH3's default secret, 24 words."""
# Every operand of 64-bit arithmetic is an np.uint64: numba makes floating-point numbers of a mix with signed integers.
_PRIME32_1, _PRIME32_2, _PRIME32_3 = np.uint64(0x9E3779B1), np.uint64(0x85EBCA77), np.uint64(0xC2B2AE3D)
_PRIME64_1, _PRIME64_2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME64_3, _PRIME64_4 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63)
_PRIME64_5, _PRIME_MX1 = np.uint64(0x27D4EB2F165667C5), np.uint64(0x165667919E3779F9)
_LOW = np.uint64(0xFFFFFFFF)
_8, _24, _32, _37, _40, _56 = (np.uint64(bits) for bits in (8, 24, 32, 37, 40, 56))


def _jit(function: F) -> F:
    if not COMPILED:
        return function
    compiled: F = njit(cache=True)(function)
    return compiled


@_jit
def _fold(a: Any, b: Any) -> Any:
    """Both halves of the 128-bit product a·b, xored."""
    a0, a1, b0, b1 = a & _LOW, a >> _32, b & _LOW, b >> _32
    low = a0 * b0
    middle = (low >> _32) + (a1 * b0 & _LOW) + a0 * b1
    high = (a1 * b0 >> _32) + (middle >> _32) + a1 * b1
    return high ^ (middle << _32 | low & _LOW)


@_jit
def _stripe(sums: Words, words: Words, secret: Words) -> None:
    """Take in a stripe of eight words with the eight of the secret; each also goes into its neighbour's sum."""
    for lane in range(0, 8, 2):
        data0, data1 = words[lane], words[lane + 1]
        key0, key1 = data0 ^ secret[lane], data1 ^ secret[lane + 1]
        sums[lane] += data1 + (key0 & _LOW) * (key0 >> _32)
        sums[lane + 1] += data0 + (key1 & _LOW) * (key1 >> _32)


@_jit
def _hash(words: Words, seed: Any, secret: Words, shifted: Words, sums: Words) -> Any:
    """XXH3 of the words; `secret` (24 words), `shifted` and `sums` (8 words each) are room to work in."""
    for pair in range(0, 24, 2):
        secret[pair] = _SECRET[pair] + seed
        secret[pair + 1] = _SECRET[pair + 1] - seed
    sums[0], sums[1], sums[2], sums[3] = _PRIME32_3, _PRIME64_1, _PRIME64_2, _PRIME64_3
    sums[4], sums[5], sums[6], sums[7] = _PRIME64_4, _PRIME32_2, _PRIME64_5, _PRIME32_1
    for stripe in range((len(words) - 1) // 8):
        _stripe(sums, words[8 * stripe : 8 * stripe + 8], secret[stripe : stripe + 8])
    for lane in range(8):  # the last stripe takes the secret from byte 121 on
        shifted[lane] = secret[lane + 15] >> _8 | secret[lane + 16] << _56
    _stripe(sums, words[len(words) - 8 :], shifted)
    mixed = np.uint64(8 * len(words)) * _PRIME64_1
    for lane in range(0, 8, 2):  # and the end from byte 11 on
        key0 = secret[lane + 1] >> _24 | secret[lane + 2] << _40
        key1 = secret[lane + 2] >> _24 | secret[lane + 3] << _40
        mixed += _fold(sums[lane] ^ key0, sums[lane + 1] ^ key1)
    mixed = (mixed ^ mixed >> _37) * _PRIME_MX1
    return mixed ^ mixed >> _32


@_jit
def _chain(words: Words, count: int, keys: Words) -> None:
    """Key i + 1 is the hash of chunk i, of `count` words, seeded with key i; keys[0] is given."""
    secret, shifted, sums = np.empty(24, np.uint64), np.empty(8, np.uint64), np.empty(8, np.uint64)
    for i in range(len(keys) - 1):
        keys[i + 1] = _hash(words[i * count : (i + 1) * count], keys[i], secret, shifted, sums)


def chunk_keys(canonical: bytes, start: bytes, secret: int, chunk_bytes: int, most: int) -> NDArray[np.uint64]:
    """What `prompt.chunk_keys` gives, bit for bit; contiguous and writable."""
    chunks = min(len(canonical) // chunk_bytes, most)
    if not COMPILED or chunk_bytes not in CHUNK_BYTES or not chunks:
        return prompt.chunk_keys(canonical, start, secret, chunk_bytes, most)
    keys = np.empty(chunks + 1, np.uint64)
    keys[0] = xxh3_64_intdigest(start, secret)
    _chain(np.frombuffer(canonical, np.uint64, chunks * (chunk_bytes // 8)), chunk_bytes // 8, keys)
    return keys[1:]


def warm_up() -> None:
    """Compile, or load from numba's cache, before the first request."""
    chunk_keys(bytes(256), b"", 0, 256, 1)
