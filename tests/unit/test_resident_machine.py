"""The state of a running master and Python's collector of garbage."""

from __future__ import annotations

import gc

from depalma.master import ResidentMachine
from depalma.model import JobSpec
from depalma.state.commands import Applied, SubmitJob, encode
from depalma.state.machine import Machine


def test_what_is_restored_is_not_looked_at_by_the_collector() -> None:
    """A large state that comes at once would make one long stall of the loop."""
    source = Machine()
    for index in range(1, 501):
        submit = SubmitJob("", JobSpec(kind="command", argv=("true",)), 1.0)
        assert isinstance(source.apply(encode(submit), index), Applied)
    pieces = list(source.snapshot())
    machine = ResidentMachine()

    machine.restore(pieces)
    try:
        looked_at = {id(each) for each in gc.get_objects()}
        assert not [job for job in machine.state.jobs.values() if id(job) in looked_at]
        assert machine.state_hash == source.state_hash
    finally:
        gc.unfreeze()
