"""From the engine's KV blocks to chunk keys: which chunks of the prompts that passed through are held now.

`host` tells it of every request before the engine runs it (`begin`), of its answer (`finish`), and of the engine's block
events (`apply`), and hands what `take` gives to the publisher. Synchronous, no I/O, no clock. It knows nothing of epochs,
Redis or HTTP.

Blocks form a tree by their tokens, one root a (salt, adapter). A block is live while it and all before it are held; a chunk key
hangs on the last block it needs, and is held while at least one of its blocks is live (prompts that go on differently after
the same text share keys but not the block in which they part).
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable

import msgspec

from penstock_worker.engine import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored
from penstock_worker.kv_chain import Chain, ChainRules, block_name, token_bytes

RECENT_CALLS = 64
"""Finished requests whose chains are kept although no block of them is held yet: events may come after the answer."""
MOST_KEYS_PER_BLOCK = 256
"""A block's tokens hold a few chunks; far more only when someone sends the same tokens under many spellings."""


class Changes(msgspec.Struct, frozen=True):
    """Net changes since the last `take`: `cleared` first, then `removed`, then `added`, in their order. No key is in both."""

    added: list[int]
    removed: list[int]
    cleared: bool

    def __bool__(self) -> bool:
        return self.cleared or bool(self.added) or bool(self.removed)


class _Block:
    """A node of the tree. `hashes` are the engine's names for it, held or not; `pins` open or recent requests that end here."""

    __slots__ = ("children", "hashes", "held", "keys", "live", "name", "parent", "pins")

    def __init__(self, parent: "_Block | None", name: int) -> None:
        self.parent = parent
        self.name = name
        self.children: dict[int, _Block] = {}
        self.keys: list[int] = []
        self.hashes: list[int] = []
        self.held = 0  # how many of `hashes` are held
        self.live = parent is None
        self.pins = 0


class _Root(_Block):
    """What stands before every first block of one salt and adapter; always live."""

    __slots__ = ("of",)

    def __init__(self, of: tuple[str, str]) -> None:
        super().__init__(None, 0)
        self.of = of


class _Call:
    __slots__ = ("leaf", "tokens", "tokens_at")

    def __init__(self, leaf: _Block, chain: Chain) -> None:
        self.leaf = leaf
        self.tokens = chain.tokens
        self.tokens_at = chain.tokens_at


class Translator:
    """See the module. State changes only in `begin`, `finish`, `forget` and `apply`; all run on the host's event loop."""

    def __init__(self, rules: ChainRules, *, max_blocks: int) -> None:
        """`max_blocks` bounds the tree; give a few times what the engine can hold."""
        self.rules = rules
        self.untracked = 0  # prompts and blocks that could not be followed: the tree was full, or a parent is unknown
        self._max_blocks = max_blocks
        self._blocks = 0
        self._roots: dict[tuple[str, str], _Root] = {}
        self._by_hash: dict[int, _Block] = {}
        self._held: set[int] = set()
        self._calls: dict[str, _Call] = {}
        self._recent: deque[_Block] = deque()
        self._count: dict[int, int] = {}  # chunk key → live blocks it hangs on
        self._added: dict[int, None] = {}  # dictionaries keep the order of a prefix's chunks
        self._removed: dict[int, None] = {}
        self._cleared = False

    @property
    def blocks(self) -> int:
        """Nodes kept, held or not."""
        return self._blocks

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    def held_keys(self) -> set[int]:
        """Every chunk key that is held now."""
        return set(self._count)

    def begin(self, call_id: str, chain: Chain) -> None:
        """A request is about to run. Its blocks are remembered until `finish` or `forget`, and as long as they are held."""
        leaf = self._attach(chain)
        leaf.pins += 1
        self._calls[call_id] = _Call(leaf, chain)

    def hit_chunks(self, call_id: str, hit_tokens: int) -> int:
        """Leading chunks that the engine's `hit_tokens` cached tokens cover; 0 for an unknown call."""
        call = self._calls.get(call_id)
        return 0 if call is None else bisect_right(call.tokens_at, hit_tokens)

    def held_tokens(self, call_id: str) -> int:
        """Leading tokens of the call's prompt whose blocks are held now, as far as its chunks reach."""
        call = self._calls.get(call_id)
        block: _Block | None = None if call is None else call.leaf
        while block is not None and not block.live:
            block = block.parent
        depth = 0
        while block is not None and block.parent is not None:
            depth, block = depth + 1, block.parent
        return depth * self.rules.block_tokens

    def prompt_tokens(self, call_id: str) -> int:
        """Of a call that has begun; 0 for an unknown one."""
        call = self._calls.get(call_id)
        return 0 if call is None else call.tokens

    def room_tokens(self, call_id: str) -> int:
        """Output tokens that fill the block in which the call's prompt ended; fewer of them leave nothing new to follow."""
        call = self._calls.get(call_id)
        return 0 if call is None else self.rules.block_tokens - call.tokens % self.rules.block_tokens

    def finish(self, call_id: str, extended: Chain | None) -> None:
        """The answer is whole: follow its text too (`kv_chain.extended_chain`), so that the next turn's prefix is known."""
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        self._keep_recent(call.leaf)
        if extended is not None:
            leaf = self._attach(extended)
            leaf.pins += 1
            self._keep_recent(leaf)

    def forget(self, call_id: str) -> None:
        """The request ended without a whole answer; what it left in the cache stays followed."""
        self.finish(call_id, None)

    def apply(self, events: Iterable[BlockEvent]) -> None:
        """Take in a batch of the engine's events, in order."""
        for event in events:
            if isinstance(event, BlockStored):
                self._stored(event)
            elif isinstance(event, BlockRemoved):
                for block_hash in event.hashes:
                    self._gone(block_hash)
            elif isinstance(event, AllBlocksCleared):
                self._clear()

    def take(self) -> Changes:
        """What changed since the last call."""
        changes = Changes(list(self._added), list(self._removed), self._cleared)
        self._added, self._removed, self._cleared = {}, {}, False
        return changes

    def _attach(self, chain: Chain) -> _Block:
        """Hang the chain's keys on its blocks, making those that are new; gives the last block followed."""
        while self._recent and self._blocks + len(chain.blocks) > self._max_blocks:
            self._unpin(self._recent.popleft())
        path = [self._root(chain.salt, chain.adapter)]
        for name in chain.blocks:
            block = path[-1].children.get(name) or self._add_block(path[-1], name)
            if block is None:
                break
            path.append(block)
        for key, tokens in zip(chain.keys, chain.tokens_at, strict=True):
            needed = -(-tokens // self.rules.block_tokens)
            if needed >= len(path):
                break  # the prompt ends inside this chunk's last block; it is followed once the answer has filled the block
            self._hang(path[needed], key)
        return path[-1]

    def _add_block(self, parent: _Block, name: int) -> _Block | None:
        if self._blocks >= self._max_blocks:
            self.untracked += 1
            return None
        self._blocks += 1
        block = parent.children[name] = _Block(parent, name)
        return block

    def _root(self, salt: str, adapter: str) -> _Block:
        root = self._roots.get((salt, adapter))
        if root is None:
            root = self._roots[salt, adapter] = _Root((salt, adapter))
        return root

    def _hang(self, block: _Block, key: int) -> None:
        if key in block.keys or len(block.keys) >= MOST_KEYS_PER_BLOCK:
            return
        block.keys.append(key)
        if block.live:
            self._count_up(key)

    def _stored(self, event: BlockStored) -> None:
        if event.parent is None:
            block: _Block | None = self._root(event.salt, event.adapter)
        else:
            block = self._by_hash.get(event.parent)
        packed, size = token_bytes(event.token_ids), 4 * self.rules.block_tokens
        for index, block_hash in enumerate(event.hashes):
            if block is None:
                self.untracked += 1
                return
            name = block_name(packed[index * size : (index + 1) * size], self.rules.secret)
            block = block.children.get(name) or self._add_block(block, name)
            if block is not None:
                self._hold(block, block_hash)

    def _hold(self, block: _Block, block_hash: int) -> None:
        if block_hash in self._held:
            return
        if self._by_hash.get(block_hash) is not block:
            self._by_hash[block_hash] = block
            block.hashes.append(block_hash)
        self._held.add(block_hash)
        block.held += 1
        if not block.live and block.parent is not None and block.parent.live:
            self._come_alive(block)

    def _gone(self, block_hash: int) -> None:
        if block_hash not in self._held:
            return
        self._held.discard(block_hash)
        block = self._by_hash[block_hash]
        block.held -= 1
        if block.held == 0:
            if block.live:
                self._die(block)
            self._prune(block)

    def _come_alive(self, first: _Block) -> None:
        stack = [first]
        while stack:
            block = stack.pop()
            block.live = True
            for key in block.keys:
                self._count_up(key)
            stack += [child for child in block.children.values() if child.held]

    def _die(self, first: _Block) -> None:
        stack = [first]
        while stack:
            block = stack.pop()
            block.live = False
            for key in block.keys:
                self._count_down(key)
            stack += [child for child in block.children.values() if child.live]

    def _clear(self) -> None:
        blocks = list(self._by_hash.values())
        self._by_hash.clear()
        self._held.clear()
        self._count.clear()
        self._added.clear()
        self._removed.clear()
        self._cleared = True
        for block in blocks:
            block.hashes.clear()
            block.held, block.live = 0, False
        for block in blocks:
            self._prune(block)

    def _count_up(self, key: int) -> None:
        count = self._count.get(key, 0)
        self._count[key] = count + 1
        if count == 0:
            if key in self._removed:
                del self._removed[key]
            else:
                self._added[key] = None

    def _count_down(self, key: int) -> None:
        count = self._count[key]
        if count > 1:
            self._count[key] = count - 1
            return
        del self._count[key]
        if key in self._added:
            del self._added[key]
        else:
            self._removed[key] = None

    def _keep_recent(self, leaf: _Block) -> None:
        """`leaf` comes pinned and stays so until enough others have followed."""
        self._recent.append(leaf)
        while len(self._recent) > RECENT_CALLS:
            self._unpin(self._recent.popleft())

    def _unpin(self, leaf: _Block) -> None:
        leaf.pins -= 1
        self._prune(leaf)

    def _prune(self, block: _Block) -> None:
        """Forget blocks that nothing needs, from `block` towards the root."""
        while block.parent is not None and not block.held and not block.pins and not block.children:
            parent = block.parent
            if parent.children.get(block.name) is not block:
                return  # forgotten before
            del parent.children[block.name]
            self._blocks -= 1
            for block_hash in block.hashes:
                if self._by_hash.get(block_hash) is block:
                    del self._by_hash[block_hash]
            block = parent
        if isinstance(block, _Root) and not block.children and not block.pins:
            self._roots.pop(block.of, None)
