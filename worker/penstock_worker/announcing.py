"""Tells whoever started this process where it answers: a file with the URL, there once the worker is ready.

`serving` and `gang_leader` write it; `process_host`, `penstock up` and tests read it.
"""

from pathlib import Path


def announce(path: Path, url: str) -> None:
    """Write the URL down, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(url + "\n", encoding="utf-8")
    fresh.replace(path)
