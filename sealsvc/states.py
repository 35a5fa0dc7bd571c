"""The life of a seal as data: (state, event) -> state. What is not in the table cannot happen."""

from __future__ import annotations

from enum import StrEnum

from sealsvc.model import State


class Step(StrEnum):
    """What moves a seal from one state to the next."""

    GRANT = "grant"
    VALIDATE = "validate"
    RECALL = "recall"
    RETURN = "return"
    FENCE = "fence"
    PROVEN = "proven"
    UNPROVEN = "unproven"
    EXPIRE = "expire"
    HOLDER_EXIT = "holder-exit"
    DRIFT = "drift"


_HELD = (State.GRANTED, State.ACTIVE, State.RECALLED)

TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.REQUESTED, Step.GRANT): State.GRANTED,
    (State.GRANTED, Step.VALIDATE): State.ACTIVE,
    (State.GRANTED, Step.RECALL): State.RECALLED,
    (State.ACTIVE, Step.RECALL): State.RECALLED,
    (State.RECALLED, Step.FENCE): State.FENCING,
    (State.FENCING, Step.PROVEN): State.REVOKED,
    (State.FENCING, Step.UNPROVEN): State.FENCE_FAILED,
    (State.FENCING, Step.RETURN): State.RETURNED,
    (State.FENCE_FAILED, Step.PROVEN): State.REVOKED,
    (State.FENCE_FAILED, Step.RETURN): State.RETURNED,
    (State.ORPHANED, Step.PROVEN): State.REVOKED,
    (State.ORPHANED, Step.RETURN): State.RETURNED,
    (State.LOST, Step.RETURN): State.RETURNED,
    (State.LOST, Step.HOLDER_EXIT): State.ORPHANED,
    **{(state, Step.RETURN): State.RETURNED for state in _HELD},
    **{(state, Step.EXPIRE): State.EXPIRED for state in _HELD},
    **{(state, Step.HOLDER_EXIT): State.ORPHANED for state in _HELD},
    **{
        (state, Step.DRIFT): State.LOST
        for state in (*_HELD, State.FENCING, State.FENCE_FAILED, State.ORPHANED)
    },
}

# A seal in one of these is enforced and listed; in any other it is over.
LIVE = frozenset(
    {
        State.GRANTED,
        State.ACTIVE,
        State.RECALLED,
        State.FENCING,
        State.FENCE_FAILED,
        State.ORPHANED,
        State.LOST,
    }
)

# While a seal of the file is in one of these, a new grant on it would be recalled at once.
SETTLING = frozenset({State.RECALLED, State.FENCING, State.FENCE_FAILED, State.ORPHANED})


def after(state: State, step: Step) -> State:
    """The state that `step` leads to. KeyError for an illegal transition: the caller's defect."""
    return TRANSITIONS[state, step]


def allowed(state: State, step: Step) -> bool:
    return (state, step) in TRANSITIONS
