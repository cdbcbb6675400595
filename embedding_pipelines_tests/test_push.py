"""Documents are checked at the door as a source checks them: all are taken, or none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.clean import clean
from embedding_pipelines.errors import ConfigError, DocumentError, ProviderError
from embedding_pipelines.push import MAX_DOCUMENTS, Pusher
from embedding_pipelines.steps.reading import forgotten_by
from embedding_pipelines.storage.forgotten import write_forgotten
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import hashing, run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.recording import Recording

REST = "model: {provider: hashing, dimensions: 16}\npartitions: 2\nevaluation: {may_shrink: 1}\n"
SHORT = (
    '{"model": {"provider": "hashing", "dimensions": 16}, "input_type": "text", "output_dim": 16}'
)
METADATA = "{price: float, day: date, tags: 'list[string]', at.place: string}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    source = f"source: {{kind: push, text: [title, text], metadata: {METADATA}}}\n"
    write_pipeline(tmp_path, "p", source + REST)
    return tmp_path


@pytest.fixture
def pusher(home: Path) -> Iterator[Pusher]:
    with Pusher(run_of(home, "p").spec, Warehouse(home)) as pusher:
        yield pusher


def words(home: Path) -> dict[str, str]:
    log = pushed_log(Warehouse(home), "p").words()
    return {name: word.kind for name, word in log.items()}


def test_the_short_form_without_files_takes_id_and_text(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "p.json").write_text(SHORT)
    spec = run_of(tmp_path, "p").spec
    assert spec.source.kind == "push"
    with Pusher(spec, Warehouse(tmp_path)) as pusher:
        receipt = pusher.put([{"id": "a", "text": "one"}])
    assert (receipt.number, receipt.documents, receipt.chunks) == (1, 1, 1)


def test_a_receipt_counts_what_happened(home: Path, pusher: Pusher) -> None:
    documents: list[dict[str, Any]] = [
        {"id": 1, "title": "A title", "text": "a text", "price": 3.5, "day": "2026-01-31"},
        {"id": "two", "text": ["some", "parts"], "tags": ["x", "y"], "at": {"place": "Bern"}},
        {"id": "two", "text": "the later one counts", "colour": "red"},
    ]
    receipt = pusher.put(documents)
    assert (receipt.documents, receipt.chunks, receipt.embedded) == (2, 3, 3)
    assert receipt.ignored == ["colour"]
    assert pusher.put(documents).embedded == 0
    receipt = pusher.delete(["1", "nope"])
    assert (receipt.documents, receipt.unknown) == (2, ["nope"])
    assert pusher.delete(["1"]).unknown == ["1"]
    assert words(home) == {"1": "delete", "two": "put", "nope": "delete"}
    assert pusher.withdraw(["two", "three"]).unknown == ["three"]


@pytest.mark.parametrize(
    ("documents", "problem"),
    [
        ([], "documents is empty"),
        ([{"id": "a", "text": "x"}, 3], r"documents\[1\] is 3, not an object"),
        ([{"text": "x"}], r"documents\[0\]: the id column 'id' is empty"),
        ([{"id": "", "text": "x"}], r"the id column 'id' is empty"),
        ([{"id": ["a"], "text": "x"}], r"field 'id' is a list"),
        ([{"id": "a"}], r"documents\[0\] \(id 'a'\): its text is empty after cleaning"),
        ([{"id": "a", "text": " \u200b\n"}], "its text is empty after cleaning"),
        ([{"id": "a", "text": "<p></p>"}], "its text is empty after cleaning"),
        ([{"id": "a", "text": {"b": 1}}], r"field 'text' is an object"),
        ([{"id": "a", "text": "x", "price": "dear"}], r"\(id 'a'\): column 'price' is 'dear'"),
        ([{"id": "a", "text": "x", "day": "31.01.2026 or so"}], "column 'day'"),
        ([{"id": "a", "text": "x", "at": 3}], "field 'at.place'"),
        ([{"id": "a", "text": "\ud800"}], "a lone surrogate"),
        ([{"id": "a", "text": "x", "unread": "\ud800"}], "a lone surrogate"),
        ([{"id": "a", "text": object()}], "is no JSON"),
        ([{"id": str(at), "text": ""} for at in range(9)], r"documents\[2\].*; and 6 more"),
        ([{"id": "a", "text": "x"}] * (MAX_DOCUMENTS + 1), "more than 10,000"),
    ],
)
def test_what_is_no_document_is_refused_with_its_field(
    home: Path, pusher: Pusher, documents: list[Any], problem: str
) -> None:
    with pytest.raises(DocumentError, match=problem):
        pusher.put(documents)
    assert words(home) == {}


@pytest.mark.parametrize("ids", [[], [3], [""], ["\ud800"]])
def test_what_is_no_id_is_refused(home: Path, pusher: Pusher, ids: list[Any]) -> None:
    for verb in (pusher.delete, pusher.withdraw):
        with pytest.raises(DocumentError, match="ids"):
            verb(ids)
    assert words(home) == {}


def test_what_was_forgotten_does_not_come_back_unsaid(home: Path, pusher: Pusher) -> None:
    run = run_of(home, "p")
    path = run.warehouse.forgotten / "p.json"
    write_forgotten(path, forgotten_by(run).with_more({"id": ["a"]}))
    with pytest.raises(DocumentError, match=r"\(id 'a'\): it was forgotten for good.*--undo"):
        pusher.put([{"id": "a", "text": "x"}])
    pusher.put([{"id": "b", "text": "x"}])


def test_what_is_forgotten_while_it_is_embedded_is_not_written(home: Path) -> None:
    run = run_of(home, "p")

    class Slow(Recording):
        def embed(self, *arguments: Any, **options: Any) -> Any:
            with run.folder.lock("run"), pushed_log(run.warehouse, "p").hold(is_alone=True):
                forgotten = forgotten_by(run).with_more({"id": ["a"]})
                write_forgotten(run.warehouse.forgotten / "p.json", forgotten)
            return super().embed(*arguments, **options)

    pusher = Pusher(run.spec, Warehouse(home), Slow(hashing(dimensions=16)))
    with pytest.raises(DocumentError, match="forgotten for good"):
        pusher.put([{"id": "a", "text": "x"}])
    assert words(home) == {}


def test_a_run_erases_what_another_machine_pushed_while_it_was_forgotten(
    home: Path, pusher: Pusher
) -> None:
    pusher.put([{"id": "a", "text": "a secret"}, {"id": "b", "text": "x"}])
    path = Warehouse(home).forgotten / "p.json"
    write_forgotten(path, forgotten_by(run_of(home, "p")).with_more({"id": ["a"]}))
    run_steps(home, "p")
    assert {*words(home)} == {"b"}
    folder = Warehouse(home).pushed / "p"
    assert b"a secret" not in b"".join(path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"id": 1, "text": "x", "price": float("nan")}, r"documents\[1\].price is nan"),
        ({"id": 1, "text": "x", "at": {"b": [0, float("-inf")]}}, r"\[1\].at.b\[1\] is -inf"),
    ],
)
def test_numbers_that_are_none_are_refused_with_their_place(
    pusher: Pusher, document: dict[str, Any], words: str
) -> None:
    with pytest.raises(DocumentError, match=words):
        pusher.put([{"id": 0, "text": "x"}, document])


def test_nothing_is_written_where_the_model_fails(home: Path) -> None:
    class Broken(Recording):
        def embed(self, *_: Any, **__: Any) -> Any:
            raise ProviderError("The service is gone. Try again.")

    pusher = Pusher(run_of(home, "p").spec, Warehouse(home), Broken(hashing(dimensions=16)))
    with pytest.raises(ProviderError, match="is gone"):
        pusher.put([{"id": "a", "text": "x"}])
    assert words(home) == {}


def test_long_texts_are_cut_as_in_a_run(tmp_path: Path) -> None:
    write_pipeline(
        tmp_path,
        "p",
        f"input_type: text\npreprocessing: {{chunk: {{max_tokens: 8, overlap: 0}}}}\n{REST}",
    )
    with Pusher(run_of(tmp_path, "p").spec, Warehouse(tmp_path)) as pusher:
        assert pusher.put([{"id": "a", "text": "One two three four five six. " * 5}]).chunks == 5


def test_a_pipeline_of_files_takes_the_names_of_its_columns(tmp_path: Path) -> None:
    write_csv(tmp_path, "a.csv", [("1", "of a file", "x")])
    write_pipeline(
        tmp_path,
        "p",
        "source: {kind: csv, path: data/a.csv, text: title, metadata: [cat]}\n" + REST,
    )
    run_steps(tmp_path, "p")  # without source.id documents are named by file and row
    with Pusher(run_of(tmp_path, "p").spec, Warehouse(tmp_path)) as pusher:
        pusher.put([{"id": "data/a.csv:2", "title": "pushed", "cat": "y"}])
        with pytest.raises(DocumentError, match="text is empty"):
            pusher.put([{"id": "b", "text": "not a column of it"}])
    (report, *_) = run_steps(tmp_path, "p")
    assert (report.statistics["documents"], report.statistics["overruled"]) == (1, 1)


def test_a_file_that_has_changed_since_the_release_is_run_first(home: Path, pusher: Pusher) -> None:
    pusher.put([{"id": "a", "text": "x", "price": 3}])
    run_steps(home, "p")
    path = home / "pipelines" / "p.yaml"
    path.write_text(path.read_text().replace("price: float", "price: string"))
    later = Pusher(run_of(home, "p").spec, Warehouse(home))
    with pytest.raises(DocumentError, match=r"Release 1 of 'p' is of another pipeline file. Run"):
        later.put([{"id": "a", "text": "x", "price": "dear"}])
    run_steps(home, "p")
    with Pusher(run_of(home, "p").spec, Warehouse(home)) as later:
        later.put([{"id": "a", "text": "x", "price": "dear"}])


def test_a_model_that_is_trained_needs_a_run_first(tmp_path: Path) -> None:
    model = "model: {provider: word2vec, train: {dimensions: 8}}\n"
    write_pipeline(tmp_path, "p", f"source: {{kind: push}}\n{model}")
    with pytest.raises(ConfigError, match="trained on its documents"):
        Pusher(run_of(tmp_path, "p").spec, Warehouse(tmp_path))


@pytest.mark.parametrize("verb", ["run", "clean"])
def test_what_a_killed_push_left_goes(home: Path, pusher: Pusher, verb: str) -> None:
    pusher.put([{"id": "a", "text": "one"}])
    run_steps(home, "p")
    draft = pushed_log(Warehouse(home), "p").folder / ".0000000002-0000000002-0000.jsonl.1a.tmp"
    draft.write_text("half a document")
    if verb == "run":
        run_steps(home, "p")
    else:
        clean(home)
    assert not draft.exists()
