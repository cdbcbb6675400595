"""The shipped pipelines are run, not believed: every file."""

import shutil
from itertools import islice
from pathlib import Path

import pytest

from embedding_pipelines.examples import write_examples
from embedding_pipelines.search import Searcher
from embedding_pipelines.sources.base import SourceFile
from embedding_pipelines.spec.load import pipeline_files, read_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.runs import run_whole

ROOT = Path(__file__).parent.parent
SHIPPED = pipeline_files(ROOT)
SLICE_LINES = 20  # of each data file, for the quick run
MODEL = "hf:sentence-transformers/all-MiniLM-L6-v2"
# Modules of the standard library near the query in name or kind: shutil, os, tarfile.
SLOW_FILES = ("s.jsonl", "o.jsonl", "t.jsonl")
FACES = range(0x1F600, 0x1F650)  # of the characters, the emoticons and their surroundings


@pytest.fixture(scope="module")
def example_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("examples")
    write_examples(home)
    return home


@pytest.fixture
def own_home(home: Path, own_instance: Path) -> Path:
    return home


def test_two_pipelines_are_shipped() -> None:
    assert [path.name for path in SHIPPED] == ["stdlib.yaml", "unicode.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_pipeline_loads_strictly(path: Path) -> None:
    spec = read_pipeline(path)
    assert spec.name == path.stem
    assert spec.source.id is not None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_pipeline_runs_from_files_to_search(
    path: Path, example_home: Path, own_home: Path
) -> None:
    for file in read_pipeline(path).source.files(example_home):
        _copy_slice(file, example_home, own_home)
    text = path.read_text(encoding="utf-8")
    assert MODEL in text
    write_pipeline(own_home, path.stem, text.replace(MODEL, "{provider: hashing}"))
    reports = run_whole(own_home, path.stem).reports
    assert reports["documents"].statistics["rejected"] == 0
    assert reports["release"].statistics["rows"] >= SLICE_LINES - 1
    searcher = Searcher(Warehouse(own_home), path.stem)
    first = searcher.search("python", 1).hits[0]
    assert searcher.search(first.text, 3).hits[0].score > 0.99


def _copy_slice(file: SourceFile, source: Path, target: Path) -> None:
    copy = target / file.path.relative_to(source)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with file.path.open(encoding="utf-8") as lines:
        copy.write_text("".join(islice(lines, SLICE_LINES)), encoding="utf-8")


@pytest.mark.slow
def test_the_standard_library_is_found_by_what_a_function_does(
    example_home: Path, own_home: Path
) -> None:
    (own_home / "data" / "stdlib").mkdir(parents=True)
    for name in SLOW_FILES:
        shutil.copy(example_home / "data" / "stdlib" / name, own_home / "data" / "stdlib" / name)
    shutil.copytree(example_home / "pipelines", own_home / "pipelines")
    run_whole(own_home, "stdlib")
    searcher = Searcher(Warehouse(own_home), "stdlib")
    hits = searcher.search("copy a file and keep its timestamps", 3).hits
    assert "shutil.copy2" in [hit.document_id for hit in hits]
    only = searcher.search("copy a file", 10, "module = 'shutil'").hits
    assert {hit.metadata["module"] for hit in only} == {"shutil"}


@pytest.mark.slow
def test_a_character_is_found_by_what_it_shows(example_home: Path, own_home: Path) -> None:
    path = example_home / "data" / "unicode" / "characters.csv"
    lines = path.read_text(encoding="utf-8").split("\n")
    faces = [
        line
        for line in lines[1:-1]
        if int(line.split(",")[0].removeprefix("U+"), 16) in FACES or "CAT" in line
    ]
    folder = own_home / "data" / "unicode"
    folder.mkdir(parents=True)
    (folder / "characters.csv").write_text(
        "\n".join([lines[0], *dict.fromkeys([*lines[1:1000], *faces]), ""]), encoding="utf-8"
    )
    shutil.copytree(example_home / "pipelines", own_home / "pipelines")
    run_whole(own_home, "unicode")
    hits = Searcher(Warehouse(own_home), "unicode").search("smiling cat", 5).hits
    assert all("CAT FACE" in hit.text for hit in hits[:3])
