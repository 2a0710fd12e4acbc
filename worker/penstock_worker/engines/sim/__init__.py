"""The `sim` engine: a real-time model of an inference engine whose text proves which KV it held.

It batches, chunks prefills, caches prefixes, evicts, preempts and hands KV from prefill to decode like the engines it stands
for, timed by a profile; only the arithmetic of the model itself is replaced by hashing. The worker's host builds a
SimEngine from a SimConfig and talks to it through the Engine Protocol; tests predict its answers with `reference_text`.
"""

from penstock_worker.engines.sim.config import SimConfig
from penstock_worker.engines.sim.engine import SimEngine
from penstock_worker.engines.sim.reference import reference_text, reference_words

__all__ = ["SimConfig", "SimEngine", "reference_text", "reference_words"]
