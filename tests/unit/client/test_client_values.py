"""Functions, options, outcomes: what goes over the wire, and what comes back."""

from __future__ import annotations

import functools
import importlib.util
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma.client import functions, specs
from depalma.client.futures import LoneFuture, TaskFuture
from depalma.client.outcome import original_error, value_of
from depalma.client.wire import TaskResult
from depalma.errors import JobCancelled, JobFailed, JobLost, JobTimeout
from depalma.model import Payload

# ---------------------------------------------------------------- functions


def test_plain_values_take_the_short_way_and_lambdas_travel_by_value() -> None:
    assert pickle.loads(functions.dumps((1, "x"))) == (1, "x")
    offset = 3
    assert pickle.loads(functions.dumps(lambda x: x + offset))(4) == 7


def test_what_is_defined_in_the_script_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    source = "class Point:\n    def __init__(self, x): self.x = x\ndef double(x): return 2 * x"
    exec(source, main.__dict__)  # as if the user's script had it
    data = functions.dumps((main.double, (main.Point(5),), {}))
    monkeypatch.delattr(main, "double")
    monkeypatch.delattr(main, "Point")
    double, (point,), _ = pickle.loads(data)
    assert double(point.x) == 10


def test_cloudpickles_own_by_value_registry_is_respected(tmp_path: Path) -> None:
    import cloudpickle

    (tmp_path / "lonely_module.py").write_text("def answer(): return 42\n")
    spec = importlib.util.spec_from_file_location("lonely_module", tmp_path / "lonely_module.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lonely_module"] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    try:
        data = functions.dumps(module.answer)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["lonely_module"]
    assert pickle.loads(data)() == 42


@pytest.mark.parametrize("good", ["pkg.mod:f", "mod:Class.method", "_m:_f1"])
def test_references_are_taken_as_they_are(good: str) -> None:
    assert functions.reference(good) == good


@pytest.mark.parametrize("bad", ["f", "mod:", ":f", "a b:c", "mod:f()", "mod:<lambda>", "mod:f\n"])
def test_what_is_no_reference_is_refused_by_name(bad: str) -> None:
    with pytest.raises(ValueError, match=r"allowed: 'package\.module:name'"):
        functions.reference(bad)


def test_a_function_of_a_module_has_a_reference_and_a_lambda_has_none() -> None:
    assert functions.reference(functools.reduce) == "_functools:reduce"
    with pytest.raises(ValueError, match="must be in a module of synced code"):
        functions.reference(lambda: 1)


def test_references_and_pickled_functions_are_values_that_can_be_called() -> None:
    assert pickle.loads(pickle.dumps(functions.Reference("math:hypot")))(3, 4) == 5
    assert pickle.loads(pickle.dumps(functions.Pickled(functions.dumps(lambda x: -x))))(2) == -2


# ---------------------------------------------------------------- specs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, specs.Array(0, 1, 0)),
        (1000, specs.Array(0, 1000, 0)),
        ("12", specs.Array(0, 12, 0)),
        ("5-9", specs.Array(5, 5, 0)),
        ("0-99%10", specs.Array(0, 100, 10)),
    ],
)
def test_arrays(text: int | str | None, expected: specs.Array) -> None:
    assert specs.array(text) == expected


@pytest.mark.parametrize("bad", [0, -1, "9-5", "1,2", "a", "0-9%", 10_000_001])
def test_bad_arrays_are_refused_by_name(bad: int | str) -> None:
    with pytest.raises(ValueError, match="array: "):
        specs.array(bad)


@pytest.mark.parametrize(
    ("text", "expected"), [(17, 17), ("512", 512), ("2G", 2 << 30), ("1.5k", 1536), ("3MiB", 3 << 20), ("1 T", 1 << 40)]
)
def test_sizes(text: int | str, expected: int) -> None:
    assert specs.size_bytes(text) == expected


@pytest.mark.parametrize("bad", ["", "G", "1X", "-1", "1 2"])
def test_bad_sizes_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="memory: "):
        specs.size_bytes(bad)


def test_an_unknown_option_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'retires'; allowed: .*retries"):
        specs.fields({"retires": 2})


def test_a_map_is_one_spec_with_its_function_beside_it() -> None:
    calls = [functions.pack_call(None, (n,), {}) for n in range(3)]
    work = specs.function_work(lambda x: x, calls, options={"tags": "a", "memory": "1G", "env": {"N": 1}})
    assert (work.spec.count, work.spec.tags, work.spec.memory_bytes) == (3, ("a",), 1 << 30)
    assert work.spec.env == {"N": "1"}
    assert work.spec.python == functions.python_version()
    assert pickle.loads(work.function)(7) == 7
    assert work.spec.user


def test_a_function_by_reference_carries_no_pickle_and_runs_on_any_python() -> None:
    work = specs.function_work("pkg.mod:f", [b""], options={})
    assert (work.spec.function, work.spec.python, work.function, work.spec.name) == ("pkg.mod:f", "", b"", "f")


def test_a_command_takes_an_array_or_arguments_and_no_single_string() -> None:
    work = specs.command_work(["echo", "{}"], arguments=["ä", "b"], options={})
    assert (work.spec.count, work.arguments) == (2, ["ä".encode(), b"b"])
    work = specs.command_work(["true"], indices="5-9%2", options={})
    assert (work.spec.first_index, work.spec.count, work.spec.max_running) == (5, 5, 2)
    for bad in ("make -j2", []):
        with pytest.raises(ValueError, match="argv: "):
            specs.command_work(bad, options={})


# ---------------------------------------------------------------- outcomes


def failed(error: str = "", **more: Any) -> TaskResult:
    return TaskResult(3, "failed", error=error, host="h1", **more)


def test_a_value_comes_back_and_a_commands_exit_code() -> None:
    assert value_of(1, TaskResult(0, "succeeded"), pickle.dumps([1])) == [1]
    assert value_of(1, TaskResult(0, "succeeded", exit_code=0), None) == 0


def test_a_failure_has_the_remote_exception_as_cause_and_its_traceback_as_note() -> None:
    text = "Traceback (most recent call last):\n  File x\nValueError: 7 is bad"
    with pytest.raises(JobFailed, match=r"task 1.3 on h1 failed: ValueError: 7 is bad") as caught:
        value_of(1, failed(text), pickle.dumps(ValueError("7 is bad")))
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError)
    assert cause.args == ("7 is bad",)
    assert cause.__notes__ == [f"On h1:\n{text}"]


def test_a_failure_without_exception_tells_the_traceback_itself() -> None:
    with pytest.raises(JobFailed) as caught:
        value_of(1, failed("line\nlast"), None)
    assert caught.value.__notes__ == ["On h1:\nline\nlast"]


class Unbuildable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("text")


def test_an_exception_that_cannot_be_rebuilt_still_tells_its_story() -> None:
    with pytest.raises(JobFailed, match="last words") as caught:
        value_of(1, failed("Traceback\nlast words"), pickle.dumps(Unbuildable(1, 2)))
    assert isinstance(caught.value.__cause__, TypeError)
    assert any("could not be unpickled" in note for note in caught.value.__cause__.__notes__)


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (failed(exit_code=3), JobFailed, "ended with exit code 3"),
        (failed(signal=9), JobFailed, "ended by signal 9"),
        (TaskResult(3, "cancelled"), JobCancelled, "task 1.3 was cancelled"),
        (TaskResult(3, "lost", host="h2", attempt=2), JobLost, "task 1.3 on h2, attempt 2 was lost"),
        (TaskResult(3, "timed_out"), JobTimeout, "longer than its limit"),
    ],
)
def test_every_end_has_its_error(result: TaskResult, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        value_of(1, result, None)


# ---------------------------------------------------------------- futures


def at_once(
    payload: Payload | None, then: Callable[[bytes | None], None], fail: Callable[[BaseException], None]
) -> None:
    then(payload.inline if payload else None)


def test_an_executors_future_raises_what_the_function_raised() -> None:
    future = TaskFuture()
    payload = Payload(inline=pickle.dumps(KeyError("k")))
    future.settle(1, failed("Traceback\nKeyError: 'k'", result=payload), at_once, original=True)
    error = future.exception()
    assert isinstance(error, KeyError)
    assert isinstance(error.__cause__, JobFailed)
    assert future.task_id == "1.3"


def test_an_error_without_remote_exception_stays_ours() -> None:
    error = JobFailed("gone")
    assert original_error(error) is error


def test_a_lone_future_cancels_remotely_once_and_ignores_a_late_result() -> None:
    cancelled: list[int] = []
    future = LoneFuture(at_once, cancelled.append)
    future.job_id = 9
    assert future.cancel()
    assert future.cancel()
    assert cancelled == [9]
    future.deliver([TaskResult(0, "succeeded", result=Payload(inline=pickle.dumps(1)))])
    future.broken(JobFailed("late"))
    assert future.cancelled()


def test_a_lone_future_that_ended_cannot_be_cancelled() -> None:
    cancelled: list[int] = []
    future = LoneFuture(at_once, cancelled.append)
    future.deliver([TaskResult(0, "succeeded", result=Payload(inline=pickle.dumps(1)))])
    assert not future.cancel()
    assert cancelled == []
    assert future.result() == 1


def test_a_gang_is_a_number_of_tasks_or_all_of_them() -> None:
    assert specs.command_work(["x"], indices=4, options={"gang": 2}).spec.gang == 2
    assert specs.command_work(["x"], indices=4, options={"gang": "all"}).spec.gang == -1
    with pytest.raises(ValueError, match="gang: 'both' given; allowed: a number of tasks, or 'all'"):
        specs.command_work(["x"], options={"gang": "both"})


def test_stdin_is_bytes_or_a_file_and_only_for_commands(tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_bytes(b"words")
    assert specs.command_work(["cat"], options={"stdin": file}).stdin == b"words"
    assert specs.command_work(["cat"], arguments=["a"], options={"stdin": b"more"}).stdin == b"more"
    with pytest.raises(ValueError, match=r"stdin: .*/nowhere: No such file or directory"):
        specs.command_work(["cat"], options={"stdin": tmp_path / "nowhere"})
    with pytest.raises(ValueError, match="stdin: given for a function; allowed: for commands"):
        specs.function_work("m:f", [b""], options={"stdin": b"words"})
