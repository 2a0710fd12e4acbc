"""What may be under way in all, and what each tenant may have: the bounds and quotas that no prediction moves.

The director asks `admit` once per request and calls `release` once for each that was admitted. Synchronous, takes `now`.
"""

import math

from penstock_core.errors import Outcome

from penstock_router.admission.claim import MOST_RETRY_S, Turned, whole_seconds
from penstock_router.keys import Tenant

_RATE_WINDOW_S = 10.0
_MINUTE_S = 60.0


class _Flow:
    """What is active, and how fast it drains."""

    __slots__ = ("active", "rate_per_s", "refused", "seen_s")

    def __init__(self) -> None:
        self.active = 0
        self.refused = 0  # turned away and, by the drain rate, not yet made room for
        self.rate_per_s = 0.0  # completions a second, decaying average over _RATE_WINDOW_S
        self.seen_s = -math.inf

    def drained(self, now: float) -> None:
        self.active -= 1
        self.refused = max(0, self.refused - 1)
        self.rate_per_s = self._rate_at(now) + 1.0 / _RATE_WINDOW_S
        self.seen_s = now

    def refuse(self, now: float) -> int:
        """Retry-After of one more: the n-th one turned away fits after n completions, so later ones are told to come later."""
        self.refused += 1
        rate = self._rate_at(now)
        return whole_seconds(self.refused / rate if rate > 0.0 else MOST_RETRY_S)

    def _rate_at(self, now: float) -> float:
        return self.rate_per_s * math.exp(-max(0.0, now - self.seen_s) / _RATE_WINDOW_S) if self.rate_per_s else 0.0


class _Quota:
    """One tenant's requests and tokens. The tokens of a minute are there at the start and come back as time passes."""

    __slots__ = ("at_s", "flow", "tokens")

    def __init__(self, tokens: float, now: float) -> None:
        self.flow = _Flow()
        self.tokens, self.at_s = tokens, now


class Admission:
    """State: how many requests are active in all, and each limited tenant's quota; it changes only in `admit` and `release`."""

    def __init__(self, total_requests: int) -> None:
        self._most = total_requests
        self._all = _Flow()
        self._quotas: dict[str, _Quota] = {}

    @property
    def active(self) -> int:
        """Requests admitted and not over, waiting ones included."""
        return self._all.active

    def admit(self, tenant: Tenant, tokens: float, now: float) -> Turned | None:
        """None: admitted, `release` must follow. `tokens`: of the prompt and of the expected answer; asked for where they have a quota."""
        if self._all.active >= self._most:
            why = f"{self._all.active} requests are under way; allowed: {self._most}"
            return Turned(Outcome.QUEUE_FULL, why, self._all.refuse(now))
        if tenant.most_requests or tenant.tokens_per_minute:
            turned = self._within_quota(tenant, tokens, now)
            if turned is not None:
                return turned
        self._all.active += 1
        return None

    def release(self, tenant: Tenant, charged: float, spent: float, now: float) -> None:
        """One that was admitted with `charged` tokens is over and has taken `spent` (0: it never started)."""
        self._all.drained(now)
        quota = self._quotas.get(tenant.tenant)
        if quota is not None and quota.flow.active:
            quota.flow.drained(now)
            if tenant.tokens_per_minute:  # else nothing was taken from it
                quota.tokens += charged - spent

    def _within_quota(self, tenant: Tenant, tokens: float, now: float) -> Turned | None:
        quota = self._quotas.get(tenant.tenant)
        if quota is None:
            quota = self._quotas[tenant.tenant] = _Quota(float(tenant.tokens_per_minute), now)
        flow = quota.flow
        if tenant.most_requests and flow.active >= tenant.most_requests:
            why = f"tenant {tenant.tenant} has {flow.active} requests under way; allowed: {tenant.most_requests}"
            return Turned(Outcome.TENANT_OVER_QUOTA, why, flow.refuse(now))
        if tenant.tokens_per_minute:
            per_s = tenant.tokens_per_minute / _MINUTE_S
            quota.tokens = min(float(tenant.tokens_per_minute), quota.tokens + (now - quota.at_s) * per_s)
            quota.at_s = now
            need = min(tokens, float(tenant.tokens_per_minute))  # one larger than a minute's worth waits for all of it
            if quota.tokens < need:
                left, wait_s = max(0, int(quota.tokens)), (need - quota.tokens) / per_s
                why = (
                    f"tenant {tenant.tenant} has {left} tokens left of {tenant.tokens_per_minute} a minute; this request needs {int(need)}"
                )
                return Turned(Outcome.TENANT_OVER_QUOTA, why, whole_seconds(wait_s))
            quota.tokens -= tokens
        flow.active += 1
        return None
