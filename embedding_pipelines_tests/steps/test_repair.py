"""A warehouse that lost something, or a source that plays tricks: a run puts it right or says what
to do."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import ReleaseError, SourceError, StoreError
from embedding_pipelines.files import read_json
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import read_history, read_releases, rollback
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.repair import damaged_states
from embedding_pipelines.storage.warehouse import NEW_LINE, Shards, Warehouse
from embedding_pipelines_tests.chain import (
    assert_same_rows,
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

ROWS = [
    (number, f"word{number % 7} text number {number}", f"c{number % 3}") for number in range(60)
]
PCA = HASHING + "compression: [{kind: pca, dimensions: 16}]\n"


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one released pipeline."""
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


@pytest.fixture
def built(home: Path, built_once: Path) -> Path:
    return copy_home(built_once, home)


def rebuilt(home: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The rows that a run from nothing gives."""
    for name in ("pipelines", "data"):
        shutil.copytree(home / name, other / name, ignore=shutil.ignore_patterns("warehouse"))
    with monkeypatch.context() as patch:
        patch.setenv("EMBEDDING_PIPELINES_HOME", str(other))
        run_steps(other, "p")
        return live_rows(other, "p")


@pytest.mark.slow
def test_one_changed_row_in_a_partition_of_several_row_groups(home: Path) -> None:
    write_pipeline(home, "p", HASHING.replace("partitions: 4", "partitions: 1"))
    rows = [(number, f"text {number}", "c") for number in range(9_000)]
    write_csv(home, "a.csv", rows)
    run_steps(home, "p")
    rows[8_500] = (8_500, "quite another text", "c")
    write_csv(home, "a.csv", rows)
    reports, texts = run_recorded(home, "p")
    assert texts == ["quite another text"]
    assert report(reports, "vector_store").statistics["added"] == 1
    assert top(home, "p", "quite another text") == ["8500"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("model: {provider: hashing}", "model: {provider: hashing, dimensions: 32}"),
        ("partitions: 4", "partitions: 4\ncompression: [int8]"),
        ("metadata: [cat]", "metadata: []"),
    ],
)
def test_what_is_switched_back_is_live_again(built: Path, before: str, after: str) -> None:
    original = live_rows(built, "p")
    write_pipeline(built, "p", HASHING.replace(before, after))
    run_steps(built, "p")
    write_pipeline(built, "p", HASHING)
    reports, texts = run_recorded(built, "p")
    assert texts == []
    assert report(reports, "release").changed
    assert read_releases(run_of(built, "p").folder).live == 3
    assert_same_rows(live_rows(built, "p"), original)
    assert not report(run_steps(built, "p"), "release").changed


def test_a_changed_cleaning_of_queries_is_released_though_no_row_changed(built: Path) -> None:
    write_pipeline(built, "p", HASHING + "preprocessing: {clean: {whitespace: false}}\n")
    assert report(run_steps(built, "p"), "release").changed
    releases = read_releases(run_of(built, "p").folder)
    assert releases.get(releases.live).spec.preprocessing.clean.whitespace is False


def test_an_edit_that_keeps_size_and_times_is_seen(built: Path) -> None:
    path = built / "data" / "a.csv"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b'text number 7"', b'text nmuber 7"'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    _, texts = run_recorded(built, "p")
    assert texts == ["word0 text nmuber 7"]


@pytest.mark.parametrize("step", ["documents", "chunks", "embeddings"])
@pytest.mark.parametrize("damage", ["shard", "manifest", "half"])
def test_a_lost_partition_is_made_anew(
    built: Path,
    step: str,
    damage: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = run_of(built, "p").folder.folder / step
    (shard,) = folder.glob("b02-*.parquet")
    if damage == "shard":
        shard.unlink()
    elif damage == "manifest":
        (folder / "b02.json").unlink()
    else:
        (folder / "b02.json").write_text('{"shard": "b0')
    write_csv(built, "a.csv", [*ROWS, (900, "one more", "c")])
    _, texts = run_recorded(built, "p")
    assert texts == ["one more"]
    assert_same_rows(
        live_rows(built, "p"), rebuilt(built, tmp_path_factory.mktemp("other"), monkeypatch)
    )


def test_a_release_whose_table_is_lost_is_dropped_and_not_gone_back_to(built: Path) -> None:
    context = run_of(built, "p")
    (table,) = (built / "data" / "warehouse" / "tables").glob("*.lance")
    write_pipeline(built, "p", HASHING.replace("hashing}", "hashing, dimensions: 32}"))
    run_steps(built, "p")
    shutil.rmtree(table)
    with pytest.raises(
        ReleaseError, match=r"release 1 cannot be searched.*gone or damaged. Release 2 stays live"
    ):
        rollback(context.folder, 1)
    write_csv(built, "a.csv", [*ROWS, (900, "one more", "c")])
    run_steps(built, "p")
    assert [entry.number for entry in read_releases(context.folder).releases] == [2, 3]
    assert top(built, "p", "one more") == ["900"]


def test_a_codec_fitted_anew_does_not_take_the_place_of_a_released_one(home: Path) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    context = run_of(home, "p")
    (codec,) = context.folder.codecs.glob("*.npz")
    kept = codec.read_bytes()
    codec.unlink()
    codec.with_suffix(".copy").unlink()
    write_csv(
        home,
        "a.csv",
        [(number, f"others {number} altogether {number % 5}", "c") for number in range(80)],
    )
    run_steps(home, "p")
    with pytest.raises(ReleaseError):
        rollback(context.folder, 1)
    codec.write_bytes(kept)  # put back from a copy: both are there, under names of their own
    assert len(list(context.folder.codecs.glob("*.npz"))) == 2


def test_a_codec_that_is_lost_is_put_back_from_its_copy(home: Path) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    before, folder = live_rows(home, "p"), run_of(home, "p").folder.codecs
    (codec,), (copy,) = folder.glob("*.npz"), folder.glob("*.copy")
    for path in (codec, copy):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert not report(run_steps(home, "p"), "release").changed
        assert path.read_bytes() == content
    assert_same_rows(live_rows(home, "p"), before)


@pytest.mark.parametrize("line", ["", NEW_LINE])
def test_files_of_a_trained_model_are_no_state_in_whatever_line(home: Path, line: str) -> None:
    for own in ("", NEW_LINE):
        config = Warehouse(home).pipeline("p").models(own) / "trained" / "config.json"
        config.parent.mkdir(parents=True)
        config.write_text("{}")  # as a library writes it, without a checksum
    assert damaged_states(Warehouse(home).pipeline("p", line)) == []


def test_a_failed_run_leaves_the_rejected_table_that_is_in_force(home: Path) -> None:
    write_pipeline(home, "p", HASHING.replace("id: id,", "id: id, max_rejected: 2,"))
    path = write_csv(home, "a.csv", [*ROWS, (1, "too", "many", "cells")])
    run_steps(home, "p")
    folder = run_of(home, "p").folder
    before = folder.rejected.read_bytes()
    path.write_bytes(path.read_bytes() + b'"2","x","y","z"\n' * 5)
    with pytest.raises(
        SourceError, match=r"(?s)6 of 66 records were rejected.*rejected_by_failed_run\.parquet"
    ):
        run_steps(home, "p")
    assert folder.rejected.read_bytes() == before
    assert folder.rejected_by_failure.exists()


def test_a_folder_that_holds_the_warehouse_is_read_without_it(home: Path) -> None:
    write_pipeline(home, "p", HASHING.replace("'data/*.csv'", "data"))
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    write_csv(home, "warehouse/stray.csv", [(1, "not a source", "c")])
    assert not report(run_steps(home, "p"), "documents").changed


def test_what_another_version_laid_out_otherwise_is_made_anew(built: Path) -> None:
    folder = run_of(built, "p").folder
    before = live_rows(built, "p")
    for path in (folder.files, folder.table_state, folder.chunks.folder / "b01.json"):
        value = json.loads(path.read_text())
        entries = value["files"].values() if "files" in value else [value]
        for entry in entries:
            entry["mtime_ns"] = 1
        path.write_text(json.dumps(value))
    _, texts = run_recorded(built, "p")
    assert texts == []
    assert_same_rows(live_rows(built, "p"), before)


@pytest.mark.parametrize("damage", ["half", "flip", "lost"])
def test_a_damaged_table_of_rejections_is_made_anew(home: Path, damage: str) -> None:
    write_pipeline(home, "p", HASHING.replace("id: id,", "id: id, max_rejected: 2,"))
    write_csv(home, "a.csv", [*ROWS, (1, "too", "many", "cells")])
    run_steps(home, "p")
    path = run_of(home, "p").folder.rejected
    before, content = pq.read_table(path), bytearray(path.read_bytes())
    if damage == "lost":
        path.unlink()
    elif damage == "half":
        path.write_bytes(content[:50])
    else:
        content[20] ^= 1  # of a page
        path.write_bytes(content)
    write_csv(home, "b.csv", [(60, "one more", "c")])
    with noting(home) as (run, notes):
        list(steps(run))
    assert any("rejected.parquet was lost or damaged and is made anew" in note for note in notes)
    assert pq.read_table(path) == before
    assert len(live_rows(home, "p")) == 61


class Notes(Silent):
    """What a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@contextlib.contextmanager
def noting(home: Path) -> Iterator[tuple[Run, list[str]]]:
    progress = Notes()
    with Run(find_pipeline("p", home), Warehouse(home), progress) as run:
        yield run, progress.notes


def test_a_run_without_damage_notes_nothing(built: Path) -> None:
    with noting(built) as (run, notes):
        list(steps(run))
    assert notes == []


@pytest.mark.parametrize("step", ["documents", "chunks", "embeddings"])
def test_a_flipped_bit_in_a_shard_is_said_by_whoever_reads_it_and_mended_by_a_run(
    built: Path, step: str
) -> None:
    before = live_rows(built, "p")
    run = run_of(built, "p")
    shards = Shards(run.folder.folder / step)
    path = shards.folder / shards.required("b01").shard
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged: it holds the .* of partition 'b01'. Run"):
        list(shards.read("b01"))
    assert shards.manifest("b01") is None  # so that a run has work
    with noting(built) as (run, notes):
        list(steps(run))
    assert notes == [f"the {step} of partition b01 were damaged; made anew."]
    assert [file for file in shards.folder.iterdir() if "damaged" in file.name] == []
    assert_same_rows(live_rows(built, "p"), before)


def flip(path: Path, place: int, bit: int = 2) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["data", "_versions", "_deletions"])
def test_damage_to_the_table_is_said_by_a_search_and_mended_by_a_run(
    built: Path, part: str
) -> None:
    write_csv(built, "a.csv", ROWS[1:])
    run_steps(built, "p")
    before = live_rows(built, "p")
    folder = next((built / "data" / "warehouse" / "tables").glob("*.lance"))
    paths = [path for path in (folder / part).iterdir() if path.suffix != ".json"]
    if part == "data":
        flip(paths[0], paths[0].stat().st_size // 2)
    elif part == "_deletions":
        paths[0].unlink()
    else:
        flip(min(paths), min(paths).stat().st_size // 2)
    with pytest.raises(StoreError, match=r"cannot be used: .* is lost or damaged. Run `.* run p`"):
        top(built, "p", "word3 text number 3")
    with noting(built) as (run, notes):
        list(steps(run))
    assert any("the table is built anew" in note for note in notes)
    assert_same_rows(live_rows(built, "p"), before)
    if part == "data":
        with pytest.raises(ReleaseError, match="release 1 cannot be searched"):
            rollback(run_of(built, "p").folder, 1)
    assert not report(run_steps(built, "p"), "release").changed


def test_a_damaged_table_keeps_the_releases_of_its_whole_versions(built: Path) -> None:
    write_csv(built, "a.csv", [*ROWS, (900, "one more", "c")])
    run_steps(built, "p")
    folder = next((built / "data" / "warehouse" / "tables").glob("*.lance"))
    newest = max((folder / "data").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    flip(newest, 100)
    run_steps(built, "p")
    assert top(built, "p", "one more") == ["900"]
    rollback(run_of(built, "p").folder, 1)
    assert len(live_rows(built, "p")) == len(ROWS)


def test_a_newest_manifest_that_lance_cannot_read_is_set_aside(built: Path) -> None:
    write_csv(built, "a.csv", [*ROWS, (900, "one more", "c")])
    run_steps(built, "p")
    folder = next((built / "data" / "warehouse" / "tables").glob("*.lance"))
    newest = min((folder / "_versions").glob("*.manifest"))
    flip(newest, newest.read_bytes().rindex(b".lance") - 3, bit=7)  # no UTF-8 any more
    with pytest.raises(StoreError, match="cannot be used"):
        top(built, "p", "one more")
    rollback(run_of(built, "p").folder, 1)
    assert len(live_rows(built, "p")) == len(ROWS)  # though Lance opens no version beside it
    run_steps(built, "p")
    assert top(built, "p", "one more") == ["900"]
    run_steps(built, "p")
    numbers = [entry.number for entry in read_releases(run_of(built, "p").folder).releases]
    assert numbers == [1, 3]


def test_a_table_without_its_checksums_is_built_anew(built: Path) -> None:
    before = live_rows(built, "p")
    (path,) = (built / "data" / "warehouse" / "tables").glob("*.checksums.json")
    for content in (None, b"{}"):
        path.unlink() if content is None else path.write_bytes(content)
        assert top(built, "p", "word3 text number 3") == ["3"]
        run_steps(built, "p")
        assert_same_rows(live_rows(built, "p"), before)
        path = max(path.parent.glob("*.checksums.json"), key=lambda each: each.stat().st_mtime_ns)


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_tag_that_is_lost_takes_no_release_along(built: Path, damage: str) -> None:
    tags = next((built / "data" / "warehouse" / "tables").glob("*.lance/_refs/tags"))
    shutil.rmtree(tags) if damage == "lost" else (tags / "release-1.json").write_text("{")
    for number in range(3):
        write_csv(built, "a.csv", [*ROWS, (900, f"one more {number}", "c")])
        run_steps(built, "p")
    assert sorted(path.stem for path in tags.iterdir()) == [f"release-{n}" for n in (1, 2, 3, 4)]
    rollback(run_of(built, "p").folder, 1)
    assert len(live_rows(built, "p")) == len(ROWS)


def test_a_home_of_a_version_without_checksums_keeps_releases_and_vectors(built: Path) -> None:
    write_csv(built, "a.csv", ROWS[:-1])
    run_steps(built, "p")
    folder = run_of(built, "p").folder
    for path in (*folder.folder.rglob("*.json"), *folder.folder.rglob("*.copy")):
        if path.suffix == ".copy" or path == folder.releases_copy:
            path.unlink()
            continue
        value = read_json(path)
        if path.parent.name in ("documents", "chunks", "embeddings"):
            value.pop("checksum", None)  # of a shard
        path.write_text(json.dumps(value, indent=2))
    lines, _ = read_history(folder)
    folder.history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_csv(built, "a.csv", ROWS)
    with noting(built) as (run, notes):
        reports = [result for name, result in steps(run) if name != "checks"]
    made = sum(entry.statistics["embedded"] for entry in reports if entry.step == "embeddings")
    assert made == 0  # all are in the cache
    assert [note for note in notes if "damaged" in note and "its copy" not in note] == []
    assert "which wrote no checksums: its releases stay" in notes[0]
    assert [line["release"] for line in read_history(folder)[0]] == [1, 2, 3]
    releases = read_releases(folder)
    assert [entry.number for entry in releases.releases] == [1, 2, 3]
    rollback(folder, 1)
    assert top(built, "p", ROWS[3][1]) == ["3"]
