"""What the autoscaler remembers of one model from decision to decision, and its form as bytes.

`Scaler` adds to it; the loop stores the bytes so that a restarted autoscaler goes on where the last one was. Bounded by the settings.
"""

from typing import Any, get_args

import msgspec
import numpy as np
from penstock_core.traffic import Window

from penstock_autoscaler.settings import ScalerSettings

MOST_WINDOWS = 512


class Wanted(msgspec.Struct, frozen=True):
    """What the traffic asked for at one moment, by pool."""

    at_s: float
    replicas: dict[str, int]


class Memory(msgspec.Struct, kw_only=True):
    """Of one model; changed by `Scaler.step` only."""

    windows: list[Window] = []
    """Traffic of the latest `sample_s`, oldest first."""
    wanted: list[Wanted] = []
    """Of the latest `stable_s`, oldest first."""

    def add(self, traffic: Window, settings: ScalerSettings) -> None:
        """Keep the newest interval, and forget what is too old."""
        since_s = traffic.until_s - settings.sample_s
        self.windows = [one for one in self.windows if one.until_s > since_s and one.until_s <= traffic.since_s][1 - MOST_WINDOWS :]
        self.windows.append(traffic)


def encode(memory: Memory) -> bytes:
    """As MessagePack."""
    return msgspec.msgpack.encode(memory, enc_hook=_as_list)


def decode(kept: bytes) -> Memory:
    """What `encode` made. Raises msgspec.DecodeError for anything else."""
    return msgspec.msgpack.decode(kept, type=Memory, dec_hook=_as_array)


def _as_list(value: object) -> list[Any]:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"{type(value)} has no form as MessagePack")
    listed: list[Any] = value.tolist()
    return listed


def _as_array(form: Any, value: object) -> object:
    return np.array(value, dtype=get_args(get_args(form)[1])[0])
