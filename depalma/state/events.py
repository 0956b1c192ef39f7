"""Reading the events: from compact records to one `EventView` a task. [pure]"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice

from depalma.model import EventView
from depalma.state.cluster_state import ClusterState
from depalma.state.event_log import EventRecord, from_place


def events_after(state: ClusterState, index: int, limit: int = 1000) -> list[EventView]:
    """Returns up to `limit` kept events with a number above `index`, in order."""
    records = state.events.records
    start = max(0, bisect_right(records, index + 1, key=lambda record: record.first) - 1)
    events = (event for record in from_place(records, start) for event in _open(record, index))
    return list(islice(events, max(0, limit)))


def oldest_kept(state: ClusterState) -> int:
    """Returns the number of the oldest event that is kept; the number of the next one when there is none."""
    records = state.events.records
    return records[0].first if records else state.events.next_index


def newest(state: ClusterState) -> int:
    """Returns the number of the latest event, 0 before the first."""
    return state.events.next_index - 1


def _open(record: EventRecord, after: int) -> Iterator[EventView]:
    """Yields the events of a record with a number above `after`."""
    for place in range(max(0, after + 1 - record.first), record.count):
        yield record.event(place, record.first + place)
