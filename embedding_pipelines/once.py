"""A property that one thread computes at first use, and that then stays."""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):
    """As functools.cached_property, but threads that need the value at the same time get the same
    one. All such properties of one object share a lock.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make, self._name, self.__doc__ = make, make.__name__, make.__doc__

    def __get__(self, owner: Any, cls: type) -> T:
        if owner is None:
            return self  # type: ignore[return-value]  # of the class, as a property does
        values = vars(owner)  # later look-ups find the value here and skip this method
        with values.setdefault("_once", threading.RLock()):
            if self._name not in values:
                values[self._name] = self._make(owner)
            value: T = values[self._name]
            return value


def forget(owner: object, *names: str) -> None:
    """Drop the values of these properties and close those that have a `close`; the next use
    computes them again."""
    for name in names:
        close = getattr(vars(owner).pop(name, None), "close", None)
        if close is not None:
            close()
