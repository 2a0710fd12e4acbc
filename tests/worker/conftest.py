"""What the worker's tests share: a small chat template and a tokenizer with offsets, in which every position is known."""

import re
from collections.abc import Sequence
from zlib import crc32

import msgspec
import pytest
from penstock_worker.engine import Rendering

_TOKEN_RE = re.compile(r"<\|\w+\|>|\s?\w{1,6}|\s+|.", re.DOTALL)


class Template:
    """`<|role|>` line, content, `<|end|>` line; then the opening of the answer. Words of up to six letters are tokens."""

    @staticmethod
    def tokenize(text: str) -> Rendering:
        found = list(_TOKEN_RE.finditer(text))
        return Rendering(text=text, token_ids=[crc32(match[0].encode()) for match in found], ends=[match.end() for match in found])

    def chat(self, messages: Sequence[dict[str, object]], *, trim: bool = False) -> Rendering:
        text = "".join(f"<|{m['role']}|>\n{str(m['content']).strip() if trim else m['content']}<|end|>\n" for m in messages)
        return self.tokenize(text + "<|assistant|>\n")

    @staticmethod
    def body(messages: Sequence[dict[str, object]], **fields: object) -> bytes:
        return msgspec.json.encode({"model": "m", "messages": messages, **fields})

    def of_body(self, path: str, body: bytes) -> Rendering:
        """What an engine's `render` does."""
        fields = msgspec.json.decode(body)
        return self.chat(fields["messages"]) if path.endswith("chat/completions") else self.tokenize(fields["prompt"])


@pytest.fixture(scope="session")
def template() -> Template:
    return Template()
