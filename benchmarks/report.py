"""What a run of the benchmark found, as one table with its notes, and as JSON. Nothing is measured
here."""

import os
import platform
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.corpus import Phase
from benchmarks.suite import PhaseResult, Result

MEGABYTE = 1e6


def print_report(
    results: list[Result], phases: list[Phase], base: Result, console: Console
) -> None:
    """The table, then what is wrong with whom, then what was done apart."""
    table = Table(
        title=f"Keeping a store true to its corpus; ratios to {base.title}", show_lines=True
    )
    table.add_column("")
    for phase in phases:
        table.add_column(f"{phase.name}\n{phase.summary}", justify="right")
    for name in ("peak MB", "disk MB"):
        table.add_column(name, justify="right")
    table.add_column("store right")
    for result in results:
        cells = [_cell(result.phases[phase.name], base.phases[phase.name]) for phase in phases]
        peak = f"{result.peak_bytes / MEGABYTE:,.0f}\n{_ratio(result.peak_bytes, base.peak_bytes)}"
        disk = f"{result.disk_bytes / MEGABYTE:,.1f}\n{_ratio(result.disk_bytes, base.disk_bytes)}"
        table.add_row(result.title, *cells, peak, disk, _right(result))
    console.print(table)
    for note in notes(results):
        console.print(f"- {note}", highlight=False, markup=False)
    apart = ", ".join(f"{result.title} {result.prepare_seconds:.1f} s" for result in results)
    console.print(f"Once per machine, before, not counted: {apart}.", highlight=False, markup=False)
    loads = [
        phase.load_before
        for result in results
        for phase in result.phases.values()
        if phase.measured
    ]
    # A shared machine shows here: the work of a phase that has just ended counts too, so about the
    # cores is usual.
    about = f"load average as the phases began {min(loads):.1f} to {max(loads):.1f}"
    console.print(
        f"{machine()['processor']}, {machine()['cores']} cores, {about}.",
        highlight=False,
        markup=False,
    )


def notes(results: list[Result]) -> list[str]:
    """What is wrong in which phase, and what a system said itself."""
    problems = []
    for result in results:
        for name, phase in result.phases.items():
            if not phase.measured:
                continue
            if phase.problem:
                problems.append(f"{result.title}, {name}: {phase.problem}")
            if phase.verdict is not None and not phase.verdict.exact:
                problems.append(f"{result.title}, after {name}: {phase.verdict}")
            problems += [f"{result.title}, {name}: {note}" for note in phase.notes]
    return problems


def as_json(
    results: list[Result], phases: list[Phase], base: Result, corpus: str
) -> dict[str, Any]:
    """All figures, and what they were measured with."""
    return {
        "corpus": corpus,
        "phases": {
            phase.name: {"summary": phase.summary, "to_embed": phase.to_embed} for phase in phases
        },
        "machine": machine(),
        "base": base.name,
        "systems": [
            {
                **asdict(result),
                "peak_bytes": result.peak_bytes,
                "ratios": {
                    name: round(phase.seconds / base.phases[name].seconds, 3)
                    for name, phase in result.phases.items()
                    if base.phases[name].seconds
                },
                "right": {
                    name: phase.right for name, phase in result.phases.items() if phase.measured
                },
            }
            for result in results
        ],
    }


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cell(phase: PhaseResult, base: PhaseResult) -> str:
    if phase.problem:
        return f"failed\nafter {phase.seconds:.1f} s"
    embedded = "?" if phase.embedded is None else f"{phase.embedded:,}"
    first = f"{'' if phase.measured else '= '}{phase.seconds:,.1f} s  {_ratio(phase.seconds, base.seconds)}"
    return f"{first}\n{embedded} embedded" if phase.measured else f"{first}\nall again"


def _ratio(value: float, base: float) -> str:
    if not base:
        return ""
    ratio = value / base
    return f"×{ratio:.2f}" if ratio < 10 else f"×{ratio:.0f}"


def _right(result: Result) -> str:
    measured = {name: phase for name, phase in result.phases.items() if phase.measured}
    faulty = [name for name, phase in measured.items() if not phase.right]
    if not faulty:
        return "yes" if len(measured) == len(result.phases) else f"yes ({', '.join(measured)})"
    return f"not after\n{', '.join(faulty)}"
