"""Prompts rendered with a real tokenizer and template: tokens, offsets, and what is kept of conversations."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_worker.engines.server.chat_template import CannotRender, ChatTemplate
from penstock_worker.engines.server.rendering import PromptRenderer, renderer_of
from penstock_worker.kv_chain import CHAT_PATH, TEXT_PATH
from tiny_model import write_tiny_model
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder."""
    made = tmp_path_factory.mktemp("model")
    write_tiny_model(made)
    return made


@pytest.fixture(scope="session")
def renderer(folder: Path) -> PromptRenderer:
    """Its renderer."""
    return renderer_of(folder)


def _chat(*contents: Any, **fields: Any) -> bytes:
    roles = ["user", "assistant"] * len(contents)
    return json.dumps(
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)], **fields}
    ).encode()


@settings(max_examples=60)
@given(contents=st.lists(st.text(max_size=300), min_size=1, max_size=4))
def test_pieces_give_the_tokens_of_the_whole(folder: Path, renderer: PromptRenderer, contents: list[str]) -> None:
    """Whatever the texts hold, special tokens' own words included, the cut text has the tokens of the uncut; offsets never fall."""
    contents = [*contents, "tail<|end|> and <|user|>" + contents[0]]
    rendering = renderer.render(CHAT_PATH, _chat(*contents))
    whole = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(rendering.text, add_special_tokens=False)
    assert list(rendering.token_ids) == whole.ids
    assert rendering.ends is not None
    assert rendering.ends[-1] == len(rendering.text)
    assert all(before <= after for before, after in zip(rendering.ends, rendering.ends[1:], strict=False))


def test_the_next_turn_is_tokenised_from_where_the_last_one_ended(renderer: PromptRenderer) -> None:
    """What was rendered before is kept: the same list of tokens comes back, and it begins the next turn's."""
    first = renderer.render(CHAT_PATH, _chat("How does water turn a turbine? " * 50))
    kept = dict(renderer._kept)
    following = renderer.render(CHAT_PATH, _chat("How does water turn a turbine? " * 50, "It falls. " * 40, "And then?"))
    assert all(renderer._kept[piece] is encoded for piece, encoded in kept.items())
    shared = len(first.token_ids) - 1  # the generation prompt becomes the assistant's turn
    assert list(following.token_ids[:shared]) == list(first.token_ids[:shared])


def test_kept_texts_are_bounded(folder: Path) -> None:
    """The oldest go; a text longer than the bound is not kept."""
    small = PromptRenderer(Tokenizer.from_file(str(folder / "tokenizer.json")), None, kept_characters=500)
    for number in range(20):
        small.render(TEXT_PATH, json.dumps({"prompt": f"{number} " * 60, "add_special_tokens": False}).encode())
        assert sum(len(piece) for piece in small._kept) <= 500
    assert small._kept


@pytest.mark.parametrize(
    "body",
    [
        _chat([{"type": "image_url", "image_url": {"url": "x"}}]),
        _chat("hello", chat_template="{{ 1 }}"),
        _chat("hello", continue_final_message=True),
        b'{"messages":3}',
        b"{",
    ],
)
def test_prompts_that_cannot_be_laid_out_are_said_so(renderer: PromptRenderer, body: bytes) -> None:
    """The engine may well serve them; only their KV is not followed."""
    with pytest.raises(CannotRender):
        renderer.render(CHAT_PATH, body)


def test_text_parts_are_joined_or_handed_on_as_the_template_wants() -> None:
    """Templates that walk through parts get parts, also for plain text; others get one text."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    plain = ChatTemplate("{% for m in messages %}{{ m['content'] }}{% endfor %}", None, {})
    walking = ChatTemplate("{% for m in messages %}{% for p in m['content'] %}[{{ p['text'] }}]{% endfor %}{% endfor %}", None, {})
    assert plain.render({"messages": [{"role": "user", "content": parts}]}) == "a\nb"
    assert walking.render({"messages": [{"role": "user", "content": parts}, {"role": "user", "content": "c"}]}) == "[a][b][c]"


def test_a_template_can_neither_reach_out_nor_change_what_it_is_given() -> None:
    """It comes with the model, which is not ours: the sandbox refuses attributes of Python's own, and changes."""
    for source in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}"):
        with pytest.raises(CannotRender):
            ChatTemplate(source, None, {}).render({"messages": [{"role": "user", "content": "x"}]})


def test_tools_have_a_template_of_their_own_and_arguments_are_objects() -> None:
    """As vLLM hands them to templates."""
    template = ChatTemplate("plain", "{{ tools|length }}{{ messages[0].tool_calls[0].function.arguments.city }}", {})
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Ulm"}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert template.render({"messages": messages, "tools": [{}, {}]}) == "2Ulm"
    assert template.render({"messages": messages, "tools": [{}], "tool_choice": "none"}) == "plain"
