"""What a KV block contains, and how the next word follows from it: the arithmetic that makes answers a truth test.

A block's content is a row of 32 bytes: a full block's row is a hash of its parent's row and its own tokens, a partly filled
block's row moves on token by token, and the row before the first block depends on the KV generation, the salt and the
adapter. The next word is a hash over all rows of the context. The engine reads its parents and contexts from the store it
really holds, the reference computes them anew: one wrong byte anywhere and the two part.
"""

from collections.abc import Iterable

import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from penstock_worker.engines.sim.tokenizer import token_id

ROW_BYTES = 32
SHORTEST_ANSWER_WORDS = 16
ANSWER_WORDS_SPREAD = 241
"""An answer that is not cut ends by itself after 16..256 words."""

_SYLLABLES = tuple(consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeio")
WORDS = tuple(first + second for first in _SYLLABLES for second in _SYLLABLES)
"""The 4,096 words of answers; each is one token, alone and with a space before it."""
SPACED_WORDS = tuple(" " + word for word in WORDS)
WORD_IDS = tuple(map(token_id, WORDS))
SPACED_WORD_IDS = tuple(map(token_id, SPACED_WORDS))


def _digest(content: bytes) -> bytes:
    return xxh3_128_digest(content, 0) + xxh3_128_digest(content, 1)


def root_row(kv_generation: str, salt: str, adapter: str) -> bytes:
    """The row before a sequence's first block."""
    return _digest(msgspec.msgpack.encode((kv_generation, salt, adapter)))


def root_hash(salt: str, adapter: str) -> int:
    """The hash before a sequence's first block."""
    return xxh3_64_intdigest(msgspec.msgpack.encode((salt, adapter)))


def block_hash(parent_hash: int, token_bytes: bytes) -> int:
    """Name of a full block in the prefix cache: 64 bits chained over the tokens (uint32 each) so far, salt and adapter."""
    return xxh3_64_intdigest(token_bytes, parent_hash)


def full_row(parent_row: bytes, token_bytes: bytes) -> bytes:
    """Row of a full block with these tokens (uint32 each)."""
    return _digest(parent_row + token_bytes)


def longer_row(row: bytes, token_ids: Iterable[int]) -> bytes:
    """Row of a partly filled block after some more tokens; `row` is its parent's row while it is still empty."""
    for token in token_ids:
        row = _digest(row + token.to_bytes(4, "little"))
    return row


def next_word(rows: bytes, choice: int) -> int:
    """Index into WORDS of the word that follows a context with these rows; `choice` numbers the answers of one request."""
    return xxh3_64_intdigest(rows, choice) & 0xFFF


def natural_words(prompt_ids: bytes, choice: int) -> int:
    """Words after which the answer to a prompt ends by itself, 16..256."""
    return SHORTEST_ANSWER_WORDS + xxh3_64_intdigest(prompt_ids, choice) % ANSWER_WORDS_SPREAD
