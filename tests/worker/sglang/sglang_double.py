"""A server that speaks SGLang's wire formats as they are documented, for an engine that has not been run here yet.

Recorded shapes: `/v1/models`, `/server_info` and `/metrics` as SGLang's documentation shows them, KV events as its publisher packs them
(positional arrays, `[timestamp, events, rank]`), and the meeting of a prefill and a decode engine in a bootstrap room. It computes
nothing: a prompt's tokens are the bytes that the test gives, its answer says which room it came from.
"""

import asyncio
from collections.abc import Callable
from itertools import count

import msgspec
import zmq
import zmq.asyncio
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.server import Server
from penstock_worker.engines.server.ports import free_ports

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
PAGE_TOKENS = 16
METRICS = """# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 3.0
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="1"} 3.0
# HELP sglang:num_queue_reqs The number of requests in the waiting queue.
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 1.0
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.25
# TYPE sglang:max_total_num_tokens gauge
sglang:max_total_num_tokens{engine_type="unified",model_name="m"} 4096.0
# TYPE sglang:page_size gauge
sglang:page_size{engine_type="unified",model_name="m"} 16.0
# TYPE sglang:cache_hit_rate gauge
sglang:cache_hit_rate{engine_type="unified",model_name="m",tp_rank="0"} 0.0075
"""
ARRIVAL_S = 20.0


class Rooms:
    """Where the two legs of a request meet; shared by the doubles of one test."""

    def __init__(self) -> None:
        self._prefilled: dict[int, asyncio.Event] = {}
        self._wanted: dict[int, asyncio.Event] = {}

    async def prefill(self, room: int) -> None:
        """The KV is there; wait until the decode side has taken it."""
        self._of(self._prefilled, room).set()
        await asyncio.wait_for(self._of(self._wanted, room).wait(), ARRIVAL_S)

    async def decode(self, room: int) -> None:
        """Wait for the KV, and take it."""
        self._of(self._wanted, room).set()
        await asyncio.wait_for(self._of(self._prefilled, room).wait(), ARRIVAL_S)

    @staticmethod
    def _of(events: dict[int, asyncio.Event], room: int) -> asyncio.Event:
        return events.setdefault(room, asyncio.Event())


class SgLangDouble:
    """One server; `mode` is `null`, `prefill` or `decode`. `start`, then `stop`."""

    def __init__(self, mode: str, rooms: Rooms | None = None, *, old_paths: bool = False) -> None:
        """`old_paths`: /server_info has its earlier name."""
        self.mode = mode
        self.url = ""
        self.bodies: list[dict[str, object]] = []
        """Of the requests so far."""
        self.fails = 0
        """So many of the next requests fail as SGLang's do when a transfer breaks: status 500."""
        self.events = self.replay = ""
        self.cached_tokens = 0
        self._rooms = rooms or Rooms()
        self._info_path = "/get_server_info" if old_paths else "/server_info"
        self._server = Server(self._serve, handler_prefixes=("/",), render_error=lambda status, message: (JSON, message.encode()))
        self._context = zmq.asyncio.Context()
        self._publisher = self._context.socket(zmq.PUB)
        self._numbers = count()

    async def start(self) -> None:
        host, port = await self._server.start("127.0.0.1", 0)
        events, replay = free_ports("127.0.0.1", 2)
        self.url, self.events, self.replay = f"http://{host}:{port}", f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}"
        self._publisher.bind(self.events)

    async def stop(self) -> None:
        await self._server.close()
        self._context.destroy(linger=0)

    async def publish(self, *events: list[object]) -> None:
        """One batch, as SGLang's publisher writes it."""
        payload = msgspec.msgpack.encode([1.5, list(events), 0])
        await self._publisher.send_multipart((b"kv-events", next(self._numbers).to_bytes(8, "big"), payload))

    async def _serve(self, exchange: Exchange) -> None:
        path = exchange.request.path
        answers: dict[str, Callable[[], tuple[list[tuple[bytes, bytes]], bytes]]] = {
            "/health": lambda: ([], b""),
            "/v1/models": lambda: (JSON, b'{"object":"list","data":[{"id":"m","object":"model","root":"m","max_model_len":2048}]}'),
            self._info_path: lambda: (JSON, self._info()),
            "/metrics": lambda: ([], METRICS.encode()),
        }
        if path in answers:
            headers, body = answers[path]()
            exchange.respond(200, headers, body)
        elif path in ("/v1/chat/completions", "/v1/completions"):
            await self._complete(exchange)
        else:
            exchange.respond(404, JSON, b'{"detail":"Not Found"}')

    def _info(self) -> bytes:
        said = {"version": "0.5.6", "disaggregation_mode": self.mode, "disaggregation_bootstrap_port": 8998, "page_size": PAGE_TOKENS}
        return msgspec.json.encode({**said, "kv_cache_dtype": "auto", "internal_states": [{"last_gen_throughput": 0.0}]})

    async def _complete(self, exchange: Exchange) -> None:
        body = msgspec.json.decode(exchange.request.body)
        self.bodies.append(body)
        if self.fails:
            self.fails -= 1
            return exchange.respond(500, JSON, b'{"object":"error","message":"KVTransferError","code":500}')
        room = body.get("bootstrap_room")
        if self.mode != "null":
            if room is None:
                return exchange.respond(
                    400, JSON, b'{"object":"error","message":"Disaggregated request received without bootstrap room id"}'
                )
            await (self._rooms.prefill(room) if self.mode == "prefill" else self._rooms.decode(room))
        usage = {"prompt_tokens": 40, "completion_tokens": 1, "total_tokens": 41}
        usage |= {"prompt_tokens_details": {"cached_tokens": self.cached_tokens}}  # type: ignore[dict-item]
        text = f"room {room}"
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return exchange.respond(200, JSON, msgspec.json.encode({"id": "1", "choices": [choice], "usage": usage}))
        exchange.start(200, SSE)
        chunk = {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
        exchange.write(b"data: " + msgspec.json.encode(chunk) + b"\n\n")
        exchange.write(b"data: " + msgspec.json.encode({"id": "1", "choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n")
        return exchange.finish()
