"""Requests and answers in OpenAI's form: what the router must read of a body, and the bodies it sends on.

`director` parses with it, `dispatch` makes each leg's body and reads usage with it. Only what routing needs is decoded;
everything else stays the client's raw JSON and passes through untouched. It knows no endpoints, sockets or policies.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from penstock_core.errors import BadInput, Outcome
from penstock_core.prompt import RENDERING_FIELDS, PlainMessage, canonical_chat, canonical_ids, canonical_plain_chat, canonical_text

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
CAPABILITIES = {
    CHAT: "chat",
    COMPLETIONS: "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/rerank": "rerank",
}
"""Path of a POST to the capability that an endpoint must declare."""

_ROUTER_FIELDS = (
    "kv_transfer_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "transfer_id",
    "remote_bootstrap_addr",
    "remote_engine_id",
)
"""Body fields by which the router steers KV; from a client they could reach another tenant's KV."""

MOST_OUTPUT_TOKENS = 2**31 - 1


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request as far as routing must know it. `canonical` is empty for paths without prefix routing."""

    path: str
    model: str
    body: bytes
    """As the client wrote it."""
    stream: bool
    wants_usage: bool
    """The client itself asked for a stream's usage chunk."""
    has_stream_options: bool
    undivided: bool
    """Must be prefilled and decoded in one place (n > 1, best_of, echo, prompt logprobs, several prompts)."""
    max_tokens: int | None
    canonical: bytes
    rendering: Mapping[str, Raw]
    """The rendering fields that the request has, for `prompt.start_bytes`."""

    @property
    def capability(self) -> str:
        return CAPABILITIES[self.path]


class Usage(msgspec.Struct, frozen=True):
    """Token counts of an answer; `cached_tokens` is None where the engine does not say."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Head(msgspec.Struct):
    model: str
    stream: bool | None = None


def _body_type(name: str, message: Any) -> type[msgspec.Struct]:
    """What is read of a chat or completions body, with messages read as `message`."""
    fields = [
        ("messages", list[message] | UnsetType, UNSET),
        ("prompt", Raw | UnsetType, UNSET),
        ("stream_options", _StreamOptions | None | UnsetType, UNSET),
        ("n", int | None, None),
        ("best_of", int | None, None),
        ("echo", bool | None, None),
        ("prompt_logprobs", int | None, None),
        ("max_tokens", int | None, None),
        ("max_completion_tokens", int | None, None),
        *((field, Raw | UnsetType, UNSET) for field in (*sorted(RENDERING_FIELDS), *_ROUTER_FIELDS)),
    ]
    return msgspec.defstruct(name, fields, bases=(_Head,))


_decode_plain_body = msgspec.json.Decoder(_body_type("_PlainBody", PlainMessage)).decode
_decode_body = msgspec.json.Decoder(_body_type("_Body", dict[str, Raw])).decode
_OtherBody = msgspec.defstruct("_OtherBody", [(name, Raw | UnsetType, UNSET) for name in _ROUTER_FIELDS], bases=(_Head,))
_decode_other = msgspec.json.Decoder(_OtherBody).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_prompt = msgspec.json.Decoder(str | list[int | str | list[int]]).decode
_RENDERING = tuple(sorted(RENDERING_FIELDS))
_rare_fields = attrgetter(*_RENDERING, *_ROUTER_FIELDS)
_NO_RARE_FIELD = (UNSET,) * (len(_RENDERING) + len(_ROUTER_FIELDS))
_several_of = attrgetter("n", "best_of", "echo", "prompt_logprobs")
_ONE_ANSWER = (None,) * 4
_NO_RENDERING: dict[str, Raw] = {}


def parse(path: str, body: bytes) -> ChatRequest:
    """Read a POST to one of CAPABILITIES' paths. Raises BadInput naming the field, what was sent and what is allowed."""
    try:
        if path not in (CHAT, COMPLETIONS):
            head: Any = _decode_other(body)
            _refuse_router_fields(head)
            return ChatRequest(
                path=path,
                model=head.model,
                body=body,
                stream=bool(head.stream),
                wants_usage=True,
                has_stream_options=True,
                undivided=True,
                max_tokens=None,
                canonical=b"",
                rendering=_NO_RENDERING,
            )
        return _parse_generation(path, body, _read_generation(body))
    except msgspec.ValidationError as error:
        raise _not_valid(str(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadInput(f"the request body is not valid JSON: {error}") from None


def _read_generation(body: bytes) -> Any:
    """Most chats are plain text and read in half the time; a message with more to it takes a second pass over the body."""
    try:
        return _decode_plain_body(body)
    except msgspec.ValidationError:
        return _decode_body(body)


def _refuse_router_fields(read: Any) -> None:
    for name in _ROUTER_FIELDS:
        if getattr(read, name) is not UNSET:
            raise BadInput(f"{name} is set by the router and must not be sent by a client; leave it out", param=name)


def _rendering(read: Any) -> Mapping[str, Raw]:
    """The rendering fields that the request has. Raises BadInput for a field of the router's own."""
    if _rare_fields(read) == _NO_RARE_FIELD:
        return _NO_RENDERING
    _refuse_router_fields(read)
    return {name: value for name in _RENDERING if (value := getattr(read, name)) is not UNSET}


def _parse_generation(path: str, body: bytes, read: Any) -> ChatRequest:
    rendering = _rendering(read)
    limit = read.max_completion_tokens if read.max_completion_tokens is not None else read.max_tokens
    least = 0 if path == COMPLETIONS else 1  # completions with echo may ask for no new token at all
    if limit is not None and not least <= limit <= MOST_OUTPUT_TOKENS:
        name = "max_completion_tokens" if read.max_completion_tokens is not None else "max_tokens"
        raise BadInput(f"{name} is {limit}; allowed: {least} to {MOST_OUTPUT_TOKENS}", param=name)
    undivided = False
    if _several_of(read) != _ONE_ANSWER:
        if read.n is not None and not 1 <= read.n <= 128:
            raise BadInput(f"n is {read.n}; allowed: 1 to 128", param="n")
        undivided = (read.n or 1) > 1 or (read.best_of or 1) > 1 or bool(read.echo) or read.prompt_logprobs is not None
    if path == CHAT:
        canonical, several = _canonical_messages(read.messages, body), False
    else:
        canonical, several = _canonical_prompt(read.prompt)
    options = read.stream_options
    return ChatRequest(
        path=path,
        model=read.model,
        body=body,
        stream=bool(read.stream),
        wants_usage=isinstance(options, _StreamOptions) and bool(options.include_usage),
        has_stream_options=options is not UNSET,
        undivided=undivided or several,
        max_tokens=limit,
        canonical=canonical,
        rendering=rendering,
    )


def _canonical_messages(messages: list[Any] | UnsetType, body: bytes) -> bytes:
    if messages is UNSET or not messages:
        raise BadInput("messages is missing or empty; allowed: a list of one message or more", param="messages")
    if isinstance(messages[0], PlainMessage):
        return canonical_plain_chat(messages, unescaped=b"\\" not in body)
    try:
        return canonical_chat(messages)
    except msgspec.ValidationError as error:
        raise BadInput(
            f"messages: a role must be a string, content a string, null or a list of parts ({error})", param="messages"
        ) from None


def _canonical_prompt(prompt: Raw | UnsetType) -> tuple[bytes, bool]:
    """Canonical bytes of the (first) prompt, and whether there are several."""
    if prompt is UNSET:
        raise BadInput("prompt is missing; allowed: a text, a list of token ids, or a list of those", param="prompt")
    read = _decode_prompt(prompt)
    if isinstance(read, str):
        return canonical_text(read), False
    first = read[0] if read else None
    if first is None:
        raise BadInput("prompt is an empty list; allowed: a text, a list of token ids, or a list of those", param="prompt")
    try:
        if isinstance(first, int):
            return canonical_ids(np.asarray(read, dtype=np.uint32)), False  # type: ignore[arg-type]
        return (canonical_text(first) if isinstance(first, str) else canonical_ids(first)), True
    except (OverflowError, TypeError, ValueError):
        raise BadInput(f"prompt holds a token id that is not allowed; allowed: 0 to {2**32 - 1}", param="prompt") from None


def _not_valid(message: str) -> BadInput:
    """msgspec's message names the place as `$.field[...]`, or a missing field in backquotes."""
    param = None
    if "`$." in message:
        param = message.split("`$.", 1)[1].split("`", 1)[0].split("[", 1)[0].split(".", 1)[0]
    elif "required field `" in message:
        param = message.split("required field `", 1)[1].split("`", 1)[0]
    return BadInput(f"{param}: {message}" if param else message, param=param)


def stream_body(request: ChatRequest) -> bytes:
    """The body for a single leg: as sent, except that a stream always reports its usage."""
    if not request.stream or request.wants_usage or request.path not in (CHAT, COMPLETIONS):
        return request.body
    if not request.has_stream_options:
        brace = request.body.index(b"{") + 1
        return request.body[:brace] + b'"stream_options":{"include_usage":true},' + request.body[brace:]
    return decode_body(request, {})


def decode_body(request: ChatRequest, extra: Mapping[str, Any]) -> bytes:
    """The body for a decode leg: the client's fields, usage asked for, and the connector's `extra` fields."""
    fields: dict[str, Any] = {**_decode_fields(request.body), **extra}
    if request.stream and not request.wants_usage:
        options = msgspec.json.decode(fields["stream_options"]) if "stream_options" in fields else None
        fields["stream_options"] = {**(options or {}), "include_usage": True}
    return msgspec.json.encode(fields)


def prefill_body(request: ChatRequest, extra: Mapping[str, Any]) -> bytes:
    """The body for a prefill leg: one token, no stream, and the connector's `extra` fields."""
    fields: dict[str, Any] = _decode_fields(request.body)
    for name in ("stream_options", "min_tokens", "max_completion_tokens"):
        fields.pop(name, None)
    fields |= {"stream": False, "n": 1, "max_tokens": 1, **extra}
    if request.path == CHAT:
        fields["max_completion_tokens"] = 1
    return msgspec.json.encode(fields)


class _UsageDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _UsageDetails | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[Raw] | None = None
    kv_transfer_params: Raw | UnsetType = UNSET


_decode_answer = msgspec.json.Decoder(_Answer).decode


def read_usage(json: bytes) -> tuple[Usage | None, bool]:
    """Usage in an answer body or in one stream chunk, and whether the chunk holds nothing else (no choices).

    A body that is not such JSON has no usage: the engine's answer is passed on, whatever it is.
    """
    try:
        answer = _decode_answer(json)
    except (msgspec.DecodeError, UnicodeError):
        return None, False
    if answer.usage is None:
        return None, False
    details = answer.usage.prompt_tokens_details
    usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens, details.cached_tokens if details else None)
    return usage, not answer.choices


def is_object(body: bytes) -> bool:
    """Whether a body is a JSON object, as every answer and every error of an OpenAI-compatible server is."""
    try:
        _decode_fields(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def read_transfer_params(json: bytes) -> Raw | None:
    """The opaque `kv_transfer_params` of a prefill leg's answer; None where there are none."""
    try:
        params = _decode_answer(json).kv_transfer_params
    except (msgspec.DecodeError, UnicodeError):
        return None
    return None if params is UNSET or bytes(params) == b"null" else params


def merge_usage(json: bytes, prefill: Usage) -> bytes:
    """An answer or usage chunk of a decode leg with prompt and cached tokens taken from the prefill leg.

    Also takes `kv_transfer_params` out, which is no business of the client. Other fields stay as they are.
    """
    try:
        fields: dict[str, Any] = _decode_fields(json)
        usage = msgspec.json.decode(fields["usage"]) if "usage" in fields else None
    except (msgspec.DecodeError, UnicodeError):
        return json
    fields.pop("kv_transfer_params", None)
    if isinstance(usage, dict):
        usage["prompt_tokens"] = prefill.prompt_tokens
        usage["total_tokens"] = prefill.prompt_tokens + int(usage.get("completion_tokens") or 0)
        if prefill.cached_tokens is not None:
            usage["prompt_tokens_details"] = {**(usage.get("prompt_tokens_details") or {}), "cached_tokens": prefill.cached_tokens}
        fields["usage"] = usage
    return msgspec.json.encode(fields)


def event_json(event: bytes) -> bytes | None:
    """The JSON of one whole SSE event; None for a comment, `[DONE]` or an event without data."""
    for line in event.splitlines():
        if line.startswith(b"data:"):
            data = line[5:].strip()
            return data if data.startswith(b"{") else None
    return None


_ERROR_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 413: "invalid_request_error"}
_ERROR_TYPES |= {404: "not_found_error", 429: "rate_limit_error"}


def error_body(outcome: Outcome, message: str, param: str | None = None) -> bytes:
    """OpenAI's error object; `code` is the outcome's word."""
    kind = _ERROR_TYPES.get(outcome.status, "api_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": outcome.value}})


def error_event(outcome: Outcome, message: str) -> bytes:
    """The SSE event that ends a stream which broke after its first byte."""
    return event_of_error(error_body(outcome, message))


def event_of_error(body: bytes) -> bytes:
    """An error body, an upstream's own too, as the SSE event that ends a stream."""
    return b"event: error\n" + b"".join(b"data: " + line + b"\n" for line in body.splitlines()) + b"\n"
