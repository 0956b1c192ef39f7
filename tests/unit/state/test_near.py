"""Hosts that hold a job's files come before those that have to fetch them, and behind what was wished for."""

from __future__ import annotations

import pytest

from depalma.dispatcher import HostRoom, parts, plan
from depalma.model import Payload
from depalma.policies.near import LEAST_BYTES, data_of

DATA = Payload(digest="a" * 64, size_bytes=LEAST_BYTES)
MORE = Payload(digest="b" * 64, size_bytes=LEAST_BYTES)


def placed(bench, **holds):
    """Returns where the tasks of one round go, with the reasons, when hosts hold these digests."""
    rooms = {
        name: HostRoom(host.incarnation, host.slots, holds=holds.get(name, ()))
        for name, host in bench.state.hosts.items()
    }
    commands = plan(bench.state, rooms, {}, bench.now, 1, 100)
    hosts = sorted(host for command in commands for host, refs in parts(command) for _ in refs)
    return hosts, {command.reason for command in commands}


@pytest.fixture
def hosts(bench):
    for name in ("h1", "h2", "h3"):
        bench.host(name, slots=2)


@pytest.mark.usefixtures("hosts")
def test_the_host_that_has_the_files(bench):
    """Also when it is fuller than another one; when it is full, the next best."""
    bench.submit(1, on_host="h3")
    bench.dispatch()
    bench.submit(3, inputs=DATA)
    where, reasons = placed(bench, h3={DATA.digest})
    assert where == ["h1", "h2", "h3"]
    assert any("1 of 2 slots were free; its data is there already; priority level 0" in each for each in reasons)
    assert placed(bench) == (["h1", "h1", "h2"], placed(bench)[1])


@pytest.mark.usefixtures("hosts")
def test_all_of_it_has_to_be_there(bench):
    """The files and the function."""
    bench.submit(1, kind="function", argv=(), inputs=DATA, function_pickle=MORE)
    assert placed(bench, h2={DATA.digest}, h3={MORE.digest})[0] == ["h1"]
    assert placed(bench, h2={DATA.digest}, h3={MORE.digest, DATA.digest})[0] == ["h3"]


@pytest.mark.usefixtures("hosts")
def test_small_files_change_nothing(bench):
    """Nor do those of other jobs."""
    bench.submit(1, inputs=Payload(digest="a" * 64, size_bytes=LEAST_BYTES - 1))
    assert placed(bench, h3={"a" * 64})[0] == ["h1"]


def test_wishes_and_levels_come_first(bench):
    """It is a preference among hosts that are equally wished for."""
    bench.host("h1", labels={"disk": "ssd"})
    bench.host("h2")
    bench.host("h3", priority=5)
    held = {"h2": {DATA.digest}, "h3": ()}
    wished = bench.submit(1, inputs=DATA, prefer=("disk=ssd",))
    assert placed(bench, **held)[0] == ["h1"]
    bench.cancel(wished.id)
    bench.submit(1, inputs=DATA)
    assert placed(bench, **held)[0] == ["h3"]


@pytest.mark.usefixtures("hosts")
def test_a_gang_goes_where_its_files_are(bench):
    """As far as there is room."""
    bench.submit(3, inputs=DATA, gang=-1)
    assert placed(bench, h2={DATA.digest})[0].count("h2") == 2


def test_what_counts_as_data(bench):
    """Nothing, for most jobs."""
    assert data_of(bench.submit(1).spec) == ()
    assert data_of(bench.submit(1, inputs=DATA).spec) == (DATA.digest,)
