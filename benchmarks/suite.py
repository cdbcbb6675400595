"""Takes one system through all phases, each a process of its own, and judges each by what the store
then holds."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.corpus import FOLDER, Phase, write_phase
from benchmarks.exact import RightVectors, Verdict, verdict
from benchmarks.measure import Measured, measure
from benchmarks.systems import WEIGHTS_VARIABLE, Synced, System, weights_folder

ROOT = Path(__file__).parent.parent
CACHE = "cache"  # below a system's folder: what it keeps per machine, the model in another form for instance
NOT_KEPT = (FOLDER, CACHE)
SAID = 300  # characters of an error that a result keeps

Say = Callable[[str], None]


@dataclass(frozen=True)
class PhaseResult:
    """One phase of one system. `problem` is empty if its process ended well."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    embedded: int | None
    problem: str
    verdict: Verdict | None
    notes: list[str]
    load_before: (
        float  # runnable processes over the last minute, others' included, when the phase began
    )
    measured: bool = (
        True  # False: taken from the cold run, because this system does everything again each time
    )

    @property
    def right(self) -> bool:
        return not self.problem and self.verdict is not None and self.verdict.exact


@dataclass
class Result:
    """One system, all phases."""

    name: str
    title: str
    versions: dict[str, str]
    prepare_seconds: float = 0.0
    phases: dict[str, PhaseResult] = field(default_factory=dict)
    disk_bytes: int = 0  # all that is kept after the last phase
    disk_parts: dict[str, int] = field(default_factory=dict)  # the same by folder
    cache_bytes: int = 0  # kept per machine, not per corpus

    @property
    def peak_bytes(self) -> int:
        return max((phase.peak_bytes for phase in self.phases.values()), default=0)


def run_system(
    system: System,
    phases: list[Phase],
    folder: Path,
    right: RightVectors,
    every_phase: bool,
    say: Say,
) -> Result:
    """All phases of one system in `folder`, which is emptied first."""
    result = Result(system.name, system.title, system.versions())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    logs = folder.parent / "logs" / system.name
    environment = environment_of(folder)
    say(f"{system.title}: preparing")
    prepared = measure(system.step("prepare", folder), environment, logs / "prepare")
    result.prepare_seconds = prepared.seconds
    if prepared.code:
        problem = f"cannot be set up: {_last_words(prepared)}"
        say(f"{system.title}: {problem}")
        result.phases = {
            phase.name: PhaseResult(0.0, 0.0, 0, None, problem, None, [], 0.0) for phase in phases
        }
        return result

    before: dict[str, str] = {}
    for phase in phases:
        if result.phases and not system.remembers and not every_phase:
            cold = next(iter(result.phases.values()))
            result.phases[phase.name] = PhaseResult(
                **{**vars(cold), "measured": False, "verdict": None}
            )
            continue
        write_phase(phase, folder)
        load = os.getloadavg()[0]
        measured = measure(system.command(folder), environment, logs / phase.name)
        problem = "" if measured.code == 0 else _last_words(measured)
        synced = _said(system, measured)
        expected = {name: system.text(text) for name, text in phase.texts.items()}
        dumped = logs / f"{phase.name}-dump"
        verdict, unreadable = _judge(system, folder, environment, dumped, expected, before, right)
        result.phases[phase.name] = PhaseResult(
            seconds=round(measured.seconds, 3),
            cpu_seconds=round(measured.cpu_seconds, 3),
            peak_bytes=measured.peak_bytes,
            embedded=synced.embedded if synced else None,
            problem=problem or unreadable,
            verdict=verdict,
            notes=synced.notes if synced else [],
            load_before=round(load, 2),
        )
        before = expected
        state = problem or unreadable or str(verdict)
        embedded = synced.embedded if synced else "?"
        say(f"{system.title}: {phase.name}: {measured.seconds:.1f} s, {embedded} embedded, {state}")
    parts = disk_parts(folder)
    result.disk_parts, result.disk_bytes = parts, sum(parts.values())
    result.cache_bytes = sum(_size(path) for path in (folder / CACHE).rglob("*"))
    return result


def environment_of(folder: Path) -> dict[str, str]:
    """What a system's processes get: no network, no telemetry, a home and a cache of their own."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DAGSTER_HOME", "EMBEDDING_PIPELINES_HOME")
    }
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "EMBEDDING_PIPELINES_HOME": str(folder),
        WEIGHTS_VARIABLE: str(weights_folder()),
        "XDG_CACHE_HOME": str(folder / CACHE),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "COCOINDEX_DISABLE_USAGE_TRACKING": "1",
    }


def disk_parts(folder: Path) -> dict[str, int]:
    """Bytes of the files that a system keeps, by their folder, four levels deep at most."""
    parts: Counter[str] = Counter()
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and relative.parts[0] not in NOT_KEPT:
            parts["/".join(relative.parts[:-1][:4]) or "."] += _size(path)
    return dict(sorted(parts.items()))


def _size(path: Path) -> int:
    """Bytes that a file really takes: a sparse one (LMDB's) is larger in name."""
    if not path.is_file() or path.is_symlink():
        return 0
    status = path.stat()
    return min(status.st_size, status.st_blocks * 512)


def _said(system: System, measured: Measured) -> Synced | None:
    try:
        return system.read(measured.stdout)
    except (ValueError, IndexError, KeyError, TypeError):  # it died before it said anything
        return None


def _judge(
    system: System,
    folder: Path,
    environment: Mapping[str, str],
    logs: Path,
    texts: dict[str, str],
    before: Mapping[str, str],
    right: RightVectors,
) -> tuple[Verdict | None, str]:
    """The verdict, or why there is none. Where a system cuts a text itself, `texts` is brought to
    what it stores."""
    file = logs.with_suffix(".npz")
    file.unlink(missing_ok=True)
    dumped = measure(system.step("dump", folder, str(file)), environment, logs)
    if dumped.code:
        return None, f"the store cannot be read: {_last_words(dumped)}"
    with np.load(file) as stored:
        ids, vectors = stored["ids"].tolist(), stored["vectors"]
        for name, text in zip(
            ids, stored["texts"].tolist() if "texts" in stored else [], strict=False
        ):
            if name in texts:
                texts[name] = right.cut(texts[name], text)
    file.unlink()
    return verdict(ids, vectors, texts, before, right.of({*texts.values(), *before.values()})), ""


def _last_words(measured: Measured) -> str:
    lines = [line for line in (measured.stderr or measured.stdout).splitlines() if line.strip()]
    return f"exit code {measured.code}: {lines[-1].strip()[:SAID] if lines else 'it said nothing'}"
