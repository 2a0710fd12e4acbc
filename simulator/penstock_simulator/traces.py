"""Readers of recorded traffic: Mooncake-style JSON lines with `hash_ids`, and Azure's CSV of arrivals and lengths.

`penstock simulate` and the benchmarks call `read_trace`. Files may be zstandard-compressed (`.zst`). The result is a
Workload; nothing here knows how it is replayed.
"""

import csv
import io
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import msgspec

from penstock_simulator.workload import BLOCK_TOKENS, Asked, Workload, assemble

HASHED_TOKENS = 512
"""Tokens that one of Mooncake's `hash_ids` stands for."""


class _Row(msgspec.Struct):
    timestamp: float
    """Milliseconds."""
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_trace(path: Path) -> Workload:
    """The workload in a `.jsonl` or `.csv` file, `.zst` or not. Raises ValueError naming file, line and field."""
    kind = path.name.removesuffix(".zst").rpartition(".")[2]
    readers = {"jsonl": read_mooncake, "csv": read_azure}
    if kind not in readers:
        raise ValueError(f"trace is {path.name!r}; allowed: *.jsonl, *.csv, each also with .zst")
    with _open(path) as lines:
        return readers[kind](path.name, lines)


def read_mooncake(name: str, lines: Iterable[str]) -> Workload:
    """Requests of `{"timestamp" ms, "input_length", "output_length", "hash_ids"}` lines, ordered by time stamp.

    A hash id is one block of 512 tokens. Ids are chained again here by what stands before them, so that equal blocks
    after unequal ones are never taken for the same.
    """
    decoder = msgspec.json.Decoder(_Row)
    rows: list[_Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
        if len(row.hash_ids) < row.input_length // HASHED_TOKENS:
            raise ValueError(
                f"{name}, line {number}: {len(row.hash_ids)} hash_ids for input_length {row.input_length}; allowed: one per 512 tokens"
            )
        rows.append(row)
    rows.sort(key=lambda row: row.timestamp)
    chains: dict[tuple[int, int], int] = {}
    per_hash = HASHED_TOKENS // BLOCK_TOKENS

    def blocks(row: _Row) -> list[int]:
        parent = -1
        ids: list[int] = []
        for hashed in row.hash_ids:
            parent = chains.setdefault((parent, hashed), len(chains))
            ids += range(parent * per_hash, parent * per_hash + per_hash)
        return ids[: row.input_length // BLOCK_TOKENS]

    start = rows[0].timestamp if rows else 0.0
    asked = [Asked((row.timestamp - start) / 1e3, row.input_length, max(1, row.output_length), blocks(row)) for row in rows]
    return assemble(name, asked, len(chains) * per_hash)


def read_azure(name: str, lines: Iterable[str]) -> Workload:
    """Requests of `TIMESTAMP,ContextTokens,GeneratedTokens` rows; the trace says nothing of content, so nothing is shared."""
    asked: list[Asked] = []
    start: datetime | None = None
    reader = csv.DictReader(lines)
    for row in reader:
        try:
            # Seven digits of a second are one more than datetime takes.
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name}, line {reader.line_num}: {error}; allowed: columns TIMESTAMP, ContextTokens, GeneratedTokens"
            ) from None
        start = start or at
        asked.append(Asked((at - start).total_seconds(), max(1, prompt), max(1, output), ()))
    asked.sort(key=lambda one: one.arrival_s)
    return assemble(name, asked, 0)


def _open(path: Path) -> io.TextIOWrapper:
    if path.suffix != ".zst":
        return path.open(encoding="utf-8")
    import zstandard

    return io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True), encoding="utf-8")
