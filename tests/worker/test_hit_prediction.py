"""Whether a router that knows only the published chunk keys foretells what the engine finds in its cache."""

import asyncio
import random

import httpx
import msgspec
from penstock_core.facts import decode_facts
from penstock_core.kv_events import decode_state
from penstock_core.prompt import canonical_chat, chunk_keys, start_bytes
from penstock_dataplane.loop import run
from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.kv_chain import CHAT_PATH, ChainRules, chain_of

BLOCK_TOKENS, CHUNK_BYTES, SECRET = 64, 256, 5
RULES = ChainRules(SECRET, CHUNK_BYTES, BLOCK_TOKENS)
WORDS = ["river", "stone", "light", "garden", "é", "漢字", "winter", "lamp", "quiet", "{json}", "<tag>", "seventeen", ",", ".", "\n"]


def leading(keys, held):
    """Chunks of a prompt held from its start on."""
    return next((index for index, key in enumerate(keys) if key not in held), len(keys))


async def ask(host, client, talk, rng):
    """One turn: foretell the hit from the published keys, ask, compare. Gives (foretold, hit, prompt tokens, tolerance)."""
    while host._follower.pending:  # the turn before has ended milliseconds ago; clients take longer  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    body = msgspec.json.encode({"model": "m", "messages": talk, "max_tokens": rng.randint(5, 150)})
    messages = msgspec.json.decode(msgspec.json.encode(talk), type=list[dict[str, msgspec.Raw]])
    keys = chunk_keys(canonical_chat(messages), start_bytes(), SECRET, CHUNK_BYTES).tolist()
    held = set(decode_state((await client.get("/penstock/kv")).content).keys.tolist())
    chain = chain_of(CHAT_PATH, body, host._engine.render(CHAT_PATH, body), RULES)
    assert chain.keys == keys
    chunks = leading(keys, held)
    foretold = chain.tokens_at[chunks - 1] if chunks else 0
    chunk_tokens = max((after - before for before, after in zip([0, *chain.tokens_at], chain.tokens_at, strict=False)), default=0)
    answer = await client.post(CHAT_PATH, content=body)
    facts = decode_facts(answer.headers["x-penstock-facts"].encode())
    talk.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
    return foretold, facts.hit_tokens, facts.prompt_tokens, max(chunk_tokens, BLOCK_TOKENS)


async def converse(host, client, rng, turns):
    """Seven conversations that share heads, one turn of one of them after the other; now and then one ends and another begins."""
    shared = [" ".join(rng.choices(WORDS, k=400)) for _ in range(3)]
    talks, results = [], []
    for _ in range(turns):
        if len(talks) < 7 or rng.random() < 0.1:
            talks = [*talks[-6:], [{"role": "system", "content": rng.choice(shared)}]]
        talk = rng.choice(talks)
        talk.append({"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(5, 120)))})
        results.append(await ask(host, client, talk, rng))
    return results


def test_hits_are_foretold_within_one_chunk_or_block_while_blocks_are_evicted():
    """Multi-turn traffic with a hit ratio over one half and evictions going on: at least 98 % of the hits are foretold."""

    async def story():
        config = WorkerConfig(model="m", speed=200.0, kv_tokens=BLOCK_TOKENS * 120)
        host = build_host(config, WorkerSecrets(chunk_secret=SECRET))
        await host.start()
        removed = 0
        publish = host._publishing.publish

        def counted(added, gone):
            nonlocal removed
            removed += len(gone)
            publish(added, gone)

        host._publishing.publish = counted
        async with httpx.AsyncClient(base_url=host.url, timeout=60) as client:
            results = await converse(host, client, random.Random(13), 180)
        await host.stop()
        return results, removed

    results, removed = run(story())
    warm = results[20:]
    near = sum(abs(foretold - hit) <= tolerance for foretold, hit, _, tolerance in warm)
    ratio = sum(hit for _, hit, _, _ in warm) / sum(prompt for _, _, prompt, _ in warm)
    assert removed > 200
    assert ratio >= 0.5
    assert near >= 0.98 * len(warm), sorted((abs(f - h), f, h, p) for f, h, p, _ in warm)[-8:]
