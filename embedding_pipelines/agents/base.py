"""What every generator is, one's own included: an interface, parameters, and metrics of its
calls."""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.similarity import normalize_embedding

Vector = Sequence[float] | NDArray[np.floating[Any]]

RECENT_CALLS = 1_000  # what a generator remembers one by one


@dataclass(frozen=True)
class Call:
    """One call of `generate` or `generate_batch`, as its caller saw it: waits and retries
    included."""

    provider: str
    batch_size: int
    dims: int | None  # None: it failed, or there was no text
    latency_seconds: float


@dataclass
class Metrics:
    """All calls of one generator in sum, and the last RECENT_CALLS each."""

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


def _count_calls(method: Callable[..., Any]) -> Callable[..., Any]:
    """`generate` or `generate_batch` with its calls in `metrics`; one that the generator itself
    makes is part of it."""
    is_batch = method.__name__ == "generate_batch"

    @functools.wraps(method)
    def counted(self: "AbstractEmbeddingGenerator", texts: Any) -> Any:
        if _OUTERMOST.get() is self:
            return method(self, texts)
        token, started, result = _OUTERMOST.set(self), time.perf_counter(), None
        try:
            result = method(self, texts)
        finally:
            _OUTERMOST.reset(token)
            seconds = time.perf_counter() - started
            vector = next(iter(result or ()), None) if is_batch else result
            size, dims = (
                len(list(texts)) if is_batch else 1,
                None if vector is None else len(vector),
            )
            self.metrics.add(Call(self.provider, size, dims, seconds), failed=result is None)
        return result

    return counted


class AbstractEmbeddingGenerator:
    """Base of all generators; one's own overrides `_infer`, or `_infer_batch` where a model takes
    many texts at once.

    Public attributes are its parameters. Calls of an overridden `generate` or `generate_batch` are
    in its metrics too.
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
        """Change a parameter; the next call heeds it. Raises ConfigError for one that the generator
        does not have."""
        self.get_parameter(key)
        setattr(self, key, value)

    def get_parameter(self, key: str) -> Any:
        """A parameter's value. Raises ConfigError for one that the generator does not have."""
        names = sorted(
            name for name in vars(self) if not name.startswith("_") and name != "metrics"
        )
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
        """Plain floats; at unit length if `normalize` says so, but for a zero vector, which stays
        one."""
        vector = np.asarray(vec, np.float64)
        numbers: list[float] = (normalize_embedding(vector) if self.normalize else vector).tolist()
        return numbers
