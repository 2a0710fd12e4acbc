"""A client's body, read and checked: what the sim engine is asked to do.

The engine and the reference both start here, so that they agree on what a body means. Fields that a sampling engine would
need (temperature, seed, …) are passed over; those that the sim cannot honour are refused by name.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import numpy as np
from penstock_core.errors import BadInput

from penstock_worker.engines.sim.template import Segment, prompt_ids, render_chat
from penstock_worker.engines.sim.tokenizer import Tokenizer

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
_MOST_STOPS = 16
_LONGEST_STOP = 1_024
_FIELD_IN_ERROR = re.compile(r"at `\$\.([A-Za-z_]+)")
_T = TypeVar("_T")


class KvParams(msgspec.Struct, frozen=True):
    """`kv_transfer_params` of a request, in nixl's form (protocol.md §4); the block server knows the rest."""

    do_remote_decode: bool | None = None
    do_remote_prefill: bool | None = None
    remote_engine_id: str | None = None
    remote_request_id: str | None = None
    remote_host: str | None = None
    remote_port: int | None = None


class RemoteKv(msgspec.Struct, frozen=True):
    """Where the KV of a prompt is to be pulled from."""

    host: str
    port: int
    engine_id: str
    request_id: str


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Body(msgspec.Struct, frozen=True):
    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    kv_transfer_params: KvParams | None = None


class Prompt(msgspec.Struct, frozen=True):
    """A prompt before tokenising: rendered segments, or token ids given by the client."""

    chat: bool
    continues: bool
    """The answer goes on with the prompt's text, so its first word has a space before it."""
    segments: list[Segment] | None
    given_ids: bytes = b""

    def ids(self, tokenizer: Tokenizer) -> bytes:
        """Token ids, uint32 each. May take milliseconds."""
        return self.given_ids if self.segments is None else prompt_ids(self.segments, tokenizer)


class SimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request."""

    prompt: Prompt
    model: str | None
    n: int
    max_tokens: int | None
    """Words at most; None: until the answer ends by itself."""
    max_tokens_field: str
    """How the client wrote that field's name."""
    min_tokens: int
    ignore_eos: bool
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    echo: bool
    remote: RemoteKv | None
    """Pull the prompt's KV from there."""
    keep_kv: bool
    """Keep the prompt's KV for a decode worker."""


def parse(path: str, body: bytes, *, max_choices: int = 16) -> SimRequest:
    """Read a body. Raises BadInput naming field, value and what is allowed."""
    fields = _decode(body, dict[str, msgspec.Raw])
    options = _decode(body, _Body)
    for name in ("logprobs", "prompt_logprobs", "top_logprobs"):
        if bytes(fields.get(name, b"null")) not in (b"null", b"false", b"0"):
            raise BadInput(f"{name} is {_short(fields[name])}; allowed: null (the sim engine has no probabilities)", param=name)
    max_field = "max_completion_tokens" if options.max_completion_tokens is not None else "max_tokens"
    max_tokens = options.max_tokens if options.max_completion_tokens is None else options.max_completion_tokens
    if max_tokens is not None and max_tokens < 1:
        raise BadInput(f"{max_field} is {max_tokens}; allowed: 1 or more", param=max_field)
    n = 1 if options.n is None else options.n
    if not 1 <= n <= max_choices:
        raise BadInput(f"n is {n}; allowed: 1 to {max_choices}", param="n")
    min_tokens = options.min_tokens or 0
    if min_tokens < 0 or (max_tokens is not None and min_tokens > max_tokens):
        raise BadInput(f"min_tokens is {min_tokens}; allowed: 0 to {max_field}", param="min_tokens")
    streaming = options.stream_options or _StreamOptions()
    remote, keep_kv = _transfer(options, n, max_tokens)
    return SimRequest(
        prompt=_prompt(path, fields, options),
        model=options.model,
        n=n,
        max_tokens=max_tokens,
        max_tokens_field=max_field,
        min_tokens=min_tokens,
        ignore_eos=bool(options.ignore_eos),
        stop=_stops(options.stop),
        stream=bool(options.stream),
        include_usage=bool(streaming.include_usage),
        continuous_usage=bool(streaming.continuous_usage_stats),
        echo=bool(options.echo) and path == COMPLETIONS_PATH,
        remote=remote,
        keep_kv=keep_kv,
    )


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as wrong:
        # msgspec ends its message with " - at `$.field…`".
        field = _FIELD_IN_ERROR.search(str(wrong))
        name = field[1] if field else None
        raise BadInput(f"{name or 'body'}: {wrong}", param=name) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise BadInput(f"body is not JSON: {wrong}") from None


def _prompt(path: str, fields: Mapping[str, msgspec.Raw], options: _Body) -> Prompt:
    if path == CHAT_PATH:
        return _chat_prompt(fields, options)
    if path != COMPLETIONS_PATH:
        raise BadInput(f"path is {path!r}; allowed: {CHAT_PATH} or {COMPLETIONS_PATH}")
    given = _json(fields.get("prompt"), "prompt", "a text or a list of token ids")
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]
    if isinstance(given, str) and given:
        return Prompt(chat=False, continues=True, segments=[Segment(given)])
    if isinstance(given, list) and given and all(type(token) is int and 0 <= token < 1 << 32 for token in given):
        if options.echo:
            raise BadInput("echo is true; allowed: false where prompt is a list of token ids", param="echo")
        return Prompt(chat=False, continues=True, segments=None, given_ids=np.asarray(given, dtype=np.uint32).tobytes())
    raise BadInput(f"prompt is {_short(fields.get('prompt'))}; allowed: one text or one list of token ids, not empty", param="prompt")


def _chat_prompt(fields: Mapping[str, msgspec.Raw], options: _Body) -> Prompt:
    try:
        messages = msgspec.json.decode(fields.get("messages", b"null"), type=list[dict[str, msgspec.Raw]])
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise BadInput(f"messages: {wrong}; allowed: a list of messages", param="messages") from None
    if not messages:
        raise BadInput("messages is []; allowed: at least one message", param="messages")
    continues = bool(options.continue_final_message)
    generates = options.add_generation_prompt is not False and not continues
    segments = render_chat(messages, fields, add_generation_prompt=generates, open_end=continues)
    return Prompt(chat=True, continues=continues, segments=segments)


def _transfer(options: _Body, n: int, max_tokens: int | None) -> tuple[RemoteKv | None, bool]:
    params = options.kv_transfer_params
    if params is None:
        return None, False
    if params.do_remote_decode:
        for field, value, allowed in (("n", n, 1), ("stream", bool(options.stream), False), ("max_tokens", max_tokens, 1)):
            if value != allowed:
                raise BadInput(f"{field} is {value}; allowed: {allowed} where kv_transfer_params.do_remote_decode is true", param=field)
        return None, True
    if not params.do_remote_prefill:
        return None, False
    if n != 1:
        raise BadInput(f"n is {n}; allowed: 1 where kv_transfer_params.do_remote_prefill is true", param="n")
    host, port = params.remote_host, params.remote_port
    if not host or port is None or not 1 <= port <= 65_535 or not params.remote_engine_id or not params.remote_request_id:
        raise BadInput(
            "kv_transfer_params.do_remote_prefill is true; allowed: only with remote_host, remote_port (1 to 65535), "
            "remote_engine_id and remote_request_id",
            param="kv_transfer_params",
        )
    return RemoteKv(host, port, params.remote_engine_id, params.remote_request_id), False


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if not stop else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > _MOST_STOPS or not all(1 <= len(text) <= _LONGEST_STOP for text in stops):
        allowed = f"up to {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters"
        raise BadInput(f"stop is {len(stops)} texts, the longest of {max(map(len, stops))} characters; allowed: {allowed}", param="stop")
    return stops


def _json(raw: msgspec.Raw | None, name: str, allowed: str) -> object:
    try:
        return msgspec.json.decode(b"null" if raw is None else raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise BadInput(f"{name}: {wrong}; allowed: {allowed}", param=name) from None


def _short(raw: msgspec.Raw | None) -> str:
    text = "absent" if raw is None else bytes(raw).decode(errors="replace")
    return text if len(text) <= 80 else text[:77] + "..."
