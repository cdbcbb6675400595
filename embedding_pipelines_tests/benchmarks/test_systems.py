"""This project and the floor go through all phases and end exactly right; `hashing` stands in for
the model."""

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import Phase, phases, write_phase
from benchmarks.exact import verdict
from benchmarks.measure import measure
from benchmarks.suite import environment_of
from benchmarks.systems import MODEL, System, all_systems, counted
from benchmarks.systems import ours as ours_module
from benchmarks.systems.floor import Floor
from embedding_pipelines_tests.benchmarks.forgetful import HashedRight, hashed
from embedding_pipelines_tests.benchmarks.test_corpus import documents

COUNT = 60
RIGHT = HashedRight()


def judge(system: System, phase: Phase, folder: Path, before: dict[str, str]) -> dict[str, str]:
    """The texts of the phase; fails unless the store is exactly right."""
    stored = system.dump(folder)
    texts = {name: system.text(text) for name, text in phase.texts.items()}
    found = verdict(
        stored.ids, stored.vectors, texts, before, RIGHT.of({*texts.values(), *before.values()})
    )
    assert found.exact, (phase.name, str(found))
    return texts


def test_systems_are_found_by_their_files() -> None:
    found = all_systems()
    assert {"ours", "floor", "naive", "cocoindex", "llamaindex", "txtai"} <= found.keys()
    assert all(system.name == name for name, system in found.items())


def test_the_floor_embeds_what_is_new_and_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def embed(texts: list[str]) -> Any:
        asked.append(len(texts))
        return list(hashed(texts)) if texts else []

    monkeypatch.setattr(Floor, "_embed", staticmethod(embed))
    before: dict[str, str] = {}
    for phase in phases(documents(COUNT)):
        write_phase(phase, tmp_path)
        assert Floor().sync(tmp_path).embedded == phase.to_embed
        before = judge(Floor(), phase, tmp_path, before)
    assert sum(asked) == COUNT + 2


@pytest.mark.slow
def test_the_real_command_embeds_what_is_new_and_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = all_systems()["ours"]
    monkeypatch.setenv("BENCHMARK_WEIGHTS", str(tmp_path))
    pipeline = ours_module.FILE.replace(f"hf:{MODEL}", "{provider: hashing}")
    assert "hashing" in pipeline
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / f"{ours_module.PIPELINE}.yaml").write_text(pipeline)
    before: dict[str, str] = {}
    for phase in phases(documents(COUNT)):
        write_phase(phase, tmp_path)
        measured = measure(
            ours.command(tmp_path), environment_of(tmp_path), tmp_path / "logs" / phase.name
        )
        assert measured.code == 0, measured.stderr
        assert ours.read(measured.stdout).embedded == phase.to_embed
        before = judge(ours, phase, tmp_path, before)


def test_texts_are_counted_whoever_asks() -> None:
    class Model:
        def encode(self, texts: Any, size: int = 1) -> int:
            return size

    with counted(Model, "encode") as synced:
        assert Model().encode(["a", "b"], size=3) == 3
        Model().encode("a single one")
    Model().encode(["not counted"])
    assert synced.embedded == 3


def test_processes_get_neither_network_nor_another_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHMARK_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", "/elsewhere")
    monkeypatch.setenv("EMBEDDING_PIPELINES_HOME", "/elsewhere")
    environment = environment_of(tmp_path)
    assert "DAGSTER_HOME" not in environment
    assert environment["EMBEDDING_PIPELINES_HOME"] == str(tmp_path)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
