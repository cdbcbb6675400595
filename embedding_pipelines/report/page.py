"""report: one HTML page that says how a pipeline stands: measures, checks, charts, and a map of its
space.

It holds everything it shows and asks no network. What it says is read from the warehouse: nothing
is measured, no provider is called, and no pipeline file is needed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding_pipelines.compression.base import CodecChain, as_options, describe_chain
from embedding_pipelines.compression.pca import PcaCodec
from embedding_pipelines.errors import StoreError
from embedding_pipelines.extras import need
from embedding_pipelines.files import read_json, write_atomic
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.progress import Progress
from embedding_pipelines.quality.evaluate import CHECKS
from embedding_pipelines.releases import Release, live_release, read_releases
from embedding_pipelines.report.charts import ABSENT, SIZE, charts, describe_search
from embedding_pipelines.report.map import map_of
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse

SLIGHT = 0.001  # of a measure: a change that is not worth a word
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Report:
    """A page that was written, and what is in it."""

    path: Path
    pipeline: str
    release: int
    rows: int
    points: int  # on the map
    queries: int  # on the map
    charts: list[str]
    size_bytes: int


def write_report(warehouse: Warehouse, name: str, progress: Progress) -> Report:
    """Write the page on a pipeline's live release to reports/NAME.html in the warehouse, in place
    of the one before.

    Raises ReleaseError if nothing was released yet, StoreError or CompressionError if table, codec
    or a file of the pipeline's quality is damaged.
    """
    folder = warehouse.pipeline(name)
    release = live_release(folder)
    codec = CodecChain.load(folder.codecs / release.codec)
    progress.update("report", 0, release.rows, "rows")
    shown = map_of(warehouse, release, codec, progress)
    history, tuning = read_history(folder), read_json(folder.optimization)
    figures = {
        title: figure.to_dict()
        for title, figure in charts(history, tuning, *_spectrum(codec)).items()
    }
    page = _render(
        release=release,
        statistics=_statistics(warehouse, release, codec),
        metrics=_metrics(release, history),
        checks=_checks(release),
        charts=figures,
        absent=ABSENT,
        size=SIZE,
        tuning=_tuning(tuning),
        map=shown,
    )
    path = warehouse.root / "reports" / f"{name}.html"
    write_atomic(path, page)
    points, queries = len(shown["x"]), len(shown["queries"]["x"])
    return Report(
        path, name, release.number, release.rows, points, queries, list(figures), len(page)
    )


def read_history(folder: PipelineFolder) -> list[dict[str, Any]]:
    """What was measured of each release, oldest first; empty before there is one.

    Raises StoreError for a line that is damaged.
    """
    try:
        lines = folder.history.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise StoreError(
                f"{folder.history}:{number} is damaged: {error}. Delete the line; only figures of the past are lost."
            ) from error
    return found


def _spectrum(codec: CodecChain) -> tuple[Any, int | None]:
    """The share of energy of every principal direction, float32[d], and how many the codec keeps;
    None without PCA."""
    return next(
        ((part.spectrum, part.dimensions) for part in codec.codecs if isinstance(part, PcaCodec)),
        (None, None),
    )


def _statistics(warehouse: Warehouse, release: Release, codec: CodecChain) -> dict[str, str]:
    folder, space, spec = warehouse.pipeline(release.spec.name), release.space, release.spec
    kept = [str(entry.number) for entry in read_releases(folder).releases]
    stored, plain = codec.bytes_per_vector, 4 * space.dimensions
    chain = describe_chain(as_options(spec.compression))
    on_disk = spec.store.table(warehouse.tables, release.table).size_bytes()
    prompts = ", ".join(
        f"{input_type}: {prompt!r}" for input_type, prompt in space.prompts.items() if prompt
    )
    statistics = {
        "Live release": f"{release.number}, of {release.released_at:%Y-%m-%d %H:%M} UTC; kept are {', '.join(kept)}",
        "Rows": f"{release.rows:,}",
        "Model": f"{space.provider}:{space.model}, revision {space.revision[:12]}",
        "Space": f"{space.dimensions:,} dimensions of {space.dtype}, {space.pooling}; {space.max_tokens:,} tokens",
        "Prompts": prompts,
        "Space id": space.id,
        "Compression": f"{chain}: {stored:,} bytes a vector, {plain / stored:.3g} times smaller than float32"
        if spec.compression
        else f"none: {stored:,} bytes a vector",
        "On disk": f"{on_disk / 1e6:,.1f} MB, all kept releases together",
        "Store": f"{spec.store.kind}, table {release.table}, version {release.version}",
        "Schedule": spec.schedule or "",
        "Released by force": release.forced,
    }
    return {name: text for name, text in statistics.items() if text}


def _metrics(release: Release, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of the table of measures, and the names of what was not measured."""
    earlier = [line for line in history if line["release"] < release.number]
    last: Mapping[str, Any] = max(earlier, key=lambda line: line["release"], default={})
    before = last.get("metrics", {})
    required, now = release.spec.evaluation.require, release.metrics
    names = [name for name in (*METRICS, *now) if name in now or name in required]
    rows = [
        _measure(name, now.get(name), before.get(name), required.get(name))
        for name in dict.fromkeys(names)
    ]
    return {"rows": rows, "missing": [name for name in METRICS if name not in now]}


def _measure(
    name: str, now: float | None, before: float | None, required: float | None
) -> dict[str, Any]:
    metric = METRICS.get(name)
    change = now - before if now is not None and before is not None else None
    is_slight = change is None or abs(change) <= SLIGHT * abs(before or 0.0)
    better = metric.improves(change or 0.0) if metric and not is_slight else None
    met: bool | None = None
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
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _checks(release: Release) -> list[dict[str, Any]]:
    return [
        {"name": name, "passed": passed, "what": CHECKS[name].description if name in CHECKS else ""}
        for name, passed in release.checks.items()
    ]


def _tuning(tuning: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What `optimize` was asked and what it found, the points of the front in the order of their
    size."""
    if tuning is None:
        return None
    shown = [point for point in tuning["points"] if point.get("on_front") or point.get("chosen")]
    names = (
        "recall_at_10",
        "lower_bound",
        "held_out_recall",
        "held_out_lower_bound",
        "p50_ms",
        "p95_ms",
    )
    rows = [
        {
            "chain": describe_chain(point["compression"]),
            "index": describe_search(point),
            "bytes": f"{point['bytes_per_vector']:,.0f}",
            "figures": [_figure(point.get(name)) for name in names],
            "chosen": bool(point.get("chosen")),
        }
        for point in sorted(shown, key=lambda point: point["bytes_per_vector"])
    ]
    return {**tuning, "rows": rows, "measured": len(tuning["points"])}


def _render(**values: Any) -> bytes:
    script = need("plotly.offline", "report").get_plotlyjs()
    jinja2 = need("jinja2", "report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page: str = template.render(**values, plotly=script)
    return page.encode()
