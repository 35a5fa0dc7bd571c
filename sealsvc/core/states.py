"""The state machine of seals as data: (state, step) -> (state, actions).

A step that is not in the table is not possible. lifecycle/state_machine.py carries the actions out,
docs/states.md shows the table (`python -m sealsvc.core.states` prints it), and tests go through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sealsvc.core.model import State


class Step(StrEnum):
    """What moves a seal from one state to the next."""

    GRANT = "grant"
    VALIDATE = "validate"
    RENEW = "renew"
    DOWNGRADE = "downgrade"
    SHRINK = "shrink"
    LAPSE = "lapse"
    RECALL = "recall"
    SATISFY = "satisfy"
    REMAP = "remap"
    OVERDUE = "overdue"
    RETURN = "return"
    FORGET = "forget"
    FENCE = "fence"
    ESCALATE = "escalate"
    PROVEN = "proven"
    UNPROVEN = "unproven"
    EXPIRE = "expire"
    HOLDER_EXIT = "holder-exit"
    DRIFT = "drift"


STEPS = {
    Step.GRANT: "the order of a grant has been gone through",
    Step.VALIDATE: "the holder's mapping was proven to be as required",
    Step.RENEW: "a holder whose ttl had passed is back before anybody conflicted",
    Step.DOWNGRADE: "the holder gives up writing: iomode rw becomes read",
    Step.SHRINK: "the holder returned a part of the range",
    Step.LAPSE: "the ttl has passed and nobody conflicts: courtesy",
    Step.RECALL: "a conflict, or an operator, wants the seal back",
    Step.SATISFY: "what the recall wanted has been returned, and something is left",
    Step.REMAP: "a relocation is over: the seal goes on with the map that its file has now",
    Step.OVERDUE: "nobody may be fenced, and the time is up: conflicts are refused from now on",
    Step.RETURN: "the holder gave it back, and nothing of it is left",
    Step.FORGET: "the holder knows no such seal, and nothing of it is left",
    Step.FENCE: "the deadline has passed: the fence begins",
    Step.ESCALATE: "the signal did not help: SIGKILL",
    Step.PROVEN: "it is proven that no mapping and no descriptor of the holder is left",
    Step.UNPROVEN: "the fence has done what it may, and something is left",
    Step.EXPIRE: "the ttl has passed, and somebody conflicts or courtesy has ended",
    Step.HOLDER_EXIT: "the holder's process has ended",
    Step.DRIFT: "the extent map is not the recorded one: the promise is broken",
}


class Action(StrEnum):
    """What a transition does, in the table's order, after it has been journalled."""

    TELL = "tell"
    TELL_CHANGED = "tell-changed"
    AWAIT = "await"
    SIGNAL = "signal"
    KILL = "kill"
    PROVE = "prove"
    REFUSE = "refuse"
    ALARM = "alarm"
    RESTORE = "restore"
    RELEASE = "release"


ACTIONS = {
    Action.TELL: "the recall is pushed to the holder",
    Action.TELL_CHANGED: "the holder is told that the map has changed: it must not use it any more",
    Action.AWAIT: "the deadline is waited for, and the fence follows it",
    Action.SIGNAL: "SIGTERM to the holder",
    Action.KILL: "SIGKILL to the holder",
    Action.PROVE: "looks, until it is proven that nothing of the holder is left",
    Action.REFUSE: "what waits for the seal, and what comes, gets EBUSY",
    Action.ALARM: "an operator is told",
    Action.RESTORE: "conflicts meet what the seal asked for again",
    Action.RELEASE: "the guards are let go: what waited for this seal alone goes on",
}


@dataclass(frozen=True, slots=True)
class Transition:
    """What a step does: the next state, and the actions, in order."""

    to: State
    actions: tuple[Action, ...] = ()


_Table = dict[tuple[State, Step], Transition]

# A seal in one of these states is enforced and listed; in any other it has ended.
LIVE = frozenset(
    {
        State.GRANTED,
        State.ACTIVE,
        State.COURTESY,
        State.RECALLED,
        State.FENCING,
        State.FENCE_FAILED,
        State.ORPHANED,
        State.LOST,
    }
)

# While a seal of the file is in one of these states, no other is granted on the file: it would be
# recalled at once.
SETTLING = LIVE - {State.GRANTED, State.ACTIVE, State.COURTESY}

_S, _A = State, Action
_USED = (_S.GRANTED, _S.ACTIVE)
_OVER_TO = {
    Step.RETURN: _S.RETURNED,
    Step.FORGET: _S.RETURNED,
    Step.PROVEN: _S.REVOKED,
    Step.EXPIRE: _S.EXPIRED,
}


def _ends(step: Step, *states: State) -> _Table:
    over = Transition(_OVER_TO[step], (_A.RELEASE,))
    return {(state, step): over for state in State if state in states}  # a set has no order


def _stays(step: Step, *states: State, does: tuple[Action, ...] = ()) -> _Table:
    return {(state, step): Transition(state, does) for state in states}


def _moves(step: Step, to: State, *states: State, does: tuple[Action, ...] = ()) -> _Table:
    return {(state, step): Transition(to, does) for state in states}


TRANSITIONS: _Table = {
    **_moves(Step.GRANT, _S.GRANTED, _S.REQUESTED),
    **_moves(Step.VALIDATE, _S.ACTIVE, _S.GRANTED),
    **_moves(Step.LAPSE, _S.COURTESY, *_USED),
    **_moves(Step.RENEW, _S.GRANTED, _S.COURTESY),
    **_stays(Step.DOWNGRADE, *_USED, _S.RECALLED),
    **_stays(Step.SHRINK, *_USED, _S.COURTESY, _S.RECALLED, _S.LOST),
    **_moves(Step.RECALL, _S.RECALLED, *_USED, does=(_A.TELL, _A.AWAIT)),
    **_moves(Step.SATISFY, _S.GRANTED, _S.RECALLED, does=(_A.RESTORE,)),
    **_moves(Step.REMAP, _S.GRANTED, _S.RECALLED, does=(_A.RESTORE, _A.TELL)),
    **_stays(Step.OVERDUE, _S.RECALLED, _S.ORPHANED, _S.LOST, does=(_A.REFUSE, _A.ALARM)),
    **_ends(Step.RETURN, *LIVE - {_S.ORPHANED}),
    **_ends(Step.FORGET, *LIVE - {_S.ORPHANED}),
    **_ends(Step.EXPIRE, *_USED, _S.COURTESY, _S.RECALLED),
    **_ends(Step.PROVEN, _S.FENCING, _S.FENCE_FAILED),
    # Nothing was taken from the holder: by ending it closed and unmapped everything itself.
    (_S.ORPHANED, Step.PROVEN): Transition(_S.RETURNED, (_A.RELEASE,)),
    (_S.RECALLED, Step.FENCE): Transition(_S.FENCING, (_A.SIGNAL,)),
    (_S.LOST, Step.FENCE): Transition(_S.FENCING, (_A.SIGNAL,)),
    (_S.FENCING, Step.ESCALATE): Transition(_S.FENCING, (_A.KILL,)),
    (_S.FENCING, Step.UNPROVEN): Transition(_S.FENCE_FAILED, (_A.REFUSE, _A.ALARM, _A.PROVE)),
    **_moves(
        Step.HOLDER_EXIT,
        _S.ORPHANED,
        *(*_USED, _S.COURTESY, _S.RECALLED, _S.LOST),
        does=(_A.PROVE,),
    ),
    **_moves(
        Step.DRIFT,
        _S.LOST,
        *(*_USED, _S.COURTESY, _S.RECALLED),
        does=(_A.ALARM, _A.TELL_CHANGED, _A.AWAIT),
    ),
    # A fence that is under way continues; a holder that has ended cannot be told.
    **_stays(Step.DRIFT, _S.FENCING, _S.FENCE_FAILED, _S.ORPHANED, does=(_A.ALARM,)),
}


def after(state: State, step: Step) -> Transition:
    """The transition of `step` in `state`. Raises KeyError if the table has none, which is a bug of
    the caller."""
    return TRANSITIONS[state, step]


def allowed(state: State, step: Step) -> bool:
    """Whether the table has the step in this state."""
    return (state, step) in TRANSITIONS


def table() -> str:
    """The tables of docs/states.md, in Markdown."""
    lines = ["| state | step | next state | actions |", "| --- | --- | --- | --- |"]
    for state in State:
        for step in Step:
            if found := TRANSITIONS.get((state, step)):
                does = ", ".join(found.actions)
                lines.append(f"| {state} | {step} | {found.to} | {does} |")
    lines += ["", "| step | when |", "| --- | --- |"]
    lines += [f"| {step} | {text} |" for step, text in STEPS.items()]
    lines += ["", "| action | what is done |", "| --- | --- |"]
    lines += [f"| {action} | {text} |" for action, text in ACTIONS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
