"""What may be released, what is searched meanwhile, and the way back."""

import contextlib
import errno
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.activity import recorded
from embedding_pipelines.errors import (
    CompressionError,
    EmbeddingPipelinesError,
    ReleaseError,
    StoreError,
)
from embedding_pipelines.files import file_checksum, write_json
from embedding_pipelines.quality.evaluate import CHECKS
from embedding_pipelines.releases import live_release, read_releases, rollback
from embedding_pipelines.schemas import SPACE_ID_KEY, VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.steps.release import ReleaseStep, release
from embedding_pipelines.steps.vector_store import table_state, update_vector_store
from embedding_pipelines.storage.warehouse import Shards, Warehouse, file_digest
from embedding_pipelines_tests.chain import (
    checks_of,
    copy_home,
    live_rows,
    report,
    run_of,
    run_recorded,
    run_steps,
    steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING


def rows(n: int, word: str = "text") -> list[tuple[object, str, str]]:
    return [(f"id-{i}", f"{word} number {i}", f"c{i % 3}") for i in range(n)]


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", rows(40))
    run_steps(home, "p")
    return home


@pytest.fixture
def built(home: Path, built_once: Path) -> Path:
    return copy_home(built_once, home)


def numbers(home: Path) -> list[int]:
    return [entry.number for entry in read_releases(run_of(home, "p").folder).releases]


def live(home: Path) -> int:
    return live_release(run_of(home, "p").folder).number


# --- the gate


def spoil(shards: Shards, partition: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a shard and its manifest, as a faulty step would have written them."""
    made = shards.manifest(partition)
    assert made is not None
    path = shards.folder / made.shard
    table = change(pq.read_table(path))
    pq.write_table(table, path)
    made = replace(
        made,
        rows=table.num_rows,
        size_bytes=path.stat().st_size,
        digest=file_digest(path),
        shard_checksum=file_checksum(path),
    )
    write_json(shards.folder / f"{partition}.json", vars(made))


def with_first_vector(value: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        vectors = np.stack(table[VECTOR].to_numpy()).copy()
        vectors[0] = value
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return table.set_column(
            table.schema.get_field_index(VECTOR), table.schema.field(VECTOR), column
        )

    return change


@pytest.mark.parametrize(("value", "fault"), [(0.0, "1 zero"), (3.0, "1 not normalized")])
def test_unsound_embeddings_are_stopped(built: Path, value: float, fault: str) -> None:
    spoil_embeddings(built, with_first_vector(value))
    context = run_of(built, "p")
    update_vector_store(context)
    checks = {check.name: check for check in checks_of(context)}
    assert not checks["vectors_are_sound"].passed
    assert fault in checks["vectors_are_sound"].sentence
    refuse_release(built, "vectors_are_sound")


def test_embeddings_that_are_no_numbers_do_not_even_reach_the_table(built: Path) -> None:
    spoil_embeddings(built, with_first_vector(np.nan))
    context = run_of(built, "p")
    with pytest.raises(CompressionError, match=r"1 of .* vectors hold NaN"):
        update_vector_store(context)
    assert live(built) == 1
    assert top(built, "p", "text number 5") == ["id-5"]


def spoil_embeddings(home: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """New texts, embedded wrongly in partition b01."""
    write_csv(home, "a.csv", rows(40, "other"))
    run_to_embeddings(home)
    spoil(run_of(home, "p").folder.embeddings, "b01", change)


def run_to_embeddings(home: Path) -> None:
    """As a run that ends before the codec."""
    context = run_of(home, "p")
    for step, _ in steps(context):
        if step == "codec":
            return


def refuse_release(home: Path, check: str) -> None:
    context = run_of(home, "p")
    with pytest.raises(ReleaseError, match=check):
        release(context)
    assert live(home) == 1
    assert top(home, "p", "text number 5") == ["id-5"]


def table_of(home: Path) -> Any:
    context = run_of(home, "p")
    state = table_state(context)
    assert state is not None
    return lancedb.connect(context.warehouse.tables).open_table(state.table)


def accept_newest(home: Path) -> dict[str, Any]:
    """Pretend that the vandalised version is what the step left, and check it."""
    context = run_of(home, "p")
    state = table_state(context)
    assert state is not None
    write_json(context.folder.table_state, vars(state) | {"version": table_of(home).version})
    return {check.name: check for check in checks_of(context)}


def drop_row(table: Any) -> None:
    table.delete("chunk_id = 'id-3#0'")


def double_row(table: Any) -> None:
    table.add(table.search().where("chunk_id = 'id-3#0'").to_arrow())


def replace_row(table: Any) -> None:
    double_row(table)
    table.delete("chunk_id = 'id-4#0'")


def zero_row(table: Any) -> None:
    table.update(where="chunk_id = 'id-3#0'", values={VECTOR: [0.0] * 64})


@pytest.mark.parametrize(
    ("vandalise", "check"),
    [
        (drop_row, "counts_add_up"),
        (double_row, "counts_add_up"),
        (replace_row, "counts_add_up"),
        (zero_row, "vectors_are_sound"),
    ],
)
def test_a_vandalised_table_is_stopped_and_the_old_release_serves(
    built: Path, vandalise: Callable[[Any], None], check: str
) -> None:
    vandalise(table_of(built))
    checks = accept_newest(built)
    assert [name for name, outcome in checks.items() if outcome.blocks] == [check]
    refuse_release(built, check)


@pytest.mark.parametrize("vandalise", [drop_row, double_row, replace_row])
def test_the_next_run_puts_a_vandalised_table_right(
    built: Path, vandalise: Callable[[Any], None]
) -> None:
    before = live_rows(built, "p")
    vandalise(table_of(built))
    assert run_recorded(built, "p")[1] == []
    assert live_rows(built, "p") == before


def test_chunks_that_are_behind_their_documents_are_stopped(built: Path) -> None:
    context = run_of(built, "p")
    spoil(context.folder.documents, "b01", lambda table: table)
    made = context.folder.documents.manifest("b01")
    assert made is not None
    write_json(context.folder.documents.folder / "b01.json", vars(replace(made, digest="0" * 32)))
    context.folder.checks.unlink()
    checks = {check.name: check for check in checks_of(context)}
    assert not checks["counts_add_up"].passed
    refuse_release(built, "counts_add_up")


def test_embeddings_of_another_space_are_stopped(built: Path) -> None:
    context = run_of(built, "p")
    made = context.folder.embeddings.manifest("b01")
    assert made is not None
    write_json(
        context.folder.embeddings.folder / "b01.json", vars(replace(made, configuration="f" * 32))
    )
    context.folder.checks.unlink()
    checks = {check.name: check for check in checks_of(context)}
    assert [name for name, outcome in checks.items() if outcome.blocks] == ["space_is_one"]
    refuse_release(built, "space_is_one")


def test_a_dropped_embedding_row_never_reaches_the_table(built: Path) -> None:
    spoil_embeddings(built, lambda table: table.slice(1))
    context = run_of(built, "p")
    with pytest.raises(StoreError, match="chunks and embeddings differ"):
        update_vector_store(context)
    assert live(built) == 1
    assert top(built, "p", "text number 5") == ["id-5"]


def test_a_version_that_was_not_checked_is_not_released(built: Path) -> None:
    context = run_of(built, "p")
    write_csv(built, "a.csv", rows(39))
    run_to_embeddings(built)
    update_vector_store(context)
    with pytest.raises(ReleaseError, match="was not checked"):
        release(context)
    assert live(built) == 1


def test_a_candidate_whose_version_a_run_that_died_took_away_is_not_released(built: Path) -> None:
    write_pipeline(built, "p", HASHING.replace("may_shrink: 1", "may_shrink: 0.1"))
    write_csv(built, "a.csv", rows(4))
    with pytest.raises(ReleaseError, match="not_worse_than_live"):
        run_steps(built, "p")
    with run_of(built, "p") as run:
        live, state = live_release(run.folder), table_state(run)
        assert state is not None
        assert state.version > live.version
        run.spec.store.table(run.folder.tables, state.table).withdraw(live.version)
        with pytest.raises(
            ReleaseError, match=r"not checked\. Run `embedding-pipelines run p` first"
        ):
            release(run, "because")
        assert live_release(run.folder) == live
    assert len(live_rows(built, "p")) == 40


def test_every_release_records_the_checks_it_passed_and_its_space(built: Path) -> None:
    made = live_release(run_of(built, "p").folder)
    assert made.checks == dict.fromkeys(CHECKS, True)
    assert table_of(built).schema.metadata[SPACE_ID_KEY].decode() == made.space.id
    assert made.rows == 40


# --- the way back


@pytest.fixture(scope="module")
def three_once(built_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three releases: id-0 is 'text number 0', 'second text', 'third text'."""
    home = copy_home(built_once, tmp_path_factory.mktemp("three"))
    for word in ("second", "third"):
        write_csv(home, "a.csv", [("id-0", f"{word} text", "c0"), *rows(40)[1:]])
        run_steps(home, "p")
    return home


@pytest.fixture
def three(home: Path, three_once: Path) -> Path:
    return copy_home(three_once, home)


def text_of_first(home: Path) -> str:
    return str(live_rows(home, "p")["id-0#0"]["text"])


def test_rollback_goes_back_one_release_and_to_any_that_is_kept(three: Path) -> None:
    folder = run_of(three, "p").folder
    assert text_of_first(three) == "third text"
    before, now = rollback(folder, None)
    assert (before.number, now.number) == (3, 2)
    assert text_of_first(three) == "second text"
    rollback(folder, 1)
    assert text_of_first(three) == "text number 0"
    with pytest.raises(ReleaseError, match="no release before 1; it has 1, 2, 3"):
        rollback(folder, None)
    with pytest.raises(ReleaseError, match="no release 9"):
        rollback(folder, 9)
    rollback(folder, 3)
    assert text_of_first(three) == "third text"


def test_a_run_without_changes_does_not_undo_a_rollback(three: Path) -> None:
    rollback(run_of(three, "p").folder, 1)
    for _ in range(2):
        assert not report(run_steps(three, "p"), "release").changed
        assert live(three) == 1
    write_csv(three, "a.csv", [("id-0", "fourth text", "c0"), *rows(40)[1:]])
    run_steps(three, "p")
    assert live(three) == 4
    assert text_of_first(three) == "fourth text"
    assert numbers(three) == [1, 2, 3, 4]


def test_a_release_that_a_kill_kept_out_of_the_history_is_written_down_by_the_next_run(
    three: Path,
) -> None:
    context = run_of(three, "p")
    history = context.folder.history
    lines = history.read_text().splitlines()
    assert ReleaseStep().current(context) is not None
    for torn in ("", lines[-1][:20]):  # by a power cut
        history.write_text("\n".join(lines[:-1]) + "\n" + torn)
        assert ReleaseStep().current(context) is None
        for _ in range(2):
            assert not report(run_steps(three, "p"), "release").changed
        assert ReleaseStep().current(context) is not None
        now = history.read_text().splitlines()
        assert [json.loads(line)["release"] for line in now if line != torn] == [1, 2, 3]


def test_a_pipeline_without_a_release_says_what_to_do(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    with pytest.raises(ReleaseError, match=r"has no release yet\. Run `embedding-pipelines run p`"):
        Searcher(Warehouse(home), "p")
    with pytest.raises(ReleaseError, match="has no release yet"):
        rollback(run_of(home, "p").folder, None)
    run = run_of(home, "p")
    with pytest.raises(StoreError), recorded(run, "documents"):
        raise StoreError("too many records were rejected")
    failure = r"no release yet\. Its last run failed; mend it and .*`:\n  too many records"
    with pytest.raises(ReleaseError, match=failure):
        Searcher(Warehouse(home), "p")
    run.folder.activity.write_text("{")  # it decides nothing
    with pytest.raises(ReleaseError, match=r"has no release yet\. Run `embedding-pipelines run p`"):
        Searcher(Warehouse(home), "p")


def test_kept_releases_stay_readable_and_the_others_go(home: Path) -> None:
    write_pipeline(home, "p", HASHING + "store: {kind: lancedb, keep_releases: 3}\n")
    for n in range(7):
        write_csv(home, "a.csv", [("id-0", f"version {n}", "c0"), *rows(30)[1:]])
        run_steps(home, "p")
    assert numbers(home) == [5, 6, 7]
    for number, version in ((5, 4), (6, 5), (7, 6)):
        rollback(run_of(home, "p").folder, number)
        assert text_of_first(home) == f"version {version}"
        assert top(home, "p", "text number 7") == ["id-7"]


def test_a_begun_release_does_not_leave_its_tag_on_the_wrong_version(built: Path) -> None:
    version = live_release(run_of(built, "p").folder).version
    table_of(built).tags.create(
        "release-2", version
    )  # as a run leaves it that dies just before the pointer moves
    write_csv(built, "a.csv", rows(41))
    run_steps(built, "p")
    tags = table_of(built).tags.list()
    assert tags["release-2"]["version"] == live_release(run_of(built, "p").folder).version


# --- a changed pipeline


CHANGES = {
    "model": ("{provider: hashing}", "{provider: hashing, dimensions: 32}"),
    "codec": ("partitions: 4\n", "partitions: 4\ncompression: [int8]\n"),
    "columns": ("metadata: [cat]", "metadata: {cat: string, id: string}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_pipeline_makes_a_new_table_beside_the_old_one(built: Path, what: str) -> None:
    old_table, rows_before = (
        live_release(run_of(built, "p").folder).table,
        live_rows(built, "p"),
    )
    write_pipeline(built, "p", HASHING.replace(*CHANGES[what]))
    run_to_embeddings(built)
    assert live_rows(built, "p") == rows_before  # the file changed, what is live did not
    assert top(built, "p", "text number 5") == ["id-5"]
    run_steps(built, "p")
    assert live(built) == 2
    assert live_release(run_of(built, "p").folder).table != old_table
    assert top(built, "p", "text number 5") == ["id-5"]
    rollback(run_of(built, "p").folder, 1)
    assert live_rows(built, "p") == rows_before
    assert top(built, "p", "text number 5") == ["id-5"]
    write_pipeline(built, "p", HASHING)
    run_steps(built, "p")
    assert live(built) in (1, 3)
    assert top(built, "p", "text number 5") == ["id-5"]


def test_a_table_that_no_release_needs_is_dropped(built: Path) -> None:
    text = HASHING.replace("{provider: hashing}", "{provider: hashing, dimensions: %d}")
    text += "store: {kind: lancedb, keep_releases: 2}\n"
    write_pipeline(built, "other", HASHING)
    run_steps(built, "other")
    for dimensions in (32, 48, 96):
        write_pipeline(built, "p", text % dimensions)
        run_steps(built, "p")
    names = run_of(built, "p").spec.store.names(built / "data" / "warehouse" / "tables")
    assert sorted(name.rpartition("-")[0] for name in names) == ["other", "p", "p"]
    assert top(built, "other", "text number 5") == ["id-5"]


def test_changed_chunk_settings_give_the_chunks_of_a_rebuild(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [("long", " ".join(f"word{n}" for n in range(60)), "c")])
    run_steps(home, "p")
    assert len(live_rows(home, "p")) == 1
    write_pipeline(home, "p", HASHING + "preprocessing: {chunk: {max_tokens: 10, overlap: 0}}\n")
    run_steps(home, "p")
    found = live_rows(home, "p")
    assert [word for row in found.values() for word in row["text"].split()] == [
        f"word{n}" for n in range(60)
    ]
    assert all(len(row["text"].split()) <= 10 for row in found.values())
    assert all(name == f"long#{row['start']}" for name, row in found.items())


def test_a_lower_index_threshold_takes_effect_without_new_data(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", rows(400))
    run_steps(home, "p")
    assert list(table_of(home).list_indices()) == []
    write_pipeline(home, "p", HASHING + "store: {kind: lancedb, index_rows: 256}\n")
    run_steps(home, "p")
    assert [index.columns for index in table_of(home).list_indices()] == [[VECTOR]]
    assert top(home, "p", "text number 77") == ["id-77"]
    assert not any(entry.changed for entry in run_steps(home, "p"))


# --- what cannot be read is not gone


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("part", ["codec", "table"])
def test_an_error_that_passes_drops_no_release_and_no_table(
    built: Path, part: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call to the system that meets the codec or the table of the older release fails."""
    write_pipeline(built, "p", HASHING.replace(*CHANGES["model"]))
    folder = run_of(built, "p").folder
    old = live_release(folder)
    place = str(folder.codecs / old.codec if part == "codec" else folder.tables / old.table)
    if part == "table":  # the table of today is another one
        run_steps(built, "p")
    before = numbers(built)

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if str(path).startswith(place):
                raise OSError(number, os.strerror(number), str(path))
            return function(path, *args, **options)

        return call

    write_csv(built, "a.csv", rows(41))
    with monkeypatch.context() as patch:
        for name in ("listdir", "lstat", "stat", "scandir", "open"):
            patch.setattr(os, name, failing(getattr(os, name)))
        patch.setattr("io.open", failing(io.open))
        with contextlib.suppress(EmbeddingPipelinesError, OSError):
            run_steps(built, "p")
    assert set(before) <= set(numbers(built))
    assert old.table in run_of(built, "p").spec.store.names(folder.tables)
    run_steps(built, "p")
    assert set(before) <= set(numbers(built))
    rollback(folder, old.number)
    assert top(built, "p", "text number 5") == ["id-5"]
