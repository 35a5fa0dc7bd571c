"""Time-outs have to be stacked: what waits below must give up before what waits above does."""

from __future__ import annotations

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.exports.base import Driver, Spec


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. `recall` is the time a recall leaves the export (its grace), `patience` the longest
    wait of a request during a pause (0: for ever), `initiator` the smallest time-out of those who
    send requests, of whom `whose` tells."""

    recall: float
    patience: float
    initiator: float
    whose: str


def timeouts_of(driver: Driver) -> Timeouts:
    spec: Spec = driver.spec
    own = spec.initiator_timeout
    return Timeouts(
        recall=spec.grace,
        patience=spec.patience,
        initiator=own or driver.initiator_timeout,
        whose="--initiator-timeout" if own else driver.initiator,
    )


def check_timeouts(driver: Driver) -> None:
    """Refusal `bad-request` unless recall < initiator and patience < initiator."""
    found = timeouts_of(driver)
    for name, value in (("--grace", found.recall), ("--patience", found.patience)):
        if value >= found.initiator:
            raise Refusal(
                "bad-request",
                f"{name} is {value:g} s and must be less than {found.initiator:g} s, the time-out"
                f" of {found.whose}: the initiator would fail requests that are still served",
                {"recall": found.recall, "initiator": found.initiator},
            )
