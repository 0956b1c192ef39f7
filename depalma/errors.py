"""Errors that users of the package may catch, and the codes that travel over HTTP.

An error's docstring is its default message.
"""

from __future__ import annotations


class DepalmaError(Exception):
    """Something went wrong in Depalma."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class NoLeader(DepalmaError):
    """No master that leads could be reached within the deadline."""


class Rejected(DepalmaError):
    """The cluster refused the request; nothing was changed.

    `code` is a stable word for programs (`unknown_job`, `bad_field`, `not_authorised`, …).
    """

    def __init__(self, message: str | None = None, *, code: str = "rejected") -> None:
        super().__init__(message)
        self.code = code


class JobFailed(DepalmaError):
    """A task of the job failed; the remote exception, if any, is the cause.

    `code` says which limit ended it, or what of its files could not be had (`memory_limit`, `bad_outputs`, …); it is
    empty for failures of the task's own.
    """

    code = ""


class JobLost(JobFailed):
    """The host of a task that may not be restarted was lost."""


class JobCancelled(DepalmaError):
    """The job was cancelled."""


class JobTimeout(JobFailed):
    """A task ran longer than its time limit."""


class HostMismatch(DepalmaError):
    """The host cannot run this: its Python differs from the one that made the function."""


class ConfigError(DepalmaError):
    """A configuration file is not usable; the message names the file, the field and what is allowed."""
