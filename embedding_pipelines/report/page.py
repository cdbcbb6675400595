"""Writes the report of a pipeline: an HTML page of metrics, checks, charts, and a map of its space.

It loads nothing from the network. All comes from the warehouse, without model and pipeline file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding_pipelines.compression.base import CodecChain, as_options, describe_chain
from embedding_pipelines.compression.pca import PcaCodec
from embedding_pipelines.extras import need
from embedding_pipelines.files import read_json, write_atomic
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.progress import Progress
from embedding_pipelines.quality.evaluate import CHECKS
from embedding_pipelines.releases import Release, live_release, read_history, read_releases
from embedding_pipelines.report.charts import ABSENT, SIZE, charts, describe_search
from embedding_pipelines.report.map import map_of
from embedding_pipelines.storage.warehouse import Warehouse

SLIGHT = 0.001  # of a metric: smaller changes are neither better nor worse
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Report:
    """A page, and its contents in numbers."""

    path: Path
    pipeline: str
    release: int
    rows: int
    points: int  # on the map
    queries: int  # on the map
    charts: list[str]
    size_bytes: int


def write_report(warehouse: Warehouse, name: str, progress: Progress) -> Report:
    """Replace reports/NAME.html in the warehouse by a page on the pipeline's live release. Raises
    ReleaseError without one, StoreError or CompressionError for damaged state."""
    folder = warehouse.pipeline(name)
    release = live_release(folder)
    codec = CodecChain.load(folder.codecs / release.codec)
    progress.update("report", 0, release.rows, "rows")
    points = map_of(warehouse, release, codec, progress)
    (history, torn), optimization = read_history(folder), read_json(folder.optimization)
    if torn:
        progress.note(f"{name}: {torn} damaged lines of {folder.history} are left out.")
    pca = next((part for part in codec.codecs if isinstance(part, PcaCodec)), None)
    spectrum, dimensions = (pca.spectrum, pca.dimensions) if pca else (None, None)
    figures = charts(history, optimization, spectrum, dimensions)
    descriptions = {name: check.description for name, check in CHECKS.items()}
    page = _render(
        release=release,
        statistics=_statistics(warehouse, release, codec),
        metrics=_metrics(release, history),
        checks=[
            {"name": name, "passed": passed, "what": descriptions.get(name, "")}
            for name, passed in release.checks.items()
        ],
        charts={title: figure.to_dict() for title, figure in figures.items()},
        absent=ABSENT,
        size=SIZE,
        optimization=_optimization(optimization),
        map=points,
    )
    path = warehouse.root / "reports" / f"{name}.html"
    write_atomic(path, page)
    return Report(
        path,
        name,
        release.number,
        release.rows,
        points=len(points["x"]),
        queries=len(points["queries"]["x"]),
        charts=list(figures),
        size_bytes=len(page),
    )


def _statistics(warehouse: Warehouse, release: Release, codec: CodecChain) -> dict[str, str]:
    folder, space, spec = warehouse.pipeline(release.spec.name), release.space, release.spec
    numbers, size = read_releases(folder).numbers, codec.bytes_per_vector
    compression = f"none: {size:,} bytes a vector"
    if spec.compression:
        compression = f"{describe_chain(as_options(spec.compression))}: {size:,} bytes a vector, "
        compression += f"{4 * space.dimensions / size:.3g} times smaller than float32"
    on_disk = spec.store.table(warehouse.tables, release.table).size_bytes()
    prompts = [f"{name}: {prompt!r}" for name, prompt in space.prompts.items() if prompt]
    statistics = {
        "Live release": f"{release.number}, of {release.released_at:%Y-%m-%d %H:%M} UTC; kept: "
        f"{numbers}",
        "Rows": f"{release.rows:,}",
        "Model": f"{space.provider}:{space.model}, revision {space.revision[:12]}",
        "Space": f"{space.dimensions:,} dimensions of {space.dtype}, {space.pooling}; "
        f"{space.max_tokens:,} tokens",
        "Prompts": ", ".join(prompts),
        "Space id": space.id,
        "Compression": compression,
        "On disk": f"{on_disk / 1e6:,.1f} MB, all releases together",
        "Store": f"{spec.store.kind}, table {release.table}, version {release.version}",
        "Schedule": spec.schedule or "",
        "Released by force": release.forced,
    }
    return {name: text for name, text in statistics.items() if text}


def _metrics(release: Release, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of the table of metrics, and the names of metrics without a value."""
    earlier = [line for line in history if line["release"] < release.number]
    last: Mapping[str, Any] = max(earlier, key=lambda line: line["release"], default={})
    before = last.get("metrics", {})
    required, now = release.spec.evaluation.require, release.metrics
    rows = [
        _measure(name, now.get(name), before.get(name), required.get(name))
        for name in dict.fromkeys((*METRICS, *now))
        if name in now or name in required
    ]
    return {"rows": rows, "missing": [name for name in METRICS if name not in now]}


def _measure(
    name: str, now: float | None, before: float | None, required: float | None
) -> dict[str, Any]:
    metric = METRICS.get(name)
    change = now - before if now is not None and before is not None else None
    is_slight = change is None or abs(change) <= SLIGHT * abs(before or 0.0)
    better = metric.improves(change or 0.0) if metric and not is_slight else None
    met = None
    if metric and required is not None:
        met = now is not None and metric.meets(now, required)
    sign = "≥" if metric and metric.direction == "higher" else "≤"
    return {
        "name": name,
        "what": f"{metric.description} ({metric.unit})" if metric else "",
        "now": _figure(now),
        "before": _figure(before),
        "change": "–" if change is None else f"{change:+.3g}" if change else "0",
        "verdict": "" if better is None else "better" if better else "worse",
        "required": "" if required is None else f"{sign} {_figure(required)}",
        "met": met,
        "better": metric.direction if metric else "",
    }


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
