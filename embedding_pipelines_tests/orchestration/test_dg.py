"""Dagster's `dg` works on this project: in a copy of it. The README's test runs `dg launch`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.orchestration.instance import ensure_instance_folder
from embedding_pipelines_tests.orchestration.support import (
    environment,
    write_notes,
    write_pipeline,
)

ROOT = Path(__file__).parents[2]
COMPONENT = "embedding_pipelines.orchestration.EmbeddingPipelineComponent"


class Project:
    """A copy of this project with a home folder beside it, and `dg` at work in it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "project", folder / "home"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(
            ROOT / "embedding_pipelines", self.root / "embedding_pipelines", ignore=ignore
        )
        shutil.copy(ROOT / "pyproject.toml", self.root)
        write_pipeline(self.home)
        write_notes(self.home)

    def dg(self, *words: str, code: int = 0) -> str:
        """What a command printed; it must have ended with `code`."""
        instance = ensure_instance_folder(self.home)
        done = subprocess.run(
            [str(Path(sys.executable).with_name("dg")), *words],
            env=environment(self.home, DAGSTER_HOME=str(instance), PYTHONPATH=str(self.root)),
            cwd=self.root,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    made = Project(tmp_path)
    monkeypatch.setenv(HOME_VARIABLE, str(made.home))
    return made


def test_list_components_names_ours(project: Project) -> None:
    keys = {item["key"] for item in json.loads(project.dg("list", "components", "--json"))["items"]}
    assert {COMPONENT, "embedding_pipelines.orchestration.PipelineFolderComponent"} <= keys


@pytest.mark.slow
def test_scaffold_defs_writes_a_pipeline_that_dg_accepts_as_it_is_and_lists(
    project: Project,
) -> None:
    project.dg("scaffold", "defs", COMPONENT, "My-Products")
    project.dg("check", "defs")
    definitions = json.loads(project.dg("list", "defs", "--json"))
    steps = ("source", "documents", "chunks", "embeddings", "codec", "vector_store", "release")
    pipelines = {"notes", "my_products"}
    assert {(asset["group_name"], asset["asset_key"]) for asset in definitions["assets"]} == {
        (name, f"{name}/{step}") for name in pipelines for step in steps
    }
    names = {
        kind: {item["name"] for item in definitions[kind]}
        for kind in ("jobs", "schedules", "sensors", "resources")
    }
    assert names["jobs"] == {*pipelines, "_clean_warehouse"}
    assert names["schedules"] == {"notes_schedule", "_clean_warehouse_schedule"}
    assert names["sensors"] == {f"{name}_source_sensor" for name in pipelines}
    assert names["resources"] == {"warehouse", "model", "progress"}
    assert "counts_add_up" in {check["name"] for check in definitions["asset_checks"]}

    file = project.root / "embedding_pipelines" / "defs" / "My-Products" / "defs.yaml"
    file.write_text(file.read_text().replace("model:", "modle:"))
    problems = project.dg("check", "yaml", code=1)
    assert "defs.yaml:11" in problems
    assert "modle" in problems
