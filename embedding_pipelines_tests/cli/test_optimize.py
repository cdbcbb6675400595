"""`optimize` as it is typed: the file, the run, the evidence; and what happens when it cannot
be."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.cli import optimize as cli_optimize
from embedding_pipelines.environment import HOME_VARIABLE, instance_folder
from embedding_pipelines.releases import read_releases
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.codec import codec_key, codec_path
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import copy_home, run_of, write_csv
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.optimize.test_optimize import PIPELINE, write_things
from embedding_pipelines_tests.runs import run_whole

FILE = PIPELINE + "schedule: '0 2 * * *'   # nightly\n"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory, empty_instance: Path) -> Path:
    """A home whose pipeline `p` was run once, without compression."""
    home = tmp_path_factory.mktemp("optimize")
    shutil.copytree(empty_instance, instance_folder(home))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        patch.delenv("DAGSTER_HOME", raising=False)
        write_things(home, FILE)
        run_whole(home, "p")
    return home


@pytest.fixture
def built(built_once: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return copy_home(built_once, home)


def file_of(home: Path) -> str:
    return (home / "pipelines" / "p.yaml").read_text()


def state(home: Path) -> Any:
    return file_of(home), read_releases(Warehouse(home).pipeline("p"))


def test_a_chosen_compression_is_measured_written_and_released(
    command: Command, built: Path
) -> None:
    before = Searcher(Warehouse(built), "p").search("w9 w10 w11").hits
    said = command("optimize", "p", "--method", "pca", "--dimensions", "48", "--method", "int8")
    assert said.code == 0, said.err
    assert "pca 48, int8" in said.out
    assert "times less than float32 alone." in said.out
    text = file_of(built)
    chain = "compression: [{kind: pca, dimensions: 48}, {kind: int8}]"
    assert f"model: {{provider: hashing}}\n{chain}\noptimized: {{" in text
    assert text.endswith("schedule: '0 2 * * *'   # nightly\n")
    searcher = Searcher(Warehouse(built), "p")
    assert searcher.release.number == 2
    assert searcher.codec.dimensions == 48
    assert searcher.release.spec == find_pipeline("p", built)
    after = searcher.search("w9 w10 w11").hits
    assert len({hit.document_id for hit in before} & {hit.document_id for hit in after}) > 5


@pytest.mark.slow
def test_auto_finds_one_and_says_so_as_json(command: Command, built: Path) -> None:
    said = command("optimize", "--pipeline-id", "1", "--method", "auto", "--floor", "0.9", "--json")
    assert said.code == 0, said.out
    (found,) = said.results
    assert found["optimized"]["method"] == "auto"
    assert found["optimized"]["lower_bound"] >= 0.9
    assert sum(point["chosen"] for point in found["evidence"]["points"]) == 1
    assert found["run"]["run_id"]
    spec = find_pipeline("p", built)
    assert spec.optimized is not None
    assert spec.optimized.model_dump(mode="json") == found["optimized"]
    assert Searcher(Warehouse(built), "p").release.spec == spec


def test_a_pipeline_that_never_ran_is_run_first(
    command: Command, home: Path, own_instance: Path
) -> None:
    write_things(home, FILE)
    said = command("optimize", "--pipeline-id", "1", "--method", "quantization")
    assert said.code == 0, said.err
    assert "release 1, live: 1" in said.out
    assert "release 2, live: 2" in said.out
    assert "compression: [{kind: int8}]" in file_of(home)


def test_a_floor_that_is_not_kept_changes_nothing(command: Command, built: Path) -> None:
    before = state(built)
    said = command("optimize", "p", "--method", "pca", "--dimensions", "8", "--floor", "0.9")
    assert said.code == 1
    assert "pca 8" in said.out
    assert said.err.startswith("error: Pipeline 'p': pca 8 is not proven to keep a recall of 0.9.")
    said = command(
        "optimize", "p", "--method", "auto", "--dimensions", "8", "--floor", "0.9", "--json"
    )
    assert said.code == 1
    assert "keep a recall of 0.9 in 500 ms" in said.errors[0]
    said = command("optimize", "p", "--method", "auto", "--floor", "1", "--json")
    assert said.code == 1
    assert "cannot prove a recall of 1" in said.errors[0]
    assert state(built) == before


def test_a_run_that_does_not_release_puts_the_file_back(command: Command, built: Path) -> None:
    path = built / "pipelines" / "p.yaml"
    path.write_text(FILE + "evaluation: {require: {recall_at_10: 0.9}}\n")
    before = state(built)
    said = command("optimize", "p", "--method", "pca", "--dimensions", "8")
    assert said.code == 1
    assert "The file of 'p' is as it was. To release this compression nevertheless" in said.err
    assert state(built) == before


@pytest.mark.slow
def test_a_codec_that_was_fitted_anew_and_not_released_is_not_in_force(
    command: Command, built: Path
) -> None:
    assert command("optimize", "p", "--method", "pca", "--dimensions", "48").code == 0
    context = run_of(built, "p")
    before = codec_path(context)
    write_csv(
        built,
        "b.csv",
        [(f"b-{n}", f"w{n} w{n + 3} w{n + 5}", "c") for n in range(60)],  # words of the others
    )
    run_whole(built, "p")
    assert codec_path(context) == before
    path = built / "pipelines" / "p.yaml"
    path.write_text(file_of(built) + "evaluation: {require: {recall_at_10: 1.1}}\n")
    said = command("optimize", "p", "--method", "pca", "--dimensions", "48")
    assert said.code == 1
    assert "required_metrics_hold" in said.err
    fitted = codec_key(run_of(built, "p"))
    assert len(list(context.folder.codecs.glob(f"{fitted}-*.npz"))) == 2
    assert codec_path(context) == before


def test_ctrl_c_in_the_run_puts_the_file_back(
    command: Command, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        assert "int8" in file_of(built)
        raise KeyboardInterrupt

    before = state(built)
    monkeypatch.setattr(cli_optimize, "run_one", interrupted)
    said = command("optimize", "p", "--method", "int8")
    assert said.code == 130
    assert said.err.endswith("Stopped. The file of 'p' is as it was.\n")
    assert state(built) == before
    as_json = command("optimize", "p", "--method", "int8", "--json")
    assert (as_json.code, as_json.err) == (130, "")
    assert as_json.errors == ["Stopped. The file of 'p' is as it was."]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--method", "int8"], 2, "Name one pipeline, as PIPELINE or by --pipeline-id"),
        (["p", "--pipeline-id", "p", "--method", "int8"], 2, "Name one pipeline"),
        (["q", "--method", "int8"], 1, "There is no pipeline 'q'"),
        (["p", "--method", "int9"], 2, "--method is 'int9'"),
    ],
)
def test_what_is_typed_wrong_is_said_in_one_sentence(
    command: Command, home: Path, arguments: list[str], code: int, said: str
) -> None:
    write_things(home)
    found = command("optimize", *arguments)
    assert found.code == code
    assert said in found.err
    assert file_of(home) == PIPELINE


@pytest.mark.parametrize(
    "arguments", [["p"], ["p", "--method", "int8", "--floor", "2"], ["p", "--dimensions", "0"]]
)
def test_a_wrong_command_ends_with_2_and_the_way_to_its_help(
    command: Command, home: Path, arguments: list[str]
) -> None:
    found = command("optimize", *arguments)
    assert (found.code, found.out) == (2, "")
    assert "embedding-pipelines optimize --help` shows" in " ".join(found.err.split())
