"""The chart of what `optimize` measured: bytes a vector against recall, and the front of what
nothing beats."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = Mapping[str, Any]  # of quality/optimization.json

FRONT, OTHER, CHOSEN, INK = "#1f5a99", "#8a919c", "#c8501e", "#2b2f36"
LABEL_HEIGHT = 0.04  # of the chart: a label nearer to another one would cover it


def described(compression: Sequence[Mapping[str, Any]]) -> str:
    """A chain, as a pipeline file says it, in a few words: `pca 128, int8`; `float32` for none."""
    return ", ".join(" ".join(_words(options)) for options in compression) or "float32"


def _words(options: Mapping[str, Any]) -> list[str]:
    return [
        f"{value}" if name in ("kind", "dimensions") else f"{name} {value}"
        for name, value in options.items()
    ]


def searched(point: Point) -> str:
    """Its index and how much is refined: `sq ×2`; empty if the point does not say."""
    index, refine = point.get("index"), point.get("refine")
    return " ".join(
        [
            *(["no index" if index == "none" else index] if index else []),
            *([f"×{refine}"] if refine else []),
        ]
    )


def draw_sizes(axes: "Axes", tuning: Mapping[str, Any] | None) -> bool:
    """Bytes a vector against recall; bars reach down to the lower bound. False if nothing was
    measured."""
    points = [
        point for point in (tuning or {}).get("points", ()) if point.get("recall_at_10") is not None
    ]
    if not points:
        return False
    assert tuning
    front = sorted(
        (point for point in points if point.get("on_front")),
        key=lambda point: point["bytes_per_vector"],
    )
    for chosen, colour, label, size in (
        ([point for point in points if not point.get("on_front")], OTHER, "measured", 3.5),
        (front, FRONT, "on the Pareto front", 5.5),
    ):
        _with_bars(axes, chosen, colour, label, size)
    axes.plot(*_steps(front), color=FRONT, linewidth=0.9, alpha=0.5)
    for point in (point for point in points if point.get("chosen")):
        place = (point["bytes_per_vector"], point["recall_at_10"])
        axes.plot(
            *place,
            "*",
            color=CHOSEN,
            markersize=16,
            label="chosen",
            zorder=5,
            markeredgecolor="white",
        )
    _label_apart(axes, sorted(front, key=lambda point: not point.get("chosen")))
    if tuning.get("floor") is not None:
        axes.axhline(
            tuning["floor"],
            color=CHOSEN,
            linewidth=0.9,
            linestyle=(0, (4, 3)),
            label="floor",
            zorder=1,
        )
    axes.set_xscale("log")
    _plain_sizes(axes, [point["bytes_per_vector"] for point in points])
    axes.set(xlabel="bytes a vector", ylabel="recall@10 against exact search")
    axes.legend(frameon=False, loc="lower right", labelcolor=INK)
    return True


def _with_bars(axes: "Axes", points: Sequence[Point], colour: str, label: str, size: float) -> None:
    if not points:
        return
    recalls = [point["recall_at_10"] for point in points]
    bounds = [point.get("lower_bound") for point in points]
    down = [
        max(0.0, recall - (recall if bound is None else bound))
        for recall, bound in zip(recalls, bounds, strict=True)
    ]
    axes.errorbar(
        [point["bytes_per_vector"] for point in points],
        recalls,
        yerr=[down, [0.0] * len(down)],
        fmt="o",
        color=colour,
        markersize=size,
        elinewidth=1,
        capsize=2.5,
        label=label,
        zorder=3,
    )


def _steps(front: Sequence[Point]) -> tuple[list[float], list[float]]:
    """The front, by size, as a staircase: what so many bytes buy at most."""
    sizes: list[float] = []
    recalls: list[float] = []
    for point in front:
        best = max([*recalls[-1:], point["recall_at_10"]])
        if recalls:
            sizes.append(point["bytes_per_vector"])
            recalls.append(recalls[-1])
        sizes.append(point["bytes_per_vector"])
        recalls.append(best)
    return sizes, recalls


def _label_apart(axes: "Axes", front: Sequence[Point]) -> None:
    """Say what points of the front are, the first ones first, where no other label stands.

    Labels stand to the upper left, where no point is that would be cheaper and better.
    """
    low, high = axes.get_ylim()
    written: list[float] = []
    for point in front:
        height = (point["recall_at_10"] - low) / (high - low)
        if any(abs(height - other) < LABEL_HEIGHT for other in written):
            continue
        written.append(height)
        words = [described(point["compression"]), searched(point)]
        axes.annotate(
            " · ".join(filter(None, words)),
            (point["bytes_per_vector"], point["recall_at_10"]),
            xytext=(-7, 4),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color=INK,
        )


def _plain_sizes(axes: "Axes", sizes: Sequence[float]) -> None:
    """Ticks where points are, as whole numbers: a logarithmic axis writes powers of ten."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    least, most = min(sizes), max(sizes)
    powers = 2.0 ** np.arange(np.floor(np.log2(least / 4)), np.ceil(np.log2(most)) + 1)
    axes.xaxis.set_major_locator(FixedLocator(powers.tolist()))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(least / 4, most * 1.5)  # room for the labels on the left
