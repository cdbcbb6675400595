"""A system is taken through the phases, judged after each, and what is wrong with it reaches the
reader."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks.corpus import Phase, phases
from benchmarks.errors import BenchmarkError
from benchmarks.report import as_json, print_report
from benchmarks.suite import Result, disk_parts, run_system
from embedding_pipelines_tests.benchmarks.forgetful import Forgetful, HashedRight
from embedding_pipelines_tests.benchmarks.test_corpus import documents

COUNT = 100
STEPS = phases(documents(COUNT))
TWO = STEPS[:2]  # where two show as much as four
Right: Any = HashedRight


@pytest.fixture(autouse=True)
def _weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARK_WEIGHTS", str(tmp_path))


def result_of(folder: Path, steps: list[Phase], every_phase: bool = False) -> Result:
    return run_system(
        Forgetful(), steps, folder / Forgetful.title, Right(), every_phase, lambda text: None
    )


def shown(result: Result, steps: list[Phase]) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    print_report([result], steps, result, console)
    return console.export_text()


@pytest.mark.slow
def test_every_phase_is_counted_and_judged(tmp_path: Path) -> None:
    result = result_of(tmp_path, STEPS)
    assert [phase.embedded for phase in result.phases.values()] == [COUNT, 0, 2, 20]
    assert [phase.right for phase in result.phases.values()] == [True, True, False, False]
    verdict = result.phases["change"].verdict
    assert verdict is not None
    assert len(verdict.extra) == 1
    assert all(
        phase.seconds > 0 and phase.peak_bytes > 10_000_000 for phase in result.phases.values()
    )
    rows = tmp_path / "forgetful" / "kept" / "rows.json"
    assert result.disk_parts == {"kept": rows.stat().st_size}
    assert result.disk_bytes == rows.stat().st_size

    text = shown(result, STEPS)
    assert "not after" in text
    assert "forgetful, after change: 1 extra" in text
    assert "forgetful, cold: a remark" in text
    found = json.loads(json.dumps(as_json([result], STEPS, result, "some")))
    assert found["systems"][0]["phases"]["copy"]["embedded"] == 20
    assert found["systems"][0]["ratios"]["cold"] == 1
    assert found["systems"][0]["right"] == {
        "cold": True,
        "no-op": True,
        "change": False,
        "copy": False,
    }


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ("prepare", "cannot be set up"),
        ("sync", "exit code 1"),
        ("dump", "the store cannot be read"),
    ],
)
def test_a_failure_is_a_result(
    step: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forgetful, "fails", step)
    result = result_of(tmp_path, TWO)
    assert not any(phase.right for phase in result.phases.values())
    assert problem in result.phases["cold"].problem
    assert f"no {step} today" in shown(result, TWO)


def test_what_does_everything_again_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forgetful, "remembers", False)
    result = result_of(tmp_path, TWO)
    assert [phase.measured for phase in result.phases.values()] == [True, False]
    assert "yes (cold)" in shown(result, TWO)
    assert all(
        phase.measured for phase in result_of(tmp_path, TWO, every_phase=True).phases.values()
    )


def test_neither_the_corpus_nor_the_model_counts_as_kept(tmp_path: Path) -> None:
    for name in ("corpus/corpus.jsonl", "cache/model.bin", "store/a/b/c/d/e", "state.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    assert disk_parts(tmp_path) == {".": 10, "store/a/b/c": 10}


def test_a_wrong_name_and_a_missing_peer_are_said_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main(["--systems", "nobody"]) == 1
    assert "There is no system nobody" in capsys.readouterr().err
    from benchmarks.systems.txtai import Txtai

    monkeypatch.setattr(Txtai, "requires", ("not-installed-anywhere",))
    assert command.main(["--systems", "txtai"]) == 1
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


def test_a_folder_with_other_things_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BenchmarkError, match="neither empty"):
        command._work_folder(tmp_path)
    assert command._work_folder(tmp_path / "new") == command._work_folder(tmp_path / "new")
