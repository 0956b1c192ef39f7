"""What a user may ask for: each refusal names the field, what was given, and what is allowed. [pure]

A check returns None, or the refusal. Masters repeat on apply what clients checked before, because the log is the last
place where a bad value can be stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from depalma import items
from depalma.alternatives import MAX_ALTERNATIVES
from depalma.gpuparts import parts_of
from depalma.model import MAX_TASKS, JobSpec, Payload
from depalma.state.commands import Rejected
from depalma.state.constraints import ALLOWED, rule_of
from depalma.state.shapes import GPUS, MEMORY, gang_size
from depalma.state.texts import is_plain, shown

MAX_PRIORITY = 1_000_000
MAX_FIRST_INDEX = 1 << 40
MAX_RETRIES = 1000
MAX_REQUEST = 200
#: The year 9999, as far as dates go.
LATEST_AT = 253_370_764_800.0
MAX_GLOBS = 100
MAX_RULES = 100
#: Each member of a gang is told the hosts of all, in one variable of its environment.
MAX_GANG = 1000
MAX_RESOURCES = 100
MAX_AFTER = 1000
MAX_MEMORY_BYTES = 1 << 50
MAX_AFTER_EACH = 8  #: a bit each, in one byte a task
#: Arguments that are not a blob; the commands of the log stay far below the size that PySyncObj cuts in pieces.
MAX_INLINE_BYTES = 65_536
_MAX_TEXT_BYTES = 131_072

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CODE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
#: What a resource cannot be called: it is counted already.
_RESERVED = frozenset({MEMORY, GPUS, "memory", "gpu", "slots", "cpus"})
_PYTHON = re.compile(r"3\.[0-9]{1,3}")


def bad_field(field: str, given: object, allowed: str) -> Rejected:
    """Returns the refusal of a field's value."""
    text = shown(given)
    return Rejected("bad_field", f"{field}: {text if len(text) <= 80 else text[:77] + '...'} given; allowed: {allowed}")


def bad_name(field: str, name: str) -> Rejected | None:
    """Refuses what cannot name a host, a group or code."""
    if _NAME.fullmatch(name):
        return None
    return bad_field(field, name, "letters, digits, '.', '_', '-', at most 63, no leading sign")


def bad_code_name(field: str, name: str) -> Rejected | None:
    """Refuses what cannot be the name of a file or folder of code."""
    if _CODE_NAME.fullmatch(name):
        return None
    return bad_field(field, name, "letters, digits, '.', '_', '-', at most 100, no leading '.' or '-'")


def bad_digest(field: str, digest: str) -> Rejected | None:
    """Refuses what is no SHA-256 in lower-case hex."""
    return None if _DIGEST.fullmatch(digest) else bad_field(field, digest, "64 lower-case hex digits")


def bad_range(field: str, value: float, low: float, high: float) -> Rejected | None:
    """Refuses a number outside low..high (both allowed), and what is no number."""
    return None if low <= value <= high else bad_field(field, value, f"{low} to {high}")


def bad_resources(resources: Mapping[str, int]) -> Rejected | None:
    """Refuses counted resources whose name or number is none."""
    for name, number in resources.items():
        if name in _RESERVED:
            return bad_field("resources", name, "names other than those of what is counted anyway")
        if wrong := bad_name("resources", name) or bad_range(f"resources.{name}", number, 0, 1 << 50):
            return wrong
    if len(resources) > MAX_RESOURCES:
        return bad_field("resources", f"{len(resources)} names", f"at most {MAX_RESOURCES}")
    return None


def bad_common(at: float, request: str) -> Rejected | None:
    """Refuses a command whose time is none, or whose request id is too long to be kept."""
    if not 0 <= at <= LATEST_AT:
        return bad_field("at", at, "seconds since the epoch, before the year 10000")
    return None if len(request) <= MAX_REQUEST else bad_field("request", request, f"at most {MAX_REQUEST} characters")


def bad_payload(field: str, payload: Payload) -> Rejected | None:
    """Refuses bytes that are in two places, too large for the log, or named by no digest."""
    if payload.digest and payload.inline:
        return bad_field(field, "inline bytes and a digest", "one of them")
    if payload.digest:
        return bad_digest(f"{field}.digest", payload.digest) or bad_range(
            f"{field}.size_bytes", payload.size_bytes, 0, 1 << 50
        )
    if len(payload.inline) > MAX_INLINE_BYTES:
        return bad_field(field, f"{len(payload.inline)} bytes", f"at most {MAX_INLINE_BYTES} inline; a blob above that")
    return None


def bad_arguments(field: str, arguments: Payload, count: int) -> Rejected | None:
    """Refuses packed arguments that are not `count` items (of a blob only its reference can be looked at)."""
    wrong = bad_payload(field, arguments)
    if wrong or arguments.digest:
        return wrong
    try:
        number = items.count(arguments.inline)
        if number == count:
            for place in range(count):
                items.read(arguments.inline, place)
            return None
    except items.BadItems as error:
        return bad_field(field, str(error), "what items.pack made")
    return bad_field(field, f"{number} items", f"one a task, so {count}")


def bad_spec(spec: JobSpec) -> Rejected | None:
    """Refuses a spec that could never run, by the first field that is wrong."""
    wrong = _bad_work(spec) or _bad_texts(spec) or _bad_numbers(spec) or _bad_files(spec)
    wrong = wrong or _bad_placement(spec) or _bad_gang(spec) or _bad_tasks(spec) or _bad_after(spec)
    return wrong or _bad_alternatives(spec)


def _bad_alternatives(spec: JobSpec) -> Rejected | None:
    """Refuses alternatives of which one could never be, by its place and field."""
    count = len(spec.alternatives)
    if count > MAX_ALTERNATIVES:
        return bad_field("alternatives", f"{count} alternatives", f"at most {MAX_ALTERNATIVES}")
    if count and spec.gang:
        return bad_field("alternatives", f"{count} alternatives", "none in a gang, whose tasks are all alike")
    for place, one in enumerate(spec.alternatives):
        wrong = _bad_cpus(one.cpus) or bad_range("memory_bytes", one.memory_bytes, 0, MAX_MEMORY_BYTES)
        wrong = wrong or _bad_gpus(one.gpus) or bad_resources(one.resources or {})
        if wrong:
            return Rejected(wrong.code, f"alternatives.{place}.{wrong.message}")
    return None


def _bad_cpus(cpus: float) -> Rejected | None:
    return None if 0 < cpus <= 4096 else bad_field("cpus", cpus, "above 0, at most 4096")


def _bad_work(spec: JobSpec) -> Rejected | None:
    if spec.kind == "command":
        if not spec.argv or not spec.argv[0]:
            return bad_field("argv", list(spec.argv), "at least the program's name")
        if spec.function or spec.function_pickle is not None:
            return bad_field("function", spec.function or "a pickle", "nothing in a command job")
        return None
    if spec.argv:
        return bad_field("argv", list(spec.argv), "nothing in a function job")
    if spec.stdin is not None:
        return bad_field("stdin", "bytes", "nothing in a function job: its worker reads tasks")
    if spec.function and spec.function_pickle is not None:
        return bad_field("function", spec.function, "a name or a pickle, not both")
    if not spec.function and spec.function_pickle is None and spec.arguments is None and not spec.open:
        return bad_field("function", "", "a name, a pickle, or arguments that carry one each")
    return bad_payload("function_pickle", spec.function_pickle) if spec.function_pickle else None


def _bad_texts(spec: JobSpec) -> Rejected | None:
    for field in ("name", "user", "group", "on_host", "cwd", "function", "stdout", "stderr"):
        if wrong := bad_text(field, getattr(spec, field)):
            return wrong
    for field, name in (("group", spec.group), ("on_host", spec.on_host)):
        if name and (wrong := bad_name(field, name)):
            return wrong
    if wrong := bad_tags(spec.tags):
        return wrong
    if spec.python and not _PYTHON.fullmatch(spec.python):
        return bad_field("python", spec.python, "like 3.11, or empty")
    if _too_long(spec.argv):
        return bad_field("argv", list(spec.argv), f"at most {_MAX_TEXT_BYTES} characters together, no NUL")
    for key in spec.env:
        if not key or "=" in key:
            return bad_field("env", key, "names that are not empty and have no '='")
    if _too_long([*spec.env.keys(), *spec.env.values()]):
        return bad_field("env", sorted(spec.env), f"at most {_MAX_TEXT_BYTES} characters together, no NUL")
    return None


def bad_tags(tags: tuple[str, ...]) -> Rejected | None:
    """Refuses tags that are empty, too long or too many."""
    if len(tags) > 100 or any(not tag or len(tag) > 200 for tag in tags):
        return bad_field("tags", list(tags), "at most 100 tags of 1 to 200 characters")
    return None


def bad_text(field: str, text: str) -> Rejected | None:
    """Refuses a text that is too long for what it says, or holds a NUL."""
    if len(text) > 4096 or "\0" in text:
        return bad_field(field, text, "at most 4096 characters, no NUL")
    return None


def _bad_numbers(spec: JobSpec) -> Rejected | None:
    if wrong := _bad_cpus(spec.cpus):
        return wrong
    for field, value, low, high in (
        ("priority", spec.priority, -MAX_PRIORITY, MAX_PRIORITY),
        ("memory_bytes", spec.memory_bytes, 0, MAX_MEMORY_BYTES),
        ("max_running", spec.max_running, 0, MAX_TASKS),
        ("cpu_time_s", spec.cpu_time_s, 0, 1e9),
        ("max_processes", spec.max_processes, 0, 4_000_000),
        ("max_output_bytes", spec.max_output_bytes, 0, 1 << 50),
        ("scratch_bytes", spec.scratch_bytes, 0, 1 << 50),
        ("retries", spec.retries, 0, MAX_RETRIES),
        ("timeout_retries", spec.timeout_retries, -1, MAX_RETRIES),
        ("lost_retries", spec.lost_retries, -1, MAX_RETRIES),
        ("backoff_s", spec.backoff_s, 0, 86_400),
        ("start_at", spec.start_at, 0, LATEST_AT),
        ("start_within_s", spec.start_within_s, 0, 1e9),
        ("task_start_within_s", spec.task_start_within_s, 0, 1e9),
        ("timeout_s", spec.timeout_s, 0, 1e9),
        ("grace_s", spec.grace_s, 0, 86_400),
        ("first_index", spec.first_index, 0, MAX_FIRST_INDEX),
        ("count", spec.count, 0, MAX_TASKS),
    ):
        if wrong := bad_range(field, value, low, high):
            return wrong
    if len(spec.retry_exit_codes) > 256 or not all(1 <= code <= 255 for code in spec.retry_exit_codes):
        return bad_field("retry_exit_codes", list(spec.retry_exit_codes), "at most 256 codes from 1 to 255")
    if spec.max_files and not 16 <= spec.max_files <= 1 << 20:
        return bad_field("max_files", spec.max_files, "0 (the host's own limit), or 16 to 1048576")
    return None


def _bad_files(spec: JobSpec) -> Rejected | None:
    if len(spec.outputs) > MAX_GLOBS or any(not glob or len(glob) > 1000 for glob in spec.outputs):
        return bad_field("outputs", list(spec.outputs), f"at most {MAX_GLOBS} globs of 1 to 1000 characters")
    for glob in spec.outputs:
        if glob.startswith("/") or "\0" in glob or any(part in ("", ".", "..") for part in glob.split("/")):
            return bad_field("outputs", glob, "paths below the scratch folder, with no '..', '.' or empty part")
    if spec.inputs is not None and not spec.inputs.digest:
        return bad_field("inputs", "no digest", "the digest of an archive that is a blob")
    for field, payload in (("inputs", spec.inputs), ("stdin", spec.stdin)):
        if payload is not None and (wrong := bad_payload(field, payload)):
            return wrong
    return None


def _bad_placement(spec: JobSpec) -> Rejected | None:
    for field, rules in (("labels", spec.labels), ("prefer", spec.prefer)):
        if len(rules) > MAX_RULES:
            return bad_field(field, f"{len(rules)} rules", f"at most {MAX_RULES}")
        for text in rules:
            try:
                if len(text) > 1000:
                    raise ValueError
                rule = rule_of(text)
                if rule.operator in "<>" and not rule.values[0].isascii():
                    raise ValueError
            except ValueError:
                return bad_field(field, text, f"{ALLOWED}; at most 1000 characters")
    for tag, limit in (spec.limits or {}).items():
        if not 0 < len(tag) <= 200 or not is_plain(tag) or len(spec.limits or ()) > 100:
            return bad_field("limits", tag, "at most 100 tags of 1 to 200 printable characters")
        if wrong := bad_range(f"limits.{tag}", limit, 1, MAX_TASKS):
            return wrong
    return _bad_gpus(spec.gpus) or bad_resources(spec.resources or {})


def _bad_gpus(gpus: float) -> Rejected | None:
    try:
        parts_of(gpus)
    except ValueError as error:
        return bad_field("gpus", gpus, str(error))
    return None


def _bad_gang(spec: JobSpec) -> Rejected | None:
    """Refuses gangs that could never start, or of which a member could start without the others."""
    size = gang_size(spec)
    if spec.gang < -1 or size > MAX_GANG:
        return bad_field("gang", spec.gang if spec.gang < -1 else size, f"1 to {MAX_GANG}, or -1 (all tasks)")
    if not size:
        return None
    if spec.open:
        return bad_field("gang", spec.gang, "none in an open job: a gang is complete at once")
    if spec.count % size:
        return bad_field("gang", size, f"a number that divides that of the tasks, {spec.count}")
    if 0 < spec.max_running < size:
        return bad_field("max_running", spec.max_running, f"at least {size}, as many as start at once")
    for tag, limit in (spec.limits or {}).items():
        if limit < size:
            return bad_field(f"limits.{tag}", limit, f"at least {size}, as many as start at once")
    if spec.task_start_within_s:
        allowed = "none in a gang, whose tasks start together: start_within_s is for the whole job"
        return bad_field("task_start_within_s", spec.task_start_within_s, allowed)
    if any(one.each for one in spec.after):
        return bad_field("after.each", True, "not in a gang: it waits for whole jobs only")
    return None


def _bad_after(spec: JobSpec) -> Rejected | None:
    """Refuses dependencies that no cluster could keep; whether the jobs are there is not looked at."""
    after = spec.after
    if len(after) > MAX_AFTER:
        return bad_field("after", f"{len(after)} dependencies", f"at most {MAX_AFTER}")
    if len({(one.job, one.each) for one in after}) < len(after):
        return bad_field("after", [one.job for one in after], "each job once, and its tasks of equal index once")
    if wrong := next((one.when for one in after if one.when not in ("ok", "fail", "any")), None):
        return bad_field("after.when", wrong, "ok, fail, any")
    each = sum(one.each for one in after)
    if each > MAX_AFTER_EACH:
        return bad_field("after", f"{each} jobs whose tasks are waited for", f"at most {MAX_AFTER_EACH}")
    if each and spec.open:
        return bad_field("after.each", True, "not in an open job: it waits for whole jobs only")
    return None


def _bad_tasks(spec: JobSpec) -> Rejected | None:
    if spec.arguments is None:
        return None
    if not spec.count:
        return bad_field("arguments", "arguments", "none when there is no task")
    return bad_arguments("arguments", spec.arguments, spec.count)


def _too_long(texts: Iterable[str]) -> bool:
    texts = list(texts)
    return sum(map(len, texts)) > _MAX_TEXT_BYTES or any("\0" in text for text in texts)
