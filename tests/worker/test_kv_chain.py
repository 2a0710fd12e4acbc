"""How a request is laid out: chunk keys as the router makes them, and the tokens that each chunk needs."""

import math
import time
from bisect import bisect_left

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_core.prompt import canonical_chat, canonical_text, chunk_keys, escape, start_bytes
from penstock_worker.engine import BlockStored, Rendering
from penstock_worker.kv_chain import CHAT_PATH, TEXT_PATH, ChainRules, chain_of, extended_chain, next_turn
from penstock_worker.kv_translate import Translator

RULES = ChainRules(secret=7, chunk_bytes=16, block_tokens=4)
TEXTS = st.text(st.sampled_from("ab cé漢😀\x10\x1e\x1f\n"), max_size=80)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}), min_size=1, max_size=6
)


def raw_messages(messages):
    return msgspec.json.decode(msgspec.json.encode(messages), type=list[dict[str, msgspec.Raw]])


@given(messages=MESSAGES, salt=st.sampled_from(["", "s"]), tools=st.booleans())
def test_keys_are_the_routers_keys(template, messages, salt, tools):
    """The worker hashes a body to the very keys that core makes of it, whatever is in the text."""
    fields = {"tools": [{"type": "function"}]} if tools else {}
    body = template.body(messages, **fields)
    chain = chain_of(CHAT_PATH, body, template.chat(messages), RULES, salt=salt)
    start = start_bytes(salt=salt.encode(), rendering=msgspec.json.decode(body, type=dict[str, msgspec.Raw]))
    assert chain.keys == chunk_keys(canonical_chat(raw_messages(messages)), start, 7, 16).tolist()
    assert len(chain.tokens_at) == len(chain.keys)


@given(parts=st.lists(st.one_of(TEXTS, st.none()), max_size=5))
def test_keys_of_content_parts_are_the_routers_keys(template, parts):
    """Text parts and other parts give the same canonical bytes here as in core."""
    content = [{"type": "text", "text": part} if part is not None else {"type": "image_url", "image_url": {"url": "u"}} for part in parts]
    messages = [{"role": "user", "content": content, "name": "n"}]
    rendering = template.tokenize("<|user|>\n" + "".join(part or "" for part in parts) + "<|end|>\n")
    chain = chain_of(CHAT_PATH, template.body(messages), rendering, RULES)
    assert chain.keys == chunk_keys(canonical_chat(raw_messages(messages)), start_bytes(), 7, 16).tolist()


@given(messages=MESSAGES)
def test_tokens_cover_the_text_through_each_chunk(template, messages):
    """A chunk that ends inside a content needs the tokens through its last character; one in structure needs those around it."""
    for number, message in enumerate(messages):
        message["content"] = f"{number}:" + message["content"]  # every content stands only where it belongs
    rendering = template.chat(messages)
    chain = chain_of(CHAT_PATH, template.body(messages), rendering, RULES)
    assert chain.exact
    at_byte, at_char, bounds = 1, 0, []
    for message in messages:
        begin = rendering.text.index(message["content"], at_char)
        bounds += [(at_byte, at_char)] * (len(message["role"]) + 1)
        at_byte += len(message["role"]) + 1
        for index, character in enumerate(message["content"]):
            bounds += [(at_byte, begin + index + 1)] * len(escape(character.encode()))
        at_char = begin + len(message["content"])
        at_byte = len(bounds) + 1
        bounds.append((at_byte, at_char))
    for index, tokens in enumerate(chain.tokens_at):
        end = (index + 1) * 16 - 2  # bounds[i] speaks of canonical byte i + 1
        needed = bisect_left(rendering.ends, bounds[end][1]) + 1
        later = [bound for bound in bounds[end:] if bound[1] > bounds[end][1]]
        most = len(rendering.token_ids) if not later else bisect_left(rendering.ends, later[0][1]) + 1
        assert needed <= tokens <= most, index
    assert chain.tokens_at == sorted(chain.tokens_at)


@given(text=TEXTS.filter(lambda text: len(text) > 4))
def test_every_chunk_end_of_a_text_prompt_is_exact(template, text):
    """For a plain prompt the needed tokens are those that cover the characters begun by then, for any UTF-8 and escapes."""
    rendering = template.tokenize("<s>" + text)
    chain = chain_of(TEXT_PATH, msgspec.json.encode({"model": "m", "prompt": text}), rendering, RULES)
    written = [len(escape(character.encode())) for character in text]
    ends = [1 + sum(written[: index + 1]) for index in range(len(text))]
    assert chain.exact
    assert len(chain.keys) == len(canonical_text(text)) // 16
    for index, tokens in enumerate(chain.tokens_at):
        characters = bisect_left(ends, (index + 1) * 16) + 1
        assert tokens == bisect_left(rendering.ends, 3 + characters) + 1


def test_a_template_that_trims_is_followed(template):
    """Contents that the template strips are found all the same."""
    messages = [{"role": "user", "content": "  \n" + "word " * 20}, {"role": "user", "content": "\té" + "other " * 20 + "\n"}]
    rendering = template.chat(messages, trim=True)
    chain = chain_of(CHAT_PATH, template.body(messages), rendering, RULES)
    assert chain.exact
    assert chain.tokens_at[-1] <= len(rendering.token_ids)
    plain = chain_of(CHAT_PATH, template.body([{**m, "content": m["content"].strip()} for m in messages]), rendering, RULES)
    assert abs(len(plain.keys) - len(chain.keys)) <= 1


def test_a_rewritten_content_is_interpolated_and_marked(template):
    """Where the template shows something else, the chunks between its neighbours are interpolated and the chain is inexact."""
    messages = [
        {"role": "user", "content": "first " * 20},
        {"role": "user", "content": "x" * 100},
        {"role": "user", "content": "last " * 20},
    ]
    shown = [*messages[:1], {"role": "user", "content": "y" * 84}, *messages[2:]]
    rendering = template.chat(shown)
    chain = chain_of(CHAT_PATH, template.body(messages), rendering, RULES)
    assert not chain.exact
    assert chain.tokens_at == sorted(chain.tokens_at)
    honest = chain_of(CHAT_PATH, template.body(shown), rendering, RULES)
    assert chain.tokens_at[-1] == honest.tokens_at[-1]


@given(messages=MESSAGES)
def test_without_offsets_a_chunk_needs_at_least_what_it_needs(template, messages):
    """Interpolated counts round up one block, stay within the prompt, and say that they are not exact."""
    rendering = template.chat(messages)
    blind = Rendering(text=rendering.text, token_ids=rendering.token_ids, ends=None)
    chain = chain_of(CHAT_PATH, template.body(messages), blind, RULES)
    assert not chain.exact
    assert all(RULES.block_tokens <= tokens <= len(rendering.token_ids) for tokens in chain.tokens_at)
    assert chain.tokens_at == sorted(chain.tokens_at)


@pytest.mark.parametrize(("given_ids", "added"), [(list(range(100)), 0), (list(range(50)), 1)])
def test_token_prompts_need_their_tokens(given_ids, added):
    """Four bytes a token; tokens that the engine puts in front are counted."""
    rendering = Rendering(text="", token_ids=[1] * added + given_ids, ends=None)
    chain = chain_of(TEXT_PATH, msgspec.json.encode({"prompt": given_ids}), rendering, RULES)
    assert chain.tokens_at == [added + math.ceil(((index + 1) * 16 - 1) / 4) for index in range(len(chain.keys))]
    assert len(chain.keys) == (1 + 4 * len(given_ids)) // 16


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]], [], None])
def test_a_batch_of_prompts_has_no_chain(template, prompt):
    """Only one prompt a request is followed."""
    assert chain_of(TEXT_PATH, msgspec.json.encode({"prompt": prompt}), template.tokenize("ab"), RULES) is None


@given(messages=MESSAGES, answer=TEXTS, question=TEXTS)
def test_the_extended_chain_is_a_prefix_of_the_next_turn(template, messages, answer, question):
    """What is foretold of the next turn is what the next turn will be, key by key and token by token."""
    body = template.body(messages)
    following = next_turn(CHAT_PATH, body, answer)
    told = extended_chain(CHAT_PATH, following, template.of_body(CHAT_PATH, following), RULES)
    turn = [*messages, {"role": "assistant", "content": answer, "refusal": None}, {"role": "user", "content": question}]
    real = chain_of(CHAT_PATH, template.body(turn), template.chat(turn), RULES)
    assert told.keys == real.keys[: len(told.keys)]
    assert 16 * (len(told.keys) + 1) > len(canonical_chat(raw_messages(messages))) + len(escape(answer.encode()))
    if told.keys and "?" not in answer:
        whole = told.tokens_at[-1] // 4
        assert told.blocks[:whole] == real.blocks[:whole]


def test_an_answer_that_the_template_rewrites_is_not_credited(template):
    """A template that drops the thinking of earlier turns: the blocks of the answer as generated are not those the next turn needs."""
    question = [{"role": "user", "content": "word " * 20}]
    answer = "<think>" + "hidden " * 30 + "</think>" + "shown " * 30
    body, following = template.body(question), next_turn(CHAT_PATH, template.body(question), answer)
    rewritten = [{**m, "content": m["content"].rpartition("</think>")[2]} for m in msgspec.json.decode(following)["messages"]]
    told = extended_chain(CHAT_PATH, following, template.chat(rewritten), RULES)
    asked = chain_of(CHAT_PATH, body, template.chat(question), RULES)
    generated = template.tokenize(template.chat(question).text + answer)
    translator = Translator(RULES, max_blocks=1_000)
    translator.begin("a", asked)
    blocks = len(generated.token_ids) // 4
    translator.apply([BlockStored(tuple(range(1, blocks + 1)), None, tuple(generated.token_ids[: blocks * 4]))])
    translator.finish("a", told)
    before = sum(tokens <= len(template.chat(question).token_ids) for tokens in told.tokens_at)
    assert not told.exact
    assert set(asked.keys[: before - 1]) <= translator.held_keys()
    assert not set(told.keys[before + 1 :]) & translator.held_keys()
    assert len(told.keys) - before > 10


def test_a_long_prompt_is_laid_out_in_about_a_millisecond(template):
    """8,000 tokens: a bound of 6 ms of CPU time, several times what is measured, so that only a change of kind fails."""
    rules = ChainRules(secret=7, chunk_bytes=256, block_tokens=64)
    messages = [{"role": "user", "content": "lorem ipsum dolor sit amet " * 267} for _ in range(6)]
    rendering, body = template.chat(messages), template.body(messages)
    assert len(rendering.token_ids) >= 8_000
    costs_s = []
    for _ in range(20):
        begin_s = time.thread_time()
        chain_of(CHAT_PATH, body, rendering, rules)
        costs_s.append(time.thread_time() - begin_s)
    assert min(costs_s) < 0.006
