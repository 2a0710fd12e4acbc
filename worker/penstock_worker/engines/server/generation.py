"""One word for all that the bytes of an engine's KV depend on: only workers with equal words hand KV to one another.

The dialects call it with what their engines say. It reads the model's folder, if there is one.
"""

from collections.abc import Sequence
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from penstock_worker.engines.server.config import ServerConfig

_WEIGHTS = (".safetensors", ".bin", ".gguf")


def generation(engine: str, version: str, config: ServerConfig, further: Sequence[str]) -> str:
    """`further`: block size, type of the KV and the like. Model files count by name and size."""
    parts = [version, config.model, config.connector, config.revision, *further]
    folder = Path(config.folder) if config.folder else None
    if folder is not None and (folder / "config.json").exists():
        parts.append((folder / "config.json").read_text(encoding="utf-8"))
        parts += sorted(f"{path.name}:{path.stat().st_size}" for path in folder.iterdir() if path.suffix in _WEIGHTS)
    return f"{engine}-{version}-{xxh3_64_hexdigest(chr(0).join(parts).encode())[:12]}"
