"""The charts of a pipeline's quality, drawn by matplotlib: the report shows them, and so does
Dagster.

What is drawn comes in as plain figures: lines of the history (one object per release), the evidence
of `optimize`, the spectrum of a fitted PCA. Nothing is measured here. Equal figures make equal
bytes.
"""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.report.pareto import draw_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Mapping[str, Any]  # of the history: a release
History = Sequence[Line]
Form = Literal["png", "svg"]

VARIANCE, SIZE = "Explained variance", "Size against recall"
RECALL, LATENCY, DRIFT = "Quality over releases", "Latency over releases", "Drift over releases"
THROUGHPUT, COST = "Throughput over releases", "Cost over releases"

# title -> measures of the history that share an axis, as they are called in the legend
LINES: dict[str, dict[str, str]] = {
    RECALL: {
        "recall_at_10": "recall@10 against exact search",
        "index_recall_at_10": "recall@10 of the index alone",
        "known_item_mrr": "known items, reciprocal rank",
        "ndcg_at_10": "judged queries, nDCG@10",
    },
    LATENCY: {"search_p50_ms": "median", "search_p95_ms": "95th percentile"},
    DRIFT: {"mean_shift": "shift of the mean vector"},
    THROUGHPUT: {"tokens_per_second": "tokens a second"},
    COST: {"usd": "USD"},
}
AXES = {
    RECALL: "share, 1 is best",
    LATENCY: "milliseconds a search",
    DRIFT: "length of the shift",
    THROUGHPUT: "tokens embedded a second",
    COST: "USD spent on the release",
}
# title -> what is said where there is nothing to draw
ABSENT = {
    VARIANCE: "No principal components were fitted: the compression of this pipeline has no `pca`.",
    SIZE: "Nothing was tuned yet. `embedding-pipelines optimize NAME --method auto` measures what can be saved.",
    RECALL: "Fewer than two releases were measured: a line over releases needs two.",
    LATENCY: "Fewer than two releases have measured times of searches.",
    DRIFT: "Drift is measured from the second release on, so that a line needs three.",
    THROUGHPUT: "Fewer than two releases embedded texts: what the cache knows is not embedded again.",
    COST: "Nothing was paid for: the model runs here, its price is not known, or there is one release only.",
}

COLOURS = ("#1f5a99", "#c8501e", "#3f7f4c", "#7a5195")
INK, PALE, RULE = "#2b2f36", "#8a919c", "#dfe3e8"
INCHES, WIDE_INCHES = (6.4, 3.4), (9.6, 4.4)
STYLE: Any = {"svg.hashsalt": "embedding-pipelines", "font.family": "DejaVu Sans", "font.size": 9.0}


def figures(
    history: History,
    tuning: Mapping[str, Any] | None,
    spectrum: NDArray[np.float32] | None,
    dimensions: int | None = None,
    form: Form = "png",
) -> dict[str, bytes]:
    """Title -> picture, PNG or SVG (UTF-8), of all that can be drawn; ABSENT says why another is
    missing.

    `history` holds the lines of quality/history.jsonl, parsed, in any order; `tuning` is
    quality/optimization.json; `spectrum` float32[d] the share of energy of every principal direction,
    strongest first; `dimensions` how many of them the codec keeps.
    """
    import matplotlib

    releases = _with_expenses(_newest_of_each(history))
    drawers: dict[str, Callable[[Axes], bool]] = {
        VARIANCE: lambda axes: _variance(axes, spectrum, dimensions),
        SIZE: lambda axes: draw_sizes(axes, tuning),
        **{title: _over_releases(title, releases) for title in LINES},
    }
    pictures = {}
    with matplotlib.rc_context(STYLE):
        for title, draw in drawers.items():
            figure, axes = _sheet(WIDE_INCHES if title == SIZE else INCHES)
            if draw(axes):
                pictures[title] = _picture(figure, form)
    return pictures


def _newest_of_each(history: History) -> list[Line]:
    """The last line of each release, by number."""
    found = {line["release"]: line for line in history}
    return [found[number] for number in sorted(found)]


def _with_expenses(releases: Sequence[Line]) -> list[Line]:
    """Each release with what it took itself: the history holds what the pipeline has spent in its
    life."""
    found: list[Line] = []
    for before, now in zip([{}, *releases], releases, strict=False):
        tokens, seconds, usd = (
            _grown(before, now, name) for name in ("embedded_tokens", "provider_seconds", "usd")
        )
        found.append(
            {
                **now,
                "tokens_per_second": tokens / seconds if seconds else None,
                "usd": usd if tokens else None,
            }
        )
    return found


def _grown(before: Line, now: Line, name: str) -> float:
    """By how much a sum has grown; one that is less than it was has begun anew."""
    old, new = before.get(name) or 0.0, now.get(name) or 0.0
    return float(new - old if new >= old else new)


def _variance(axes: "Axes", spectrum: NDArray[np.float32] | None, dimensions: int | None) -> bool:
    if spectrum is None or not len(spectrum):
        return False
    shares = np.concatenate([[0.0], np.cumsum(spectrum, dtype=np.float64)])
    axes.plot(range(len(shares)), shares, color=COLOURS[0], linewidth=1.8)
    axes.fill_between(range(len(shares)), shares, color=COLOURS[0], alpha=0.08, linewidth=0)
    if dimensions is not None and 0 < dimensions < len(shares):
        kept = float(shares[dimensions])
        axes.plot(
            [dimensions, dimensions, 0],
            [0, kept, kept],
            color=PALE,
            linewidth=0.9,
            linestyle=(0, (3, 2)),
        )
        axes.plot([dimensions], [kept], "o", color=COLOURS[1], markersize=6)
        right = dimensions < len(spectrum) * 0.6
        axes.annotate(
            f"{dimensions} dimensions keep {kept:.1%}",
            (dimensions, kept),
            xytext=(9 if right else -9, -14),
            textcoords="offset points",
            ha="left" if right else "right",
            color=INK,
        )
    axes.set(
        xlim=(0, len(spectrum)),
        ylim=(0, 1.03),
        xlabel="principal directions",
        ylabel="share of squared length",
    )
    axes.yaxis.set_major_formatter(_percent())
    return True


def _over_releases(title: str, releases: Sequence[Line]) -> "Callable[[Axes], bool]":
    from matplotlib.ticker import MaxNLocator

    def draw(axes: "Axes") -> bool:
        drawn = 0
        for colour, (name, label) in zip(COLOURS, LINES[title].items(), strict=False):
            found = [
                (line["release"], value)
                for line in releases
                if (value := _value(line, name)) is not None
            ]
            if len(found) > 1 and (title != COST or any(value for _, value in found)):
                axes.plot(
                    *zip(*found, strict=True),
                    "o-",
                    color=colour,
                    linewidth=1.6,
                    markersize=4.5,
                    label=label,
                )
                drawn += 1
        _mark_changes(axes, releases)
        axes.set(xlabel="release", ylabel=AXES[title])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if title != RECALL:
            axes.set_ylim(bottom=0)
        if drawn > 1:
            axes.legend(
                frameon=False,
                labelcolor=INK,
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                ncols=2,
            )
        return drawn > 0

    return draw


def _value(line: Line, name: str) -> float | None:
    """A measure of a release, or what it took itself; None if it has none."""
    value = line.get("metrics", {}).get(name, line.get(name))
    return None if value is None or not np.isfinite(value) else float(value)


def _mark_changes(axes: "Axes", releases: Sequence[Line]) -> None:
    """A thin line where vectors began to come from another model or another compression."""
    for before, now in itertools.pairwise(releases):
        changed = [
            word
            for name, word in (("space", "model"), ("codec", "compression"))
            if before[name] != now[name]
        ]
        if changed:
            between, bottom = (before["release"] + now["release"]) / 2, axes.get_xaxis_transform()
            axes.axvline(between, color=PALE, linewidth=0.9, linestyle=(0, (1, 2)))
            words = f"new {changed[0]}"
            axes.annotate(
                words,
                (between, 0.02),
                xycoords=bottom,
                fontsize=7.5,
                color=PALE,
                rotation=90,
                ha="right",
            )


def _sheet(inches: tuple[float, float]) -> "tuple[Figure, Axes]":
    """An empty chart; not pyplot's, which keeps figures and asks for a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=PALE, labelcolor=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(True, axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _picture(figure: "Figure", form: Form) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format=form,
        dpi=144,
        metadata={"Date": None} if form == "svg" else {"Software": None},
    )
    return buffer.getvalue()


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)
