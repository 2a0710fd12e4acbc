"""Every metric that Penstock exports: name, kind, unit, labels, help. A test holds the docs and dashboards to this list.

Processes build their prometheus-client objects from these rows, so that a name is written once. Base units; no request
data in labels. Third-party names that workers mirror (`vllm:*`) are not ours and are not listed.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """One exported metric; `kind` is counter, gauge or histogram; `buckets` are upper bounds for a histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
_MICRO_SECONDS = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2)
_RATIO = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_ERROR_RATIO = (-1.0, -0.5, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

REQUESTS = Metric("penstock_router_requests_total", "counter", ("model", "outcome"), "Requests by the one way they ended.")
TTFT = Metric("penstock_router_ttft_seconds", "histogram", ("model",), "Request received to first content token sent.", _SECONDS)
ITL = Metric("penstock_router_itl_seconds", "histogram", ("model",), "One gap between two content chunks of a stream.", _SHORT_SECONDS)
QUEUE = Metric("penstock_router_queue_seconds", "histogram", ("model",), "Time spent in the router's admission queue.", _SECONDS)
DECISION = Metric("penstock_router_decision_seconds", "histogram", (), "Time of one placement decision.", _MICRO_SECONDS)
HIT_RATIO = Metric("penstock_router_prefix_hit_ratio", "histogram", ("model",), "Predicted hit tokens over prompt tokens.", _RATIO)
TTFT_ERROR = Metric(
    "penstock_router_ttft_prediction_error_ratio", "histogram", ("model",), "(Measured - predicted) / predicted TTFT.", _ERROR_RATIO
)
FITTED = Metric(
    "penstock_router_fitted_profile",
    "gauge",
    ("model", "pool", "profile", "phase"),
    "1 while a profile fitted to measured passes is in force, 0 while the declared one is; phase: prefill, decode.",
)
FITTED_SCALE = Metric(
    "penstock_router_fitted_profile_scale_ratio",
    "gauge",
    ("model", "pool", "profile", "phase"),
    "Fitted over declared seconds, mean over the range of use, whether in force or not.",
)
FITTED_INTERVAL = Metric(
    "penstock_router_fitted_profile_interval_ratio",
    "gauge",
    ("model", "pool", "profile", "phase"),
    "Width of the fit's 90 % conformal interval over its estimate; absent with too few samples.",
)
LENGTH_CLASSES = Metric(
    "penstock_router_length_classes_followed", "gauge", ("model",), "Classes of requests whose own distribution of output lengths is used."
)
LENGTHS_FORGOTTEN = Metric(
    "penstock_router_lengths_forgotten_total",
    "counter",
    ("model",),
    "How often the newest answers contradicted the learned output lengths, so that older ones were forgotten.",
)
CONFLICTS = Metric("penstock_router_booking_conflicts_total", "counter", (), "Bookings corrected by a worker's load report.")
RETRIES = Metric("penstock_router_retries_total", "counter", ("reason",), "Placements given up for the next one before the first byte.")
PREFILL_FALLBACK = Metric(
    "penstock_router_prefill_fallback_total", "counter", ("reason",), "Prefills done by the decode endpoint after the prefill leg failed."
)
ACTIVE = Metric("penstock_router_active_requests", "gauge", (), "Requests being served now.")
QUEUED = Metric("penstock_router_queued_requests", "gauge", ("model",), "Requests that wait for room or for a first replica now.")
HELD = Metric("penstock_router_held_requests", "gauge", ("model",), "Of the queued requests those that wait for a first replica.")
WAKEABLE = Metric(
    "penstock_router_wakeable", "gauge", ("model",), "1 while an autoscaler starts a first replica of the model when requests wait for it."
)
ENDPOINTS = Metric("penstock_router_endpoints", "gauge", ("model", "role"), "Live endpoints.")
INDEX_CHUNKS = Metric("penstock_kvindex_chunks", "gauge", ("model",), "Distinct chunks in this process' mirror.")
INDEX_LAG = Metric("penstock_kvindex_lag_seconds", "gauge", ("model",), "Age of the newest applied batch when it was applied.")
INDEX_RELOADS = Metric("penstock_kvindex_reloads_total", "counter", ("reason",), "Workers reloaded: gap, epoch, trimmed, incarnation.")
HIT_ERROR = Metric(
    "penstock_kvindex_hit_prediction_error_ratio",
    "histogram",
    ("model",),
    "(Engine's cached tokens - predicted hit tokens) / prompt tokens.",
    _ERROR_RATIO,
)
WORKER_KV_PENDING = Metric("penstock_worker_kv_unclaimed_tokens", "gauge", (), "Tokens of finished prefills that no decode has claimed.")
WORKER_KV_EXPIRED = Metric("penstock_worker_kv_claims_expired_total", "counter", (), "Prefills freed because no decode claimed them.")
WORKER_KV_BYTES = Metric("penstock_worker_kv_transferred_bytes_total", "counter", ("direction",), "KV bytes moved: pulled, served.")
WORKER_COMPARED = Metric("penstock_worker_prompts_compared_total", "counter", (), "Prompts whose counts were held against the engine's.")
WORKER_DISAGREED = Metric(
    "penstock_worker_count_disagreements_total", "counter", ("what",), "Of them, those that differ: tokens (of the prompt), hits."
)
WORKER_EXACT = Metric("penstock_worker_exact", "gauge", (), "1 while nearly all of the engine's counts agree with what the worker follows.")
WORKER_REFUSED = Metric("penstock_worker_refused_total", "counter", ("reason",), "Requests refused: full, draining, epoch, kv.")
WORKER_ABORTED = Metric("penstock_worker_aborted_total", "counter", (), "Requests aborted in the engine because the client left.")
WORKER_PUBLISH_LAG = Metric("penstock_worker_publish_lag_seconds", "gauge", (), "Age of the oldest KV event not yet in the index.")
WORKER_EPOCHS = Metric("penstock_worker_restarts_total", "counter", (), "Engine restarts, each under a new epoch.")

OPERATOR_RECONCILE = Metric(
    "penstock_operator_reconcile_seconds", "histogram", ("outcome",), "One reconcile of a ModelService.", _SHORT_SECONDS
)
OPERATOR_QUEUE = Metric("penstock_operator_queue_depth", "gauge", (), "ModelServices waiting to be reconciled, those in back-off included.")
OPERATOR_WATCH_AGE = Metric("penstock_operator_watch_age_seconds", "gauge", ("kind",), "Since the last event or bookmark of a watch.")
OPERATOR_WRITES = Metric("penstock_operator_writes_total", "counter", ("kind", "verb"), "Writes to the API server: apply, status, delete.")
OPERATOR_REFUSED = Metric("penstock_operator_refused_writes_total", "counter", (), "Writes that the API server refused for good.")
OPERATOR_RETIRED = Metric(
    "penstock_operator_retired_pods_total",
    "counter",
    ("end",),
    "Worker Pods deleted, by how: drained, deadline, not_serving, ended, gang (another Pod of its gang left), other.",
)
OPERATOR_DRAINING = Metric("penstock_operator_draining_workers", "gauge", (), "Workers being drained now.")
OPERATOR_LEADER = Metric("penstock_operator_leader", "gauge", (), "1 while this process leads.")
OPERATOR_UNREGISTERED = Metric("penstock_operator_unregistered_workers", "gauge", (), "Ready Pods that no router can find.")
OPERATOR_STRAYS = Metric("penstock_operator_stray_registrations", "gauge", (), "Workers in the registry without a Pod.")
OPERATOR_OBJECTS = Metric("penstock_operator_objects", "gauge", ("kind",), "Objects in the cache.")
OPERATOR_LOOP_LAG = Metric("penstock_operator_loop_lag_seconds", "gauge", (), "How late the event loop last woke.")

AUTOSCALER_DESIRED = Metric("penstock_autoscaler_desired_replicas", "gauge", ("model", "pool", "role"), "As last decided.")
AUTOSCALER_READY = Metric("penstock_autoscaler_ready_replicas", "gauge", ("model", "pool", "role"), "As last seen.")
AUTOSCALER_STARTING = Metric("penstock_autoscaler_starting_replicas", "gauge", ("model", "pool", "role"), "As last seen: paid, not ready.")
AUTOSCALER_START = Metric(
    "penstock_autoscaler_start_seconds",
    "gauge",
    ("model", "pool"),
    "From asking for a replica to its being ready, as counted on.",
)
AUTOSCALER_START_PHASE = Metric(
    "penstock_autoscaler_start_phase_seconds",
    "gauge",
    ("model", "pool", "phase"),
    "Of measured starts, the median of a phase: schedule, pull, process, engine, rest. Absent where nothing has started yet.",
)
AUTOSCALER_FITTED = Metric(
    "penstock_autoscaler_profile_fitted",
    "gauge",
    ("model", "pool"),
    "1 while the pool is sized by a profile that routers fitted to measured passes, 0 while by the declared one.",
)
AUTOSCALER_DECISIONS = Metric("penstock_autoscaler_decisions_total", "counter", ("model", "reason"), "Decisions by their reason.")
AUTOSCALER_SECONDS = Metric("penstock_autoscaler_decision_seconds", "histogram", ("model",), "Time of one decision.", _SECONDS)
AUTOSCALER_VALID = Metric("penstock_autoscaler_valid", "gauge", ("model",), "1 while the last decision had data, else 0.")
AUTOSCALER_LEADER = Metric("penstock_autoscaler_leader", "gauge", ("model",), "1 while this process may scale the model.")
AUTOSCALER_ENDED = Metric(
    "penstock_autoscaler_requests_total",
    "counter",
    ("model",),
    "Requests that ended, shed and failed ones among them, as routers told; counted by the one autoscaler that acts on the model.",
)
AUTOSCALER_MET = Metric(
    "penstock_autoscaler_requests_in_time_total",
    "counter",
    ("model",),
    "Of them, those that met both targets (estimated from a sample of many).",
)
AUTOSCALER_FAILURES = Metric(
    "penstock_autoscaler_failures_total", "counter", ("model", "step"), "Steps that failed: signals, look, decide, carry_out, show, keep."
)

ALL: tuple[Metric, ...] = tuple(value for value in dict(globals()).values() if isinstance(value, Metric))
