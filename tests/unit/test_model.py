"""The shared values: what users type is checked by name, and what travels is compact and stable."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from depalma import model
from depalma.model import FINAL_STATES, JobSpec, JobView, MasterAddress, Payload, Report, TaskCounts, TaskState
from depalma.state import commands, job_commands, webhook_commands


def test_an_unknown_field_is_refused_by_name():
    """A typing error must not be a job without a limit."""
    with pytest.raises(msgspec.ValidationError, match="retires"):
        msgspec.json.decode(b'{"kind": "command", "argv": ["true"], "retires": 3}', type=JobSpec)


@pytest.mark.parametrize("text", ['{"kind": "dance"}', '{"argv": ["x"]}', '{"kind": "command", "count": "many"}'])
def test_wrong_types_and_kinds_are_refused(text):
    """Before any master sees them."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=JobSpec)


def test_defaults_are_not_written():
    """A spec in the log is as long as what the user said."""
    assert msgspec.json.encode(JobSpec(kind="command", argv=("ls",))) == b'{"kind":"command","argv":["ls"]}'


def test_states_are_those_of_the_contract():
    """Final ones: the last five."""
    words = get_args(TaskState)

    assert words == (
        "held", "blocked", "queued", "assigned", "running", "suspended",
        "succeeded", "failed", "cancelled", "timed_out", "lost",
    )  # fmt: skip
    assert set(words[-5:]) == FINAL_STATES


def test_views_have_the_promised_fields():
    """Programs rely on them."""
    promised = {
        model.JobView: "id name user state priority tags group submitted_at started_at finished_at code_index tasks "
        "exit_code reason",
        model.TaskCounts: "total queued running succeeded failed cancelled lost",
        model.TaskView: "id job index state attempt host exit_code signal error started_at finished_at code_index "
        "code_digest reason attempts",
        model.AttemptView: "number host state started_at finished_at reason",
        model.HostView: "name state groups labels priority slots running code_index cpus memory_bytes load last_seen_s",
        model.MasterView: "id url role term commit_index applied_index state_hash last_contact_s version",
        model.CodeView: "index name kind digest size added_at added_by acknowledged missing",
        model.ProcessView: "task host pid ppid user state cpu_percent rss_bytes threads elapsed_s command",
    }
    for view, names in promised.items():
        assert set(names.split()) <= set(view.__struct_fields__), view.__name__


def test_views_print_every_field():
    """Absent values are null, not missing."""
    view = JobView(
        id=1, name="", user="", kind="command", state="queued", priority=0, tags=(), group="", submitted_at=1.0,
        started_at=None, finished_at=None, code_index=0, tasks=TaskCounts(),
    )  # fmt: skip

    assert set(msgspec.to_builtins(view)) == set(JobView.__struct_fields__)


def test_reports_travel_as_arrays():
    """No field names a report."""
    assert msgspec.to_builtins(Report(1, 2, 3, "succeeded"))[:4] == [1, 2, 3, "succeeded"]


def every_command() -> list[commands.AnyCommand]:
    facts = model.HostFacts(1, 1, 1, 0, "", "", "")
    spec = JobSpec(kind="command", argv=("x",), arguments=Payload(inline=b"x"), env={"A": "b"})
    return [
        commands.SubmitJob("r", spec, 1.0),
        commands.AddTasks("r", 1, Payload(digest="d", size_bytes=3), 2, 1.0),
        commands.CloseJob("r", 1, 1.0),
        commands.CancelJobs("r", (1, 2), 1.0, "ann"),
        commands.AssignTasks(1, "h", "i", ((1, 2, 3),), 1.0, "why"),
        commands.StartTasks("h", "i", ((1, 2, 3, 4.0),), 1.0),
        commands.FinishTasks("h", "i", (Report(1, 2, 3, "failed", 4, 5, "e", Payload(inline=b"v"), 1.0, 2.0),), 1.0),
        commands.AddHost("r", "h", ("g",), {"k": "v"}, 1, 2, 3, 1.0),
        commands.HostUp("h", "i", facts, 1.0, 4),
        commands.HostSuspect("h", "i", "why", 1.0),
        commands.HostRecovered("h", "i", 1.0),
        commands.HostLost("h", "i", "why", 1.0),
        commands.AddCode("r", "n", "module", "d", 1, "ann", 1.0),
        commands.AckCode("h", "i", 1, "t", "s", 1.0, 0, "out"),
        commands.AppendCode("r", "n", "command", "d", 1, "ann", 1.0, "q", ("x", "y"), 5.0, 3),
        commands.FailCode("h", "i", 1, "why", 1.0, 2, "out"),
        commands.LagCode("h", "i", 1, "why", True, 1.0),
        commands.ForgetJobs((1,), 1.0),
        commands.ChangeMasters("r", (MasterAddress("m1", "a", 1, 2),), 1.0, "ann"),
        commands.SetHost("r", "h", 1.0, ("g",), 1, 2, 3, {"k": "v"}, ("old",)),
        commands.RemoveHost("r", "h", True, 1.0, "ann"),
        commands.DrainHost("r", "h", 2.0, 1.0, "why", "ann"),
        commands.UndrainHost("r", "h", 1.0),
        commands.InviteHost("r", "s", "h", 2.0, 1.0, "ann"),
        commands.JoinHost("r", "s", "a", 1.0),
        commands.SetGroup("r", "g", ("h",), 1.0),
        commands.AddToGroup("r", "g", ("h",), 1.0),
        commands.RemoveGroup("r", "g", (), True, 1.0),
        commands.SetOwner(
            "r", "h", {"idle_s": 1.0, "hours": "sat", "warn_s": None, "requeue_all": True}, 1.0, True, True
        ),
        commands.NoteOwner("h", "i", "why", "lowered", True, 1.0),
        job_commands.HoldJobs("r", (1,), 1.0, "ann"),
        job_commands.ReleaseJobs("r", (1,), 1.0, "ann"),
        job_commands.SuspendJobs("r", (1,), 1.0, "ann", "why"),
        job_commands.ResumeJobs("r", (1,), 1.0, "ann"),
        job_commands.RetryJobs("r", (1,), 1.0, "ann"),
        job_commands.SetJobs("r", (1,), 1.0, "ann", 3, "n", ("t",)),
        job_commands.SubmitGraph("r", (spec, msgspec.structs.replace(spec, after=(model.Dependency(-1),))), 1.0),
        job_commands.VisitTask("r", 1, 0, ("a",), 1.0, "ann", True),
        job_commands.PassTime(1.0, 5),
        job_commands.AddSchedule("r", "n", spec, "@daily", "UTC", 2.0, 1.0, "all", "skip", "ann"),
        job_commands.RemoveSchedule("r", "n", 1.0),
        job_commands.TickSchedule("n", 2.0, 3.0, True, 2.5),
        webhook_commands.AddWebhook("r", "w", "http://a/", ("*",), (1,), ("t",), ("u",), "s", 2, 1.0, "ann"),
        webhook_commands.SetWebhook("r", "w", 1.0, "http://a/", ("*",), (1,), ("t",), ("u",), "s", 2, "ann"),
        webhook_commands.RemoveWebhook("r", "w", 1.0, "ann"),
        webhook_commands.ReplayWebhook("r", "w", 3, True, 1.0, "ann"),
        webhook_commands.TryWebhook("r", "w", 1.0, "ann"),
        webhook_commands.DeliverWebhooks((("w", 1, 2, "why"),), 1.0),
        commands.SetLimit("r", "tag", "t", 3, 1.0),
        commands.SetShare("r", "ann", 2.0, 1.0),
        commands.SetOrder("r", 1.0, 60.0, 5.0),
        commands.SetQuota("r", "user", "ann", {"slots": 2.5, "gpus": 1.0}, 1.0),
        commands.AssignGang(1, (("h", "i", ((1, 0, 1),)), ("g", "j", ((1, 1, 1),))), 1.0, "why", {"h": (2,)}),
    ]


def test_every_command_survives_its_encoding():
    """And all of them are in the list above."""
    made = every_command()

    assert [commands.decode(commands.encode(command)) for command in made] == made
    assert {type(command) for command in made} == set(get_args(commands.AnyCommand))


def test_tags_of_commands_never_change():
    """A log may hold any of them; a tag that changed its meaning would divide old and new masters."""
    assert sorted(str(kind.__struct_config__.tag) for kind in get_args(commands.AnyCommand)) == [
        "code.ack", "code.add", "code.append", "code.fail", "code.lag", "group.add", "group.remove", "group.set",
        "host.add", "host.drain", "host.invite", "host.join", "host.lost", "host.note_owner", "host.recovered",
        "host.remove", "host.set", "host.set_owner", "host.suspect", "host.undrain", "host.up",
        "job.add_tasks", "job.cancel", "job.close", "job.forget", "job.hold",
        "job.release", "job.resume", "job.retry", "job.set", "job.submit", "job.submit_graph", "job.suspend",
        "master.change",
        "order.limit", "order.quota", "order.set", "order.share", "schedule.add",
        "schedule.remove", "schedule.tick", "task.assign", "task.assign_gang", "task.finish", "task.start",
        "task.visit", "time.pass",
        "webhook.add", "webhook.deliver", "webhook.remove", "webhook.replay", "webhook.set", "webhook.test",
    ]  # fmt: skip


def test_commands_of_an_older_version_are_read():
    """HostUp and AddHost were once shorter: fields are added at the end with a default."""
    old = msgspec.msgpack.encode(["host.up", "h", "i", [1, 1, 1, 0, "", "", ""], 1.0])
    added = msgspec.msgpack.encode(["host.add", "r", "h", [], {}, 0, 1, 0, 1.0])

    assert commands.decode(old) == commands.HostUp("h", "i", model.HostFacts(1, 1, 1, 0, "", "", ""), 1.0, -1, ())
    assert commands.decode(added) == commands.AddHost("r", "h", (), {}, 0, 1, 0, 1.0, from_file=True)
