"""A vLLM server started by hand, without any Penstock part: what users have before they have Penstock. Tests adopt it or route to it.

The fixtures keep two for a session. It uses vLLM's own defaults but for what a CPU and small tests need.
"""

import asyncio
import contextlib
import json
import os
import re
import time
from pathlib import Path

import httpx
import psutil
from penstock_worker.engines.server.child import Child
from penstock_worker.engines.server.ports import free_ports
from penstock_worker.engines.vllm.dialect import Vllm

BLOCKS, BLOCK_TOKENS, CONTEXT_TOKENS = 200, 32, 4096
"""6,400 tokens of KV: a little more than one context, so that conversations push one another out."""
CLAIM_S = 5
CPU_ARGS = ("--dtype", "float32", "--enforce-eager", "--block-size", str(BLOCK_TOKENS), "--max-model-len", str(CONTEXT_TOKENS))
SMALL_ARGS = (*CPU_ARGS, "--max-num-seqs", "16", "--num-gpu-blocks-override", str(BLOCKS))
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "UCX_TLS": "tcp,sm,self",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Not bound to cores: a bound engine waits for its core while others are idle, and shares it with a thread of its own that polls."""
_POLITE = 10


class RawEngine:
    """One server. `wait` once it is started, `stop` at the end."""

    def __init__(self, python: str, model: Path, log: Path) -> None:
        http, events, replay, side = free_ports("127.0.0.1", 4)
        self.url = f"http://127.0.0.1:{http}"
        self.events, self.replay = f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}"
        self.log = log
        heard = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{events}",
            "replay_endpoint": f"tcp://*:{replay}",
        }
        moved = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu", "kv_load_failure_policy": "fail"}
        moved["kv_connector_extra_config"] = {"kv_lease_duration": CLAIM_S}  # type: ignore[assignment]
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "m"]
        words += ["--host", "127.0.0.1", "--port", str(http), *SMALL_ARGS, "--enable-prefix-caching", "--enable-request-id-headers"]
        words += ["--enable-prompt-tokens-details", "--kv-events-config", json.dumps(heard), "--kv-transfer-config", json.dumps(moved)]
        side_channel = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side)}
        environment = {**CPU_ENVIRONMENT, **side_channel}
        self._child = Child("vLLM", Vllm.phases, str(log))  # vLLM's core outlives a server that is killed: all of it must be ended
        self._child.start(python, words, environment)

    def wait(self, within_s: float) -> None:
        """Until it is healthy. AssertionError with the end of its output if it ends, or takes too long."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            assert not self._child.ended, self._child.why()
            try:
                if httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).is_success:
                    assert self._child.pid is not None
                    return calm(self._child.pid)
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not healthy within {within_s} s; see {self.log}")

    def metric(self, name: str) -> float:
        """Sum of one of its own metric's samples, now."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30.0, trust_env=False).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{re.escape(name)}[{{ ]", line))

    def stop(self) -> None:
        """End it and all its processes."""
        asyncio.run(self._child.stop())


def calm(pid: int) -> None:
    """Let the threads of NIXL below `pid` give way: one of each engine polls without a pause, which on few cores starves the rest."""
    for process in psutil.Process(pid).children(recursive=True):
        if "Worker" not in process.name() and "Worker" not in " ".join(process.cmdline()[:1]):
            continue
        for thread in process.threads():
            if thread.id != process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.setpriority(os.PRIO_PROCESS, thread.id, _POLITE)
