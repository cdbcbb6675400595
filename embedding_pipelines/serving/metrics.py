"""What a server counts of its own work, for Prometheus."""

import bisect
from collections import defaultdict
from collections.abc import Iterator, Mapping

from embedding_pipelines.prometheus import Sample

PREFIX = "serving_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0)
BOUNDS: Mapping[str, tuple[float, ...]] = {  # of histograms
    "request_seconds": SECONDS,
    "tokenize_seconds": SECONDS,
    "queue_seconds": SECONDS,
    "infer_seconds": SECONDS,
    "batch_texts": SIZES,
    "batch_tokens": SIZES,
}
FAMILIES: Mapping[str, tuple[str, str]] = {
    f"{PREFIX}{name}": family
    for name, family in {
        "requests_total": ("counter", "Requests by path and status."),
        "request_seconds": ("histogram", "From a request to its reply, by path and status."),
        "tokenize_seconds": ("histogram", "Cleaning, counting and looking up a request's texts."),
        "queue_seconds": ("histogram", "From there to the request's first batch."),
        "infer_seconds": ("histogram", "A batch in the model."),
        "batch_texts": ("histogram", "Texts of a batch."),
        "batch_tokens": ("histogram", "Tokens of a batch."),
        "tokens_total": ("counter", "Tokens that the model was given."),
        "cache_hits_total": ("counter", "Texts whose vectors were in the embedding cache."),
        "refused_total": ("counter", "Requests with the status 429: too many before them."),
        "abandoned_total": ("counter", "Requests whose sender left, or whose time was over."),
        "queued_tokens": ("gauge", "Tokens that wait for the model."),
        "tokens_per_second": ("gauge", "What the model computes, as admission reckons with."),
    }.items()
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms by label; to be used in one event loop."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Labels], float] = defaultdict(float)
        self._buckets: dict[tuple[str, Labels], list[int]] = {}
        self._sums: dict[tuple[str, Labels], float] = defaultdict(float)

    def count(self, name: str, number: float = 1, **labels: str) -> None:
        self._counts[name, tuple(labels.items())] += number

    def observe(self, name: str, value: float, **labels: str) -> None:
        key = name, tuple(labels.items())
        bounds = BOUNDS[name]
        buckets = self._buckets.setdefault(key, [0] * (len(bounds) + 1))
        buckets[bisect.bisect_left(bounds, value)] += 1
        self._sums[key] += value

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request that was answered, or refused."""
        self.count("requests_total", path=path, status=str(status))
        self.observe("request_seconds", seconds, path=path, status=str(status))

    def value(self, name: str, **labels: str) -> float:
        """A counter, or how many values a histogram has; 0 before the first."""
        key = name, tuple(labels.items())
        return sum(self._buckets[key]) if key in self._buckets else self._counts.get(key, 0.0)

    def samples(self) -> Iterator[Sample]:
        for (name, labels), number in self._counts.items():
            yield Sample(f"{PREFIX}{name}", dict(labels), float(number))
        for (name, labels), buckets in self._buckets.items():
            total = 0
            for bound, number in zip((*BOUNDS[name], float("inf")), buckets, strict=True):
                total += number
                limit = "+Inf" if bound == float("inf") else f"{bound:g}"
                le = {**dict(labels), "le": limit}
                yield Sample(f"{PREFIX}{name}_bucket", le, float(total))
            yield Sample(f"{PREFIX}{name}_sum", dict(labels), self._sums[name, labels])
            yield Sample(f"{PREFIX}{name}_count", dict(labels), float(total))
