"""Writes the report of a pipeline: an HTML page with a verdict, a map of its space, searches, metrics,
checks, what was rejected, and charts.

It loads nothing from the network. All comes from the warehouse; only before the first release are
the pipeline file and the model's own files read.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from embedding_pipelines.compression.base import CodecChain, as_options, describe_chain
from embedding_pipelines.compression.pca import PcaCodec
from embedding_pipelines.diff.diff import MetricChange
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.extras import need
from embedding_pipelines.files import read_json, write_atomic
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.progress import Progress
from embedding_pipelines.quality.evaluate import CHECKS
from embedding_pipelines.releases import (
    Release,
    Releases,
    no_release,
    read_history,
    read_releases,
)
from embedding_pipelines.remote import refresh
from embedding_pipelines.report.charts import (
    ABSENT,
    MODELS,
    SIZE,
    Line,
    charts,
    describe_search,
)
from embedding_pipelines.report.map import map_of, place_points, read_points
from embedding_pipelines.report.searches import Query, cut, read_queries, searches
from embedding_pipelines.report.verdict import Changes, changes_of, verdict_of
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.status import read_rejections
from embedding_pipelines.steps.duplicates import WORDS, read_duplicates
from embedding_pipelines.steps.release import candidate_of
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors

Part = TypeVar("Part")

IN_HISTORY = {"release", "space", "codec", "metrics"}  # of each line
REJECTED = 20  # rows that the page shows
GROUPS, IN_GROUP = 10, 5  # of duplicates of a kind, and images of each, that it shows
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Report:
    """A page, and its contents in numbers."""

    path: Path
    pipeline: str
    release: int | None  # None: of a candidate, before the first release
    rows: int
    points: int  # on the map
    queries: int  # on the map
    charts: list[str]
    size_bytes: int


def write_report(warehouse: Warehouse, name: str, progress: Progress) -> Report:
    """Replace reports/NAME.html in the warehouse by a page on the pipeline's live release; before the
    first one, on the candidate that is held back.

    What cannot be read is left out; the page and a note say so. Raises ReleaseError without a
    release and a candidate that was checked, StoreError if the releases themselves cannot be read.
    """
    folder = warehouse.pipeline(name)
    refresh(warehouse, name)
    releases, parts = read_releases(folder), Parts(name, progress)
    live = releases.get(releases.live)
    if live is None:
        release, blocking = _candidate(warehouse, name)
    else:
        release, blocking = live, set(live.checks) if live.forced else set()
    run = Run(release.spec, warehouse)
    run.folder = folder.of_line(release.line)
    progress.update("report", 0, release.rows, "rows")
    history = parts.read(lambda: _history(folder, parts), list[Line]())
    optimization = parts.read(lambda: read_json(folder.optimization), None)
    comparison = parts.read(lambda: read_json(warehouse.comparison(name)), None)
    codec = parts.read(lambda: CodecChain.load(folder.codecs / release.codec), None)
    table = release.spec.store.table(warehouse.tables, release.table)
    size = parts.read(table.size_bytes, None)
    queries = parts.read(lambda: read_queries(warehouse, release), list[Query]())
    points, answers = None, dict[str, Any](samples=[], worst=[])
    if codec is not None:
        points = parts.read(lambda: _map(table, folder, release, codec, queries, progress), None)
        answers = parts.read(lambda: searches(table, release, codec, queries), answers)
    verdict = parts.read(lambda: verdict_of(run, releases, live), None)
    before, changes = parts.read(
        lambda: changes_of(run, releases, release, history), Changes(None, [])
    )
    figures = charts(history, optimization, *_spectrum(codec), comparison)
    values = dict[str, Any](
        name=name,
        description=release.spec.as_written(release.spec.description),
        release=live.number if live else None,
        verdict=verdict,
        before=before,
        better=[_words(change) for change in changes if change.better],
        worse=[_words(change) for change in changes if change.better is False],
        tiles=_tiles(release),
        statistics=_releases_in_words(live, releases) | _statistics(release, codec, size),
        metrics=_metrics(release, changes),
        checks=_checks(release, blocking),
        answers=answers,
        rejected=parts.read(lambda: _rejected(run), None),
        duplicates=parts.read(lambda: _duplicates(run), None),
        charts={title: figure.to_dict() for title, figure in figures.items()},
        absent=ABSENT,
        size=SIZE,
        models=MODELS,
        comparison=comparison,
        optimization=_optimization(optimization),
        map=points,
        problems=parts.problems,
    )
    page = _render(**values)
    path = warehouse.reports / f"{name}.html"
    write_atomic(path, page)
    return Report(
        path,
        name,
        live.number if live else None,
        release.rows,
        points=len(points["x"]) if points else 0,
        queries=len(points["queries"]["x"]) if points else 0,
        charts=list(figures),
        size_bytes=len(page),
    )


def _candidate(warehouse: Warehouse, name: str) -> tuple[Release, set[str]]:
    """The newest table version as a release, and the checks that hold it back."""
    with Run(find_pipeline(name, warehouse.home), warehouse) as run:
        checked = candidate_of(run)
    if checked is None:
        raise no_release(run.folder)
    release, record = checked
    return release, {check.name for check in record.checks if check.blocks}


class Parts:
    """What could not be read for a page, which is written without it."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.problems: list[str] = []
        self._name, self._progress = name, progress

    def read(self, read: Callable[[], Part], otherwise: Part) -> Part:
        """What `read` gives, `otherwise` if it cannot be read."""
        try:
            return read()
        except (EmbeddingPipelinesError, OSError) as error:
            self.leave_out(f"A part is missing: {error}")
            return otherwise

    def leave_out(self, problem: str) -> None:
        self.problems.append(problem)
        self._progress.note(f"{self._name}: {problem}")


def _history(folder: PipelineFolder, parts: Parts) -> list[Line]:
    """The lines of the history that are whole."""
    lines, torn = read_history(folder)
    whole: list[Line] = [line for line in lines if line.keys() >= IN_HISTORY]
    torn += len(lines) - len(whole)
    if torn:
        parts.leave_out(f"{torn} damaged lines of {folder.history} are left out.")
    return whole


def _map(
    table: Table,
    folder: PipelineFolder,
    release: Release,
    codec: CodecChain,
    queries: Sequence[Query],
    progress: Progress,
) -> dict[str, Any]:
    points = read_points(table, release, codec, progress)
    xy = place_points(folder, release, points, progress).xy
    return map_of(release, points, queries, xy)


def _spectrum(codec: CodecChain | None) -> tuple[Vectors | None, int | None]:
    """The energy of every principal direction float32[d], and how many are kept."""
    parts = codec.codecs if codec else ()
    pca = next((part for part in parts if isinstance(part, PcaCodec)), None)
    return (pca.spectrum, pca.dimensions) if pca else (None, None)


def _tiles(release: Release) -> dict[str, str]:
    """The figures of the verdict."""
    passed = sum(release.checks.values())
    return {"rows": f"{release.rows:,}", "checks passed": f"{passed} of {len(release.checks)}"}


def _rejected(run: Run) -> dict[str, Any]:
    """The first rejected records and texts, and where all of them are."""
    rejections = read_rejections(run, REJECTED)
    rows = [
        {"place": cut(row.place), "reason": row.reason, "content": cut(row.content)}
        for row in rejections.rows[: rejections.total]  # documents without text follow
    ]
    return {"total": rejections.total, "rows": rows, "tables": list(map(str, rejections.tables))}


def _duplicates(run: Run) -> dict[str, Any] | None:
    """The first groups of images that are the same or alike; None if there are none."""
    if not run.spec.source.has_images:
        return None
    groups = read_duplicates(run.folder.duplicates)
    rows = [
        {"what": what, "images": ", ".join(map(cut, ids[:IN_GROUP])), "more": len(ids) - IN_GROUP}
        for kind, what in WORDS.items()
        for ids in groups.groups(kind)[:GROUPS]
    ]
    return {"sentence": groups.sentence, "rows": rows, "table": str(run.folder.duplicates)}


def _checks(release: Release, blocking: Collection[str]) -> list[dict[str, str]]:
    descriptions = {name: check.description for name, check in CHECKS.items()}
    return [
        {
            "name": check,
            "tone": "good" if passed else "bad" if check in blocking else "fair",
            "what": descriptions.get(check, ""),
        }
        for check, passed in release.checks.items()
    ]


def _releases_in_words(live: Release | None, releases: Releases) -> dict[str, str]:
    if live is None:
        return {"Live release": "none"}
    release = f"{live.number}, of {live.released_at:%Y-%m-%d %H:%M} UTC"
    return {"Live release": f"{release}; kept: {releases.numbers}"}


def _statistics(release: Release, codec: CodecChain | None, on_disk: int | None) -> dict[str, str]:
    space, spec = release.space, release.spec
    compression = describe_chain(as_options(spec.compression)) if spec.compression else "none"
    if codec is not None:
        size = codec.bytes_per_vector
        compression += f": {size:,} bytes a vector"
        if spec.compression:
            compression += f", {4 * space.dimensions / size:.3g} times smaller than float32"
    prompts = [
        f"{name}: {spec.as_written(prompt)!r}" for name, prompt in space.prompts.items() if prompt
    ]
    statistics = {
        "Rows": f"{release.rows:,}",
        "Model": f"{space.provider}:{space.model}, revision {space.revision[:12]}",
        "Space": f"{space.dimensions:,} dimensions of {space.dtype}, {space.pooling}; "
        f"{space.max_tokens:,} tokens",
        "Prompts": ", ".join(prompts),
        "Space id": space.id,
        "Compression": compression,
        "On disk": f"{on_disk / 1e6:,.1f} MB, all releases together" if on_disk else "",
        "Store": f"{spec.store.kind}, table {release.table}, version {release.version}",
        "Schedule": spec.as_written(spec.schedule or ""),
        "Released by force": release.forced,
    }
    return {name: text for name, text in statistics.items() if text}


def _metrics(release: Release, changes: Sequence[MetricChange]) -> dict[str, Any]:
    """Rows of the table of metrics, and the names of metrics without a value."""
    required, now = release.spec.evaluation.require, release.metrics
    by_name = {change.metric: change for change in changes}
    rows = [
        _measure(
            by_name.get(name) or MetricChange(name, None, now.get(name), None, None, None),
            required.get(name),
        )
        for name in dict.fromkeys((*METRICS, *now))
        if name in now or name in required
    ]
    missing = [name for name in METRICS if name not in now]
    return {"rows": rows, "requires": bool(required), "missing": missing}


def _measure(change: MetricChange, required: float | None) -> dict[str, Any]:
    metric, now, difference = METRICS.get(change.metric), change.after, change.difference
    met = None
    if metric and required is not None:
        met = now is not None and metric.meets(now, required)
    sign = "≥" if metric and metric.direction == "higher" else "≤"
    better, direction = change.better, metric.direction if metric else ""
    return {
        "name": change.metric,
        "what": f"{metric.description} ({metric.unit})" if metric else "",
        "now": _figure(now),
        "before": _figure(change.before),
        "change": "–" if difference is None else _difference(difference),
        "is_chance": change.beyond_chance is False,
        "verdict": "" if better is None else "better" if better else "worse",
        "required": "" if required is None else f"{sign} {_figure(required)}",
        "met": met,
        "better": "" if direction == "neither" else direction,
    }


def _difference(value: float) -> str:
    if not value:
        return "0"
    return f"{value:+,.0f}" if abs(value) >= 1_000 else f"{value:+.3g}"


def _words(change: MetricChange) -> str:
    """A change as a few words."""
    return f"{change.metric} {_figure(change.before)} → {_figure(change.after)}"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _optimization(evidence: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The evidence of `optimize`, with a row for each point of the front by size."""
    if evidence is None:
        return None
    points = [point for point in evidence["points"] if point.get("on_front") or point.get("chosen")]
    names = ("recall_at_10", "lower_bound", "held_out_recall", "held_out_lower_bound")
    rows = [
        {
            "chain": describe_chain(point["compression"]),
            "index": describe_search(point),
            "bytes": f"{point['bytes_per_vector']:,.0f}",
            "figures": [_figure(point.get(name)) for name in (*names, "p50_ms", "p95_ms")],
            "chosen": bool(point.get("chosen")),
        }
        for point in sorted(points, key=lambda point: point["bytes_per_vector"])
    ]
    return {**evidence, "rows": rows, "measured": len(evidence["points"])}


def _render(**values: Any) -> bytes:
    script = need("plotly.offline", "report").get_plotlyjs()
    jinja2 = need("jinja2", "report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    options = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.policies["json.dumps_kwargs"] = options
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page: str = template.render(**values, plotly=script)
    return page.encode()
