"""Webhooks in the state: who gets which events under which id, and how far each is."""

from __future__ import annotations

import msgspec
import pytest

from depalma.model import EventView
from depalma.state import commands as c
from depalma.state import image, restoring
from depalma.state import webhook_commands as w
from depalma.state.machine import Machine
from depalma.state.outbox import matches
from depalma.state.webhooks import MAX_WEBHOOKS

SECRET = "s" * 32
URL = "http://127.0.0.1:9/hook?token=1"


def add(bench, name="w", *kinds, **changes):
    values = {"jobs": (), "tags": (), "users": (), "secret": SECRET, "keep": 1000} | changes
    wanted = w.AddWebhook(
        values.pop("request", ""), name, values.pop("url", URL), kinds or ("*",), at=bench.tick(), by="ann", **values
    )
    return bench.ok(wanted)


def sent(bench, name="w", after=0) -> list[tuple[int, EventView]]:
    return bench.state.webhooks.outboxes[name].after(after, 10_000)


def kinds(bench, name="w") -> list[str]:
    return [event.kind for _, event in sent(bench, name)]


def deliver(bench, upto, error="", name="w", epoch=None):
    webhook = bench.state.webhooks.by_name[name]
    target = (name, webhook.epoch if epoch is None else epoch, upto, error)
    return bench.ok(w.DeliverWebhooks((target,), bench.tick()))


def work(bench, count=3, **spec):
    """A job from its submission to its end."""
    if "h1" not in bench.state.hosts:
        bench.host(slots=100)
    job = bench.submit(count, **spec)
    refs = [(job.id, task, 1) for task in range(count)]
    bench.assign(*refs)
    bench.finish(*refs)
    return job


def test_ids_count_from_one_without_gaps_and_events_are_those_of_the_log(bench):
    """One id an event, also of a command that caused several."""
    add(bench)
    work(bench)
    ids, events = zip(*sent(bench), strict=True)

    assert list(ids) == list(range(1, len(ids) + 1))
    assert list(events) == [event for event in bench.events() if not event.kind.startswith("webhook.")]
    assert bench.state.webhooks.by_name["w"].last == len(ids)


def test_what_happened_before_it_was_made_is_not_told(bench):
    work(bench)
    add(bench)
    work(bench)

    assert {event.job for _, event in sent(bench)} == {2}


def test_kinds_are_chosen_by_name_and_by_family(bench):
    add(bench, "one", "job.finished")
    add(bench, "family", "task.*", "job.submitted")
    work(bench, 2)

    assert kinds(bench, "one") == ["job.finished"]
    assert kinds(bench, "family") == ["job.submitted", *["task.assigned"] * 2, *["task.finished"] * 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"users": ("ann",)}, {1, 2}),
        ({"users": ("ben", "cyd")}, {3}),
        ({"tags": ("night",)}, {2, 3}),
        ({"tags": ("night", "day")}, {1, 2, 3}),
        ({"tags": ("night",), "users": ("ann",)}, {2}),
        ({"jobs": (1, 3)}, {1, 3}),
        ({"jobs": (1, 3), "users": ("ann",)}, {1}),
        ({"jobs": (2, 9), "tags": ("night",), "users": ("ben",)}, set()),
    ],
)
def test_filters_are_all_to_be_met_by_one_of_their_values(bench, changes, told):
    """What is of no job meets none of them."""
    add(bench, "w", "*", **changes)
    work(bench, user="ann", tags=("day",))
    work(bench, user="ann", tags=("day", "night"))
    work(bench, user="ben", tags=("night",))

    assert {event.job for _, event in sent(bench)} == told


def test_of_one_command_each_target_gets_its_own_events(bench):
    """A batch ends tasks of several jobs; numbers and states stay with their tasks."""
    bench.host(slots=100)
    add(bench, "all", "task.finished")
    for user in ("ann", "ben"):
        add(bench, user, "task.finished", users=(user,))
    jobs = [bench.submit(2, user=user).id for user in ("ann", "ben", "ann")]
    refs = [(job, task, 1) for task in (0, 1) for job in jobs]
    bench.assign(*refs)
    reports = [c.Report(*ref, "succeeded" if place % 2 else "failed") for place, ref in enumerate(refs)]
    bench.ok(c.FinishTasks("h1", "h1-1", tuple(reports), bench.tick()))
    logged = {(event.job, event.task): event for event in bench.events() if event.kind == "task.finished"}

    for name, wanted in (("all", [0, 1, 2, 3, 4, 5]), ("ann", [0, 2, 3, 5]), ("ben", [1, 4])):
        assert [event for _, event in sent(bench, name)] == [logged[refs[place][:2]] for place in wanted]
        assert [number for number, _ in sent(bench, name)] == list(range(1, len(wanted) + 1))


def test_any_id_can_be_the_start(bench):
    """Also in the middle of a batch."""
    add(bench)
    work(bench, 4)
    everything = sent(bench)

    for after in range(len(everything) + 2):
        assert sent(bench, after=after) == everything[after:]
        assert bench.state.webhooks.outboxes["w"].after(after, 2) == everything[after : after + 2]


def test_an_outbox_has_a_bound_and_the_ids_go_on(bench):
    """At least `keep` are there; whole commands are dropped."""
    add(bench, "w", "task.*", keep=10)
    for _ in range(10):
        work(bench, 4)
    ids = [number for number, _ in sent(bench)]

    assert 10 <= len(ids) <= 14
    assert ids == list(range(ids[0], 81))
    assert bench.state.webhooks.oldest("w") == ids[0]
    assert bench.state.webhooks.undelivered("w") == len(ids)
    bench.ok(w.SetWebhook("", "w", bench.tick(), keep=1))
    assert len(sent(bench)) == 4


def test_a_cursor_moves_by_what_was_delivered_in_this_epoch(bench):
    """Stale words, of another epoch or about what is over, change nothing."""
    add(bench)
    work(bench)
    webhook = bench.state.webhooks.by_name["w"]
    assert deliver(bench, 3) == 1
    assert (webhook.delivered, bench.state.webhooks.undelivered("w")) == (3, webhook.last - 3)
    for upto, epoch in ((2, None), (webhook.last + 1, None), (4, webhook.epoch - 1), (-1, None)):
        assert deliver(bench, upto, epoch=epoch) == 0
        assert webhook.delivered == 3
    assert bench.ok(w.DeliverWebhooks((("nosuch", 1, 1, ""),), bench.tick())) == 0


def test_a_target_that_fails_is_known_as_such_and_since_when(bench):
    add(bench)
    work(bench)
    deliver(bench, 1, "refused")
    since = bench.now
    webhook = bench.state.webhooks.by_name["w"]
    assert (webhook.error, webhook.failing_since, webhook.delivered) == ("refused", since, 1)
    deliver(bench, 1, "e" * 400)
    assert (webhook.error, webhook.failing_since) == ("e" * 300, since)
    deliver(bench, 2)
    assert (webhook.error, webhook.failing_since) == ("", None)

    told = [event for event in bench.events() if event.kind in ("webhook.failing", "webhook.recovered")]
    assert [event.kind for event in told] == ["webhook.failing", "webhook.recovered"]
    assert told[0].detail == {"webhook": "w", "id": 2, "error": "refused"}
    assert told[1].detail == {"webhook": "w", "failed_s": 2.0}
    assert not [kind for kind in kinds(bench) if kind.startswith("webhook.")], "or two that fail would never be quiet"


def test_replay_goes_back_as_far_as_is_kept(bench):
    """A delivery that was on its way meanwhile cannot undo it."""
    add(bench, "w", "task.*", keep=10)
    for _ in range(5):
        work(bench, 4)
    deliver(bench, 38)
    oldest, epoch = bench.state.webhooks.oldest("w"), bench.state.webhooks.by_name["w"].epoch
    assert oldest > 1
    for wrong in (oldest - 1, 40, 0):
        refused = bench.refused(w.ReplayWebhook("", "w", wrong, False, bench.tick()))
        assert f"from: {wrong} given; allowed: {oldest} to 39" in refused.message
    assert bench.ok(w.ReplayWebhook("r", "w", oldest, False, bench.tick())) == 40 - oldest + 1
    assert bench.state.webhooks.by_name["w"].delivered == oldest - 1
    assert deliver(bench, 40, epoch=epoch) == 0
    assert bench.ok(w.ReplayWebhook("r", "w", oldest, False, bench.tick())) == 40 - oldest + 1


def test_only_skip_leaves_out_what_was_not_delivered(bench):
    add(bench, "w", "task.*")
    work(bench, 4)
    assert "with skip, to 9" in bench.refused(w.ReplayWebhook("", "w", 5, False, bench.tick())).message
    assert bench.ok(w.ReplayWebhook("", "w", 5, True, bench.tick())) == 4
    deliver(bench, 4, "refused")
    assert bench.ok(w.ReplayWebhook("", "w", 6, True, bench.tick())) == 3
    assert bench.state.webhooks.by_name["w"].error == "refused"
    assert bench.ok(w.ReplayWebhook("", "w", 9, True, bench.tick())) == 0
    assert bench.state.webhooks.by_name["w"].error == "", "there is nothing left that could fail"
    assert "1 to 9" in bench.refused(w.ReplayWebhook("", "w", 10, True, bench.tick())).message


def test_what_was_dropped_undelivered_is_not_passed_over_by_a_replay(bench):
    """Or the next delivery would not say that ids are missing."""
    add(bench, "w", "task.*", keep=4)
    for _ in range(3):
        work(bench, 4)
    refused = bench.refused(w.ReplayWebhook("", "w", 1, False, bench.tick()))

    assert (refused.code, refused.message) == (
        "no_longer_kept", "webhook w: nothing is kept up to 1; the oldest id is 21",
    )  # fmt: skip


def test_a_test_goes_to_one_target_whatever_its_filter(bench):
    add(bench, "w", "job.finished")
    add(bench, "all", "*")
    assert bench.ok(w.TryWebhook("t", "w", bench.tick(), "ann")) == 1
    assert bench.ok(w.TryWebhook("t", "w", bench.tick(), "ann")) == 1
    assert [(number, event.kind, event.detail) for number, event in sent(bench)] == [
        (1, "webhook.tested", {"webhook": "w", "by": "ann"})
    ]
    assert sent(bench, "all") == []


def test_changes_go_on_where_it_was(bench):
    """Another place or secret ends what is believed of deliveries on their way; a filter does not."""
    add(bench, "w", "job.*")
    work(bench)
    webhook = bench.state.webhooks.by_name["w"]
    deliver(bench, 1)
    bench.ok(w.SetWebhook("s", "w", bench.tick(), kinds=("task.finished",), jobs=(2,)))
    bench.ok(w.SetWebhook("s", "w", bench.tick(), kinds=("*",)))
    changed = bench.state.webhooks.by_name["w"]
    assert (changed.kinds, changed.jobs, changed.epoch) == (("task.finished",), (2,), webhook.epoch)
    work(bench)
    assert [(number, event.kind, event.job) for number, event in sent(bench, after=1)] == [
        (2, "job.finished", 1), *((number, "task.finished", 2) for number in (3, 4, 5)),
    ]  # fmt: skip
    bench.ok(w.SetWebhook("", "w", bench.tick(), url="https://b.example/x"))
    assert bench.state.webhooks.by_name["w"].epoch > webhook.epoch
    assert (changed.last, bench.state.webhooks.by_name["w"].delivered) == (5, 1)
    before = len(bench.events())
    bench.ok(w.SetWebhook("", "w", bench.tick(), url="https://b.example/x"))
    assert len(bench.events()) == before, "nothing was changed"


def test_one_that_is_made_anew_begins_at_one_and_ignores_words_about_the_former(bench):
    add(bench)
    work(bench)
    former = bench.state.webhooks.by_name["w"].epoch
    bench.ok(w.RemoveWebhook("", "w", bench.tick(), "ann"))
    assert bench.events()[-1].detail == {"webhook": "w", "undelivered": 10, "by": "ann"}
    assert bench.state.events.fresh is None
    add(bench)
    work(bench)

    assert sent(bench)[0][0] == 1
    assert deliver(bench, 2, epoch=former) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a b"}, "name: 'a b' given"),
        ({"name": "w"}, "there is a webhook w already"),
        *(
            ({"url": url}, f"url: {url!r} given; allowed: http://HOST")
            for url in (
                "", "ftp://a", "http://", "http://u:p@a", "http://a/#f", "http://a b", "http://a:0", "http://a:65536",
                "http://a/\n", "HTTP://a", "http://a\\b", "http://[::1", "javascript:x",
            )
        ),
        ({"url": "http://a/" + "x" * 2000}, "url: "),
        ({"kinds": ()}, "kinds: [] given"),
        ({"kinds": ("job",)}, "kinds: 'job' given"),
        ({"kinds": ("*.finished",)}, "kinds: '*.finished' given"),
        ({"kinds": ("a.b",) * 101}, "kinds: '101 entries' given; allowed: at most 100"),
        ({"jobs": (0,)}, "jobs: [0] given"),
        ({"tags": ("",)}, "tags: '' given"),
        ({"users": ("x" * 201,)}, "users: "),
        ({"keep": 0}, "keep: 0 given; allowed: 1 to 1000000"),
        ({"keep": 10**7}, "keep: 10000000 given"),
        ({"by": "x" * 201}, "by: "),
    ],
)  # fmt: skip
def test_each_refusal_names_what_is_wrong(bench, changes, said):
    add(bench)
    values = {
        "request": "", "name": "v", "url": URL, "kinds": ("*",), "jobs": (), "tags": (), "users": (),
        "secret": SECRET, "keep": 10, "at": 1.0, "by": "",
    }  # fmt: skip

    assert said in bench.refused(w.AddWebhook(**(values | changes))).message


def test_a_bad_secret_is_not_repeated(bench):
    refused = bench.refused(w.AddWebhook("", "v", URL, ("*",), (), (), (), "short secret", 1, 1.0))
    assert "short secret" not in refused.message


@pytest.mark.parametrize(
    "url", ["http://a", "https://a.b-c.example:8443/x%20y?z=1&t=~", "http://[::1]:80/", "http://10.0.0.1"]
)
def test_urls_that_are_fine(bench, url):
    add(bench, url=url)


def test_there_are_not_too_many(bench):
    for number in range(MAX_WEBHOOKS):
        bench.machine.apply(c.encode(w.AddWebhook("", f"w{number}", URL, ("*",), (), (), (), SECRET, 1, 1.0)), 1)
    bench.twin = bench.machine
    assert bench.machine.apply(c.encode(w.AddWebhook("", "more", URL, ("*",), (), (), (), SECRET, 1, 1.0)), 1) == (
        c.Rejected("too_many_webhooks", "there are 100 webhooks, which is the limit")
    )
    bench.twin = Machine()
    bench.twin.restore(list(bench.machine.snapshot()))


@pytest.mark.parametrize(
    "command",
    [
        w.SetWebhook("", "no", 1.0), w.RemoveWebhook("", "no", 1.0), w.ReplayWebhook("", "no", 1, False, 1.0),
        w.TryWebhook("", "no", 1.0),
    ],
)  # fmt: skip
def test_an_unknown_name(bench, command):
    assert bench.refused(command) == c.Rejected("unknown_webhook", "there is no webhook no")


def test_each_request_counts_once(bench):
    for _ in range(2):
        add(bench, request="r")
    for _ in range(2):
        bench.ok(w.RemoveWebhook("r", "w", bench.tick()))


def test_secrets_and_queries_are_in_no_event(bench):
    """The token of a URL is often in its query."""
    add(bench)
    bench.ok(w.SetWebhook("", "w", bench.tick(), secret="t" * 40))
    text = repr(bench.events())
    assert SECRET not in text
    assert "t" * 40 not in text
    assert "token" not in text


def test_who_wants_nothing_of_it_is_not_even_looked_at(bench, monkeypatch):
    """A thousand users may each have a webhook of their own."""
    asked = []
    for number in range(50):
        add(bench, f"u{number}", "task.*", users=(f"user{number}",))
    add(bench, "other", "host.*")
    bench.host(slots=100)
    monkeypatch.setattr("depalma.state.outbox.Webhook.wants", lambda webhook, job: asked.append(webhook.name) is None)
    work(bench, user="user7")

    assert set(asked) == {"u7"}


def test_a_cluster_that_begins_anew_skips_ids(bench):
    """Those that its other life may have given out never come again with another meaning."""
    add(bench, keep=5)
    bench.host(slots=100)
    work(bench)
    before = bench.state.webhooks.by_name["w"].last
    left = sent(bench)
    job = bench.submit(2)
    bench.assign((job.id, 0, 1))
    before = bench.state.webhooks.by_name["w"].last
    for machine in (bench.machine, bench.twin):
        machine.begin_anew("restored")
    bench.state.check_invariants()

    after = sent(bench, after=before)
    assert [event.kind for _, event in after] == ["cluster.restored", "host.lost", "task.requeued"]
    assert [number for number, _ in after] == [before + restoring.NUMBERS_JUMP + place for place in (1, 2, 3)]
    assert left[-1][0] < before
    assert sent(bench)[0][0] <= before, "what was not delivered is still there"
    assert bench.state.webhooks.undelivered("w") == len(sent(bench))
    deliver(bench, before)
    assert bench.state.webhooks.undelivered("w") == 3


def test_a_machine_without_webhooks_keeps_no_events_for_them(bench):
    """It is what nearly all are: nothing is added to what each command costs but one look."""
    work(bench)
    assert bench.state.events.fresh is None
    assert b"webhooks" not in b"".join(bench.machine.snapshot())


@pytest.mark.parametrize(
    ("pattern", "kind", "fits"),
    [
        ("*", "job.finished", True), ("job.*", "job.finished", True), ("job.finished", "job.finished", True),
        ("job.finish", "job.finished", False), ("task.*", "job.finished", False), ("*", "webhook.failing", False),
        ("webhook.*", "webhook.failing", False), ("webhook.failing", "webhook.failing", False),
    ],
)  # fmt: skip
def test_patterns(pattern, kind, fits):
    assert matches(pattern, kind) is fits


def test_an_outbox_is_cut_into_pieces_of_a_snapshot(bench, monkeypatch):
    """And is the same when it is read: ids, numbers of events, what is delivered and what fails."""
    monkeypatch.setattr(image, "PIECE_BYTES", 300)
    add(bench)
    add(bench, "ann", "task.*", users=("ann",), keep=9)
    for user in ("ann", "ben", "ann"):
        work(bench, 4, user=user)
    deliver(bench, 7, "refused")
    told = {name: sent(bench, name) for name in ("w", "ann")}
    pieces = [msgspec.msgpack.decode(piece)[0] for piece in bench.machine.snapshot()]
    assert pieces.count("outbox") > 3
    bench.check_snapshot()
    state = bench.twin.state

    assert {name: state.webhooks.outboxes[name].after(0, 1000) for name in ("w", "ann")} == told
    assert state.webhooks.by_name == bench.state.webhooks.by_name
    work(bench, user="ann")
    assert sent(bench, "ann")[-1][0] == 22
