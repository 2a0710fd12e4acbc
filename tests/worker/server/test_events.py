"""Both wire forms of an engine's KV events become the same BlockEvents, and what must not be credited is left out."""

import msgspec
import pytest
from penstock_worker.engine import AllBlocksCleared, BlockRemoved, BlockStored
from penstock_worker.engines.server.events import Unreadable, decode_batch

pack = msgspec.msgpack.encode


def _map(**fields: object) -> dict[str, object]:
    ours = {"type": "BlockStored", "block_hashes": [5, 6], "parent_block_hash": None, "token_ids": [1, 2, 3, 4], "block_size": 2}
    return {**ours, "lora_id": None, "medium": "GPU", "lora_name": None, **fields}


def test_arrays_of_older_engines_and_maps_of_newer_ones_say_the_same() -> None:
    """Also where trailing fields are missing, and where the batch itself is a map."""
    expected = [BlockStored((5, 6), None, (1, 2, 3, 4)), BlockRemoved((5,)), AllBlocksCleared()]
    arrays = [0.0, [["BlockStored", [5, 6], None, [1, 2, 3, 4], 2, None, "GPU"], ["BlockRemoved", [5]], ["AllBlocksCleared"]]]
    removed, cleared = {"type": "BlockRemoved", "block_hashes": [5], "medium": "GPU"}, {"type": "AllBlocksCleared"}
    maps = [0.0, [_map(), removed, cleared], 0]
    assert decode_batch(pack(arrays)).events == expected
    assert decode_batch(pack(maps)).events == expected
    assert decode_batch(pack({"ts": 0.0, "events": maps[1], "data_parallel_rank": None})).events == expected
    assert decode_batch(pack(maps)).block_tokens == 2


@pytest.mark.parametrize(("written", "number"), [(-1, 2**64 - 1), (7, 7), (b"\x00" * 24 + (9).to_bytes(8, "big"), 9)])
def test_a_block_hash_of_any_form_is_one_number(written: object, number: int) -> None:
    """Signed and unsigned 64 bits, and digests of which the last 8 bytes count."""
    (event,) = decode_batch(pack([0.0, [_map(block_hashes=[written], token_ids=[1, 2])]])).events
    assert isinstance(event, BlockStored)
    assert event.hashes == (number,)


@pytest.mark.parametrize(
    "fields",
    [
        {"medium": "CPU"},
        {"group_idx": 1},
        {"kv_cache_spec_kind": "sliding_window"},
        {"locality": "REMOTE"},
        {"lora_id": 3},
        {"extra_keys": [[["image-1", 0]], None]},
        {"extra_keys": [["salt", "another"], None]},
        {"block_size": 3},
        {"token_ids": [1, 2, 3, -4]},
    ],
)
def test_blocks_that_must_not_be_credited_are_passed_over(fields: dict[str, object]) -> None:
    """Other media, groups without full attention, unnamed adapters, images, and events whose numbers do not fit."""
    batch = decode_batch(pack([0.0, [_map(**fields)]]))
    assert (batch.events, batch.passed_over) == ([], 1)


def test_salts_and_adapters_are_told_apart() -> None:
    """They stand in `extra_keys`, untagged, the adapter's name first."""
    batch = decode_batch(pack([0.0, [_map(extra_keys=[["tenant"], None]), _map(lora_name="sql", extra_keys=[["sql", "tenant"], ["sql"]])]]))
    assert [(event.salt, event.adapter) for event in batch.events if isinstance(event, BlockStored)] == [("tenant", ""), ("tenant", "sql")]


@pytest.mark.parametrize(
    "written",
    [b"", b"\xc1", pack(3), pack([1.0]), pack([1.0, 5]), pack([1.0, [7]]), pack([1.0, [_map(block_hashes=[1.5], token_ids=[1, 2])]])],
)
def test_what_is_no_batch_is_refused_by_name(written: bytes) -> None:
    """The subscriber counts these and goes on."""
    with pytest.raises(Unreadable):
        decode_batch(written)


def test_events_of_another_rank_are_not_ours() -> None:
    """One worker follows one data-parallel rank."""
    assert decode_batch(pack([0.0, [_map()], 1])).events == []
    assert len(decode_batch(pack([0.0, [_map()], 1]), rank=1).events) == 1
