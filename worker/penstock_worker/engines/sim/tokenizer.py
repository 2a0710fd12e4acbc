"""Splits text into tokens of about four characters, with offsets, and without a vocabulary: an id is a hash of its piece.

Used by the template (prompts) and by the words of answers, which are single tokens in it. Each part of a prompt is
tokenised alone, so the ids of a message never depend on its neighbours, and an answer that comes back as a message of the
next turn gives the ids it was generated with. Ids of text stay below SPECIAL: no content can imitate structure.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh32_intdigest

SPECIAL = 0x8000_0000
"""Ids from here on belong to the template; text never gets them."""

# A word part, a number part, punctuation or underscores, each with the space before it; white space otherwise. Together the
# alternatives take every character, so the pieces of a text joined are the text.
_PIECES = re.compile(r" ?[^\W\d_]{1,6}| ?\d{1,3}| ?[^\w\s]{1,4}| ?_{1,4}|\s{1,16}(?!\S)|\s")
_SHORTEST_CACHED = 64
_VOCABULARY_LIMIT = 1 << 18


def token_id(piece: str) -> int:
    """Id of a piece of text, 0..2**31-1."""
    return xxh32_intdigest(piece.encode("utf-8", "surrogatepass")) & (SPECIAL - 1)


class Encoded(NamedTuple):
    """Tokens of one text."""

    ids: bytes
    """uint32 in the machine's order, four bytes a token."""
    ends: NDArray[np.int64]
    """Characters of the text covered up to and including each token, shape (tokens,)."""


class _Vocabulary(dict[str, int]):
    """Ids of the pieces met so far; emptied when it grows over its limit (it is only a cache)."""

    def __missing__(self, piece: str) -> int:
        if len(self) >= _VOCABULARY_LIMIT:
            self.clear()
        found = self[piece] = token_id(piece)
        return found


class Tokenizer:
    """Tokenises, remembering the texts it met last (conversations repeat their messages). Safe to use from several threads."""

    def __init__(self, cached_tokens: int = 2_000_000) -> None:
        self._ids = _Vocabulary()
        self._texts: OrderedDict[str, Encoded] = OrderedDict()
        self._room_tokens = cached_tokens
        self._lock = threading.Lock()

    def encode(self, text: str) -> Encoded:
        """Tokens and offsets of `text`."""
        if len(text) < _SHORTEST_CACHED:
            return self._split(text)
        with self._lock:
            found = self._texts.get(text)
            if found is not None:
                self._texts.move_to_end(text)
                return found
        encoded = self._split(text)
        with self._lock:
            if text not in self._texts:
                self._texts[text] = encoded
                self._room_tokens -= len(encoded.ends)
                while self._room_tokens < 0:
                    self._room_tokens += len(self._texts.popitem(last=False)[1].ends)
        return encoded

    def _split(self, text: str) -> Encoded:
        pieces: Sequence[str] = _PIECES.findall(text)
        ids = np.fromiter(map(self._ids.__getitem__, pieces), dtype=np.uint32, count=len(pieces))
        ends = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)).cumsum()
        return Encoded(ids.tobytes(), ends)
