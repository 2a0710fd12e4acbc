"""Finds the folder of a model that an engine has fetched from a hub, in the cache that Hugging Face's libraries keep.

`engine` asks once the engine is healthy: by then the files are there. It fetches nothing itself.
"""

from collections.abc import Mapping
from pathlib import Path


def cached_folder(hub: str, revision: str, environ: Mapping[str, str]) -> Path | None:
    """Folder of the snapshot of `hub` (`organisation/model`) at `revision` (empty: main); None where the cache has none."""
    cache = _cache(environ) / f"models--{hub.replace('/', '--')}"
    named = cache / "refs" / (revision or "main")
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else revision
    folder = cache / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def _cache(environ: Mapping[str, str]) -> Path:
    """`$HF_HUB_CACHE`, else `$HF_HOME/hub`, else below the user's cache folder."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"])
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]) / "hub"
    home = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or "/") / ".cache")
    return Path(home) / "huggingface" / "hub"
