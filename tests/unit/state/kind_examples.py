"""One command of every kind that is accepted and one that is refused, in a cluster that has a bit of everything.

A new kind of command goes into both tables here, and a new kind of event into the third.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from depalma import items
from depalma.codetree import command_digest
from depalma.model import Dependency, HostFacts, JobSpec, MasterAddress, Payload, Report
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state import order_commands as oc
from depalma.state import webhook_commands as w

SECRET = "s" * 32
DIGEST = "a" * 64
INVITED = "1" * 64
FACTS = HostFacts(slots=2, cpus=2, memory_bytes=8 << 30, gpus=0, version="0.1.0", python="3.11", address="10.0.0.11")
SPEC = JobSpec(kind="command", argv=("true",), count=2)

Maker = Callable[[Any], c.AnyCommand]  #: of a bench on which `set_stage` ran


def set_stage(bench: Any) -> None:
    """h1 has one running and one assigned task of job 1; job 2 is open and held; job 3 failed on h2; jobs 4 and 5 are
    queued, 5 is a gang; h3 is drained, h4 suspect; and there are code, a webhook, a schedule, an invitation and a
    master; job 6 is suspended."""
    for name in ("h1", "h2", "h3", "h4"):
        bench.host(name, gpus=2, groups=("g", "old"))
    bench.submit(2, retries=1)
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.start((1, 0, 1))
    bench.submit(1, open=True, hold=True, arguments=packed(1))
    bench.submit(1)
    bench.assign((3, 0, 1), host="h2")
    bench.finish((3, 0, 1), outcome="failed", host="h2")
    bench.submit(2, backoff_s=5.0)
    bench.ok(c.DrainHost("", "h3", None, bench.tick()))
    bench.ok(c.HostSuspect("h4", "h4-1", "quiet", bench.tick()))
    bench.ok(c.AddCode("", "pkg", "folder", DIGEST, 10, "ann", bench.tick()))
    bench.ok(w.AddWebhook("", "w", "http://10.0.0.1/x", ("*",), (), (), (), SECRET, 100, bench.tick()))
    bench.ok(jc.AddSchedule("", "nightly", SPEC, "@daily", "UTC", bench.now + 60, bench.tick()))
    bench.ok(c.InviteHost("", INVITED, "h9", bench.now + 500, bench.tick()))
    bench.ok(c.ChangeMasters("", (MasterAddress("m1", "a", 1, 2),), bench.tick()))
    bench.ok(oc.SetLimit("", "tag", "t", 1, bench.tick()))
    bench.submit(2, gang=2)
    bench.submit(1)
    bench.ok(jc.SuspendJobs("", (6,), bench.tick(), "ann", "night"))


def packed(count: int) -> Payload:
    """Returns arguments of so many tasks."""
    return Payload(inline=items.pack([b"x"] * count))


#: Accepted on the stage. Those that carry a request id carry this one.
AGAIN = "again"
ACCEPTED: dict[type[Any], Maker] = {
    c.SubmitJob: lambda b: c.SubmitJob(AGAIN, SPEC, b.now),
    jc.SubmitGraph: lambda b: jc.SubmitGraph(AGAIN, (SPEC, SPEC), b.now),
    c.AddTasks: lambda b: c.AddTasks(AGAIN, 2, packed(2), 2, b.now),
    c.CloseJob: lambda b: c.CloseJob(AGAIN, 2, b.now),
    c.CancelJobs: lambda b: c.CancelJobs(AGAIN, (1, 4), b.now, "ann"),
    c.ForgetJobs: lambda b: c.ForgetJobs((3,), b.now),
    jc.HoldJobs: lambda b: jc.HoldJobs(AGAIN, (4,), b.now),
    jc.ReleaseJobs: lambda b: jc.ReleaseJobs(AGAIN, (2,), b.now),
    jc.SuspendJobs: lambda b: jc.SuspendJobs(AGAIN, (1, 4), b.now, "ann", "night"),
    jc.ResumeJobs: lambda b: jc.ResumeJobs(AGAIN, (6,), b.now, "ann"),
    jc.RetryJobs: lambda b: jc.RetryJobs(AGAIN, (3,), b.now),
    jc.SetJobs: lambda b: jc.SetJobs(AGAIN, (4,), b.now, priority=7),
    jc.VisitTask: lambda b: jc.VisitTask(AGAIN, 1, 0, ("sh", "-c", "ls"), b.now, "ann"),
    jc.PassTime: lambda b: jc.PassTime(b.now),
    jc.AddSchedule: lambda b: jc.AddSchedule(AGAIN, "weekly", SPEC, "@weekly", "UTC", b.now + 60, b.now),
    jc.RemoveSchedule: lambda b: jc.RemoveSchedule(AGAIN, "nightly", b.now),
    jc.TickSchedule: lambda b: jc.TickSchedule("nightly", due(b), due(b) + 60, True, due(b)),
    c.AssignTasks: lambda b: c.AssignTasks(1, "h2", "h2-1", ((4, 0, 1),), b.now, "because"),
    oc.AssignGang: lambda b: oc.AssignGang(1, (("h2", "h2-1", ((5, 0, 1), (5, 1, 1))),), b.now, "because"),
    c.StartTasks: lambda b: c.StartTasks("h1", "h1-1", ((1, 1, 1, b.now),), b.now),
    c.FinishTasks: lambda b: c.FinishTasks("h1", "h1-1", (Report(1, 0, 1, "succeeded"),), b.now),
    c.AddHost: lambda b: c.AddHost(AGAIN, "h5", ("g",), {"os": "x"}, 0, 2, 0, b.now),
    c.HostUp: lambda b: c.HostUp("h1", "h1-2", FACTS, b.now),
    c.HostSuspect: lambda b: c.HostSuspect("h1", "h1-1", "quiet", b.now),
    c.HostRecovered: lambda b: c.HostRecovered("h4", "h4-1", b.now),
    c.HostLost: lambda b: c.HostLost("h1", "h1-1", "silent", b.now),
    c.SetHost: lambda b: c.SetHost(AGAIN, "h1", b.now, slots=3),
    c.RemoveHost: lambda b: c.RemoveHost(AGAIN, "h1", True, b.now, "ann"),
    c.DrainHost: lambda b: c.DrainHost(AGAIN, "h1", b.now + 5, b.now, "update", "ann"),
    c.UndrainHost: lambda b: c.UndrainHost(AGAIN, "h3", b.now),
    c.SetGroup: lambda b: c.SetGroup(AGAIN, "g", ("h1",), b.now),
    c.AddToGroup: lambda b: c.AddToGroup(AGAIN, "new", ("h1",), b.now),
    c.RemoveGroup: lambda b: c.RemoveGroup(AGAIN, "old", (), False, b.now),
    c.SetOwner: lambda b: c.SetOwner(AGAIN, "h1", {"idle_s": 60.0}, b.now),
    c.NoteOwner: lambda b: c.NoteOwner("h1", "h1-1", "input", "suspended", True, b.now),
    c.InviteHost: lambda b: c.InviteHost(AGAIN, "2" * 64, "h8", b.now + 9, b.now),
    c.JoinHost: lambda b: c.JoinHost(AGAIN, INVITED, "10.0.0.9", b.now),
    c.AddCode: lambda b: c.AddCode(AGAIN, "lib", "module", "b" * 64, 10, "ann", b.now),
    c.AppendCode: lambda b: c.AppendCode(
        AGAIN, "command", "command", command_digest(("true",), 5.0), 0, "ann", b.now, "", ("true",), 5.0
    ),
    c.AckCode: lambda b: c.AckCode("h1", "h1-1", 1, digest(b), "sig", b.now),
    c.FailCode: lambda b: c.FailCode("h1", "h1-1", 1, "no space", b.now),
    c.LagCode: lambda b: c.LagCode("h1", "h1-1", 0, "slow", True, b.now),
    c.ChangeMasters: lambda b: c.ChangeMasters(
        AGAIN, (MasterAddress("m1", "b", 1, 2), MasterAddress("m2", "a", 1, 2)), b.now
    ),
    oc.SetLimit: lambda b: oc.SetLimit(AGAIN, "user", "ann", 2, b.now),
    oc.SetShare: lambda b: oc.SetShare(AGAIN, "ann", 3.0, b.now),
    oc.SetOrder: lambda b: oc.SetOrder(AGAIN, b.now, 60.0, 100.0),
    oc.SetQuota: lambda b: oc.SetQuota(AGAIN, "user", "ann", {"slots": 2.0}, b.now),
    w.AddWebhook: lambda b: w.AddWebhook(AGAIN, "x", "http://a", ("*",), (), (), (), SECRET, 9, b.now),
    w.SetWebhook: lambda b: w.SetWebhook(AGAIN, "w", b.now, url="http://b"),
    w.RemoveWebhook: lambda b: w.RemoveWebhook(AGAIN, "w", b.now),
    w.ReplayWebhook: lambda b: w.ReplayWebhook(AGAIN, "w", 1, True, b.now),
    w.TryWebhook: lambda b: w.TryWebhook(AGAIN, "w", b.now),
    w.DeliverWebhooks: lambda b: w.DeliverWebhooks((("w", epoch(b), 1, ""),), b.now),
}

#: Refused on the stage, for what they say.
REFUSED: dict[type[Any], Maker] = {
    c.SubmitJob: lambda b: c.SubmitJob(AGAIN, JobSpec(kind="command", argv=()), b.now),
    jc.SubmitGraph: lambda b: jc.SubmitGraph(AGAIN, (SPEC, JobSpec(kind="command", argv=())), b.now),
    c.AddTasks: lambda b: c.AddTasks(AGAIN, 3, packed(1), 1, b.now),
    c.CloseJob: lambda b: c.CloseJob(AGAIN, 99, b.now),
    c.CancelJobs: lambda b: c.CancelJobs(AGAIN, (1, 99), b.now),
    jc.HoldJobs: lambda b: jc.HoldJobs(AGAIN, (4, 99), b.now),
    jc.ReleaseJobs: lambda b: jc.ReleaseJobs(AGAIN, (2, 99), b.now),
    jc.SuspendJobs: lambda b: jc.SuspendJobs(AGAIN, (4, 99), b.now),
    jc.ResumeJobs: lambda b: jc.ResumeJobs(AGAIN, (6, 99), b.now),
    jc.RetryJobs: lambda b: jc.RetryJobs(AGAIN, (3, 99), b.now),
    jc.SetJobs: lambda b: jc.SetJobs(AGAIN, (4,), b.now, priority=10**9),
    jc.VisitTask: lambda b: jc.VisitTask(AGAIN, 4, 0, (), b.now, "ann"),
    jc.AddSchedule: lambda b: jc.AddSchedule(AGAIN, "nightly", SPEC, "@daily", "UTC", b.now + 60, b.now),
    jc.RemoveSchedule: lambda b: jc.RemoveSchedule(AGAIN, "weekly", b.now),
    jc.TickSchedule: lambda b: jc.TickSchedule("nightly", due(b) + 1, due(b) + 60, True, due(b)),
    c.AssignTasks: lambda b: c.AssignTasks(0, "h2", "h2-1", ((4, 0, 1),), b.now),
    oc.AssignGang: lambda b: oc.AssignGang(0, (("h2", "h2-1", ((5, 0, 1), (5, 1, 1))),), b.now),
    c.StartTasks: lambda b: c.StartTasks("h7", "h7-1", ((1, 1, 1, b.now),), b.now),
    c.FinishTasks: lambda b: c.FinishTasks("h7", "h7-1", (Report(1, 0, 1, "succeeded"),), b.now),
    c.AddHost: lambda b: c.AddHost(AGAIN, "h1", (), {}, 0, 2, 0, b.now),
    c.HostUp: lambda b: c.HostUp("h7", "h7-1", FACTS, b.now),
    c.HostSuspect: lambda b: c.HostSuspect("h1", "h1-9", "quiet", b.now),
    c.HostRecovered: lambda b: c.HostRecovered("h1", "h1-1", b.now),
    c.HostLost: lambda b: c.HostLost("h1", "h1-9", "silent", b.now),
    c.SetHost: lambda b: c.SetHost(AGAIN, "h1", b.now, slots=-1),
    c.RemoveHost: lambda b: c.RemoveHost(AGAIN, "h1", False, b.now),
    c.DrainHost: lambda b: c.DrainHost(AGAIN, "h7", None, b.now),
    c.UndrainHost: lambda b: c.UndrainHost(AGAIN, "h7", b.now),
    c.SetGroup: lambda b: c.SetGroup(AGAIN, "g", ("h7",), b.now),
    c.AddToGroup: lambda b: c.AddToGroup(AGAIN, "bad name", ("h1",), b.now),
    c.RemoveGroup: lambda b: c.RemoveGroup(AGAIN, "none", (), False, b.now),
    c.SetOwner: lambda b: c.SetOwner(AGAIN, "h1", {"hours": "sat 8"}, b.now),
    c.NoteOwner: lambda b: c.NoteOwner("h1", "h1-1", "input", "?", True, b.now),
    c.InviteHost: lambda b: c.InviteHost(AGAIN, INVITED, "h8", b.now + 9, b.now),
    c.JoinHost: lambda b: c.JoinHost(AGAIN, "3" * 64, "10.0.0.9", b.now),
    c.AddCode: lambda b: c.AddCode(AGAIN, "../x", "module", DIGEST, 10, "ann", b.now),
    c.AppendCode: lambda b: c.AppendCode(AGAIN, "", "", "", 0, "ann", b.now, rollback_of=99),
    c.AckCode: lambda b: c.AckCode("h1", "h1-1", 1, "f" * 64, "sig", b.now),
    c.FailCode: lambda b: c.FailCode("h1", "h1-1", 9, "no space", b.now),
    c.LagCode: lambda b: c.LagCode("h1", "h1-1", 5, "slow", True, b.now),
    oc.SetLimit: lambda b: oc.SetLimit(AGAIN, "tag", "t", -1, b.now),
    oc.SetShare: lambda b: oc.SetShare(AGAIN, "ann", 0.0, b.now),
    oc.SetOrder: lambda b: oc.SetOrder(AGAIN, b.now, -1.0),
    oc.SetQuota: lambda b: oc.SetQuota(AGAIN, "user", "ann", {"slots": -1.0}, b.now),
    w.AddWebhook: lambda b: w.AddWebhook(AGAIN, "x", "ftp://a", ("*",), (), (), (), SECRET, 9, b.now),
    w.SetWebhook: lambda b: w.SetWebhook(AGAIN, "x", b.now),
    w.RemoveWebhook: lambda b: w.RemoveWebhook(AGAIN, "x", b.now),
    w.ReplayWebhook: lambda b: w.ReplayWebhook(AGAIN, "w", 10**6, True, b.now),
    w.TryWebhook: lambda b: w.TryWebhook(AGAIN, "x", b.now),
}

#: Kinds that hold whatever they name: only their time and request id can be wrong.
NEVER_REFUSED: frozenset[type[Any]] = frozenset({c.ForgetJobs, jc.PassTime, c.ChangeMasters, w.DeliverWebhooks})

#: What makes each kind of event that no accepted command above makes at once; the last command does.
EVENTS: dict[str, tuple[Maker, ...]] = {
    "code.caught_up": (ACCEPTED[c.LagCode], ACCEPTED[c.AckCode]),
    "host.making_way": (
        lambda b: c.NoteOwner("h1", "h1-1", "input", "lowered", False, b.now),
        ACCEPTED[c.NoteOwner],
    ),
    "host.owner_left": (ACCEPTED[c.NoteOwner], lambda b: c.NoteOwner("h1", "h1-1", "", "", False, b.now)),
    "host.removed": (lambda b: c.RemoveHost("", "h2", False, b.now),),
    "host.drained": (lambda b: c.DrainHost("", "h2", None, b.now),),
    "master.removed": (lambda b: c.ChangeMasters("", (MasterAddress("m2", "a", 1, 2),), b.now),),
    "schedule.skipped": (lambda b: jc.TickSchedule("nightly", due(b), due(b) + 60, False, due(b)),),
    "task.cancelled": (
        lambda b: c.SubmitJob("", replace(SPEC, after=(Dependency(4, "ok", True),)), b.now),
        lambda b: c.CancelJobs("", (4,), b.now),
    ),
    "task.lost": (
        lambda b: c.SubmitJob("", replace(SPEC, restartable=False, code_index=0), b.now),
        lambda b: c.AssignTasks(1, "h2", "h2-1", ((7, 0, 1),), b.now, "because"),
        lambda b: c.HostLost("h2", "h2-1", "silent", b.now),
    ),
    "webhook.failing": (lambda b: c.DeliverWebhooks((("w", epoch(b), 0, "refused"),), b.now),),
    "webhook.recovered": (
        lambda b: c.DeliverWebhooks((("w", epoch(b), 0, "refused"),), b.now),
        ACCEPTED[w.DeliverWebhooks],
    ),
}


def due(bench: Any) -> float:
    """Returns when the schedule of the stage ticks next."""
    schedule = bench.state.schedules.get("nightly")
    return schedule.next_at if schedule is not None else bench.now


def epoch(bench: Any) -> int:
    """Returns the epoch of the webhook of the stage."""
    webhook = bench.state.webhooks.by_name.get("w")
    return webhook.epoch if webhook is not None else 0


def digest(bench: Any) -> str:
    """Returns the digest of the tree of code index 1."""
    return bench.state.tree_digest(1) if bench.state.code_index else DIGEST
