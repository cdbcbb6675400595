"""codec and embeddings: fitted once and kept, anew where asked for; wrong sizes and orders are
told."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import CompressionError, ConfigError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.providers.base import InputType, Response
from embedding_pipelines.providers.hashing import Hashing, HashingModel
from embedding_pipelines.releases import live_release, read_releases, rollback
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.steps.chunks import ChunksStep
from embedding_pipelines.steps.codec import CodecStep, codec_key, codec_path, fit_codec, load_codec
from embedding_pipelines.steps.vector_store import update_vector_store
from embedding_pipelines.vectors import unit
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    live_rows,
    report,
    run_of,
    run_steps,
    steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.runs import Collected

PCA = HASHING + "compression: [{kind: pca, dimensions: 8}, int8]\n"
ROWS = [(n, f"text number {n} about subject{n % 7}", "c") for n in range(80)]
MORE_ROWS = [(f"new-{n}", f"text number {n} about subject{n % 7}", "c") for n in range(80, 280)]
OTHER_ROWS = [
    (f"new-{n}", f"entirely different words{n % 11} of kind{n % 5}", "c") for n in range(200)
]


class Passes(Collected):
    """Notes, and how often all vectors were read for the codec."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        self.passes += step == "codec" and done == total


def fitted(home: Path, compression: str, again: bool = False) -> Passes:
    """What is seen while the codec is fitted to vectors that are there already."""
    write_pipeline(home, "p", HASHING + f"compression: {compression}\n")
    seen = Passes()
    run = run_of(home, "p")
    run.progress = seen
    list(CodecStep().work(run, [], {"refit": again}))
    return seen


def two_codecs(home: Path) -> tuple[Run, Path, Path]:
    """A pipeline whose codec was fitted, and fitted anew when there was more; both files."""
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    context = run_of(home, "p")
    first = codec_path(context)
    write_csv(home, "b.csv", MORE_ROWS)
    run_steps(home, "p")
    fit_codec(context)
    second = codec_path(context)
    assert first is not None
    assert second is not None
    return context, first, second


def test_new_data_does_not_move_the_space_under_stored_vectors(home: Path) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    statistics = report(run_steps(home, "p"), "codec").statistics
    assert (statistics["dimensions"], statistics["dtype"], statistics["bytes_per_vector"]) == (
        8,
        "int8",
        8,
    )
    write_csv(home, "b.csv", [("new", "entirely other words", "c")])
    again = report(run_steps(home, "p"), "codec")
    assert not again.changed
    assert again.statistics["codec"] == statistics["codec"]
    assert top(home, "p", "entirely other words") == ["new"]


def test_two_homes_fit_the_same_codec_to_the_same_data(home: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    for folder in (home, other):
        write_pipeline(folder, "p", PCA)
        write_csv(folder, "a.csv", ROWS)
        run_steps(folder, "p")
    assert load_id(home) == load_id(other)


def load_id(home: Path) -> str:
    context = run_of(home, "p")
    return load_codec(context).id


def test_a_damaged_codec_is_fitted_anew(home: Path) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    context, before = run_of(home, "p"), live_rows(home, "p")
    codec_path(context).write_bytes(b"half a file")
    with pytest.raises(CompressionError, match="no codec that can be read"):
        top(home, "p", "text number 3")
    run_steps(home, "p")
    assert_same_rows(live_rows(home, "p"), before)


def test_fitting_again_makes_a_new_table_beside_the_old_and_mixes_nothing(home: Path) -> None:
    context, first, second = two_codecs(home)
    query, before = "text number 3 about subject3", live_rows(home, "p")
    old, searcher = live_release(context.folder), Searcher(context.warehouse, "p")
    hits = searcher.search(query).hits
    report_of_table = report(run_steps(home, "p"), "vector_store")
    new = live_release(context.folder)
    assert (old.codec, new.codec) == (first.name, second.name)
    assert old.table != new.table
    assert report_of_table.statistics["added"] == len(ROWS) + len(MORE_ROWS) == new.rows

    vectors = {}
    for partition in context.spec.partition_names:
        for batch in context.folder.embeddings.read(partition):
            vectors.update(
                zip(batch["chunk_id"].to_pylist(), batch[VECTOR].to_pylist(), strict=True)
            )
    for path, rows in ((first, before), (second, live_rows(home, "p"))):
        codec = CodecChain.load(path)
        assert rows.keys() == vectors.keys()
        expected = codec.encode(np.array([vectors[name] for name in rows], np.float32))
        assert np.array_equal(
            np.array([row[VECTOR] for row in rows.values()], np.float32), expected
        )

    assert top(home, "p", query) == ["3"]
    assert searcher.search(query).hits == hits
    assert rollback(context.folder, None) == (new, old)
    assert live_rows(home, "p") == before
    assert Searcher(context.warehouse, "p").search(query).hits == hits
    assert [entry.codec for entry in read_releases(context.folder).releases] == [
        first.name,
        first.name,
        second.name,
    ]


def test_fitting_again_to_the_same_vectors_changes_nothing(home: Path) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    context = run_of(home, "p")
    before = codec_path(context)
    fit_codec(context)
    assert codec_path(context) == before
    assert [
        entry.changed for entry in run_steps(home, "p") if entry.step in ("vector_store", "release")
    ] == [False] * 2


def test_the_pointer_says_which_codec_is_in_force_and_without_it_the_newest_is(home: Path) -> None:
    context, first, second = two_codecs(home)
    pointer = context.folder.codecs / "current.json"
    assert first != second
    assert read_json(pointer) == {codec_key(context): second.name}
    write_json(pointer, {codec_key(context): first.name})
    assert codec_path(context) == first
    for damaged in (
        "{half",
        "[]",
        f'{{"{codec_key(context)}": 3}}',
        '{"other": "file.npz"}',
        "{}",
        None,
    ):
        pointer.unlink() if damaged is None else pointer.write_text(damaged)
        assert codec_path(context) == second
    os.utime(first, ns=(2 * second.stat().st_mtime_ns,) * 2)
    assert codec_path(context) == first
    first.unlink()
    assert codec_path(context) == second


# --- what it keeps of the present vectors


PEAKS = [(f"peak-{n}", f"peak{n} of kind{n % 5}", "c") for n in range(200)]


class Peaked(HashingModel):
    """Gives texts of peaks vectors of a few large numbers."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        vectors = super().embed(inputs, input_type).vectors
        peaked = [text.startswith("peak") for text in inputs]
        vectors[peaked] **= 5
        return Response(unit(vectors))


@pytest.mark.parametrize(
    ("compression", "few", "many"),
    [
        ("[{kind: pca, dimensions: 8}]", ROWS[:20], OTHER_ROWS),
        ("[{kind: pca, dimensions: 8}, int8]", ROWS[:3], OTHER_ROWS),
        ("[int8]", ROWS[:20], PEAKS),
        ("[binary]", ROWS[:20], PEAKS),
        ("[{kind: truncate, dimensions: 48}, int8]", ROWS[:20], PEAKS),
        ("[{kind: pca, dimensions: 16}, {kind: binary, rescore: int8}]", ROWS[:20], OTHER_ROWS),
    ],
)
def test_a_codec_that_was_fitted_to_other_texts_is_refitted_and_told(
    home: Path, compression: str, few: list[tuple[object, ...]], many: list[tuple[object, ...]]
) -> None:
    write_pipeline(home, "p", HASHING + f"compression: {compression}\n")
    write_csv(home, "a.csv", few)
    model = Peaked(Hashing(), home)
    run_steps(home, "p", model)
    context, progress = run_of(home, "p", model), Collected()
    old = live_release(context.folder)
    stale = load_codec(context)
    write_csv(home, "b.csv", many)
    context.progress = progress
    reports = {entry.step: entry for name, entry in steps(context) if name != "checks"}
    assert reports["codec"].changed
    (note,) = [note for note in progress.notes if "fitted to other texts" in note]
    new = live_release(context.folder)
    assert (new.number, new.rows) == (2, len(few) + len(many))
    assert (new.codec == old.codec, new.table == old.table) == (False, False)
    vectors = np.concatenate(
        [
            np.array(batch[VECTOR].to_pylist(), np.float32)
            for name in context.spec.partition_names
            for batch in context.folder.embeddings.read(name, [VECTOR])
        ]
    )
    kept, before = (
        float(codec.kept_energy(vectors).mean()) for codec in (load_codec(context), stale)
    )
    assert kept > before + 0.002
    assert reports["codec"].statistics["kept_energy_now"] == pytest.approx(kept, abs=1e-5)
    assert f"it keeps {before:.1%} of" in note
    assert f"and {kept:.1%} once" in note
    fresh = CodecChain.fit(context.spec.compression, lambda: [vectors], 64)
    assert kept == pytest.approx(float(fresh.kept_energy(vectors).mean()), abs=1e-4)
    assert not any(entry.changed for entry in run_steps(home, "p"))


@pytest.mark.parametrize(
    "compression", ["[{kind: pca, dimensions: 8}, int8]", "[int8]", "[binary]"]
)
def test_more_of_the_same_kind_keeps_the_codec(home: Path, compression: str) -> None:
    write_pipeline(home, "p", HASHING + f"compression: {compression}\n")
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    before = load_id(home)
    write_csv(home, "b.csv", MORE_ROWS)
    again = report(run_steps(home, "p"), "codec")
    assert not again.changed
    assert load_id(home) == before
    assert 0 < again.statistics["kept_energy_now"] <= 1


def test_what_has_been_measured_is_not_measured_again_and_what_is_lost_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    record = run_of(home, "p").folder.codec_fit
    content = record.read_text()
    assert CodecStep().current(run_of(home, "p")) is not None
    for damage in ("{half", "[]", "{}", '{"a": 1}', content.replace('"now"', '"later"'), None):
        record.unlink() if damage is None else record.write_text(damage)
        assert CodecStep().current(run_of(home, "p")) is None
        before = load_id(home)
        assert not report(run_steps(home, "p"), "codec").changed
        assert (load_id(home), record.read_text()) == (before, content)


@pytest.mark.parametrize(
    "compression",
    [
        "[{kind: pca, dimensions: 32}]",
        "[{kind: pca, dimensions: 32}, int8]",
        "[{kind: pca, dimensions: 64}, binary]",
        "[{kind: truncate, dimensions: 32}, {kind: pca, dimensions: 16}, float16]",
        "[int8]",
        "[binary]",
    ],
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_rows_are_enough_for_every_chain(home: Path, compression: str, count: int) -> None:
    write_pipeline(home, "p", HASHING + f"compression: {compression}\n")
    write_csv(home, "a.csv", OTHER_ROWS[:count])
    run_steps(home, "p")
    assert live_release(run_of(home, "p").folder).rows == count
    assert top(home, "p", "entirely different words0 of kind0") == ["new-0"]


def test_each_compression_has_its_own_codec_in_force(home: Path) -> None:
    context, _, second = two_codecs(home)
    fitted(home, "[float16]")
    other = run_of(home, "p")
    assert codec_path(other) not in (None, second)
    assert codec_path(context) == second


def test_vectors_are_read_once_for_each_part_that_is_fitted_to_them(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    passes = {
        "[]": 0,
        "[{kind: truncate, dimensions: 32}, float16]": 0,
        "[{kind: binary, rescore: float16}]": 0,
        "[{kind: truncate, dimensions: 32}, int8]": 1,
        "[binary]": 1,
        "[{kind: pca, dimensions: 8}, int8]": 2,
    }
    assert {chain: fitted(home, chain).passes for chain in passes} == passes


def test_the_report_says_how_much_energy_is_kept(home: Path) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    statistics = report(run_steps(home, "p"), "codec").statistics
    context = run_of(home, "p")
    pca = load_codec(context).codecs[0]
    assert 0 < statistics["kept_energy"] == pca.statistics()["kept_energy"] < 1
    assert pca.arrays()["spectrum"].shape == (64,)
    write_pipeline(home, "p", HASHING)
    assert "kept_energy" not in report(run_steps(home, "p"), "codec").statistics


def test_cutting_vectors_that_were_not_made_for_it_is_noted_once_when_it_is_fitted(
    home: Path,
) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    cut = "{kind: truncate, dimensions: 8}"
    (note,) = fitted(home, f"[{cut}]").notes
    assert (
        "'words', which is not known to be trained for that (Matryoshka). `pca` of the same dimensions"
        in note
    )
    assert fitted(home, f"[{cut}]").notes == []
    assert fitted(home, f"[{cut}]", again=True).notes == [note]
    assert fitted(home, "[int8]").notes == []


@pytest.mark.parametrize("rows", [[], [(1, "", "c")]])
def test_a_codec_without_any_text_is_told_in_one_sentence(
    home: Path, rows: list[tuple[object, ...]]
) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", rows)
    with pytest.raises(CompressionError, match="'p': there is no text to fit the compression on"):
        run_steps(home, "p")


def test_output_dim_is_checked_and_never_cut_to(home: Path) -> None:
    write_csv(home, "a.csv", ROWS)
    write_pipeline(home, "p", HASHING + "output_dim: 768\n")
    with pytest.raises(
        ConfigError, match=r"output_dim is 768, but .* gives 64\. Set output_dim to 64\.$"
    ):
        run_steps(home, "p")
    short = "source: {kind: csv, path: 'data/*.csv', id: id, text: [title]}\noutput_dim: 500\npartitions: 4\n"
    write_pipeline(
        home, "p", short + "model: {provider: voyage, model: voyage-4, dimensions: 512}\n"
    )
    with pytest.raises(
        ConfigError,
        match=r"output_dim is 500.* can give 256 or 512 or 1024 or 2048: say which with",
    ):
        run_steps(home, "p")
    write_pipeline(home, "p", PCA + "output_dim: 8\n")
    run_steps(home, "p")


def test_steps_out_of_order_say_which_one_is_missing(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    context = run_of(home, "p")
    with pytest.raises(
        StoreError, match="'b00' of 'p' has no documents: materialize 'documents' first"
    ):
        list(ChunksStep().work(context, ["b00"]))
    run_steps(home, "p")
    (context.folder.embeddings.folder / "b01.json").unlink()
    with pytest.raises(StoreError, match="partition 'b01' has never been embedded"):
        update_vector_store(context)
