"""A finished job as the archive keeps it, and back. [pure]

A record is two byte strings: the head (what lists and accounting show, some 150 bytes) and the detail (the job itself,
as a snapshot has it, without what only a job needs that runs or whose results can still be had). Times of tasks are
kept to a tenth of a millisecond, so that a task of a large job takes some 8 bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from depalma.accounting import HostUse, JobUse
from depalma.alternatives import Alternative
from depalma.jobarchive.usage import asked_for, host_uses, use_row
from depalma.model import JobView, TaskCounts
from depalma.state.completions import CompletionsImage, Note
from depalma.state.images import JobImage, job_image, job_of
from depalma.state.jobs import NOTHING_DONE, Job
from depalma.state.stories import Story
from depalma.state.task_states import CANCELLED, FAILED, FINAL_CODES, LOST, SUCCEEDED, TIMED_OUT, WORDS
from depalma.state.views import command_of, job_reason

#: Raised when an older version could not read what this one writes.
FORMAT = 1
#: Errors are cut to so many characters from their end; so many tasks of a job keep more than the last line of theirs.
ERROR_CHARACTERS = 1_000
LONG_ERRORS = 100
LINE_CHARACTERS = 200
#: Jobs are taken and written a part at a time; one with so many tasks ends its part.
TASKS_AT_ONCE = 100_000
_ROWS = 50_000
_STORIES = 1_000
_TALLIED = (SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, LOST)


class BadRecord(ValueError):
    """The bytes are not a record that this version can read."""


class Head(Struct, frozen=True, array_like=True, gc=False):
    """What lists and accounting need besides the columns that are searched. Fields are added at the end."""

    kind: str
    priority: int
    tags: tuple[str, ...]
    group: str
    code_index: int
    tally: tuple[int, ...]  #: tasks that succeeded, failed, timed out, were cancelled, were lost
    exit_code: int | None
    reason: str
    command: str
    cpus: float
    memory_bytes: int
    gpus: int | float
    hosts: tuple[HostUse, ...]
    alternatives: tuple[Alternative, ...] = ()


class Record(Struct, frozen=True, array_like=True, gc=False):
    """A row of the archive, as masters give it to each other."""

    id: int
    name: str
    user: str
    state: str
    submitted_at: float
    started_at: float | None
    finished_at: float
    tasks: int
    tags: tuple[str, ...]
    head: bytes
    detail: bytes


class Raw(Struct, frozen=True, gc=False):
    """A job taken out of the state, not packed yet: packing is work for another thread."""

    id: int
    name: str
    user: str
    state: str
    finished_at: float
    head: Head
    image: JobImage


_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(Head)
_image = msgspec.msgpack.Decoder(JobImage)


def parts(jobs: Iterable[Job], at_most: int) -> Iterator[list[Job]]:
    """Yields the jobs in parts of `at_most`, or fewer if they have many tasks."""
    part: list[Job] = []
    tasks = 0
    for job in jobs:
        part.append(job)
        tasks += job.total
        if len(part) >= at_most or tasks >= TASKS_AT_ONCE:
            yield part
            part, tasks = [], 0
    if part:
        yield part


def take(job: Job) -> Generator[None, None, Raw | None]:
    """Returns the finished job as it is now, None if it runs again meanwhile; yields between slices of the work."""
    finished_at = job.finished_at
    if finished_at is None:
        return None
    done = None
    if job.done is not NOTHING_DONE:
        for part in job.done.images(_ROWS):
            part = replace(part, results=[], tails=[])  # blobs go with the job
            done = part if done is None else _joined(done, part)
            yield
    stories: list[tuple[int, Story]] = []
    for number, (position, story) in enumerate(list(job.stories.items()), 1):
        attempts = [replace(past, reason=past.reason[-LINE_CHARACTERS:], tail=None) for past in story.attempts]
        stories.append((position, replace(story, attempts=attempts)))
        if number % _STORIES == 0:
            yield
    hosts = yield from host_uses(job, finished_at)
    if job.finished_at != finished_at:
        return None
    spec = job.spec
    head = Head(
        spec.kind, spec.priority, spec.tags, spec.group, job.code_index, tuple(job.tally[code] for code in _TALLIED),
        job.exit_code, job_reason(job)[:ERROR_CHARACTERS], command_of(spec)[:ERROR_CHARACTERS],
        spec.cpus, spec.memory_bytes, spec.gpus, hosts, spec.alternatives,
    )  # fmt: skip
    image = job_image(job, done, stories, [])
    image.spec = replace(spec, arguments=None, function_pickle=None, inputs=None, env={})
    image.masks, image.requeued = b"", []
    return Raw(job.id, spec.name, spec.user, job.state(), finished_at, head, image)


def _joined(done: CompletionsImage, part: CompletionsImage) -> CompletionsImage:
    return replace(
        done,
        tasks=done.tasks + part.tasks,
        started=done.started + part.started,
        finished=done.finished + part.finished,
        notes=done.notes + part.notes,
        table=done.table + part.table,
    )


def pack(raw: Raw) -> Record:
    """Returns the record of a job; may take long for a large one, so not on the loop."""
    image = raw.image
    if image.done is not None:
        done = image.done
        image.done = replace(
            done,
            tasks=_shuffled(done.tasks, 8),
            started=_shuffled(done.started, 8, drop=1),
            finished=_shuffled(done.finished, 8, drop=1),
            notes=_shuffled(done.notes, 4),
            table=_shortened(done.table),
        )
    return Record(
        raw.id, raw.name, raw.user, raw.state, image.submitted_at, image.started_at, raw.finished_at,
        len(image.states), raw.head.tags, _encode(raw.head), zlib.compress(bytes([FORMAT]) + _encode(image), 2),
    )  # fmt: skip


def _shortened(table: list[Note]) -> list[Note]:
    """Leaves out what could not be had any more, and most of the text where there is a lot of it."""
    made, long = [], 0
    for note in table:
        error = note.error
        if len(error) > LINE_CHARACTERS:
            long += 1
            error = error[-ERROR_CHARACTERS:] if long <= LONG_ERRORS else error.strip()[-LINE_CHARACTERS:]
        made.append(replace(note, error=error, outputs=None))
    return made


def _shuffled(data: bytes, size: int, *, drop: int = 0) -> bytes:
    """Returns the first byte of each value, then the second of each, …: what values share then stands together.

    `drop`: so many of the lowest bytes become 0. Of a float of today's seconds the lowest is below 0.1 ms.
    """
    planes = [data[place::size] for place in range(size)]
    planes[:drop] = [bytes(len(plane)) for plane in planes[:drop]]
    return b"".join(planes)


def _in_order(data: bytes, size: int) -> bytes:
    """Undoes `_shuffled`."""
    count, rest = divmod(len(data), size)
    if rest:
        raise BadRecord("a column has another length")
    made = bytearray(len(data))
    for place in range(size):
        made[place::size] = data[place * count : (place + 1) * count]
    return bytes(made)


def unpack(detail: bytes) -> Job:
    """Returns the job, for the views of the state: nothing but its arguments and results is missing. Errors:
    BadRecord."""
    try:
        data = zlib.decompress(detail)
        if data[:1] != bytes([FORMAT]):
            raise BadRecord(f"it has format {data[:1].hex()}; this release reads format {FORMAT}: upgrade it")
        image = _image.decode(data[1:])
        if image.done is not None:
            done = image.done
            rows = len(done.tasks) // 8
            image.done = replace(
                done,
                tasks=_in_order(done.tasks, 8),
                started=_in_order(done.started, 8),
                finished=_in_order(done.finished, 8),
                notes=_in_order(done.notes, 4),
                results=[None] * rows,
            )
        job = job_of(image, {})
        if len(job.done) != sum(job.tally):
            job.done.recount(lambda index: job.states[index - job.first] in FINAL_CODES)
    except (zlib.error, msgspec.MsgspecError, ValueError, IndexError, KeyError) as error:
        raise BadRecord(f"{type(error).__name__}: {error}") from error
    return job


def read_head(data: bytes) -> Head:
    """Returns the head. Errors: BadRecord."""
    try:
        return _head.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRecord(f"{type(error).__name__}: {error}") from error


def view(record: Record) -> JobView:
    """Returns what lists show. Errors: BadRecord."""
    head = read_head(record.head)
    if record.state not in WORDS:
        raise BadRecord(f"its state is {record.state!r}")
    succeeded, failed, timed_out, cancelled, lost = head.tally
    return JobView(
        id=record.id,
        name=record.name,
        user=record.user,
        kind=head.kind,
        state=WORDS[WORDS.index(record.state)],
        priority=head.priority,
        tags=head.tags,
        group=head.group,
        submitted_at=record.submitted_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        code_index=head.code_index,
        tasks=TaskCounts(record.tasks, 0, 0, succeeded, failed + timed_out, cancelled, lost),
        exit_code=head.exit_code,
        reason=head.reason,
        command=head.command,
        archived=True,
    )


def use(record: Record) -> JobUse:
    """Returns the row of accounting. Errors: BadRecord."""
    head = read_head(record.head)
    return use_row(
        record.id, record.name, record.user, head.tags, head.group, record.state,
        (record.submitted_at, record.started_at, record.finished_at), (record.tasks, *head.tally),
        asked_for(head.cpus, head.memory_bytes, head.gpus, head.alternatives), head.hosts, record.finished_at,
    )  # fmt: skip
