"""How `depalmactl` fails: one clear line on stderr and an exit code that a script can act on."""

from __future__ import annotations

import json
import os
import traceback

import click

from depalma.errors import DepalmaError, NoLeader, Rejected

FAILED = 1
USAGE = 2
NOT_FOUND = 3
UNREACHABLE = 4
REFUSED = 5
INTERRUPTED = 130
#: `run`, `wait` and `submit --wait` exit with the job's own code; these two are never a job's.
WAIT_TIMED_OUT = 124
OWN_FAILURE = 125

#: Answers of the cluster that mean "it is not (yet) there", not "you may not".
_FAILED_CODES = frozenset({"not_finished", "no_result", "log_unavailable", "events_gone", "result_gone", "output_gone"})


#: First words of click's own messages; others may begin with a name, whose capitals count.
_CLICK_WORDS = frozenset({"No", "Invalid", "Missing", "Option", "Got", "Could", "Value", "Unknown"})


class Failure(DepalmaError):
    """The operation failed. `code` is a stable word for programs."""

    def __init__(self, message: str, *, exit_code: int = FAILED, code: str = "failed") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code


#: Set by the commands that pass a job's exit code through: own failures then end with 125, so that none is ever
#: taken for the job's. What names nothing (usage, an unknown job) keeps its code: no job was run or waited for.
passes_job_code = False


def report(error: Exception, *, as_json: bool) -> int:
    """Prints the error on stderr and returns the exit code."""
    code, word = classify(error)
    message = _message(error)
    if as_json:
        click.echo(json.dumps({"error": {"code": word, "message": message, "exit_code": code}}), err=True)
    else:
        click.echo(f"error: {message}", err=True)
    if code == FAILED and word == "internal" and os.environ.get("DEPALMA_DEBUG"):
        traceback.print_exception(error)
    return code


def classify(error: Exception) -> tuple[int, str]:
    """Returns the exit code and the stable word."""
    code, word = _plain(error)
    if passes_job_code and code not in (USAGE, NOT_FOUND, WAIT_TIMED_OUT):
        return OWN_FAILURE, word
    return code, word


def _plain(error: Exception) -> tuple[int, str]:
    if isinstance(error, (click.UsageError, UnicodeEncodeError)):
        return USAGE, "usage"
    if isinstance(error, Failure):
        return error.exit_code, error.code
    if isinstance(error, NoLeader):
        return UNREACHABLE, "no_leader"
    if isinstance(error, Rejected):
        return exit_code_of(error.code), error.code
    if isinstance(error, (DepalmaError, OSError, click.ClickException)):
        return FAILED, "failed"
    return FAILED, "internal"


def exit_code_of(code: str) -> int:
    """Returns the exit code for a refusal by the cluster."""
    if code.startswith("unknown_") or code == "job_gone":
        return NOT_FOUND
    if code in ("no_leader", "outcome_unknown", "unreachable"):
        return UNREACHABLE
    return FAILED if code in _FAILED_CODES else REFUSED


def _message(error: Exception) -> str:
    if isinstance(error, click.UsageError):
        return _usage_message(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, DepalmaError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):  # nothing was sent: neither the cluster nor its log can hold it
        near = os.fsencode(error.object[max(0, error.start - 20) : error.end])
        return f"{near!r}: not UTF-8; allowed: text in UTF-8"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return f"internal error: {type(error).__name__}: {error} (DEPALMA_DEBUG=1 shows where)"


def _usage_message(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    if message.split(" ", 1)[0] in _CLICK_WORDS:
        message = message[:1].lower() + message[1:]
    path = error.ctx.command_path if error.ctx is not None else "depalmactl"
    return f"{message}{'' if message.endswith('?') else '.'} Try: {path} --help"
