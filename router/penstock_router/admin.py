"""What is not on the path of a request: health, readiness, metrics, and what the router knows of endpoints and decisions.

An ordinary FastAPI app, mounted by `app` on the same port; `/docs` describes it. `/admin/*` asks for the admin key, or
answers loopback addresses only where none is set. No bodies of `/v1/*` and no tokens come here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from penstock_core.errors import IndexUnavailable
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from penstock_router.director import Decision, Director
from penstock_router.endpoints import Directory, Served
from penstock_router.keys import same_key

_KEY_HEADER = "x-penstock-admin-key"
"""The key alone, for those who come through the proxy of a Kubernetes API server: it keeps the Authorization header for itself."""
_LOOPBACK = ("127.", "::1", "::ffff:127.")


def admin_app(
    *,
    directory: Directory,
    director: Director,
    registry: CollectorRegistry,
    admin_key: str,
    draining: Callable[[], bool],
    drain: Callable[[], None],
    scaling: Callable[[int], Awaitable[list[dict[str, Any]]]],
) -> FastAPI:
    """The app. `drain` begins a drain and returns at once; `scaling` reads so many decisions of autoscalers a model."""
    app = FastAPI(title="Penstock router", description="Health, metrics and administration; the OpenAI API is at /v1/.", redoc_url=None)

    def allowed(request: Request) -> None:
        if admin_key:
            sent, bare = request.headers.get("authorization"), request.headers.get(_KEY_HEADER)
            sent = f"Bearer {bare}" if sent is None and bare is not None else sent
            if not same_key(sent.encode("latin-1") if sent is not None else None, admin_key):
                raise HTTPException(401, "the admin key is missing or wrong; allowed: Authorization: Bearer <admin key>")
        elif request.client is not None and not request.client.host.startswith(_LOOPBACK):
            raise HTTPException(403, "no admin key is set, so /admin/* answers loopback addresses only")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The event loop is alive."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response, without_endpoints: bool = False) -> dict[str, Any]:
        """Some model has a live endpoint, every index has been read, and no drain has begun.

        `without_endpoints`: leave the first out, for a router that shall be reachable and say itself that nothing serves.
        """
        ready = (directory.warm if without_endpoints else directory.ready) and not draining()
        response.status_code = 200 if ready else 503
        models = {each.name: {"endpoints": len(each.live), "index_warm": each.index.warm} for each in directory.models.values()}
        return {"ready": ready, "draining": draining(), "models": models}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Everything of `penstock_router_*` and `penstock_kvindex_*`, in Prometheus' text form."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/admin/endpoints", dependencies=[Depends(allowed)])
    async def endpoints() -> dict[str, Any]:
        """Every live endpoint with its role and last reported load."""
        return {"models": [_model(each) for each in directory.models.values()]}

    @app.get("/admin/decisions", dependencies=[Depends(allowed)])
    async def decisions(
        limit: Annotated[int, Query(ge=1, le=100_000)] = 20,
        request_id: Annotated[str | None, Query(max_length=200)] = None,
        model: Annotated[str | None, Query(max_length=500)] = None,
    ) -> dict[str, Any]:
        """The last decisions, newest first; those with `candidates` say why the others lost."""
        now = asyncio.get_running_loop().time()
        found = [
            each
            for each in reversed(director.decisions)
            if (request_id is None or each.request_id == request_id.encode()) and (model is None or each.model == model)
        ]
        return {"decisions": [_decision(each, now) for each in found[:limit]]}

    @app.get("/admin/learned", dependencies=[Depends(allowed)])
    async def learned() -> dict[str, Any]:
        """What is learned of each model: profiles and TTFT errors per class of endpoints, output lengths per class of requests."""
        return {"models": [_learned(each) for each in directory.models.values()]}

    @app.get("/admin/scaling", dependencies=[Depends(allowed)])
    async def scaled(limit: Annotated[int, Query(ge=1, le=200)] = 20) -> dict[str, Any]:
        """What autoscalers have decided lately of each model, newest first, as they keep it in Redis; `now_s` is Redis' time."""
        try:
            return {"models": await scaling(limit)}
        except IndexUnavailable as error:
            raise HTTPException(503, str(error)) from None

    @app.post("/admin/drain", status_code=202, dependencies=[Depends(allowed)])
    async def begin_drain() -> dict[str, str]:
        """Say not ready, take no new connections, finish streams, exit: the same as SIGTERM."""
        drain()
        return {"status": "draining"}

    return app


def _model(served: Served) -> dict[str, Any]:
    return {
        "model": served.name,
        "index_warm": served.index.warm,
        "chunks": served.chunks,
        "tokens_per_byte": round(served.ratio.value, 4),
        "endpoints": [
            {
                "id": one.id,
                "url": one.record.url,
                "role": one.record.role.value,
                "pool": one.record.pool,
                "epoch": f"{one.record.epoch:016x}",
                "draining": one.draining,
                "load": {name: getattr(one.load, name) for name in one.load.__struct_fields__} if one.load is not None else None,
            }
            for one in served.live
        ],
    }


def _learned(served: Served) -> dict[str, Any]:
    return {
        "model": served.name,
        "profiles": [
            {**one._asdict(), "prefill": one.prefill._asdict(), "decode": one.decode._asdict(), "ttft": one.ttft._asdict()}
            for one in served.profiles
        ],
        "lengths": [one._asdict() for one in served.lengths.states()],
    }


def _decision(decision: Decision, now: float) -> dict[str, Any]:
    placement = decision.placement
    shown: dict[str, Any] = {
        "age_s": round(now - decision.ended_s, 3),
        "request_id": decision.request_id.decode("latin-1"),
        "model": decision.model,
        "tenant": decision.tenant,
        "outcome": decision.outcome.value,
        "tried": decision.tried,
        "prompt_tokens": decision.prompt_tokens,
        "cached_tokens": decision.cached_tokens,
        "ttft_s": decision.ttft_s,
        "priority": decision.priority,
        "queued_s": decision.queued_s,
    }
    if decision.turned is not None:
        turned = decision.turned
        shown["turned"] = {"why": turned.message, "retry_after_s": turned.retry_after_s, "expected_ttft_s": turned.expected_s}
    if placement is not None:
        shown["placement"] = {
            "prefill": placement.prefill.id if placement.prefill else None,
            "decode": placement.decode.id if placement.decode else None,
            "hit_tokens": placement.hit_tokens,
            "hit_chunks": placement.hit_chunks,
            "ttft_s": placement.ttft_s,
            "itl_s": placement.itl_s,
            "reason": placement.reason,
            "candidates": [{name: _finite(getattr(one, name)) for name in one.__struct_fields__} for one in placement.candidates],
        }
    return shown


def _finite(value: Any) -> Any:
    """JSON has no infinity: shown as text."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return str(value) if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value
