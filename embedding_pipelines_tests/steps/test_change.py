"""After any change of the source the table is that of a rebuild from nothing, and only new texts
were embedded."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import SourceError
from embedding_pipelines.search import Searcher
from embedding_pipelines.steps.codec import load_codec
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines.steps.vector_store import FEW_PARTITIONS, compare, open_table, stored_rows
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    copy_home,
    live_rows,
    report,
    run_of,
    run_recorded,
    run_steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING

Row = tuple[object, str, str]


def rows(first: int, last: int) -> list[Row]:
    return [
        (f"id-{n}", f"text number {n} about subject{n % 17}", f"c{n % 3}")
        for n in range(first, last)
    ]


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a released pipeline `p` over two files of 300 and 100 rows."""
    home = tmp_path_factory.mktemp("change")
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", rows(0, 300))
    write_csv(home, "b.csv", rows(300, 400))
    run_steps(home, "p")
    return home


@pytest.fixture
def built(built_once: Path, home: Path) -> Path:
    """A copy, of whose files a run knows that they are no others than they were."""
    write_documents(run_of(copy_home(built_once, home), "p"))
    return home


def rebuilt(home: Path, elsewhere: Path) -> dict[str, dict[str, object]]:
    """What the same files give in a home that never saw them before."""
    write_pipeline(elsewhere, "p", (home / "pipelines" / "p.yaml").read_text())
    for path in (home / "data").glob("*.csv"):
        (elsewhere / "data").mkdir(exist_ok=True)
        (elsewhere / "data" / path.name).write_bytes(path.read_bytes())
    run_steps(elsewhere, "p")
    return live_rows(elsewhere, "p")


def test_a_second_run_does_nothing_at_all(built: Path) -> None:
    reports, texts = run_recorded(built, "p")
    assert texts == []
    assert [entry.step for entry in reports if entry.changed] == []


def test_edits_additions_and_deletions_give_the_table_of_a_rebuild(
    built: Path, tmp_path_factory
) -> None:
    changed = rows(0, 300)
    changed[5:8] = [(f"id-{n}", f"edited {n}", "c9") for n in range(5, 8)]
    changed[10] = ("id-10", changed[10][1], "another category")  # the same text
    del changed[20:23]
    changed.append(("id-new", "a brand new text", "c1"))
    write_csv(built, "a.csv", changed)
    reports, texts = run_recorded(built, "p")
    assert sorted(texts) == ["a brand new text", "edited 5", "edited 6", "edited 7"]
    assert report(reports, "documents").statistics["changed_files"] == 1
    assert report(reports, "vector_store").statistics["added"] == 5
    assert report(reports, "vector_store").statistics["removed"] == 7
    assert_same_rows(live_rows(built, "p"), rebuilt(built, tmp_path_factory.mktemp("other")))


def test_a_renamed_file_embeds_and_releases_nothing(built: Path) -> None:
    before = live_rows(built, "p")
    os.rename(built / "data" / "a.csv", built / "data" / "z.csv")
    reports, texts = run_recorded(built, "p")
    assert texts == []
    assert (
        not report(reports, "vector_store").changed
        or report(reports, "vector_store").statistics["added"] == 0
    )
    assert not report(reports, "release").changed
    assert_same_rows(live_rows(built, "p"), before)


def test_a_deleted_file_takes_its_rows_along(built: Path, tmp_path_factory) -> None:
    (built / "data" / "b.csv").unlink()
    reports, texts = run_recorded(built, "p")
    assert texts == []
    assert report(reports, "vector_store").statistics["removed"] == 100
    assert_same_rows(live_rows(built, "p"), rebuilt(built, tmp_path_factory.mktemp("other")))


def test_the_texts_of_a_file_under_other_ids_are_not_embedded_again(
    built: Path, tmp_path_factory
) -> None:
    write_csv(built, "c.csv", [(f"copy of {name}", text, cat) for name, text, cat in rows(0, 300)])
    reports, texts = run_recorded(built, "p")
    assert texts == []
    assert report(reports, "vector_store").statistics["added"] == 300
    assert_same_rows(live_rows(built, "p"), rebuilt(built, tmp_path_factory.mktemp("other")))


def test_a_row_that_moves_to_another_file_changes_nothing(built: Path) -> None:
    write_csv(built, "a.csv", rows(0, 299))
    write_csv(built, "b.csv", rows(299, 400))
    reports, texts = run_recorded(built, "p")
    assert texts == []
    assert not report(reports, "release").changed


def test_a_second_pipeline_and_a_model_switched_back_embed_nothing(built: Path) -> None:
    write_pipeline(built, "q", HASHING)
    assert run_recorded(built, "q")[1] == []
    write_pipeline(
        built, "p", HASHING.replace("{provider: hashing}", "{provider: hashing, dimensions: 32}")
    )
    assert len(run_recorded(built, "p")[1]) == 400
    write_pipeline(built, "p", HASHING)
    assert run_recorded(built, "p")[1] == []


def test_two_texts_that_the_model_cannot_tell_apart_are_no_fault(home: Path) -> None:
    write_pipeline(home, "p", HASHING.replace("partitions: 4", "partitions: 1"))
    write_csv(home, "a.csv", [(1, "Apple", "x"), (2, "apple", "x")])
    run_steps(home, "p")
    assert len(live_rows(home, "p")) == 2


def test_a_row_that_stands_twice_in_the_table_is_written_anew(built: Path) -> None:
    """As another writer may leave it, since the store enforces no key."""
    run = run_of(built, "p")
    table, _ = open_table(run, load_codec(run))
    (double,) = table.scan(table.schema().names, "b00")
    table.apply(double.schema, [], [double.slice(0, 2)])
    names = run.spec.partition_names
    with stored_rows(table, names) as stored:
        before = {name: compare(run, stored(name), name) for name in names}
        for name in names[:FEW_PARTITIONS]:
            with stored_rows(table, [name]) as alone:  # which are looked for in another way
                assert alone(name).sort_by("chunk_id") == stored(name).sort_by("chunk_id")
    ids = double["chunk_id"].slice(0, 2).to_pylist()
    assert sorted(before["b00"].remove.to_pylist()) == sorted(ids)
    assert (before["b00"].added, before["b00"].new) == (2, 0)
    assert before["b00"].unchanged == double.num_rows - 2
    others = [each for name, each in before.items() if name != "b00"]
    assert not any(len(each.remove) or each.added for each in others)
    assert sum(each.unchanged for each in before.values()) == 398


def test_duplicate_ids_in_two_files_leave_the_documents_as_they_were(built: Path) -> None:
    write_pipeline(built, "p", HASHING.replace("metadata:", "duplicates: error, metadata:"))
    run_steps(built, "p")
    before = (built / "data" / "b.csv").stat()
    manifests = [run_of(built, "p").folder.documents.manifest(f"b0{n}") for n in range(4)]
    write_csv(built, "c.csv", [*rows(500, 600), ("id-7", "again", "c1")])
    with pytest.raises(
        SourceError, match=r"c\.csv:102: document id 'id-7' stands at data/a\.csv:9 too"
    ):
        write_documents(run_of(built, "p"))
    assert [run_of(built, "p").folder.documents.manifest(f"b0{n}") for n in range(4)] == manifests
    (built / "data" / "c.csv").unlink()
    assert (built / "data" / "b.csv").stat().st_mtime_ns == before.st_mtime_ns
    assert not any(entry.changed for entry in run_steps(built, "p"))


@pytest.mark.parametrize("missing", ["documents", "chunks", "embeddings"])
def test_a_lost_partition_is_made_again(built: Path, missing: str) -> None:
    before = live_rows(built, "p")
    (getattr(run_of(built, "p").folder, missing).folder / "b02.json").unlink()
    assert run_recorded(built, "p")[1] == []
    assert_same_rows(live_rows(built, "p"), before)


@pytest.mark.parametrize(
    ("content", "expected"),
    [([], 0), ([(1, "", "x"), (2, " \t ", "y")], 0), ([(1, "one", "x")], 1)],
)
def test_an_empty_source_is_released_as_an_empty_table(
    home: Path, content: list[Row], expected: int
) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", content)
    run_steps(home, "p")
    assert len(Searcher(Warehouse(home), "p").search("one").hits) == expected
    write_csv(home, "a.csv", [(1, "one", "x"), (2, "two", "y")])
    assert sorted(run_recorded(home, "p")[1]) == (["one", "two"] if not expected else ["two"])
    assert top(home, "p", "two") == ["2"]
    write_csv(home, "a.csv", [])
    run_steps(home, "p")
    assert live_rows(home, "p") == {}


STRANGE = [
    "it's",
    '"quoted"',
    "a#b#0",
    "two\nlines",
    "tab\there",
    "Ünïcødé 😀",
    "x" * 10_000,
    "%_\\",
    "NULL",
    " b ",
    "-",
]


def test_strange_ids_are_found_changed_and_removed(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(name, f"text number {n}", "x") for n, name in enumerate(STRANGE)])
    run_steps(home, "p")
    assert {row["document_id"] for row in live_rows(home, "p").values()} == set(STRANGE)
    write_csv(home, "a.csv", [(name, f"other words {n}", "y") for n, name in enumerate(STRANGE)])
    reports, _ = run_recorded(home, "p")
    assert report(reports, "vector_store").statistics["removed"] == len(STRANGE)
    found = live_rows(home, "p")
    assert {row["document_id"]: row["text"] for row in found.values()} == {
        name: f"other words {n}" for n, name in enumerate(STRANGE)
    }
    write_csv(home, "a.csv", [])
    run_steps(home, "p")
    assert live_rows(home, "p") == {}


@pytest.mark.slow
def test_256_partitions_hold_what_4_hold(built: Path) -> None:
    write_pipeline(built, "many", HASHING.replace("partitions: 4", "partitions: 256"))
    assert run_recorded(built, "many")[1] == []
    hidden = {name: {**row, "partition": ""} for name, row in live_rows(built, "many").items()}
    assert_same_rows(
        hidden, {name: {**row, "partition": ""} for name, row in live_rows(built, "p").items()}
    )


def test_long_texts_in_small_row_groups_keep_chunks_and_vectors_together(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.storage.warehouse.ROW_GROUP_BYTES", 20_000)
    write_pipeline(home, "p", HASHING.replace("partitions: 4", "partitions: 1"))
    long = [
        (n, " ".join(f"word{n * 7 + m}" for m in range(200 if n % 2 else 5)), "x")
        for n in range(120)
    ]
    write_csv(home, "a.csv", long)
    run_steps(home, "p")
    assert all(top(home, "p", text) == [str(name)] for name, text, _ in long[::13])


class Edits(RuleBasedStateMachine):
    """Random edits of up to three files with runs in between."""

    homes: Iterator[Path]  # fresh folders
    words = st.sampled_from(["red", "green", "blue", "cat", "dog", ""])
    texts = st.lists(words, min_size=1, max_size=3).map(" ".join)

    @initialize()
    def build(self) -> None:
        self.home, self.files, self.known = next(self.homes), {"a.csv": {}}, set()
        write_pipeline(self.home, "p", HASHING.replace("partitions: 4", "partitions: 2"))
        self.ids = 0

    @rule(file=st.sampled_from("ab"), text=texts, cat=st.sampled_from("xy"))
    def add(self, file: str, text: str, cat: str) -> None:
        self.ids += 1
        self.files.setdefault(f"{file}.csv", {})[f"d{self.ids}"] = (text, cat)

    @precondition(lambda self: any(self.files.values()))
    @rule(data=st.data(), text=texts, cat=st.sampled_from("xy"))
    def edit(self, data: st.DataObject, text: str, cat: str) -> None:
        file = data.draw(st.sampled_from(sorted(name for name, held in self.files.items() if held)))
        self.files[file][data.draw(st.sampled_from(sorted(self.files[file])))] = (text, cat)

    @precondition(lambda self: any(self.files.values()))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(name for name, held in self.files.items() if held)))
        del self.files[file][data.draw(st.sampled_from(sorted(self.files[file])))]

    @rule(data=st.data(), to=st.sampled_from(["c.csv", "0.csv"]))
    def rename(self, data: st.DataObject, to: str) -> None:
        if to not in self.files:
            self.files[to] = self.files.pop(data.draw(st.sampled_from(sorted(self.files))))

    @precondition(lambda self: len(self.files) > 1)
    @rule(data=st.data())
    def delete_file(self, data: st.DataObject) -> None:
        del self.files[data.draw(st.sampled_from(sorted(self.files)))]

    @rule()
    def run(self) -> None:
        self.write(self.home)
        texts = {
            " ".join(text.split()) for held in self.files.values() for text, _ in held.values()
        } - {""}
        _, embedded = run_recorded(self.home, "p")
        assert sorted(embedded) == sorted(texts - self.known)
        self.known |= texts
        other = next(self.homes)
        write_pipeline(other, "p", (self.home / "pipelines" / "p.yaml").read_text())
        self.write(other)
        run_steps(other, "p")
        assert_same_rows(live_rows(self.home, "p"), live_rows(other, "p"))

    def write(self, home: Path) -> None:
        for path in (home / "data").glob("*.csv"):
            if path.name not in self.files:
                path.unlink()
        for name, held in self.files.items():
            write_csv(home, name, [(key, text, cat) for key, (text, cat) in held.items()])


def test_any_sequence_of_edits_gives_the_table_of_a_rebuild(
    tmp_path_factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, "/nowhere")
    Edits.homes = (tmp_path_factory.mktemp("home") for _ in iter(int, 1))
    case = Edits.TestCase
    case.settings = settings(
        max_examples=6,
        stateful_step_count=10,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    case("runTest").runTest()


def test_documents_that_were_cut_at_the_limit_are_kept_and_counted_too(home: Path) -> None:
    write_pipeline(
        home,
        "p",
        HASHING.replace("hashing", "hashing, max_tokens: 8") + "preprocessing: {chunk: null}\n",
    )
    texts = [f"text {n} " + "word " * (n % 20) for n in range(60)]
    write_csv(home, "a.csv", [(n, text, "x") for n, text in enumerate(texts)])
    run_steps(home, "p")
    texts[3] = "short now"
    texts[15] += " and longer"
    write_csv(home, "a.csv", [(n, text, "x") for n, text in enumerate(texts)])
    statistics = [
        entry.statistics
        for entry in run_steps(home, "p")
        if entry.step == "chunks" and entry.changed
    ]
    assert sum(entry["documents"] - entry["reused_documents"] for entry in statistics) == 2
    whole = [entry.statistics for entry in run_steps(home, "p") if entry.step == "chunks"]
    assert sum(entry["truncated"] for entry in whole) == sum(
        len(text.split()) > 8 for text in texts
    )
