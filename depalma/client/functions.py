"""How functions, arguments and results travel: pickles that only workers and the submitter open.

The bytes of one task are the pickle of `(function or None, arguments, keyword arguments)`; None stands for the job's
own function.
"""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

PROTOCOL = 5
_REFERENCE = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
Function = Callable[..., Any] | str


def python_version() -> str:
    """Returns the version that pickled functions need on the other side, like `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def dumps(value: object) -> bytes:
    """Returns the pickle of any value; what the other side cannot import (`__main__`, lambdas) goes by value."""
    data = b""
    if not _by_value_wanted():
        try:
            data = pickle.dumps(value, PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError):
            data = b""
    # Plain pickle would refer to the user's script, which no worker has. A text that says so costs only time.
    if data and b"__main__" not in data:
        return data
    import cloudpickle

    return bytes(cloudpickle.dumps(value, PROTOCOL))


def _by_value_wanted() -> bool:
    """Returns whether the user asked cloudpickle to send whole modules (`cloudpickle.register_pickle_by_value`)."""
    module = sys.modules.get("cloudpickle")
    return module is not None and bool(module.list_registry_pickle_by_value())


def pack_call(function: object, arguments: tuple[object, ...], keywords: dict[str, object]) -> bytes:
    """Returns the bytes of one task."""
    return dumps((function, arguments, keywords))


def reference(function: Function) -> str:
    """Returns `pkg.mod:qualname`. Errors: ValueError if the function cannot be found by name elsewhere."""
    if isinstance(function, str):
        if not _REFERENCE.fullmatch(function):
            raise ValueError(f"function: {function!r} given; allowed: 'package.module:name'")
        return function
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "")
    text = f"{module}:{name}"
    if not module or module == "__main__" or not _REFERENCE.fullmatch(text):
        raise ValueError(f"{function!r} cannot be found by name on another host; it must be in a module of synced code")
    return text


def display_name(function: Function) -> str:
    """Returns what people call it."""
    if isinstance(function, str):
        return function.rpartition(":")[2]
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


class Reference:
    """A function of the synced code, as a value: calling it looks it up and calls it."""

    def __init__(self, name: str) -> None:
        self.name = reference(name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Calls the function."""
        return find(self.name)(*arguments, **keywords)

    def __reduce__(self) -> tuple[type[Reference], tuple[str]]:
        return Reference, (self.name,)


class Pickled:
    """A function as bytes, so that it is pickled once here and opened once in each worker."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Calls the function."""
        return _opened(self.data)(*arguments, **keywords)

    def __reduce__(self) -> tuple[type[Pickled], tuple[bytes]]:
        return Pickled, (self.data,)


@lru_cache(maxsize=64)
def _opened(data: bytes) -> Callable[..., Any]:
    function: Callable[..., Any] = pickle.loads(data)
    return function


def find(name: str) -> Callable[..., Any]:
    """Returns the function `pkg.mod:qualname`. Errors: ImportError, AttributeError."""
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    found: Callable[..., Any] = value
    return found
