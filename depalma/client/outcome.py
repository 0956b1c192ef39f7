"""What a task's end means to a program: a value, or an error that tells the story."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from depalma.client.wire import TaskResult
from depalma.errors import DepalmaError, HostMismatch, JobCancelled, JobFailed, JobLost, JobTimeout
from depalma.model import Payload

#: Gets the bytes of a payload, wherever they are.
Fetch = Callable[[Payload], bytes]


def value_of(job: int, result: TaskResult, data: bytes | None) -> Any:
    """Returns what the function returned (`data` is its pickle), the exit code of a command.

    Errors: JobFailed and its kin, the remote exception as cause with the remote traceback in a note.
    """
    if result.state == "succeeded":
        return pickle.loads(data) if data else result.exit_code
    raise error_of(job, result, data)


def error_of(job: int, result: TaskResult, data: bytes | None) -> DepalmaError:
    """Returns the error that a task that did not succeed stands for."""
    where = f"task {job}.{result.task}" + (f" on {result.host}" if result.host else "")
    if result.attempt > 1:
        where += f", attempt {result.attempt}"
    words = result.error.strip()
    if result.state == "cancelled":
        return JobCancelled(f"{where} was cancelled")
    if result.state == "lost":
        return JobLost(f"{where} was lost: {words or 'its host was lost and it may not run twice'}")
    if result.state == "timed_out":
        late = JobTimeout(f"{where} ran longer than its limit")
        late.code = "time_limit"
        return late
    if data is None and words.startswith("HostMismatch"):
        return HostMismatch(f"{where}: {words}")
    return _failed(where, words, result, data)


def _failed(where: str, words: str, result: TaskResult, data: bytes | None) -> JobFailed:
    if result.signal:
        how = f"was ended by signal {result.signal}"
    elif result.exit_code:
        how = f"ended with exit code {result.exit_code}"
    else:
        how = "failed"
    last = words.splitlines()[-1] if words else ""
    error = JobFailed(f"{where} {how}" + (f": {last}" if last else ""))
    error.code = result.error_code
    error.__cause__ = _remote_exception(data)
    if "\n" in words:
        (error.__cause__ or error).add_note(f"On {result.host or 'its host'}:\n{words}")
    return error


def _remote_exception(data: bytes | None) -> BaseException | None:
    if not data:
        return None
    try:
        value = pickle.loads(data)
    except Exception as error:  # user classes may refuse to be rebuilt in any way; the traceback text remains
        error.add_note("the remote exception could not be unpickled")
        return error
    return value if isinstance(value, BaseException) else None


def original_error(error: DepalmaError) -> BaseException:
    """Returns the exception that the function raised, with our account of it as cause, if there is one.

    This is what an executor of the standard library raises.
    """
    cause = error.__cause__
    if not isinstance(error, JobFailed) or cause is None:
        return error
    error.__cause__ = None
    cause.__cause__ = error
    return cause


def unpack_outputs(data: bytes, folder: str | os.PathLike[str] | None) -> Path:
    """Returns the folder into which an archive of output files was unpacked. Errors: ArchiveError, FileExistsError."""
    from depalma import staging

    target = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="depalma-outputs-"))
    staging.unpack(data, target)
    return target


def payload_data(payload: Payload | None, fetch: Fetch) -> bytes | None:
    """Returns the bytes of a result. Errors: what `fetch` raises."""
    if payload is None:
        return None
    return fetch(payload) if payload.digest else payload.inline
