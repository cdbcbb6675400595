"""A run that would find nothing to do is recognised, and nothing else is taken for one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_pipelines.environment import instance_folder
from embedding_pipelines.files import write_json
from embedding_pipelines.orchestration.instance import ensure_instance_folder
from embedding_pipelines.progress import StepReport
from embedding_pipelines.quality.evaluate import CHECKS
from embedding_pipelines.releases import rollback
from embedding_pipelines.steps.chain import up_to_date
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    run_of,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.commands import check_envelope
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.runs import run_whole

COMPRESSED = HASHING + "compression: [{kind: pca, dimensions: 16}]\n"


def reports_of(home: Path) -> list[StepReport] | None:
    return up_to_date(run_of(home, "p"), instance_folder(home))


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that was run twice, so that there is a release to go back to."""
    home = tmp_path_factory.mktemp("unchanged")
    write_pipeline(home, "p", COMPRESSED)
    write_csv(home, "b.csv", [(f"b{n}", f"other text {n}", "y") for n in range(20)])
    for rows in (40, 50):
        write_csv(home, "a.csv", [(n, f"text number {n}", "x") for n in range(rows)])
        run_steps(home, "p")
    return home


@pytest.fixture
def built(built_once: Path, home: Path) -> Path:
    """A copy, of whose files a run knows that they are no others than they were."""
    run_steps(copy_home(built_once, home), "p")
    ensure_instance_folder(home)
    write_json(Warehouse(home).pipeline("p").last_run, {"instance": str(instance_folder(home))})
    return home


def test_it_tells_what_a_run_would_tell(built: Path) -> None:
    reports = reports_of(built)
    assert reports is not None
    assert [report.step for report in reports] == [
        *("documents", "chunks", "embeddings", "codec", "vector_store", "checks", "release")
    ]
    assert not any(report.changed for report in reports)
    run = {report.step: report.statistics for report in run_steps(built, "p")}
    for report in reports:
        if report.step in ("chunks", "embeddings"):
            assert report.statistics["partitions"] == 4
        elif report.step == "checks":
            assert report.statistics["checks"] == report.statistics["passed"] == len(CHECKS)
        else:
            assert report.statistics == run[report.step]


def damage(path: Path) -> None:
    path.write_text("{", encoding="utf-8")


def add_key(path: Path) -> None:
    state = json.loads(path.read_text())
    state["releases"][0]["other"] = 1
    path.write_text(json.dumps(state), encoding="utf-8")


def remove_key(path: Path, key: str) -> None:
    path.write_text(
        json.dumps(
            {name: part for name, part in json.loads(path.read_text()).items() if name != key}
        )
    )


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


DISTURBANCES: dict[str, Callable[[Path, Path], object]] = {
    "an edited file": lambda home, made: write_csv(home, "a.csv", [(1, "another text", "x")]),
    "a file of the same size": lambda home, made: os.utime(home / "data" / "a.csv", ns=(1, 1)),
    "a new file": lambda home, made: write_csv(home, "c.csv", [("c", "new", "x")]),
    "a deleted file": lambda home, made: (home / "data" / "b.csv").unlink(),
    "no file at all": lambda home, made: [path.unlink() for path in (home / "data").glob("*.csv")],
    "another model": lambda home, made: write_pipeline(
        home, "p", COMPRESSED.replace("hashing}", "hashing, dimensions: 32}")
    ),
    "other chunks": lambda home, made: write_pipeline(
        home, "p", COMPRESSED + "preprocessing: {chunk: {max_tokens: 4, overlap: 0}}\n"
    ),
    "another codec": lambda home, made: write_pipeline(home, "p", COMPRESSED.replace("16", "8")),
    "another index": lambda home, made: write_pipeline(
        home, "p", COMPRESSED + "store: {kind: lancedb, index_rows: 256}\n"
    ),
    "a lost shard of documents": lambda home, made: first(
        made / "documents", "b*.parquet"
    ).unlink(),
    "a lost manifest of chunks": lambda home, made: first(made / "chunks", "b*.json").unlink(),
    "a damaged manifest of embeddings": lambda home, made: damage(
        first(made / "embeddings", "b*.json")
    ),
    "a lost codec": lambda home, made: first(made / "codec", "*.npz").unlink(),
    "a damaged codec": lambda home, made: damage(first(made / "codec", "*.npz")),
    "a lost table": lambda home, made: shutil.rmtree(
        first(home / "data/warehouse/tables", "*.lance")
    ),
    "a lost state of the table": lambda home, made: (made / "vector_store.json").unlink(),
    "damaged releases": lambda home, made: damage(made / "releases.json"),
    "a foreign key in the releases": lambda home, made: add_key(made / "releases.json"),
    "a list of files without files": lambda home, made: remove_key(
        made / "documents" / "files.json", "files"
    ),
    "another seed": lambda home, made: write_pipeline(home, "p", COMPRESSED + "seed: 1\n"),
    "fewer releases to keep": lambda home, made: write_pipeline(
        home, "p", COMPRESSED + "store: {kind: lancedb, keep_releases: 3}\n"
    ),
    "an emptied instance": lambda home, made: (instance_folder(home) / "dagster.yaml").unlink(),
    "a rollback": lambda home, made: rollback(Warehouse(home).pipeline("p"), None),
    "a run that Dagster never saw": lambda home, made: (made / "last_run.json").unlink(),
    "a lost instance": lambda home, made: shutil.rmtree(instance_folder(home)),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_whatever_a_run_would_act_on_or_complain_of_is_noticed(built: Path, name: str) -> None:
    assert reports_of(built) is not None
    DISTURBANCES[name](built, Warehouse(built).pipeline("p").folder)
    assert reports_of(built) is None


def test_another_instance_has_to_see_a_run_of_its_own(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert reports_of(built) is None


CODE = """
import json, sys
from embedding_pipelines.cli.main import main
sys.argv = ["embedding-pipelines", "run", "--json"]
try:
    main()
finally:
    large = ("dagster", "lancedb", "openvino._pyopenvino", "torch")
    print(json.dumps([name for name in large if name in sys.modules]))
"""


def test_the_command_line_neither_starts_dagster_nor_loads_anything_large(home: Path) -> None:
    write_pipeline(home, "p", COMPRESSED)
    write_csv(home, "a.csv", [(n, f"text number {n}", "x") for n in range(40)])
    run_whole(home, "p")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told, modules = done.stdout.rsplit("\n", 2)[0], done.stdout.splitlines()[-1]
    assert json.loads(modules) == []
    (result,) = check_envelope(told)["results"]
    assert result["run_id"] is None
    assert [step["changed"] for step in result["steps"]] == [False] * 7
