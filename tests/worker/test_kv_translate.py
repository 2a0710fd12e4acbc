"""Engine blocks to chunk keys, against a brute-force model that recomputes everything from its definition."""

import random
import time

import pytest
from penstock_worker.engine import AllBlocksCleared, BlockRemoved, BlockStored
from penstock_worker.kv_chain import CHAT_PATH, Chain, ChainRules, block_name, chain_of, extended_chain, next_turn, token_bytes
from penstock_worker.kv_translate import RECENT_CALLS, Translator

RULES = ChainRules(secret=7, chunk_bytes=16, block_tokens=4)


class BlockCache:
    """An engine's prefix cache that evicts whatever a test wants gone, middle blocks included."""

    def __init__(self):
        self.held = {}  # path of block token tuples → hash
        self.serial = 0

    def store(self, tokens, salt=""):
        """Hold all full blocks of a prompt; gives the events of those that were missing, one a block."""
        events, parent = [], None
        for end in range(4, len(tokens) + 1, 4):
            path = (salt, *(tuple(tokens[at : at + 4]) for at in range(0, end, 4)))
            if path not in self.held:
                self.serial += 1
                self.held[path] = self.serial
                events.append(BlockStored((self.serial,), parent, path[-1], salt))
            parent = self.held[path]
        return events

    def evict(self, path):
        return BlockRemoved((self.held.pop(path),))

    def hit_tokens(self, tokens, salt=""):
        hit = 0
        while hit + 4 <= len(tokens) and (salt, *(tuple(tokens[at : at + 4]) for at in range(0, hit + 4, 4))) in self.held:
            hit += 4
        return hit


class Model:
    """The definition, recomputed: a key is held iff every block of some text it stands for is held; forgotten with its blocks."""

    def __init__(self, cache):
        self.cache = cache
        self.hangs = set()  # (path, key)
        self.pins = []  # the last path of every open or recent call

    def attach(self, chain, tokens, salt=""):
        blocks = len(chain.blocks)
        path = (salt, *(tuple(tokens[at * 4 : at * 4 + 4]) for at in range(blocks)))
        for key, needed in zip(chain.keys, chain.tokens_at, strict=True):
            count = -(-needed // 4)
            if count <= blocks:
                self.hangs.add((path[: count + 1], key))
        self.pins.append(path)

    def held_keys(self):
        known = {path[:end] for path in (*self.cache.held, *self.pins) for end in range(1, len(path) + 1)}
        self.hangs = {hang for hang in self.hangs if hang[0] in known}
        held = self.cache.held
        return {key for path, key in self.hangs if all(path[:end] in held for end in range(2, len(path) + 1))}


def drain(translator, published):
    """Apply what `take` gives to a plain set, as an index would; nothing may be added twice or removed unheld."""
    changes = translator.take()
    if changes.cleared:
        published.clear()
    added, removed = set(changes.added), set(changes.removed)
    assert not added & removed
    assert removed <= published
    published -= removed
    assert not added & published
    published |= added
    return published


class Traffic:
    """Random multi-turn requests through a translator, a block cache and the model at once."""

    def __init__(self, template, seed):
        self.template = template
        self.rng = random.Random(seed)
        self.cache = BlockCache()
        self.model = Model(self.cache)
        self.translator = Translator(RULES, max_blocks=10_000)
        self.calls = 0

    def ask(self, talk, salt="", finish=True):
        """Send a talk's next request: begin, blocks stored, answer finished (or the request aborted)."""
        template, translator, rng = self.template, self.translator, self.rng
        self.calls += 1
        call, body, rendering = f"c{self.calls}", template.body(talk), template.chat(talk)
        chain = chain_of(CHAT_PATH, body, rendering, RULES, salt=salt)
        translator.begin(call, chain)
        hit = self.cache.hit_tokens(rendering.token_ids, salt)
        assert translator.hit_chunks(call, hit) == sum(tokens <= hit for tokens in chain.tokens_at)
        answer = " ".join(rng.choices(["one", "two", "three"], k=rng.randint(0, 20)))
        self.model.attach(chain, rendering.token_ids, salt)
        translator.apply(self.cache.store([*rendering.token_ids, *template.tokenize(answer).token_ids], salt))
        if finish:
            following = next_turn(CHAT_PATH, body, answer)
            shown = template.of_body(CHAT_PATH, following)
            extended = extended_chain(CHAT_PATH, following, shown, RULES, salt=salt)
            translator.finish(call, extended)
            self.model.attach(extended, shown.token_ids, salt)
            talk.append({"role": "assistant", "content": answer})
        else:
            translator.forget(call)
        del self.model.pins[:-RECENT_CALLS]


@pytest.mark.parametrize("seed", range(6))
def test_published_keys_are_the_models_keys(template, seed):
    """Conversations that share heads, random evictions of any block, clears, aborts: after each step the keys are the definition's."""
    traffic, published = Traffic(template, seed), set()
    rng, cache, translator = traffic.rng, traffic.cache, traffic.translator
    talks = [[] for _ in range(4)]
    heads = ["shared system text of some length é " * 2, "another head 漢字 " * 3]
    most = 0
    for step in range(80):
        act = rng.random()
        if act < 0.5:
            talk = rng.choice(talks)
            if not talk or len(talk) > 6:
                talk[:] = [{"role": "system", "content": rng.choice(heads)}]
            talk.append({"role": "user", "content": " ".join(rng.choices(["alpha", "beta", "漢", "\x10", "gamma"], k=rng.randint(1, 12)))})
            traffic.ask(talk, salt=rng.choice(["", "", "t"]), finish=rng.random() < 0.8)
        elif act < 0.98:
            gone = rng.sample(sorted(cache.held, key=str), min(len(cache.held), rng.randint(0, 6)))
            translator.apply([cache.evict(path) for path in gone])
        else:
            cache.held.clear()
            translator.apply([AllBlocksCleared()])
        assert drain(translator, published) == traffic.model.held_keys() == translator.held_keys(), step
        most = max(most, len(published))
    assert most > 10


@pytest.mark.parametrize("seed", range(3))
def test_the_next_turns_hit_is_foretold(template, seed):
    """Leading published chunks of a prompt and the engine's own hit differ by at most one block, or one chunk, in tokens."""
    traffic, published, hits = Traffic(template, seed), set(), 0
    rng, cache = traffic.rng, traffic.cache
    talks = [[{"role": "system", "content": "the same head for all of them " * 3}] for _ in range(6)]
    for step in range(100):
        talk = rng.choice(talks)
        talk.append({"role": "user", "content": " ".join(rng.choices(["alpha", "beta", "gamma"], k=rng.randint(3, 20)))})
        rendering = template.chat(talk)
        chain = chain_of(CHAT_PATH, template.body(talk), rendering, RULES)
        leading = next((at for at, key in enumerate(chain.keys) if key not in published), len(chain.keys))
        hit = cache.hit_tokens(rendering.token_ids)
        foretold = chain.tokens_at[leading - 1] if leading else 0
        covered = max((tokens for tokens in chain.tokens_at if tokens <= hit), default=0)
        chunk = max((after - before for before, after in zip([0, *chain.tokens_at], chain.tokens_at, strict=False)), default=0)
        assert foretold - hit < 4, step
        assert covered - foretold <= max(4, chunk), step
        hits += hit > 0
        traffic.ask(talk)
        while len(cache.held) > 60:  # leaf first, as engines do
            leaves = [path for path in cache.held if not any(other[:-1] == path for other in cache.held)]
            traffic.translator.apply([cache.evict(rng.choice(leaves))])
        if len(talk) > 9:
            del talk[1:]
        drain(traffic.translator, published)
    assert hits > 60


def chain_over(tokens, keys, salt=""):
    """A chain whose chunk i needs block i."""
    blocks = [block_name(token_bytes(tokens[at : at + 4]), 7) for at in range(0, len(tokens), 4)]
    return Chain(salt, "", list(keys), [4 * (index + 1) for index in range(len(keys))], blocks, True)


def test_a_middle_block_that_comes_back_revives_what_stands_on_it():
    """Chunks of longer prompts go with the block and return with it, without any later block being stored anew."""
    cache, published = BlockCache(), set()
    translator = Translator(RULES, max_blocks=100)
    translator.begin("a", chain_over(range(16), [1, 2, 3, 4]))
    translator.apply(cache.store(list(range(16))))
    assert drain(translator, published) == {1, 2, 3, 4}
    translator.apply([cache.evict(sorted(cache.held, key=len)[1])])
    assert drain(translator, published) == {1}
    back = cache.store(list(range(16)))
    assert len(back) == 1
    translator.apply(back)
    assert drain(translator, published) == {1, 2, 3, 4}


def test_a_key_on_two_blocks_stays_until_both_are_gone():
    """The same text followed by two different texts in one block: held while either block is."""
    cache, published = BlockCache(), set()
    translator = Translator(RULES, max_blocks=100)
    for call, tokens in (("a", [1, 2, 3, 4]), ("b", [1, 2, 3, 9])):
        translator.begin(call, chain_over(tokens, [77]))
        translator.apply(cache.store(tokens))
    assert drain(translator, published) == {77}
    first, second = list(cache.held)
    translator.apply([cache.evict(first)])
    assert drain(translator, published) == {77}
    translator.apply([cache.evict(second)])
    assert drain(translator, published) == set()


def test_salts_do_not_mix():
    """Another salt's blocks hold nothing of a prompt with the same tokens."""
    cache, published = BlockCache(), set()
    translator = Translator(RULES, max_blocks=100)
    translator.begin("a", chain_over([1, 2, 3, 4], [5], salt="one"))
    translator.apply(cache.store([1, 2, 3, 4], salt="two"))
    assert drain(translator, published) == set()
    translator.apply(cache.store([1, 2, 3, 4], salt="one"))
    assert drain(translator, published) == {5}


def test_memory_is_bounded_by_what_the_engine_holds():
    """Thousands of requests whose blocks go away leave only the recent ones behind; a full tree says so and goes on."""
    cache = BlockCache()
    translator = Translator(RULES, max_blocks=1_000)
    for number in range(2_000):
        tokens = [number * 8 + at for at in range(8)]
        translator.begin("c", chain_over(tokens, [number, number + 1_000_000]))
        translator.apply(cache.store(tokens))
        translator.finish("c", None)
        translator.apply([cache.evict(path) for path in sorted(cache.held, key=len, reverse=True)])
        translator.take()
    assert translator.blocks <= 2 * RECENT_CALLS
    assert (translator.open_calls, translator.untracked, len(translator.held_keys())) == (0, 0, 0)
    for number in range(600):
        translator.begin(f"c{number}", chain_over([number * 8 + at for at in range(8)], []))
    assert translator.blocks <= 1_000
    assert translator.untracked > 0


def test_events_after_the_answer_still_count():
    """An engine may report the blocks of a request after its answer has ended."""
    cache, published = BlockCache(), set()
    translator = Translator(RULES, max_blocks=100)
    translator.begin("a", chain_over(range(8), [1, 2]))
    translator.finish("a", None)
    translator.apply(cache.store(list(range(8))))
    assert drain(translator, published) == {1, 2}


def test_blocks_of_unknown_parents_are_left_out():
    """A block whose parent was never seen cannot be placed; it is counted, and its removal changes nothing."""
    translator = Translator(RULES, max_blocks=100)
    translator.apply([BlockStored((2,), 1, (1, 2, 3, 4)), BlockRemoved((2,)), BlockRemoved((9,))])
    assert translator.untracked == 1
    assert not translator.take()


def test_following_a_long_prompt_costs_well_under_a_millisecond():
    """8,000 tokens, 125 blocks never seen: a bound of 2 ms of CPU time, many times what is measured."""
    translator = Translator(ChainRules(secret=7, chunk_bytes=256, block_tokens=64), max_blocks=100_000)
    costs_s = []
    for number in range(30):
        chain = Chain("", "", list(range(150)), [(at + 1) * 53 for at in range(150)], [number * 1_000 + at for at in range(125)], True)
        begin_s = time.thread_time()
        translator.begin(str(number), chain)
        costs_s.append(time.thread_time() - begin_s)
    assert min(costs_s) < 0.002
