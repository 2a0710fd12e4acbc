"""What the router reads of a body, and the bodies it sends on."""

import json
from typing import Any

import pytest
from penstock_core.errors import BadInput, Outcome
from penstock_router import openai
from penstock_router.openai import CHAT, COMPLETIONS, Usage

MESSAGES = [{"role": "user", "content": "Hello"}]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


@pytest.mark.parametrize(
    ("path", "sent", "param", "says"),
    [
        (CHAT, b"{", None, "not valid JSON"),
        (CHAT, b"[]", None, "object"),
        (CHAT, b"", None, "not valid JSON"),
        (CHAT, b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', None, "not valid JSON"),
        (CHAT, b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', None, "not valid JSON"),
        (CHAT, b'{"messages":[]}', "model", "model"),
        (CHAT, b'{"model":7,"messages":[]}', "model", "Expected `str`"),
        (CHAT, body(messages="hi"), "messages", "Expected `array`"),
        (CHAT, body(messages=["hi"]), "messages", "Expected `object`"),
        (CHAT, body(messages=[]), "messages", "allowed: a list of one message or more"),
        (CHAT, body(), "messages", "allowed"),
        (CHAT, body(messages=[{"role": 3, "content": "x"}]), "messages", "role must be a string"),
        (CHAT, body(messages=MESSAGES, stream="yes"), "stream", "Expected `bool"),
        (CHAT, body(messages=MESSAGES, max_tokens=-1), "max_tokens", "allowed: 1 to"),
        (CHAT, body(messages=MESSAGES, max_tokens=10**30), "max_tokens", "allowed: 1 to"),
        (CHAT, body(messages=MESSAGES, max_completion_tokens=0), "max_completion_tokens", "allowed: 1 to"),
        (CHAT, body(messages=MESSAGES, n=0), "n", "allowed: 1 to 128"),
        (CHAT, body(messages=MESSAGES, kv_transfer_params={}), "kv_transfer_params", "set by the router"),
        (COMPLETIONS, body(), "prompt", "prompt is missing"),
        (COMPLETIONS, body(prompt=[]), "prompt", "empty list"),
        (COMPLETIONS, body(prompt=[1, -1]), "prompt", "token id"),
        (COMPLETIONS, body(prompt=[1, 2**32]), "prompt", "token id"),
        (COMPLETIONS, body(prompt={"a": 1}), None, "Expected"),
        ("/v1/embeddings", b'{"input":"x"}', "model", "model"),
        ("/v1/responses", b'{"model":"m","input":"x","kv_transfer_params":{}}', "kv_transfer_params", "set by the router"),
        ("/v1/messages", b'{"model":"m","bootstrap_room":1}', "bootstrap_room", "set by the router"),
    ],
)
def test_bad_bodies_are_refused_by_field(path: str, sent: bytes, param: str | None, says: str) -> None:
    """Each error names the field as the client wrote it, and what is allowed."""
    with pytest.raises(BadInput) as caught:
        openai.parse(path, sent)
    assert caught.value.param == param
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "undivided"),
    [
        ({}, False),
        ({"n": 1}, False),
        ({"n": 2}, True),
        ({"best_of": 3}, True),
        ({"echo": True}, True),
        ({"prompt_logprobs": 0}, True),
        ({"prompt": ["a", "b"]}, True),
        ({"prompt": [[1, 2], [3]]}, True),
        ({"prompt": [1, 2]}, False),
    ],
)
def test_what_cannot_be_divided_is_seen(fields: dict[str, Any], undivided: bool) -> None:
    """Several answers, echo, prompt logprobs and several prompts stay in one place."""
    assert openai.parse(COMPLETIONS, body(**{"prompt": "a", **fields})).undivided is undivided


def test_unknown_and_foreign_fields_reach_every_leg() -> None:
    """Nothing that the router does not know is dropped or changed."""
    extras = {"tools": [{"x": 1.5}], "response_format": {"type": "json_object"}, "logprobs": True, "made_up": {"deep": [None]}}
    request = openai.parse(CHAT, body(messages=MESSAGES, stream=True, **extras))
    for sent in (openai.stream_body(request), openai.decode_body(request, {}), openai.prefill_body(request, {})):
        assert {name: json.loads(sent)[name] for name in extras} == extras
    assert list(request.rendering) == ["tools"]


def test_a_single_leg_without_stream_is_sent_as_written() -> None:
    """Not a byte of the body changes."""
    written = b'  {"messages": [{"role":"user","content":"x"}] ,"model":"m"}  '
    assert openai.stream_body(openai.parse(CHAT, written)) == written


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": True}, {"continuous_usage_stats": True}])
def test_a_stream_always_reports_usage_upstream(options: dict[str, Any] | None) -> None:
    """The router asks for usage whatever the client did; the client's other options stay."""
    fields = {"messages": MESSAGES, "stream": True} | ({} if options is None else {"stream_options": options})
    request = openai.parse(CHAT, body(**fields))
    assert request.wants_usage is bool((options or {}).get("include_usage"))
    for sent in (openai.stream_body(request), openai.decode_body(request, {})):
        assert json.loads(sent)["stream_options"] == {**(options or {}), "include_usage": True}


def test_the_prefill_leg_asks_for_one_token_and_no_stream() -> None:
    """Protocol §4: what a prefill leg must and must not hold."""
    fields = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 500, "min_tokens": 9}
    sent = json.loads(openai.prefill_body(openai.parse(CHAT, body(**fields)), {"kv_transfer_params": {"do_remote_decode": True}}))
    assert sent == {
        "model": "m",
        "messages": MESSAGES,
        "stream": False,
        "n": 1,
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "kv_transfer_params": {"do_remote_decode": True},
    }


def test_usage_is_read_from_answers_and_chunks() -> None:
    """Only a chunk without choices is the usage chunk."""
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}}
    assert openai.read_usage(json.dumps({"choices": [{}], "usage": usage}).encode()) == (Usage(9, 3, 4), False)
    assert openai.read_usage(json.dumps({"choices": [], "usage": usage}).encode()) == (Usage(9, 3, 4), True)
    assert openai.read_usage(b'{"choices":[{}],"usage":null}') == (None, False)
    assert openai.read_usage(b"<html>") == (None, False)


def test_usage_of_a_divided_answer_takes_the_prompt_from_the_prefill_leg() -> None:
    """Prompt and cached tokens from prefill, completion from decode; unknown fields stay, transfer params go."""
    answer = {"id": "x", "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6, "odd": 1}, "kv_transfer_params": {"a": 1}}
    merged = json.loads(openai.merge_usage(json.dumps(answer).encode(), Usage(100, 1, 64)))
    assert merged == {
        "id": "x",
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "total_tokens": 105,
            "odd": 1,
            "prompt_tokens_details": {"cached_tokens": 64},
        },
    }


def test_transfer_params_are_handed_on_as_written() -> None:
    """Opaque: the raw JSON of the object, or None where a worker gave none."""
    assert bytes(openai.read_transfer_params(b'{"kv_transfer_params": {"a": [[1, 2]], "z":null}}') or b"") == b'{"a": [[1, 2]], "z":null}'
    assert openai.read_transfer_params(b'{"kv_transfer_params": null}') is None
    assert openai.read_transfer_params(b"{}") is None


def test_errors_have_openais_form() -> None:
    """Message, type, param and code, in a body and in a stream."""
    sent = json.loads(openai.error_body(Outcome.MODEL_NOT_FOUND, "no such model", "model"))
    assert sent == {"error": {"message": "no such model", "type": "not_found_error", "param": "model", "code": "model_not_found"}}
    event = openai.error_event(Outcome.UPSTREAM_FAILED, "cut")
    assert event.startswith(b"event: error\ndata: {") and event.endswith(b"}\n\n")


@pytest.mark.parametrize("event", [b": comment\n\n", b"data: [DONE]\n\n", b"event: ping\n\n"])
def test_events_without_json_have_none(event: bytes) -> None:
    """Comments, the end mark and bare events."""
    assert openai.event_json(event) is None
    assert openai.event_json(b'event: x\ndata: {"a":1}\r\n\r\n') == b'{"a":1}'
