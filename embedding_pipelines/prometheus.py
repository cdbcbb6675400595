"""What a monitor watches of pipelines, as Prometheus reads it: the text format, version 0.0.4."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.releases import Release, read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import read_pipelines
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.storage.warehouse import Warehouse

PREFIX = "embedding_pipelines_"
HISTOGRAM = ("_bucket", "_sum", "_count")  # what the samples of one are called after its name
STATES = ("active", "broken", "failed", "held back", "new", "running", "stopped")
# By name: the type and what it says.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "state": (
        "gauge",
        "1 for the state of a pipeline, 0 for the others; of broken ones `status` says why.",
    ),
    "source_up_to_date": ("gauge", "Whether the newest release holds what the source's files do."),
    "rows": ("gauge", "Rows of a step."),
    "rejected": ("gauge", "Records and texts that could not be used."),
    "live_release": ("gauge", "The number of the live release."),
    "live_rows": ("gauge", "Rows of the live release."),
    "released_timestamp_seconds": ("gauge", "When the live release was made, since 1970."),
    "release_metric": ("gauge", "A figure of the live release, as it was measured then."),
    "embedded_tokens_total": ("counter", "Tokens that the model was given, of all runs."),
    "provider_seconds_total": ("counter", "Seconds in which the model was at work, of all runs."),
    "usd_total": ("counter", "What all runs have cost, in US dollars."),
}


@dataclass(frozen=True)
class Sample:
    """One number: its family, its labels, its value."""

    name: str
    labels: Mapping[str, str]
    value: float


def samples(home: Path) -> list[Sample]:
    """Of all pipelines of a home folder, broken ones included. Reads what `status` reads: records,
    those in the warehouse's bucket and the list of the source's files among them."""
    specs, errors = read_pipelines(home)
    broken = {path.stem for path in errors} - specs.keys()  # a.yml beside a.yaml is one pipeline
    numbers = list[Sample]()
    for spec in specs.values():
        try:
            numbers += list(_of_pipeline(spec, Warehouse(home)))
        except EmbeddingPipelinesError:  # `status` says what is the matter
            broken.add(spec.name)
    return numbers + [sample for name in sorted(broken) for sample in _state(name, "broken")]


def exposition(
    samples: Sequence[Sample], families: Mapping[str, tuple[str, str]] = FAMILIES
) -> str:
    """The text of samples, family by family."""
    lines = list[str]()
    for name, (kind, help_text) in families.items():
        names = {name} if kind != "histogram" else {name + ending for ending in HISTOGRAM}
        own = [sample for sample in samples if sample.name in names]
        if own:
            lines += [f"# HELP {PREFIX}{name} {help_text}", f"# TYPE {PREFIX}{name} {kind}"]
            lines += [
                f"{PREFIX}{sample.name}{_labels(sample.labels)} {sample.value!r}" for sample in own
            ]
    return "\n".join([*lines, ""])


def _of_pipeline(spec: PipelineSpec, warehouse: Warehouse) -> Iterator[Sample]:
    run, status = Run(spec, warehouse), pipeline_status(spec, warehouse)
    yield from _state(spec.name, status["status"])
    yield _sample(spec, "source_up_to_date", status["source_is_released"])
    for step in steps_of(spec):
        if step.name in status:
            yield _sample(spec, "rows", status[step.name], step=step.name)
    yield _sample(spec, "rejected", status["rejected"], kind="records")
    yield _sample(spec, "rejected", status["rejected_texts"], kind="texts")
    for name, value in run.usage().items():
        yield _sample(spec, f"{name}_total", value)
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    if live is not None:
        yield from of_release(spec.name, live)


def of_release(pipeline: str, live: Release) -> Iterator[Sample]:
    """A pipeline's live release, and the figures that it was released with."""
    released_at = live.released_at.timestamp()
    for name, value in (
        ("live_release", live.number),
        ("live_rows", live.rows),
        ("released_timestamp_seconds", released_at),
    ):
        yield Sample(name, {"pipeline": pipeline}, float(value))
    for name, value in live.metrics.items():
        yield Sample("release_metric", {"pipeline": pipeline, "metric": name}, float(value))


def _state(pipeline: str, state: str) -> Iterable[Sample]:
    return (
        Sample("state", {"pipeline": pipeline, "state": each}, float(each == state))
        for each in STATES
    )


def _sample(spec: PipelineSpec, name: str, value: float, **labels: str) -> Sample:
    return Sample(name, {"pipeline": spec.name, **labels}, float(value))


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
