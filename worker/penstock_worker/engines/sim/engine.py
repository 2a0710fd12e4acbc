"""SimEngine: the asyncio shell around the batch. It keeps real time, hands words out and takes requests in.

The worker's host builds one from a SimConfig and uses it through the Engine Protocol. All decisions are the batch's; here
is what waits: for work, for the end of a pass, for a pull. Everything runs in one event loop; state changes between awaits.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from penstock_core.endpoint import Load
from penstock_core.errors import BadInput, Refused, TransferFailed

from penstock_worker.engine import AnswerCut, BlockEvent, EngineAnswer, EngineCall, EngineInfo, Handover, Rendering
from penstock_worker.engines.sim import payload, template
from penstock_worker.engines.sim.answers import SimAnswer
from penstock_worker.engines.sim.batching import Batch, Pass
from penstock_worker.engines.sim.blocks import BlockStore
from penstock_worker.engines.sim.claims import Claim, Claims
from penstock_worker.engines.sim.config import SimConfig
from penstock_worker.engines.sim.metrics import Gauges, SimMetrics
from penstock_worker.engines.sim.pulls import Pulls
from penstock_worker.engines.sim.reference import words_wanted
from penstock_worker.engines.sim.request import SimRequest, parse
from penstock_worker.engines.sim.sequence import Sequence as TokenSequence
from penstock_worker.engines.sim.tokenizer import Tokenizer
from penstock_worker.engines.sim.transfer import BlockServer

_log = logging.getLogger(__name__)
_MOST_LAG_S = 0.25
"""Passes that come late on a busy machine are caught up with, but no further back than this."""
_LONG_BODY_BYTES = 65_536
"""Longer ones are tokenised in a thread: milliseconds that would hold every stream up."""


class _Stream:
    """What the shell knows of a sequence in the batch: whose it is, and when it last gave a word."""

    __slots__ = ("answer", "choice", "last_s", "reason", "request", "request_id")

    def __init__(self, answer: SimAnswer, choice: int, reason: str, request: SimRequest, request_id: str) -> None:
        self.answer = answer
        self.choice = choice
        self.reason = reason
        self.request = request
        self.request_id = request_id
        self.last_s = time.monotonic()


class SimEngine:
    """One simulated engine replica; implements `penstock_worker.engine.Engine`."""

    def __init__(self, config: SimConfig) -> None:
        self.config = config
        self._timing = config.timing()
        self._store = BlockStore(config.blocks, config.block_tokens)
        self._batch = Batch(self._store, self._timing)
        self._tokenizer = Tokenizer()
        self._metrics = SimMetrics(config.model)
        self._listener: Callable[[Sequence[BlockEvent]], None] | None = None
        self._answers: dict[SimAnswer, list[TokenSequence]] = {}
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self.engine_id = f"sim-{config.epoch or secrets.randbits(64):016x}"
        self._claims = Claims(self._store, config.claim_seconds)
        self._server = BlockServer(config, self.engine_id, self._store, self._claims, self._served)
        self._pulls = Pulls(config, self._timing.transfer_bytes_per_s, self._arrived, self._pull_failed)

    @property
    def store(self) -> BlockStore:
        """The blocks, for tests that corrupt or count them."""
        return self._store

    async def start(self) -> EngineInfo:
        """Bring the engine up; it takes `start_delay_s`."""
        if self._runner is not None:
            raise RuntimeError("the engine has been started already")
        await asyncio.sleep(self.config.start_delay_s)
        await self._server.start()
        self._runner = asyncio.create_task(self._run(), name=f"{self.engine_id} passes")
        return EngineInfo(
            model=self.config.model,
            profile=self._timing,
            kv_total_tokens=self.config.blocks * self.config.block_tokens,
            block_tokens=self.config.block_tokens,
            max_model_tokens=self.config.context_tokens,
            connector="nixl",
            kv_generation=self.config.kv_generation,
            capabilities=("chat", "completions"),
            adapters=self.config.adapters,
            switches_role=True,
        )

    async def died(self) -> str:
        """See Engine.died: when its passes end by an error of ours."""
        if self._runner is None:
            raise RuntimeError("the engine has not been started")
        await asyncio.wait((self._runner,))
        return "the simulated engine's passes have ended"

    async def stop(self) -> None:
        """End every answer with AnswerCut, then the engine."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        runner.cancel()
        await asyncio.wait((runner,))
        await self._pulls.stop()
        await self._server.stop()
        self._end_all()

    async def answer(self, call: EngineCall) -> EngineAnswer:
        """See Engine.answer."""
        self._check_up()
        request = parse(call.path, call.body, max_choices=self.config.max_choices)
        ids = await self._prompt_ids(request, len(call.body))
        self._check_fits(request, len(ids) // 4)
        self._check_up()
        if self._batch.waiting + request.n > self.config.max_waiting:
            raise Refused("full")
        answer = SimAnswer(request, call.request_id, request.model or self.config.model, int(time.time()), self._abort)
        self._submit(answer, request, ids, call)
        try:
            await answer.first_output
        except asyncio.CancelledError:
            self._abort(answer)
            raise
        return answer

    def render(self, path: str, body: bytes) -> Rendering:
        """See Engine.render."""
        prompt = parse(path, body, max_choices=self.config.max_choices).prompt
        if prompt.segments is None:
            token_ids = memoryview(prompt.given_ids).cast("I").tolist()
            return Rendering(text="", token_ids=token_ids, ends=None)
        return template.rendering(prompt.segments, self._tokenizer)

    def load(self) -> Load:
        """See Engine.load."""
        size = self.config.block_tokens
        return Load(
            running=len(self._batch.running),
            waiting=self._batch.waiting,
            prefill_tokens=self._batch.prefill_tokens,
            kv_used_tokens=self._store.used * size,
            kv_total_tokens=self._store.blocks * size,
        )

    def handover(self) -> Handover:
        """See Engine.handover."""
        return Handover(
            unclaimed_tokens=self._claims.unclaimed_tokens,
            expired=self._claims.expired_total,
            pulled_bytes=self._metrics.pulled_bytes,
            served_bytes=self._metrics.served_bytes,
        )

    def on_block_events(self, listener: Callable[[Sequence[BlockEvent]], None]) -> None:
        """See Engine.on_block_events."""
        if self._listener is not None:
            raise RuntimeError("block events have a listener already; allowed: one")
        self._listener = listener

    def metrics_text(self) -> str:
        """See Engine.metrics_text."""
        return self._metrics.text(
            Gauges(
                running=len(self._batch.running),
                waiting=self._batch.waiting,
                kv_usage_ratio=self._store.used / self._store.blocks,
                queried_tokens=self._batch.queried_tokens,
                hit_tokens=self._batch.hit_tokens,
                preemptions=self._batch.preemptions,
                blocks=self._store.blocks,
                block_tokens=self._store.block_tokens,
                unclaimed_tokens=self._claims.unclaimed_tokens,
                claims_expired=self._claims.expired_total,
            )
        )

    def _check_up(self) -> None:
        if self._runner is None or self._runner.done():
            raise Refused("draining")

    async def _prompt_ids(self, request: SimRequest, body_bytes: int) -> bytes:
        if body_bytes > _LONG_BODY_BYTES:
            return await asyncio.to_thread(request.prompt.ids, self._tokenizer)
        return request.prompt.ids(self._tokenizer)

    def _check_fits(self, request: SimRequest, prompt_tokens: int) -> None:
        context = self.config.context_tokens
        if prompt_tokens >= context:
            field = "messages" if request.prompt.chat else "prompt"
            raise BadInput(f"{field} has {prompt_tokens} tokens; allowed: 1 to {context - 1}", param=field)
        if request.max_tokens is not None and request.max_tokens > context - prompt_tokens:
            allowed = f"1 to {context - prompt_tokens} (context {context} less the prompt's {prompt_tokens} tokens)"
            raise BadInput(f"{request.max_tokens_field} is {request.max_tokens}; allowed: {allowed}", param=request.max_tokens_field)

    def _submit(self, answer: SimAnswer, request: SimRequest, ids: bytes, call: EngineCall) -> None:
        adapter = request.model if request.model is not None and request.model in self.config.adapters else ""
        sequences = []
        for choice in range(request.n):
            words, reason = words_wanted(request, ids, choice, self.config.context_tokens)
            sequence = TokenSequence(
                ids,
                target=words,
                root=payload.root_row(self.config.kv_generation, call.salt, adapter),
                root_hash=payload.root_hash(call.salt, adapter),
                choice=choice,
                salt=call.salt,
                adapter=adapter,
                spaced_first=request.prompt.continues,
                remote=request.remote is not None,
                owner=_Stream(answer, choice, reason, request, call.request_id),
            )
            sequences.append(sequence)
            self._batch.submit(sequence)
        self._answers[answer] = sequences
        self._start_pulls()
        self._wake.set()

    def _start_pulls(self) -> None:
        for sequence in self._batch.start_pulls():
            stream: _Stream = sequence.owner
            if stream.request.remote is None:
                raise AssertionError("only remote sequences are pulled")
            self._pulls.start(sequence, stream.request.remote, self._missing_bytes(sequence))

    def _missing_bytes(self, sequence: TokenSequence) -> int:
        return (sequence.prompt_tokens - (sequence.hit_tokens or 0)) * self._timing.kv_bytes_per_token

    def _arrived(self, sequence: TokenSequence, rows: bytes, seconds: float) -> None:
        self._metrics.pulls += 1
        self._metrics.pulled_bytes += self._missing_bytes(sequence)
        self._metrics.pull_seconds += seconds
        self._batch.pulled(sequence, rows)
        self._wake.set()

    def _pull_failed(self, sequence: TokenSequence, failed: TransferFailed) -> None:
        self._metrics.pulls_failed += 1
        stream: _Stream = sequence.owner
        self._drop(stream.answer, failed)

    def _served(self, claim: Claim, first: int | None) -> None:
        if first is not None:
            tokens = claim.tokens - first * self._store.block_tokens
            self._metrics.served_bytes += tokens * self._timing.kv_bytes_per_token
        self._wake.set()

    def _abort(self, answer: SimAnswer) -> None:
        if answer in self._answers:
            self._metrics.finished["abort"] += 1
            self._drop(answer, AnswerCut("the answer was aborted"))

    def _drop(self, answer: SimAnswer, error: Exception) -> None:
        """End an answer before its time and free what it holds."""
        for sequence in self._answers.pop(answer, ()):
            self._pulls.cancel(sequence)
            self._batch.finish(sequence)
        answer.fail(error)
        self._wake.set()

    async def _run(self) -> None:
        """Pass after pass, as long as there is work. A pass begins where the last one ended, so late wake-ups do not add up."""
        try:
            ends = time.monotonic()
            while True:
                self._claims.expire(time.monotonic())
                planned = self._batch.step()
                self._start_pulls()
                self._publish()
                if planned is None:
                    await self._idle()
                    ends = time.monotonic()
                    continue
                ends = max(ends, time.monotonic() - _MOST_LAG_S) + planned.seconds
                await asyncio.sleep(max(0.0, ends - time.monotonic()))
                self._deliver(planned)
        except Exception:  # noqa: BLE001 -- a task's top: logged, and every answer ends with an error
            _log.exception("the engine failed; every answer is cut")
            self._end_all()

    async def _idle(self) -> None:
        """Wait until something changes: a request, a pull, freed blocks, or a claim whose time is over."""
        self._wake.clear()
        deadline = self._claims.next_deadline_s()
        if deadline is None:
            await self._wake.wait()
            return
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            pass  # the caller lets the claim expire

    def _deliver(self, done: Pass) -> None:
        now = time.monotonic()
        metrics = self._metrics
        metrics.generated_tokens += len(done.words)
        for sequence, word in done.words:
            if sequence.ended:  # aborted while the pass ran
                continue
            stream: _Stream = sequence.owner
            first = sequence.generated == 1
            (metrics.ttft if first else metrics.gap).observe(now - stream.last_s)
            stream.last_s = now
            stopped = stream.answer.word(stream.choice, word, sequence.prompt_tokens, sequence.hit_tokens or 0)
            if stopped or sequence.done:
                self._end(sequence, stream, "stop" if stopped else stream.reason)

    def _end(self, sequence: TokenSequence, stream: _Stream, reason: str) -> None:
        params = None
        if stream.request.keep_kv:
            params = self._keep(sequence, stream.request_id)
        else:
            self._batch.finish(sequence)
        stream.answer.end(stream.choice, reason, params)
        if stream.answer.closed:
            del self._answers[stream.answer]
            self._metrics.finished[reason] += 1
            self._metrics.prompt_tokens += sequence.prompt_tokens

    def _keep(self, sequence: TokenSequence, request_id: str) -> dict[str, object]:
        """Pin a finished prefill's blocks; what the decode worker is to be told (protocol.md §4)."""
        blocks = self._batch.detach(sequence)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [blocks],
            "remote_engine_id": self.engine_id,
            "remote_request_id": self._claims.add(request_id, blocks, sequence.prompt_tokens, time.monotonic()),
            "remote_host": self.config.transfer_host,
            "remote_port": self._server.port,
            "tp_size": 1,
            "remote_num_tokens": sequence.prompt_tokens,
        }

    def _end_all(self) -> None:
        for answer in list(self._answers):
            self._drop(answer, AnswerCut("the engine was stopped"))
        self._claims.clear()
        self._store.clear()
        self._publish()

    def _publish(self) -> None:
        events = self._store.take_events()
        if events and self._listener is not None:
            self._listener(events)
