"""The model's arithmetic over the store: compute KV rows of new tokens, read the next word off the rows held.

The batch calls it at the start of a pass. Parents and contexts are read from the store, never from a shortcut, so that a
wrong, lost or foreign block shows in the text.
"""

from penstock_worker.engine import BlockStored
from penstock_worker.engines.sim import payload
from penstock_worker.engines.sim.blocks import BlockStore
from penstock_worker.engines.sim.sequence import Sequence


def compute(store: BlockStore, sequence: Sequence, upto: int) -> None:
    """Fill the rows of `sequence` up to token `upto` (its blocks are there) and offer full blocks to the prefix cache."""
    size = store.block_tokens
    position, tokens, table = sequence.computed, sequence.tokens, sequence.table
    while position < upto:
        number = position // size
        start = number * size
        end = min(start + size, upto)
        block = int(table[number])
        if end == start + size:
            parent = store.row(int(table[number - 1])) if number else sequence.root
            row = payload.full_row(parent, tokens[start:end].tobytes())
        elif position == start:
            parent = store.row(int(table[number - 1])) if number else sequence.root
            row = payload.longer_row(parent, tokens[start:end])
        else:
            row = payload.longer_row(store.row(block), tokens[position:end])
        store.write(block, row)
        position = end
    sequence.computed = max(upto, sequence.computed)
    if sequence.computed // size > sequence.registered:
        offer(store, sequence)


def offer(store: BlockStore, sequence: Sequence) -> None:
    """Let the full blocks of `sequence` be found by others; a block that is cached already takes the place of its own."""
    size = store.block_tokens
    first, last = sequence.registered, sequence.computed // size
    hashes = sequence.full_block_hashes(last, size)
    run = first  # where the current run of newly cached blocks begins
    for number in range(first, last):
        block, new = store.register(int(sequence.table[number]), hashes[number])
        if not new:
            sequence.table[number] = block
            _stored(store, sequence, run, number)
            run = number + 1
    _stored(store, sequence, run, last)
    sequence.registered = last


def _stored(store: BlockStore, sequence: Sequence, first: int, last: int) -> None:
    if first == last:
        return
    size = store.block_tokens
    parent = sequence.hashes[first - 1] if first else None
    token_ids = tuple(sequence.tokens[first * size : last * size])
    store.stored(BlockStored(tuple(sequence.hashes[first:last]), parent, token_ids, sequence.salt, sequence.adapter))


def next_word(store: BlockStore, sequence: Sequence) -> int:
    """The word that follows, from the rows that the sequence's blocks hold now."""
    rows = store.rows.take(sequence.table[: sequence.block_count], axis=0)
    return payload.next_word(rows, sequence.choice)  # type: ignore[arg-type]  # xxhash takes any buffer
