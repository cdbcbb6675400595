"""The charts of a pipeline's quality: plain numbers in, plotly's figures out."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.compression.base import describe_chain
from embedding_pipelines.extras import need

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Line = Mapping[str, Any]  # of the history: a release
Point = Mapping[str, Any]  # of optimization.json: a candidate

VARIANCE, SIZE = "Explained variance", "Size against recall"
MODELS = "Models compared"
RECALL, LATENCY, DRIFT = "Quality over releases", "Latency over releases", "Drift over releases"
THROUGHPUT, COST = "Throughput over releases", "Cost over releases"

# title -> the title of its axis, and the names of its metrics in the legend
LINES: dict[str, tuple[str, dict[str, str]]] = {
    RECALL: (
        "share, 1 is best",
        {
            "recall_at_10": "recall@10 against exact search",
            "index_recall_at_10": "recall@10 of the index alone",
            "known_item_mrr": "known items, reciprocal rank",
            "ndcg_at_10": "relevance judgements, nDCG@10",
        },
    ),
    LATENCY: (
        "milliseconds a search",
        {"search_p50_ms": "median", "search_p95_ms": "95th percentile"},
    ),
    DRIFT: ("length of the shift", {"mean_shift": "shift of the mean vector"}),
    THROUGHPUT: ("tokens embedded a second", {"tokens_per_second": "tokens a second"}),
    COST: ("USD spent on the release", {"usd": "USD"}),
}
# A metric of a comparison -> its name in the legend.
COMPARED = {"ndcg_at_10": "relevance judgements, nDCG@10", "known_item_mrr": "known items, MRR"}
# title -> the sentence in place of a chart without data
ABSENT = {
    MODELS: "No models were compared. Run `embedding-pipelines compare NAME MODEL`.",
    VARIANCE: "No principal components were fitted: the compression of this pipeline has no `pca`.",
    SIZE: "No candidates were measured. Run `embedding-pipelines optimize NAME --method auto`.",
    RECALL: "Fewer than two releases have metrics: a line over releases needs two.",
    LATENCY: "Fewer than two releases have times of searches.",
    DRIFT: "Drift is measured from the second release on, so that a line needs three.",
    THROUGHPUT: "Fewer than two releases embedded texts; vectors in the cache are not embedded "
    "again.",
    COST: "There are no costs: the model runs on this machine, its price is unknown, or there is "
    "only one release.",
}

COLOURS = ("#1f5a99", "#c8501e", "#3f7f4c", "#7a5195")
FRONT, CHOSEN, INK, PALE = COLOURS[0], COLOURS[1], "#2b2f36", "#8a919c"
AXIS: dict[str, Any] = {
    "showline": True,
    "linecolor": PALE,
    "gridcolor": "#dfe3e8",
    "zeroline": False,
    "automargin": True,
    "title": {"font": {"size": 12}},
}
STYLE = {
    "xaxis": {**AXIS, "showgrid": False},
    "yaxis": AXIS,
    "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
    "font": {"size": 12, "color": INK},
    "colorway": COLOURS,
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    "hovermode": "closest",
    "dragmode": False,
}
RULE: dict[str, Any] = {"color": PALE, "width": 1, "dash": "dot"}
LABEL_HEIGHT = 0.05  # of the chart: labels nearer to each other would overlap
FEW_RELEASES = 12  # with a tick each


def charts(
    history: Sequence[Line],
    optimization: Mapping[str, Any] | None,
    spectrum: NDArray[np.float32] | None,
    dimensions: int | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> dict[str, Figure]:
    """Title -> figure of each chart with data; ABSENT explains the others.

    `history` holds the lines of history.jsonl, parsed, in any order, of which the last one of a
    release counts; `optimization` is optimization.json; `spectrum` float32[d] the share of energy
    of every principal direction, strongest first; `dimensions` how many of them the codec keeps;
    `comparison` is what `compare` has kept.
    """
    lines = {line["release"]: line for line in history}
    releases = _with_expenses([lines[number] for number in sorted(lines)])
    figures = {
        MODELS: _models(comparison or {}),
        VARIANCE: _variance(spectrum, dimensions),
        SIZE: _sizes(optimization),
        **{title: _over_releases(title, releases) for title in LINES},
    }
    return {title: figure for title, figure in figures.items() if figure is not None}


def describe_search(point: Point) -> str:
    """A point's index and refining, e.g. `sq ×2`; empty if the point names none."""
    index, refine = point.get("index"), point.get("refine")
    words = ["no index" if index == "none" else index, f"×{refine}" if refine else None]
    return " ".join(filter(None, words))


def _with_expenses(releases: Sequence[Line]) -> list[Line]:
    """Each release with its own cost and throughput as metrics; the history holds their sums."""
    lines: list[Line] = []
    for before, now in zip([{}, *releases], releases, strict=False):
        names = ("embedded_tokens", "provider_seconds", "usd")
        tokens, seconds, usd = (_growth(before, now, name) for name in names)
        pace, cost = tokens / seconds if seconds else math.nan, usd if tokens else math.nan
        own = {"tokens_per_second": pace, "usd": cost}
        lines.append({**now, "metrics": {**own, **now.get("metrics", {})}})
    return lines


def _growth(before: Line, now: Line, name: str) -> float:
    """By how much a sum has grown; a sum that fell started again from zero."""
    old, new = before.get(name) or 0.0, now.get(name) or 0.0
    return float(new - old if new >= old else new)


def _variance(spectrum: NDArray[np.float32] | None, dimensions: int | None) -> Figure | None:
    if spectrum is None or not len(spectrum):
        return None
    shares = np.round(np.cumsum([0.0, *spectrum]), 5).tolist()
    figure = _figure("principal directions", "share of squared length")
    figure.update_xaxes(range=[0, len(spectrum)])
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    words = "%{x} dimensions keep %{y:.1%}<extra></extra>"
    fill = {"fill": "tozeroy", "fillcolor": "rgba(31, 90, 153, 0.08)"}
    figure.add_scatter(y=shares, mode="lines", hovertemplate=words, **fill)
    if dimensions is not None and 0 < dimensions < len(shares):
        share, is_left = shares[dimensions], dimensions < 0.5 * len(spectrum)
        figure.add_scatter(
            x=[dimensions, dimensions, 0],
            y=[0.02, share, share],
            mode="lines+markers+text",
            line={**RULE, "dash": "dash"},
            marker={"color": CHOSEN, "size": [0, 9, 0], "opacity": 1},
            text=[f"{dimensions} dimensions keep {share:.1%}"],
            textposition="top right" if is_left else "top left",
            hoverinfo="skip",
        )
    return figure


def _models(comparison: Mapping[str, Any]) -> Figure | None:
    """A line for each model, with an interval for each metric."""
    if not (models := comparison.get("models", ())):
        return None
    figure = _figure("1 is best, with intervals of 95%", "", showlegend=True)
    for colour, (name, label) in zip(COLOURS, COMPARED.items(), strict=False):
        rows = [(html.escape(row["model"]), row["figures"].get(name)) for row in models]
        rows = [(model, values) for model, values in rows if values is not None]
        if not rows:
            continue
        figures = [values for _, values in rows]
        figure.add_scatter(
            name=label,
            x=[values["mean"] for values in figures],
            y=[model for model, _ in rows],
            error_x={
                "symmetric": False,
                "array": [values["high"] - values["mean"] for values in figures],
                "arrayminus": [values["mean"] - values["low"] for values in figures],
            },
            mode="markers",
            marker={"color": colour, "size": 9},
            hovertemplate=f"%{{y}}: %{{x:.3f}}<extra>{label}</extra>",
        )
    if not figure.data:
        return None
    figure.update_yaxes(autorange="reversed", type="category")  # the pipeline's own on top
    return figure.update_xaxes(range=[0, 1])


def _sizes(optimization: Mapping[str, Any] | None) -> Figure | None:
    """Bytes a vector against recall; bars reach down to the lower bound. None without points."""
    optimization = optimization or {}
    points = optimization.get("points", ())
    points = [point for point in points if point.get("recall_at_10") is not None]
    if not points:
        return None
    points.sort(key=lambda point: (point["bytes_per_vector"], point["recall_at_10"]))
    figure = _figure("bytes a vector", "recall@10 against exact search", showlegend=True)
    front = [point for point in points if point.get("on_front")]
    behind_front = [point for point in points if not point.get("on_front")]
    stars = [point for point in points if point.get("chosen")]
    labels = {"text": _labels(front), "textposition": "top left", "textfont": {"size": 11}}
    line = {"mode": "lines+markers+text", "line": {"shape": "hv", "width": 1}, **labels}
    _add_points(figure, behind_front, "measured", {"color": PALE, "size": 6})
    _add_points(figure, front, "on the Pareto front", {"color": FRONT, "size": 9}, **line)
    _add_points(figure, stars, "chosen", {"color": CHOSEN, "size": 17, "symbol": "star"})
    floor = optimization.get("floor")
    if floor is not None:
        words = {"text": f"floor {floor:g}", "font": {"color": CHOSEN}}
        line = {"line": {**RULE, "color": CHOSEN}, "annotation_position": "top left"}
        figure.add_hline(floor, annotation=words, **line)
    sizes = [point["bytes_per_vector"] for point in points]
    room = [math.log10(min(sizes) / 4), math.log10(max(sizes) * 1.5)]  # on the left for labels
    figure.update_xaxes(type="log", dtick=math.log10(2), tickformat=",.0f", range=room)
    return figure


def _add_points(
    figure: Figure, points: Sequence[Point], name: str, marker: dict[str, Any], **style: Any
) -> None:
    if not points:
        return
    recalls = [point["recall_at_10"] for point in points]
    bounds = [point.get("lower_bound") for point in points]
    pairs = zip(recalls, bounds, strict=True)
    down = [0.0 if low is None else max(0.0, recall - low) for recall, low in pairs]
    figure.add_scatter(
        name=name,
        x=[point["bytes_per_vector"] for point in points],
        y=recalls,
        error_y={"symmetric": False, "array": [0.0] * len(down), "arrayminus": down, "width": 3},
        marker=marker,
        hovertext=[_words(point) for point in points],
        hovertemplate="%{hovertext}<br>%{x:,.0f} bytes, recall %{y:.4f}<extra></extra>",
        **{"mode": "markers", **style},
    )


def _words(point: Point) -> str:
    words = filter(None, (describe_chain(point["compression"]), describe_search(point)))
    return html.escape(" · ".join(words), quote=False)  # plotly interprets a few tags


def _labels(front: Sequence[Point]) -> list[str]:
    """A label for each point of the front, "" where another is too near, the chosen one first."""
    recalls = [point["recall_at_10"] for point in front]
    height = LABEL_HEIGHT * (max(recalls) - min(recalls)) if recalls else 0.0
    labels: dict[int, str] = {}
    for row in sorted(range(len(front)), key=lambda row: not front[row].get("chosen")):
        if all(abs(recalls[row] - recalls[other]) > height for other in labels):
            labels[row] = _words(front[row])
    return [labels.get(row, "") for row in range(len(front))]


def _over_releases(title: str, releases: Sequence[Line]) -> Figure | None:
    axis, names = LINES[title]
    figure = _figure("release", axis)
    for colour, (name, label) in zip(COLOURS, names.items(), strict=False):
        values = {line["release"]: line["metrics"].get(name, math.nan) for line in releases}
        values = {
            release: value
            for release, value in values.items()
            if value is not None and math.isfinite(value)
        }
        if len(values) > 1 and (title != COST or any(values.values())):
            figure.add_scatter(
                name=label,
                x=list(values),
                y=list(values.values()),
                mode="lines+markers",
                line_color=colour,
                hovertemplate=f"release %{{x}}: %{{y:.4~g}}<extra>{label}</extra>",
            )
    if not figure.data:
        return None
    _mark_changes(figure, releases)
    figure.update_layout(showlegend=len(figure.data) > 1)
    figure.update_xaxes(dtick=1 if len(releases) <= FEW_RELEASES else None)
    figure.update_yaxes(rangemode="normal" if title == RECALL else "tozero")
    return figure


def _mark_changes(figure: Figure, releases: Sequence[Line]) -> None:
    """Draw a thin line where the model or the compression changed."""
    numbers = {number for trace in figure.data for number in trace.x}
    for before, now in itertools.pairwise(releases):
        change = "new model" if before["space"] != now["space"] else "new compression"
        is_same = (before["space"], before["codec"]) == (now["space"], now["codec"])
        place = (before["release"] + now["release"]) / 2
        if not is_same and min(numbers) < place < max(numbers):
            words = {"text": change, "textangle": -90, "font": {"size": 10, "color": PALE}}
            line = {"line": RULE, "annotation_position": "bottom left"}
            figure.add_vline(place, annotation=words, **line)


def _figure(x: str, y: str, **layout: Any) -> Figure:
    figure = need("plotly.graph_objects", "report").Figure(
        layout={"template": {"layout": STYLE}, "showlegend": False, **layout}
    )
    return figure.update_xaxes(title_text=x).update_yaxes(title_text=y)
