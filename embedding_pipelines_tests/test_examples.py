"""The shipped pipelines are run, not believed: every file. With their own model the README runs them."""

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
