"""Whether the owner of the machine is there, and how far its tasks have to make way. [pure]"""

from __future__ import annotations

from msgspec import Struct

from depalma.agent.events import OwnerStands
from depalma.ownership import STEPS, OwnerPolicy, Pause, is_open

#: Load of others is over when it was below this part of the limit for so long: what comes in bursts is one stay.
QUIET_PART, QUIET_S = 0.8, 30.0


class Sight(Struct, frozen=True):
    """What was measured at one moment; None = could not be, or need not."""

    wall: float  #: seconds since the epoch
    weekday: int = 0  #: as the machine's clock shows it; Monday is 0
    minute: int = 0  #: of that day
    input_at: float | None = None  #: seconds since the epoch: the last input or login
    input_where: str = ""
    cpu_percent: float | None = None  #: what others used of all processors, over some seconds
    gpu_percent: float | None = None  #: what others use of the busiest GPU


class _Load:
    """One kind of load, with a memory: it is there at once, and gone only after a while."""

    def __init__(self) -> None:
        self.busy = False
        self._quiet_s: float | None = None

    def look(self, percent: float | None, limit: float, now: float) -> bool:
        """Returns whether others use more than the limit."""
        if not limit:
            self.busy, self._quiet_s = False, None
        elif percent is not None and percent > limit:
            self.busy, self._quiet_s = True, None
        elif self.busy and (percent is None or percent > QUIET_PART * limit):
            self._quiet_s = None
        elif self.busy:
            self._quiet_s = now if self._quiet_s is None else self._quiet_s
            if now - self._quiet_s >= QUIET_S:
                self.busy, self._quiet_s = False, None
        return self.busy


class Yielding:
    """Remembers what it takes to decide. `now` is of a clock that nobody sets (seconds)."""

    def __init__(self) -> None:
        self._cpu, self._gpu = _Load(), _Load()
        self._input_at: float | None = None
        self._input_s = 0.0
        self._causes: dict[str, str] = {}
        self._since_s = 0.0

    def look(self, policy: OwnerPolicy, sight: Sight, pause: Pause | None, now: float) -> OwnerStands:
        """Returns how things stand now."""
        causes = self._look(policy, sight, pause, now)
        if causes and not self._causes:
            self._since_s = now
        # Words that were said stay, until something else is the cause: they contain numbers that always change.
        self._causes = {kind: self._causes.get(kind, words) for kind, words in causes.items()}
        if not causes:
            return OwnerStands()
        stays_s = now - self._since_s
        taken = [step for step in STEPS if (at := getattr(policy, f"{step}_s")) is not None and stays_s >= at]
        grace_s = 0.0
        if policy.warn_s is not None and policy.requeue_s is not None:
            grace_s = policy.requeue_s - policy.warn_s
        return OwnerStands(
            reason="; ".join(self._causes.values()),
            step=STEPS[taken[-1]] if taken else "",
            lower="lower" in taken,
            suspend="suspend" in taken,
            end="warn" in taken or "requeue" in taken,
            grace_s=grace_s,
            end_all=policy.requeue_all,
        )

    def _look(self, policy: OwnerPolicy, sight: Sight, pause: Pause | None, now: float) -> dict[str, str]:
        causes = {}
        if pause is not None and not pause.is_over(sight.wall):
            causes[f"pause {pause.at}"] = pause.words
        if not is_open(policy.hours, sight.weekday, sight.minute):
            causes[f"hours {policy.hours}"] = f"outside its hours ({policy.hours})"
        if policy.idle_s and self._idle_s(sight, now) < policy.idle_s:
            causes["input"] = f"input{' at ' if sight.input_where else ''}{sight.input_where}"
        for kind, load, percent, limit, what in (
            ("cpu", self._cpu, sight.cpu_percent, policy.cpu_percent, "the processors"),
            ("gpu", self._gpu, sight.gpu_percent, policy.gpu_percent, "a GPU"),
        ):
            if load.look(percent, limit, now):
                causes[kind] = f"others use {percent or limit:.0f} % of {what}, allowed are {limit:g} %"
        return causes

    def _idle_s(self, sight: Sight, now: float) -> float:
        """Returns for how long there was no input; by our own clock, once it was seen: somebody may set the other."""
        if sight.input_at is None:
            return float("inf")
        if sight.input_at != self._input_at:
            first = self._input_at is None
            self._input_at = sight.input_at
            # One that is new was just now, whatever its time says; of the first one only its time is known.
            self._input_s = now - max(0.0, sight.wall - sight.input_at) if first else now
        return now - self._input_s
