"""The base of all generators, built in or not: interface, parameters, and metrics of calls."""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.similarity import normalize_embedding

Vector = Sequence[float] | NDArray[np.floating[Any]]

Method = TypeVar("Method", bound=Callable[..., Any])

RECENT_CALLS = 1_000  # that a generator stores one by one


@dataclass(frozen=True)
class Call:
    """One call of `generate` or `generate_batch`, with waits and retries."""

    provider: str
    batch_size: int
    dims: int | None  # None: it failed, or it had no text
    latency_seconds: float


@dataclass
class Metrics:
    """Sums over all calls of a generator, and its last RECENT_CALLS."""

    calls: int = 0
    failures: int = 0
    texts: int = 0
    seconds: float = 0.0
    recent: deque[Call] = field(default_factory=lambda: deque(maxlen=RECENT_CALLS), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, call: Call, failed: bool) -> None:
        with self._lock:
            self.calls += 1
            self.failures += failed
            self.texts += call.batch_size
            self.seconds += call.latency_seconds
            self.recent.append(call)


_OUTERMOST: ContextVar[object] = ContextVar("outermost generator", default=None)


def _count_calls(method: Method) -> Method:
    """`generate` or `generate_batch` with its calls in `metrics`, but for calls within a call."""
    is_batch = method.__name__ == "generate_batch"

    @functools.wraps(method)
    def counting(self: "AbstractEmbeddingGenerator", texts: Any) -> Any:
        if _OUTERMOST.get() is self:
            return method(self, texts)
        token, started, result = _OUTERMOST.set(self), time.perf_counter(), None
        try:
            result = method(self, texts)
        finally:
            _OUTERMOST.reset(token)
            seconds = time.perf_counter() - started
            vector = next(iter(result or ()), None) if is_batch else result
            size = len(list(texts)) if is_batch else 1
            dims = None if vector is None else len(vector)
            self.metrics.add(Call(self.provider, size, dims, seconds), failed=result is None)
        return result

    return cast(Method, counting)


class AbstractEmbeddingGenerator:
    """Base of all generators. A subclass overrides `_infer`, or `_infer_batch` if its model takes
    many texts at once; its public attributes are its parameters.

    It may override `generate` and `generate_batch`, too; its metrics count their calls.
    """

    provider = "custom"  # as metrics name it
    normalize = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("generate", "generate_batch"):
            if name in vars(cls):
                setattr(cls, name, _count_calls(vars(cls)[name]))

    @functools.cached_property
    def metrics(self) -> Metrics:
        return Metrics()

    @_count_calls
    def generate(self, text: str) -> list[float]:
        """The vector of one text."""
        return self._post(self._infer(text))

    @_count_calls
    def generate_batch(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, in their order."""
        return [self._post(vector) for vector in self._infer_batch(texts)]

    def set_parameter(self, key: str, value: Any) -> None:
        """Change a parameter for the next calls. Raises ConfigError for an unknown one."""
        self.get_parameter(key)
        setattr(self, key, value)

    def get_parameter(self, key: str) -> Any:
        """A parameter's value. Raises ConfigError for an unknown one."""
        names = sorted(name for name in vars(self) if name[0] != "_" and name != "metrics")
        if key not in names:
            raise ConfigError(
                f"{type(self).__name__} has no parameter {key!r}; it has "
                f"{', '.join(names) or 'none'}."
            )
        return getattr(self, key)

    def _infer(self, text: str) -> Vector:
        raise NotImplementedError(
            f"{type(self).__name__} must define _infer, or generate and generate_batch."
        )

    def _infer_batch(self, texts: Sequence[str]) -> Sequence[Vector]:
        return [self._infer(text) for text in texts]

    def _post(self, vec: Vector) -> list[float]:
        """Plain floats, with `normalize` at unit length; a zero vector stays one."""
        vector = np.asarray(vec, np.float64)
        numbers: list[float] = (normalize_embedding(vector) if self.normalize else vector).tolist()
        return numbers
