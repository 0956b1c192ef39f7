"""The replicated state machine: command bytes in, outcome out. [pure]

`apply` never raises for bad input; it answers `Rejected` and leaves everything but the version as it was. Only a
command of a kind that this version does not know stops the replica (`UnknownCommand`): to skip it would make replicas
differ for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from depalma.errors import DepalmaError
from depalma.state import (
    attempts,
    codelog,
    commands,
    draining,
    gang_assigning,
    graphs,
    groups,
    image,
    inventory,
    job_commands,
    joining,
    masters,
    membership,
    order_commands,
    ordering,
    owners,
    restoring,
    retrying,
    schedules,
    steering,
    submissions,
    timing,
    visiting,
    webhook_commands,
    webhooks,
)
from depalma.state.checks import bad_common
from depalma.state.cluster_state import Changes, ClusterState
from depalma.state.command import Command
from depalma.state.commands import AnyCommand, Applied, Rejected
from depalma.state.outbox import collect
from depalma.state.requests import Forgotten

_Handler = Callable[[ClusterState, Any], Applied | Rejected]

_HANDLERS: Final[dict[type[Command], _Handler]] = {
    commands.SubmitJob: submissions.submit_job,
    commands.AddTasks: submissions.add_tasks,
    commands.CloseJob: submissions.close_job,
    commands.CancelJobs: submissions.cancel_jobs,
    commands.ForgetJobs: submissions.forget_jobs,
    commands.AssignTasks: attempts.assign_tasks,
    commands.StartTasks: attempts.start_tasks,
    commands.FinishTasks: attempts.finish_tasks,
    commands.AddHost: membership.add_host,
    commands.HostUp: membership.host_up,
    commands.HostSuspect: membership.host_suspect,
    commands.HostRecovered: membership.host_recovered,
    commands.HostLost: membership.host_lost,
    commands.AddCode: codelog.add_code,
    commands.AckCode: codelog.ack_code,
    commands.ChangeMasters: masters.change_masters,
    commands.SetHost: inventory.set_host,
    commands.RemoveHost: inventory.remove_host,
    commands.DrainHost: draining.drain_host,
    commands.UndrainHost: draining.undrain_host,
    commands.SetGroup: groups.set_group,
    commands.AddToGroup: groups.add_to_group,
    commands.RemoveGroup: groups.remove_group,
    commands.AppendCode: codelog.append_code,
    commands.FailCode: codelog.fail_code,
    commands.LagCode: codelog.lag_code,
    commands.SetOwner: owners.set_owner,
    commands.NoteOwner: owners.note_owner,
    job_commands.HoldJobs: steering.hold_jobs,
    job_commands.ReleaseJobs: steering.release_jobs,
    job_commands.SuspendJobs: steering.suspend_jobs,
    job_commands.ResumeJobs: steering.resume_jobs,
    job_commands.AddSchedule: schedules.add_schedule,
    job_commands.RemoveSchedule: schedules.remove_schedule,
    job_commands.TickSchedule: schedules.tick_schedule,
    job_commands.PassTime: timing.pass_time,
    job_commands.SubmitGraph: graphs.submit_graph,
    job_commands.SetJobs: steering.set_jobs,
    job_commands.RetryJobs: retrying.retry_jobs,
    job_commands.VisitTask: visiting.visit_task,
    webhook_commands.AddWebhook: webhooks.add_webhook,
    webhook_commands.SetWebhook: webhooks.set_webhook,
    webhook_commands.RemoveWebhook: webhooks.remove_webhook,
    webhook_commands.ReplayWebhook: webhooks.replay_webhook,
    webhook_commands.TryWebhook: webhooks.try_webhook,
    webhook_commands.DeliverWebhooks: webhooks.deliver_webhooks,
    commands.InviteHost: joining.invite_host,
    commands.JoinHost: joining.join_host,
    order_commands.SetLimit: ordering.set_limit,
    order_commands.SetShare: ordering.set_share,
    order_commands.SetOrder: ordering.set_order,
    order_commands.SetQuota: ordering.set_quota,
    order_commands.AssignGang: gang_assigning.assign_gang,
}
_KINDS: Final = frozenset(kind.__struct_config__.tag for kind in _HANDLERS)
#: What leaves hosts as they are for whoever asks which fit; one that goes with its last attempt is noted there.
_OF_TASKS: Final = frozenset(
    {
        commands.SubmitJob,
        commands.AddTasks,
        commands.AssignTasks,
        commands.StartTasks,
        commands.FinishTasks,
        commands.CancelJobs,
        commands.CloseJob,
        commands.ForgetJobs,
        job_commands.SubmitGraph,
        job_commands.PassTime,
        order_commands.AssignGang,
    }
)
_encoder = msgspec.msgpack.Encoder()
_raw = msgspec.msgpack.Decoder()
#: Far below what the interpreter allows, which depends on who called: replicas must give the same answer.
_DEPTH_LIMIT: Final = 100
_TOO_DEEP: Final = commands.Rejected("bad_command", "not a command: nested too deeply")


class UnknownCommand(DepalmaError):
    """The log holds a command of a kind that this version does not know: upgrade this master."""


def apply(state: ClusterState, command: AnyCommand, index: int) -> Applied | Rejected:
    """Applies a command in place. `index` is its place in the log, for messages only."""
    state.answers.now = state.version = state.version + 1
    outcome: Applied | Rejected
    try:
        outcome = bad_common(command.at, getattr(command, "request", "")) or _HANDLERS[type(command)](state, command)
    except Forgotten as refusal:
        outcome = Rejected(refusal.code, str(refusal))
    if type(command) not in _OF_TASKS:
        state.fits.note(state.changes.hosts, state.hosts)
    if state.events.fresh:
        collect(state)
    return outcome


def digest_of(state: ClusterState, *, version: bool = True) -> str:
    """Returns the hash of all of the state; equal exactly for equal states. Costs a snapshot: for tests and checks."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in image.encode(state, "", version=version):
        digest.update(piece)
    return digest.hexdigest()


class Machine:
    """What the consensus replicates: bytes in, outcomes out, snapshots.

    `state` is replaced by `restore`: do not keep a reference to it across calls.
    """

    def __init__(self) -> None:
        self.state = ClusterState.empty()
        self._chain = b""

    @property
    def state_hash(self) -> str:
        """Returns a hash over all commands and outcomes so far: equal at equal index on all replicas."""
        return self._chain.hex()

    def apply(self, data: bytes, index: int) -> Applied | Rejected:
        """Applies a command of the log. Errors: UnknownCommand, after which this replica must stop."""
        outcome = self._apply(data, index)
        chain = hashlib.blake2b(self._chain, digest_size=16)
        chain.update(data)
        chain.update(_encoder.encode(outcome))
        self._chain = chain.digest()
        return outcome

    def _apply(self, data: bytes, index: int) -> Applied | Rejected:
        try:
            command = commands.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.state.version += 1
            return _malformed(data, index)
        return apply(self.state, command, index)

    def snapshot(self) -> Iterator[bytes]:
        """Yields everything replicated, in pieces; equal states give equal ones. Nothing may be applied meanwhile."""
        return image.encode(self.state, self.state_hash)

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Replaces the state by that of a snapshot. Errors: BadSnapshot, and what `pieces` raises.

        After an error nothing was changed.
        """
        state, state_hash = image.decode(pieces)
        state.changes = Changes(set(state.jobs), set(state.hosts), True, True)
        self.state, self._chain = state, bytes.fromhex(state_hash)

    def begin_anew(self, reason: str) -> int:
        """Makes the state the beginning of another cluster; returns how many attempts were lost."""
        lost = restoring.begin_anew(self.state, reason)
        chain = hashlib.blake2b(self._chain, digest_size=16)
        chain.update(f"begin anew at {self.state.version}".encode())
        self._chain = chain.digest()
        return lost

    def drain_changes(self) -> Changes:
        """Returns what changed since the last call. Soft; call it regularly, it grows until then."""
        changes = self.state.changes
        self.state.changes = Changes(set(), set())
        return changes


def _malformed(data: bytes, index: int) -> Rejected:
    """Refuses bytes that are no command, in words that depend on nothing but them. Errors: UnknownCommand."""
    try:
        value = _raw.decode(data)
    except RecursionError:
        return _TOO_DEEP
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return Rejected("bad_command", "not a command: no valid msgpack")
    if _is_deeper(value, _DEPTH_LIMIT):
        return _TOO_DEEP
    kind = value[0] if isinstance(value, list) and value else None
    if not isinstance(kind, str):
        return Rejected("bad_command", "not a command: no array that begins with a kind")
    if kind not in _KINDS:
        raise UnknownCommand(f"entry {index} is a command of kind {kind!r}, which this version does not know: upgrade")
    return Rejected("bad_command", f"malformed value of kind {kind}")


def _is_deeper(value: object, limit: int) -> bool:
    """Returns whether lists and maps are nested in each other more than `limit` times."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer if isinstance(outer, list) else outer.values())
        ]
        if not level:
            return False
    return True
