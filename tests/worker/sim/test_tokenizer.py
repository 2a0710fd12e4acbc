"""The tokenizer takes every character once, alike everywhere, and quickly."""

import time

from hypothesis import given
from hypothesis import strategies as st
from penstock_worker.engines.sim import payload
from penstock_worker.engines.sim.tokenizer import SPECIAL, Tokenizer

_ENGLISH = (
    "A penstock is the gated pipe that feeds a turbine. Large models are served from separate pools, and a request's answer "
    "begins when its prompt has been read; after that, every word costs one pass over what has been said so far. "
)


@given(st.text(max_size=400))
def test_the_last_offset_covers_the_whole_text(text: str) -> None:
    """Offsets rise and end at the text's length, whatever the text."""
    encoded = Tokenizer().encode(text)
    ends = encoded.ends.tolist()
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(text)
    assert len(encoded.ids) == 4 * len(ends)


@given(st.text(max_size=300))
def test_no_text_gets_an_id_of_the_template(text: str) -> None:
    """Ids of text stay below those of special tokens."""
    assert all(token < SPECIAL for token in memoryview(Tokenizer().encode(text).ids).cast("I"))


@given(st.text(max_size=60), st.lists(st.integers(0, 4095), min_size=1, max_size=60))
def test_an_answer_retokenises_to_the_ids_it_was_generated_with(prompt: str, words: list[int]) -> None:
    """A chat answer alone, and a completion behind its prompt, give their words' own ids again."""
    tokenizer = Tokenizer()
    answer = payload.WORDS[words[0]] + "".join(payload.SPACED_WORDS[word] for word in words[1:])
    generated = [payload.WORD_IDS[words[0]], *(payload.SPACED_WORD_IDS[word] for word in words[1:])]
    assert memoryview(tokenizer.encode(answer).ids).cast("I").tolist() == generated
    continued = prompt + "".join(payload.SPACED_WORDS[word] for word in words)
    behind = [payload.SPACED_WORD_IDS[word] for word in words]
    assert memoryview(tokenizer.encode(continued).ids).cast("I").tolist() == (
        memoryview(tokenizer.encode(prompt).ids).cast("I").tolist() + behind
    )


def test_english_has_about_four_characters_a_token() -> None:
    """So that token counts are near those of real tokenizers."""
    ratio = len(_ENGLISH) / len(Tokenizer().encode(_ENGLISH).ends)
    assert 3.5 < ratio < 5.0, ratio


def test_words_of_answers_are_distinct_tokens() -> None:
    """4,096 words, each with an id of its own, with and without the space."""
    assert len(set(payload.WORDS)) == 4096
    assert len({*payload.WORD_IDS, *payload.SPACED_WORD_IDS}) == 8192


def test_eight_thousand_tokens_cost_a_few_milliseconds() -> None:
    """CPU time of the third of three texts (the vocabulary is warm, the text is new); the limit leaves room for a slow machine."""
    tokenizer = Tokenizer()
    spent = []
    for number in range(3):
        text = f"{number} " + _ENGLISH * 160
        began = time.process_time()
        tokens = len(tokenizer.encode(text).ends)
        spent.append(time.process_time() - began)
        assert tokens > 8_000
    assert min(spent) < 0.015, spent


def test_a_long_text_seen_before_is_not_split_again() -> None:
    """The cache gives the same object, and forgets the oldest text when it is full."""
    tokenizer = Tokenizer(cached_tokens=400)
    first = tokenizer.encode(_ENGLISH)
    assert tokenizer.encode(_ENGLISH) is first
    for number in range(10):
        tokenizer.encode(f"{number} {_ENGLISH}")
    again = tokenizer.encode(_ENGLISH)
    assert again is not first
    assert again.ids == first.ids
