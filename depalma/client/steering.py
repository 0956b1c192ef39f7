"""How jobs that are there go on: the same methods for both clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar, Unpack

from depalma.client import schedules, specs, verbs
from depalma.client.specs import JobOptions
from depalma.client.verbs import Verb
from depalma.model import ScheduleView

T = TypeVar("T")


class HasId(Protocol):
    """A handle of a job."""

    id: int


def ids_of(jobs: Iterable[int | HasId]) -> list[int]:
    """Returns the ids of jobs that are given as ids or handles. Errors: ValueError."""
    ids: list[int] = []
    for given in jobs:
        number = getattr(given, "id", given)
        if not isinstance(number, int) or isinstance(number, bool):
            raise specs.bad_option("job", given, "ids (whole numbers) or handles of jobs, one after the other")
        ids.append(number)
    return ids


def _changes(priority: int | None, name: str | None, tags: Sequence[str] | None) -> dict[str, object]:
    return {"priority": priority, "name": name, "tags": None if tags is None else specs.texts("tags", tags)}


class Steering:
    """What `Client` can do with jobs that are there. Errors: Rejected (unknown_job), then nothing is done."""

    def _run(self, verb: Verb[T]) -> T:
        raise NotImplementedError

    def hold(self, *jobs: int | HasId) -> list[int]:
        """Starts no further task of them; returns the ids of those that were not held. What is on a host goes on."""
        return self._run(verbs.steer("hold", ids_of(jobs)))

    def release(self, *jobs: int | HasId) -> list[int]:
        """Ends `hold`; returns the ids of those that were held."""
        return self._run(verbs.steer("release", ids_of(jobs)))

    def suspend(self, *jobs: int | HasId, reason: str = "") -> list[int]:
        """Has them stand still: what runs is stopped where it is, nothing of them begins. Returns the ids of those that
        were not suspended. The time counts for no time limit of a task."""
        return self._run(verbs.steer("suspend", ids_of(jobs), {"reason": reason}))

    def resume(self, *jobs: int | HasId) -> list[int]:
        """Ends `suspend`; returns the ids of those that were suspended."""
        return self._run(verbs.steer("resume", ids_of(jobs)))

    def retry(self, *jobs: int | HasId) -> list[int]:
        """Runs the tasks again that failed, timed out or were lost; returns the ids of jobs that had some.

        A handle that has given results does not give those that come now: use its own `retry`, or a new one.
        Errors: Rejected (job_cancelled).
        """
        return self._run(verbs.steer("retry", ids_of(jobs)))

    def set_jobs(
        self,
        *jobs: int | HasId,
        priority: int | None = None,
        name: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> list[int]:
        """Changes what is given of jobs that live; returns their ids. Tasks that are on a host stay there."""
        return self._run(verbs.steer("set", ids_of(jobs), _changes(priority, name, tags)))

    def add_schedule(
        self,
        name: str,
        /,
        cron: str,
        argv: Sequence[str],
        *,
        zone: str = "UTC",
        catch_up: str = "one",
        overlap: str = "run",
        cwd: str = "",
        array: int | str | None = None,
        **options: Unpack[JobOptions],
    ) -> ScheduleView:
        """Submits a command job at each tick of `cron`, exactly one, whoever leads.

        `catch_up`: of ticks that were missed while no leader was there: one job for all of them, one each (`all`), or
        `none`. `overlap`: `skip` leaves a tick out while the last job lives. Errors: Rejected (name_taken, bad_field).
        """
        work = specs.command_work(argv, cwd=cwd, indices=array, options=options)
        return self._run(schedules.add(name, cron, work, zone, catch_up, overlap))

    def schedules(self) -> list[ScheduleView]:
        """Returns the schedules, by name."""
        return self._run(schedules.listing())

    def remove_schedule(self, name: str) -> None:
        """Removes a schedule; its jobs stay. Errors: Rejected (unknown_schedule)."""
        self._run(schedules.remove(name))


class AsyncSteering:
    """What `AsyncClient` can do with jobs that are there; see `Steering`."""

    async def _run(self, verb: Verb[T]) -> T:
        raise NotImplementedError

    async def hold(self, *jobs: int | HasId) -> list[int]:
        """Starts no further task of them; returns the ids of those that were not held."""
        return await self._run(verbs.steer("hold", ids_of(jobs)))

    async def release(self, *jobs: int | HasId) -> list[int]:
        """Ends `hold`; returns the ids of those that were held."""
        return await self._run(verbs.steer("release", ids_of(jobs)))

    async def suspend(self, *jobs: int | HasId, reason: str = "") -> list[int]:
        """Has them stand still; returns the ids of those that were not suspended. See `Steering.suspend`."""
        return await self._run(verbs.steer("suspend", ids_of(jobs), {"reason": reason}))

    async def resume(self, *jobs: int | HasId) -> list[int]:
        """Ends `suspend`; returns the ids of those that were suspended."""
        return await self._run(verbs.steer("resume", ids_of(jobs)))

    async def retry(self, *jobs: int | HasId) -> list[int]:
        """Runs failed tasks again; ask `job` for a handle that waits for them. Errors: Rejected (job_cancelled)."""
        return await self._run(verbs.steer("retry", ids_of(jobs)))

    async def set_jobs(
        self,
        *jobs: int | HasId,
        priority: int | None = None,
        name: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> list[int]:
        """Changes what is given of jobs that live; returns their ids."""
        return await self._run(verbs.steer("set", ids_of(jobs), _changes(priority, name, tags)))

    async def add_schedule(
        self,
        name: str,
        /,
        cron: str,
        argv: Sequence[str],
        *,
        zone: str = "UTC",
        catch_up: str = "one",
        overlap: str = "run",
        cwd: str = "",
        array: int | str | None = None,
        **options: Unpack[JobOptions],
    ) -> ScheduleView:
        """Submits a command job at each tick of `cron`; see `Steering.add_schedule`."""
        work = specs.command_work(argv, cwd=cwd, indices=array, options=options)
        return await self._run(schedules.add(name, cron, work, zone, catch_up, overlap))

    async def schedules(self) -> list[ScheduleView]:
        """Returns the schedules, by name."""
        return await self._run(schedules.listing())

    async def remove_schedule(self, name: str) -> None:
        """Removes a schedule; its jobs stay. Errors: Rejected (unknown_schedule)."""
        await self._run(schedules.remove(name))
