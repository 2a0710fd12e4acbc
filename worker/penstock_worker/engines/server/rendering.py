"""A prompt as the engine will see it: the model's own template and tokenizer, with offsets, from the model's folder.

`engine` asks for renderings, in a thread where prompts are long. Texts between special tokens are tokenised once and kept, so
that a conversation's next turn costs what is new. It knows no chunk keys and no engine.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tokenizers import Tokenizer

from penstock_worker.engine import Rendering
from penstock_worker.engines.server.chat_template import CannotRender, ChatTemplate, template_of
from penstock_worker.kv_chain import CHAT_PATH, TEXT_PATH

KEPT_CHARACTERS = 64 << 20
"""Texts whose tokens are kept, in all."""
_SHORTEST_KEPT = 64
_SAMPLE = "one {}two  \n{} three, a B-c 4.5 \u00e4\u4e2d{}{} end"

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Encoded(NamedTuple):
    """Tokens of one text; `ends[i]`: characters covered up to and including token i, non-decreasing."""

    ids: list[int]
    ends: list[int]


class PromptRenderer:
    """One model's template and tokenizer. State: the kept texts; any thread may ask."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, kept_characters: int = KEPT_CHARACTERS) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._most_kept = kept_characters
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        self._kept_characters = 0
        self._lock = threading.Lock()
        self._border = self._find_border()

    def render(self, path: str, body: bytes) -> Rendering:
        """Raises CannotRender: images, several prompts, a template of the client's own, or a body that is wrong."""
        try:
            fields = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CannotRender(str(error)) from None
        if path == CHAT_PATH:
            if self._template is None:
                raise CannotRender("the model has no chat template")
            text = self._template.render(fields)
            return self._rendering(text, bool(fields.get("add_special_tokens", False)))
        if path == TEXT_PATH:
            return self._completion(fields)
        raise CannotRender(f"path is {path!r}; allowed: {CHAT_PATH}, {TEXT_PATH}")

    def _completion(self, fields: Mapping[str, Any]) -> Rendering:
        prompt = fields.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return self._rendering(prompt, bool(fields.get("add_special_tokens", True)))
        if isinstance(prompt, list) and all(isinstance(one, int) and 0 <= one < 1 << 32 for one in prompt):
            return Rendering(text="", token_ids=prompt, ends=None)
        raise CannotRender("prompt is neither one text nor one list of token ids")

    def _rendering(self, text: str, add_special: bool) -> Rendering:
        if add_special:
            whole = self._encode(text, add_special=True)
            return Rendering(text=text, token_ids=whole.ids, ends=whole.ends)
        ids: list[int] = []
        ends: list[int] = []
        covered = 0
        for piece in self._pieces(text):
            encoded = self._encoded(piece)
            ids += encoded.ids
            ends += [covered + end for end in encoded.ends]
            covered += len(piece)
        return Rendering(text=text, token_ids=ids, ends=ends)

    def _pieces(self, text: str) -> Sequence[str]:
        """The text cut before every special token, where that changes no token."""
        if self._border is None:
            return (text,)
        starts = [found.start() for found in self._border.finditer(text) if found.start()]
        return [text[low:high] for low, high in zip([0, *starts], [*starts, len(text)], strict=True)]

    def _encoded(self, piece: str) -> Encoded:
        if len(piece) < _SHORTEST_KEPT:
            return self._encode(piece)
        with self._lock:
            found = self._kept.get(piece)
            if found is not None:
                self._kept.move_to_end(piece)
                return found
        encoded = self._encode(piece)
        with self._lock:
            if piece not in self._kept:
                self._kept[piece] = encoded
                self._kept_characters += len(piece)
                while self._kept_characters > self._most_kept:
                    self._kept_characters -= len(self._kept.popitem(last=False)[0])
        return encoded

    def _encode(self, text: str, add_special: bool = False) -> Encoded:
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special)
        return Encoded(encoding.ids, list(accumulate((end for _, end in encoding.offsets), max)))

    def _find_border(self) -> "re.Pattern[str] | None":
        """What matches a special token; None where cutting a text there would change its tokens."""
        specials = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        if not specials:
            return None
        border = re.compile("|".join(re.escape(one) for one in sorted(specials, key=len, reverse=True)))
        sample = _SAMPLE.format(*(specials * 4)[:4])
        starts = [found.start() for found in border.finditer(sample)]
        pieces = [sample[low:high] for low, high in zip([0, *starts], [*starts, len(sample)], strict=True)]
        apart = [token for piece in pieces for token in self._encode(piece).ids]
        return border if apart == self._encode(sample).ids else None


def renderer_of(folder: Path) -> PromptRenderer:
    """From a model's folder. Raises CannotRender where it has no `tokenizer.json` that can be read."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return PromptRenderer(tokenizer, template_of(folder))
    except Exception as error:  # noqa: BLE001 -- the tokenizers library raises plain Exception for a file it cannot read
        raise CannotRender(f"{path}: {error}") from None
