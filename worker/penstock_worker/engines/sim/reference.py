"""Predicts the exact text of any answer from the request alone, without an engine.

Tests and benchmarks compare it with what came back: equal text proves that every KV block involved, cached, evicted and
computed again, or pulled from another worker, held what it should. It shares with the engine how a body is read, the
template, the tokenizer and the arithmetic of `payload`; it knows no store, no batch and no socket.
"""

from penstock_worker.engines.sim import payload
from penstock_worker.engines.sim.config import BLOCK_TOKENS, KV_GENERATION, MAX_MODEL_TOKENS
from penstock_worker.engines.sim.request import CHAT_PATH, SimRequest, parse
from penstock_worker.engines.sim.stops import StopText
from penstock_worker.engines.sim.tokenizer import Tokenizer

_tokenizer = Tokenizer()


def words_wanted(request: SimRequest, prompt_ids: bytes, choice: int, context_tokens: int) -> tuple[int, str]:
    """How many words the answer has (stop texts aside), and its finish_reason."""
    room = context_tokens - len(prompt_ids) // 4
    most = room if request.max_tokens is None else min(request.max_tokens, room)
    natural = most + 1 if request.ignore_eos else max(request.min_tokens, payload.natural_words(prompt_ids, choice))
    return (natural, "stop") if natural <= most else (most, "length")


def reference_words(
    prompt_ids: bytes,
    count: int,
    *,
    continues: bool,
    choice: int = 0,
    kv_generation: str = KV_GENERATION,
    salt: str = "",
    adapter: str = "",
    block_tokens: int = BLOCK_TOKENS,
) -> list[int]:
    """The first `count` word indices after a prompt; `continues`: the first word has a space before it."""
    width = 4 * block_tokens
    last = payload.root_row(kv_generation, salt, adapter)
    rows, tail = bytearray(), last
    for start in range(0, len(prompt_ids), width):
        token_bytes = prompt_ids[start : start + width]
        if len(token_bytes) == width:
            last = tail = payload.full_row(last, token_bytes)
            rows += last
        else:
            tail = payload.longer_row(last, memoryview(token_bytes).cast("I"))
    filling = bytearray(prompt_ids[len(prompt_ids) // width * width :])
    words: list[int] = []
    while len(words) < count:
        word = payload.next_word(bytes(rows + tail if filling else rows), choice)
        token = (payload.SPACED_WORD_IDS if words or continues else payload.WORD_IDS)[word]
        words.append(word)
        filling += token.to_bytes(4, "little")
        if len(filling) == width:
            last = tail = payload.full_row(last, bytes(filling))
            rows += last
            filling.clear()
        else:
            tail = payload.longer_row(tail, (token,))
    return words


def reference_text(
    body: bytes,
    path: str = CHAT_PATH,
    *,
    choice: int = 0,
    max_tokens: int | None = None,
    kv_generation: str = KV_GENERATION,
    salt: str = "",
    adapter: str = "",
    max_model_tokens: int = MAX_MODEL_TOKENS,
    block_tokens: int = BLOCK_TOKENS,
) -> str:
    """The text of answer `choice` to a body as the client wrote it; `max_tokens` stands in for the body's where given.

    `max_model_tokens` is the engine's context (`SimConfig.context_tokens`); it matters only to answers that reach it.
    Raises BadInput like the engine.
    """
    request = parse(path, body, max_choices=128)
    ids = request.prompt.ids(_tokenizer)
    wanted, _ = words_wanted(request, ids, choice, max_model_tokens)
    if max_tokens is not None:
        wanted = min(wanted, max_tokens)
    words = reference_words(
        ids,
        wanted,
        continues=request.prompt.continues,
        choice=choice,
        kv_generation=kv_generation,
        salt=salt,
        adapter=adapter,
        block_tokens=block_tokens,
    )
    text = StopText(request.stop, request.min_tokens)
    parts = []
    for number, word in enumerate(words):
        spaced = bool(number) or request.prompt.continues
        parts.append(text.add((payload.SPACED_WORDS if spaced else payload.WORDS)[word]))
        if text.stopped:
            break
    return "".join(parts) + text.rest()
