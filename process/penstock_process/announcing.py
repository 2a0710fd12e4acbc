"""Tells whoever started this process where it answers: a file with the URL, there once the process is ready.

Routers, workers, operator and autoscaler write it, each where its settings say; the fleet's hosts, `penstock up` and tests read it.
"""

from pathlib import Path


def announce(path: Path, url: str) -> None:
    """Write the URL down, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(url + "\n", encoding="utf-8")
    fresh.replace(path)
