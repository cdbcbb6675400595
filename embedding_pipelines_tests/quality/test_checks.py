"""What a candidate is worth: wrong ones are stopped, each by the check that knows why, and right
ones are not."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.errors import ConfigError, ProviderError, ReleaseError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.metrics.evidence import Evidence
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.plugins import names
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Response
from embedding_pipelines.providers.hashing import Hashing, HashingModel
from embedding_pipelines.quality.base import Outcome
from embedding_pipelines.quality.checks.provider_is_unchanged import CANARIES
from embedding_pipelines.quality.evaluate import CHECKS, STRUCTURE
from embedding_pipelines.releases import live_release
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.space import Space
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.checks import ChecksStep, current_checks
from embedding_pipelines.steps.release import release
from embedding_pipelines.steps.vector_store import table_state
from embedding_pipelines.storage.warehouse import Shards, Warehouse
from embedding_pipelines.stores.lancedb import LanceTable
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.chain import (
    checks_of,
    copy_home,
    report,
    run_of,
    run_steps,
    steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import PLAIN

UNASKED = (
    "{provider_is_unchanged: off, vectors_belong_to_their_texts: off, input_types_differ: off}"
)
WORDS = [
    f"{head}{tail}"
    for head in "bcdfghklmnprstvz"
    for tail in ("ano", "iru", "ole", "usta", "emi", "oko", "ari")
]
DOCUMENTS = 700


def texts(count: int, seed: int = 0) -> list[tuple[object, str, str]]:
    """Documents of one sentence each, twenty words from a small language."""
    generator = np.random.default_rng(seed)
    kinds = ("x", "y")
    return [(f"id-{i}", " ".join(generator.choice(WORDS, 20)), kinds[i % 2]) for i in range(count)]


def write(home: Path, more: str = "") -> None:
    write_pipeline(home, "p", PLAIN + more)


@pytest.fixture(scope="module")
def released_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("released")
    write(home)
    write_csv(home, "a.csv", texts(DOCUMENTS))
    run_steps(home, "p")
    return home


@pytest.fixture
def released(home: Path, released_once: Path) -> Path:
    return copy_home(released_once, home)


def failed(checks: Sequence[Outcome]) -> list[str]:
    return [check.name for check in checks if check.blocks]


def is_settled(home: Path) -> bool:
    record = current_checks(run_of(home, "p"))
    return record is not None and record.is_settled


def live(home: Path) -> int:
    return live_release(run_of(home, "p").folder).number


def vandalize(context: Run, change: Callable[[Vectors], Vectors]) -> None:
    """Change the vectors of the table, and nothing else, as a faulty step would have written
    them."""
    state = table_state(context)
    assert state is not None
    table = context.spec.store.table(context.warehouse.tables, state.table)
    names = table.schema().names
    rows = pa.Table.from_batches(list(table.scan(names)), table.schema())
    column = rows[VECTOR].combine_chunks()
    vectors = change(column.flatten().to_numpy().reshape(len(rows), -1).copy())
    changed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    rows = rows.set_column(names.index(VECTOR), rows.schema.field(VECTOR), changed)
    table.apply(table.schema(), rows["chunk_id"].to_pylist(), rows.to_batches())
    assert table.version is not None
    write_json(context.folder.table_state, asdict(replace(state, version=table.version)))


class OtherQueries(HashingModel):
    """Embeds queries by another model than documents, and says nothing of it."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        changed = [text.upper()[::-1] for text in inputs] if input_type == "query" else inputs
        return super().embed(changed, input_type)

    @property
    def space(self) -> Space:
        return super().space.model_copy(update={"model": "other queries"})


class Prompted(HashingModel):
    """Needs to be told which is which; `deaf` to it, as a server that drops what it is told."""

    def __init__(self, deaf: bool = False) -> None:
        super().__init__(Hashing(), Path())
        self.deaf = deaf

    @property
    def space(self) -> Space:
        prompts = {"query": "query: ", "document": "passage: "}
        return super().space.model_copy(
            update={"prompts": prompts, "revision": f"deaf {self.deaf}"}
        )

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        prompt = "" if self.deaf else self.space.prompts[input_type]
        return super().embed([prompt + text for text in inputs], input_type)


def outcomes(home: Path, model: EmbeddingModel) -> dict[str, Outcome]:
    """The checks of a candidate that another model makes; it is not released."""
    for step, found in steps(run_of(home, "p", model)):
        if step == "checks":
            return {check.name: check for check in found}
    raise AssertionError


def products(count: int) -> list[tuple[object, str, str]]:
    """Titles that say what a thing is, and descriptions that say how it is sold."""
    generator = np.random.default_rng(3)
    return [
        (
            f"sku-{i}",
            " ".join(generator.choice(WORDS[:60], 4)),
            " ".join(generator.choice(WORDS[60:75], 12)),
        )
        for i in range(count)
    ]


def test_products_are_found_by_their_titles(home: Path) -> None:
    """Descriptions are alike, so that a product without its title stands behind all others."""
    write_pipeline(home, "p", PLAIN.replace("[title], metadata: [cat]", "[title, cat]"))
    write_csv(home, "a.csv", products(300))
    run_steps(home, "p")
    metrics = live_release(run_of(home, "p").folder).metrics
    assert metrics["known_item_recall"] > 0.9
    assert metrics["known_item_mrr"] > 0.8


def test_a_text_that_comes_often_is_found_under_any_of_its_ids(home: Path) -> None:
    rows = products(20)
    copies = [(f"{name}-{n}", *rest) for name, *rest in rows for n in range(30)]
    write_pipeline(home, "p", PLAIN.replace("[title], metadata: [cat]", "[title, cat]"))
    write_csv(home, "a.csv", copies)
    run_steps(home, "p")
    metrics = live_release(run_of(home, "p").folder).metrics
    assert metrics["known_item_recall"] == metrics["known_item_mrr"] >= 0.9


# --- a first release: held back for what is broken, not for what is weak


TICKET = (
    "Dear customer, thank you for writing to our support. We have received your request and will "
    "answer within two working days. Your ticket has the number {}. Please do not answer this mail."
)


def first_run(home: Path, rows: Sequence[Sequence[object]], model: EmbeddingModel | None = None):
    """The checks of a pipeline's first candidate, and what its release came to."""
    write(home)
    write_csv(home, "a.csv", rows)
    problem = ""
    try:
        run_steps(home, "p", model)
    except ReleaseError as error:
        problem = str(error)
    record = current_checks(run_of(home, "p", model))
    assert record is not None
    return {check.name: check for check in record.checks}, problem


def test_texts_that_are_nearly_the_same_are_named_as_the_cause_and_released(home: Path) -> None:
    tickets = [(f"t-{i}", TICKET.format(1_000_000 + i), "x") for i in range(900)]
    found, problem = first_run(home, tickets)
    check = found["known_items_are_found"]
    assert not check.passed
    assert "have another one at a cosine of 0.98 or more" in check.sentence
    assert "The model is not the cause: it recognizes 8 of 8 fixed texts" in check.sentence
    assert "same model, or" not in check.sentence
    assert "near_duplicate_rate is" in found["space_is_healthy"].sentence
    assert problem == ""
    assert live(home) == 1
    write_csv(home, "b.csv", [("new", TICKET.format("2,000,000"), "x")])
    run_steps(home, "p")  # nor does it hold back what follows
    assert live(home) == 2
    write(home, "evaluation: {checks: {known_items_are_found: block}}\n")
    with pytest.raises(ReleaseError, match="known_items_are_found"):
        run_steps(home, "p")


class OneVector(HashingModel):
    """Gives about the same vector to every text, as a model without its weights."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        vectors = super().embed(inputs, input_type).vectors / 1000 + np.float32(1)
        return Response(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    @property
    def space(self) -> Space:
        return super().space.model_copy(update={"model": "one vector"})


@pytest.mark.parametrize("kind", ["other queries", "one vector"])
def test_a_first_candidate_of_a_broken_model_is_held_back_and_searches_say_so(
    home: Path, kind: str
) -> None:
    model = {"other queries": OtherQueries, "one vector": OneVector}[kind](Hashing(), Path())
    found, problem = first_run(home, texts(DOCUMENTS), model)
    check = found["known_items_are_found"]
    if check.passed:  # the little that is left of the texts is enough
        assert kind == "one vector"
        return
    assert check.blocks
    assert "queries and documents are not embedded by the same model, or it gives" in check.sentence
    assert "embedding-pipelines release p --force --reason" in check.sentence
    assert "there is no release yet" in problem
    assert check.sentence in problem
    with pytest.raises(
        ReleaseError, match=r"no release yet\. Checks hold back what the last"
    ) as error:
        Searcher(Warehouse(home), "p")
    assert check.sentence in str(error.value)
    assert release(run_of(home, "p", model), "to look at it").changed
    assert live(home) == 1


def test_before_its_first_run_a_pipeline_says_run_it(home: Path) -> None:
    write(home)
    with pytest.raises(ReleaseError, match=r"no release yet\. Run `embedding-pipelines run p`"):
        Searcher(Warehouse(home), "p")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "the source gave no record from 1 file: see whether its path names the right ones"),
        ([("a", "", "x"), ("b", " ", "x")], "none of 2 records has a text: set source.text"),
    ],
)
def test_an_empty_first_table_is_told(
    home: Path, rows: list[tuple[object, ...]], reason: str
) -> None:
    found, problem = first_run(home, rows)
    check = found["table_has_rows"]
    assert (check.passed, check.effect, problem) == (False, "warn", "")
    assert check.sentence.startswith("The table is empty, so searches find nothing; ")
    assert reason in check.sentence


# --- a table that shrinks


@pytest.mark.parametrize(
    ("before", "after", "option", "held_back"),
    [
        (DOCUMENTS, 3, "", True),
        (30, 14, "", True),
        (30, 15, "", False),
        (30, 3, "may_shrink: 90%", False),
        (30, 2, "may_shrink: 90%", True),
        (30, 20, "may_shrink: 0.1", True),
        (30, 0, "may_shrink: 99%", True),
        (30, 0, "may_shrink: 1", False),
        (9, 1, "", False),  # so few that half of them say nothing
        (9, 0, "", True),
        (0, 0, "", False),
    ],
)
def test_a_fall_beyond_the_stated_share_is_held_back(
    home: Path, before: int, after: int, option: str, held_back: bool
) -> None:
    options = ", ".join(["known_items: 0", *filter(None, [option])])
    write(home, f"evaluation: {{{options}, checks: {UNASKED}}}\n")
    write_csv(home, "a.csv", texts(before))
    run_steps(home, "p")
    write_csv(home, "a.csv", texts(after))
    if not held_back:
        run_steps(home, "p")
        return
    with pytest.raises(ReleaseError, match="not_worse_than_live") as error:
        run_steps(home, "p")
    assert f"release 1 has {before:,}" in str(error.value)
    assert f"the source gave {after} records from 1 file" in str(error.value)
    assert "100.0%" not in str(error.value)
    assert "--force --reason" in str(error.value)
    assert live(home) == 1
    write_csv(home, "a.csv", texts(before))
    run_steps(home, "p")  # the export is whole again


def test_documents_count_not_the_pieces_that_they_are_cut_into(home: Path) -> None:
    rows = [(f"id-{i}", " ".join(WORDS[:60]) + f" {i}", "x") for i in range(20)]
    checks = f"evaluation: {{known_items: 0, checks: {UNASKED}}}\n"
    write(home, f"preprocessing: {{chunk: {{max_tokens: 10, overlap: 0}}}}\n{checks}")
    write_csv(home, "a.csv", rows)
    run_steps(home, "p")
    pieces = live_release(run_of(home, "p").folder).rows
    write(home, checks)
    run_steps(home, "p")
    newest = live_release(run_of(home, "p").folder)
    assert (newest.number, newest.rows, newest.metrics["documents"]) == (2, 20, 20)
    assert pieces > 100


def test_a_release_without_its_number_of_documents_is_compared_by_rows(home: Path) -> None:
    write(home)
    write_csv(home, "a.csv", texts(100))
    run_steps(home, "p")
    folder = run_of(home, "p").folder
    state = read_json(folder.releases)
    assert state is not None
    del state["releases"][0]["metrics"]["documents"]
    write_json(folder.releases, state)
    write_csv(home, "a.csv", texts(10))
    with pytest.raises(ReleaseError, match="has only 10 rows; release 1 has 100"):
        run_steps(home, "p")


# --- documents that are lost or doubled


def rewrite(context: Run, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change rows of the table, as damage would; None leaves one out."""
    state = table_state(context)
    assert state is not None
    table = context.spec.store.table(context.warehouse.tables, state.table)
    schema = table.schema()
    rows = [row for batch in table.scan(schema.names) for row in batch.to_pylist()]
    changed = [row for row in map(change, (dict(row) for row in rows)) if row is not None]
    batch = pa.RecordBatch.from_pylist(changed, schema)
    table.apply(schema, [row["chunk_id"] for row in rows], [batch])
    assert table.version is not None
    write_json(context.folder.table_state, asdict(replace(state, version=table.version)))


def as_another(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Document id-3 takes another id, in its own partition."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        if row["document_id"] == "id-3":
            row |= {"document_id": name, "chunk_id": f"{name}#0"}
        return row

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (as_another("id-4"), "1 chunks stand in the table twice"),
        (as_another("id-900"), "1 documents stand in a partition that is not that of their id"),
        (
            lambda row: None if row["document_id"] == "id-3" else row,
            "40 documents should be in the table, 39 are there",
        ),
    ],
)
def test_a_document_that_is_lost_or_stands_twice_is_noticed(
    home: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None], fault: str
) -> None:
    write(home)
    write_csv(home, "a.csv", texts(40))
    run_steps(home, "p")
    context = run_of(home, "p")
    rewrite(context, change)
    found = {check.name: check for check in checks_of(context)}["counts_add_up"]
    assert found.blocks
    assert fault in found.sentence
    assert "delete the folders documents, chunks and embeddings in" in found.sentence


# --- wrong candidates, each stopped by the check that knows why


def test_shuffled_vectors_are_stopped_since_they_are_not_those_of_their_texts(
    released: Path,
) -> None:
    context = run_of(released, "p")
    vandalize(context, lambda vectors: np.random.default_rng(0).permutation(vectors))
    found = {check.name: check for check in checks_of(context)}
    assert "vectors_belong_to_their_texts" in failed(list(found.values()))
    assert (
        "is not the one that its text has today" in found["vectors_belong_to_their_texts"].sentence
    )
    assert found["vectors_are_sound"].passed
    with pytest.raises(ReleaseError, match="vectors_belong_to_their_texts"):
        release(context)
    assert live(released) == 1


def test_a_tenth_of_the_rows_zeroed_is_stopped_since_zero_is_no_vector(released: Path) -> None:
    context = run_of(released, "p")

    def zeroed(vectors: Vectors) -> Vectors:
        vectors[::10] = 0
        return vectors

    vandalize(context, zeroed)
    found = checks_of(context)
    assert failed(found) == ["vectors_are_sound"]
    unmeasured = [check for check in found if check.name not in STRUCTURE]
    assert {check.sentence for check in unmeasured} == {"Not run, since vectors_are_sound failed."}
    with pytest.raises(ReleaseError, match="vectors_are_sound"):
        release(context, "I want it all the same")
    assert live(released) == 1


def test_queries_embedded_by_another_model_are_stopped_since_they_find_nothing(
    released: Path,
) -> None:
    found = outcomes(released, OtherQueries(Hashing(), Path()))
    assert failed(list(found.values())) == ["known_items_are_found", "not_worse_than_live"]
    assert "not embedded by the same model" in found["known_items_are_found"].sentence
    assert live(released) == 1


def test_a_server_that_drops_the_prompts_is_stopped_since_input_types_are_not_told_apart(
    released: Path,
) -> None:
    found = outcomes(released, Prompted(deaf=True))
    assert failed(list(found.values())) == ["input_types_differ"]
    assert not failed(list(outcomes(released, Prompted()).values()))


class NamedE5(HashingModel):
    """A model whose card wants prompts, used without."""

    @property
    def space(self) -> Space:
        return super().space.model_copy(update={"model": "intfloat/e5-small-v2"})


def test_a_model_that_is_not_given_the_prompts_of_its_family_is_stopped(released: Path) -> None:
    check = outcomes(released, NamedE5(Hashing(), Path()))["input_types_differ"]
    assert check.blocks
    assert "'query: '" in check.sentence
    assert "'passage: '" in check.sentence


class Changed(HashingModel):
    """A service whose model has become another one under the same name."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        return Response(super().embed(inputs, input_type).vectors[:, ::-1].copy())


def test_a_provider_that_has_silently_changed_its_model_is_stopped(released: Path) -> None:
    write_csv(released, "b.csv", [("new", "a new text", "x")])
    found = outcomes(released, Changed(Hashing(), Path()))
    assert found["provider_is_unchanged"].blocks
    assert "was changed under its name" in found["provider_is_unchanged"].sentence
    for name in ("provider_is_unchanged", "vectors_belong_to_their_texts"):  # one way out, not two
        assert "`revision`" in found[name].sentence
        assert "--re-embed" not in found[name].sentence
    with Searcher(released, "p", Changed(Hashing(), Path())) as searcher:
        notes = searcher.search("a new text").notes
    assert [note.partition(":")[0] for note in notes] == [
        "The model was changed under its name since release 1"
    ]
    assert live(released) == 1


def test_a_worse_candidate_is_held_back_until_somebody_says_why(released: Path) -> None:
    write(released, "compression: [{kind: truncate, dimensions: 8}]\n")
    with pytest.raises(ReleaseError, match="not_worse_than_live"):
        run_steps(released, "p")
    assert live(released) == 1
    context = run_of(released, "p")
    (worse,) = [check for check in checks_of(context) if check.name == "not_worse_than_live"]
    assert "Not as in release 1: compression. Go back on that, or release it." in worse.sentence
    made = release(context, "the disk is full")
    assert made.changed
    assert live(released) == 2
    assert live_release(context.folder).forced == "the disk is full"
    assert (
        json.loads(context.folder.history.read_text().splitlines()[-1])["forced"]
        == "the disk is full"
    )
    assert (
        report(run_steps(released, "p"), "release").statistics["release"] == 2
    )  # and the next run lives with it


@pytest.mark.slow
def test_texts_that_stand_before_others_are_named_as_the_cause(released: Path) -> None:
    near = [
        (f"{name}-{copy}", f"{text} {WORDS[copy]}", kind)
        for name, text, kind in texts(DOCUMENTS)[:16]
        for copy in range(10)
    ]
    write(released, "evaluation: {known_items: 700, may_lose: 0}\n")
    run_steps(released, "p")
    write_csv(released, "b.csv", near)
    found = outcomes(released, HashingModel(Hashing(), Path()))["not_worse_than_live"]
    if found.passed:  # the copies stand behind
        pytest.fail(found.sentence)
    assert "Model and options are those of release" in found.sentence
    assert "documents 700 -> 860" in found.sentence


# --- right candidates


def test_healthy_runs_are_all_released(released: Path, at_length: bool) -> None:
    generator = np.random.default_rng(7)
    rows = texts(DOCUMENTS)
    for run in range(20 if at_length else 3):
        for row in generator.choice(len(rows), 20, replace=False):
            rows[row] = (rows[row][0], " ".join(generator.choice(WORDS, 20)), "x")
        rows += [(f"new-{run}-{i}", " ".join(generator.choice(WORDS, 20)), "y") for i in range(10)]
        del rows[generator.integers(len(rows))]
        write_csv(released, "a.csv", rows)
        run_steps(released, "p")
        assert live(released) == run + 2


def test_a_table_that_has_only_grown_may_find_things_later(released: Path) -> None:
    write_csv(
        released,
        "b.csv",
        [(f"more-{i}", text, kind) for i, (_, text, kind) in enumerate(texts(4_000, seed=1))],
    )
    run_steps(released, "p")
    assert live(released) == 2


# --- the registry


def test_a_check_is_one_file_that_has_its_name() -> None:
    assert [*names("quality.structure"), *names("quality.checks")] == list(CHECKS)
    assert names("quality.structure") == list(STRUCTURE)
    assert all(check.description.endswith(".") for check in CHECKS.values())


def test_every_metric_says_what_it_is_and_measures_nothing_of_nothing() -> None:
    for name, metric in METRICS.items():
        assert (metric.name, metric.measure(Evidence())) == (name, None)
        assert metric.unit
        assert metric.description


def test_all_checks_together_read_the_vectors_once(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (released / "q.jsonl").write_text('{"_id": "1", "text": "bano biru"}')
    (released / "r.tsv").write_text("query-id\tcorpus-id\tscore\n1\tid-1\t1\n")
    evaluation = "evaluation: {queries: q.jsonl, qrels: r.tsv, label: cat}\n"
    write(released, f"store: {{kind: lancedb, index_rows: 300}}\n{evaluation}")
    reads: list[str] = []
    scan, read = LanceTable.scan, Shards.read

    def counted_scan(table: LanceTable, *args: Any, **options: Any) -> Any:
        reads.append("table")
        return scan(table, *args, **options)

    def counted_read(shards: Shards, partition: str, *args: Any) -> Any:
        reads.append(f"{shards.folder.name} {partition}")
        return read(shards, partition, *args)

    outcomes: list[Outcome] = []
    for step, found in steps(run_of(released, "p")):
        if step == "vector_store":
            monkeypatch.setattr(LanceTable, "scan", counted_scan)
            monkeypatch.setattr(Shards, "read", counted_read)
        if step == "checks":
            outcomes = found
            break
    assert not failed(outcomes)
    assert {"index_recall_at_10", "ndcg_at_10", "stored_cosine", "knn_accuracy"} <= (
        read_json(run_of(released, "p").folder.checks) or {}
    )["metrics"].keys()
    assert reads.count("table") == 1
    for partition in ("b00", "b01", "b02", "b03"):
        assert reads.count(f"embeddings {partition}") == 1
    # The known items' texts are looked for among the digests of b00 first, then read.
    assert [reads.count(f"chunks b0{number}") for number in range(4)] == [3, 1, 1, 1]


def test_a_check_that_is_off_reads_no_texts(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = "{vectors_belong_to_their_texts: off}"
    write(released, f"evaluation: {{known_items: 0, checks: {off}}}\n")
    columns: list[str] = []
    read = Shards.read

    def recorded(shards: Shards, partition: str, names: list[str], *args: Any) -> Any:
        columns.extend(names)
        return read(shards, partition, names, *args)

    monkeypatch.setattr(Shards, "read", recorded)
    assert not failed(checks_of(run_of(released, "p")))
    assert set(columns) == {"chunk_id", VECTOR, "tokens"}


# --- what is measured


def test_measures_are_those_that_are_published_and_stand_with_the_release(released: Path) -> None:
    context = run_of(released, "p")
    metrics = live_release(context.folder).metrics
    assert metrics.keys() <= METRICS.keys()
    always = {
        "known_item_mrr",
        "recall_at_10",
        "duplicate_rate",
        "effective_rank",
        "hubness",
        "codec_cosine",
    }
    assert always <= metrics.keys()
    assert metrics["recall_at_10"] == 1.0
    assert metrics["known_item_recall"] > 0.9
    assert metrics["codec_cosine"] == pytest.approx(1, abs=1e-5)
    line = json.loads(context.folder.history.read_text())
    assert line["metrics"] == metrics
    assert line["checks"] == dict.fromkeys(CHECKS, True)


def test_the_user_s_own_queries_pairs_and_labels_are_measured(home: Path) -> None:
    rows = texts(60)
    write_csv(home, "a.csv", rows)
    own = home / "questions"
    own.mkdir()
    queries = [{"_id": f"q{i}", "text": str(rows[i][1])} for i in range(20)]
    (own / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (own / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "\n".join(f"q{i}\tid-{i}\t1" for i in range(20)) + "\n"
    )
    (own / "pairs.csv").write_text(
        "sentence1,sentence2,score\na b c,a b c,5\na b c,a b d,3\na b c,x y z,0\n"
    )
    write(
        home,
        "evaluation: {queries: questions/queries.jsonl, qrels: questions/qrels.tsv, pairs: questions/pairs.csv, "
        "label: cat, require: {ndcg_at_10: 0.99, pair_spearman: 0.9}}\n",
    )
    run_steps(home, "p")
    metrics = live_release(run_of(home, "p").folder).metrics
    assert metrics["ndcg_at_10"] == metrics["mrr_at_10"] == metrics["judged_recall_at_10"] == 1.0
    assert metrics["pair_spearman"] == pytest.approx(1)
    assert 0 <= metrics["knn_accuracy"] <= 1
    (own / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tid-2\t1\n")
    with pytest.raises(ReleaseError, match="required_metrics_hold"):
        run_steps(home, "p")  # nothing but a file of the evaluation has changed


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "cannot be read: No such file"),
        (
            {"q.jsonl": "", "r.tsv": "query-id\tcorpus-id\tscore\n1\tid-1\t1\n"},
            "q.jsonl holds no rows",
        ),
        (
            {"q.jsonl": '{"_id": "1", "text": "a"}', "r.tsv": "a\tb\n1\t2\n"},
            "no column 'query-id' or 'query_id'",
        ),
        (
            {"q.jsonl": "{", "r.tsv": "query-id\tcorpus-id\tscore\n1\tid-1\t1\n"},
            "neither JSON Lines nor a table",
        ),
        (
            {
                "q.jsonl": '{"_id": "1", "text": "a"}',
                "r.tsv": "query-id\tcorpus-id\tscore\n1\tid-1\tx\n",
            },
            "holds 'x'",
        ),
        (
            {
                "q.jsonl": '{"_id": "1", "text": "a"}',
                "r.tsv": "query-id\tcorpus-id\tscore\n2\tid-1\t1\n",
            },
            "no query of",
        ),
    ],
)
def test_a_file_of_the_evaluation_that_is_wrong_is_named(
    home: Path, files: dict[str, str], said: str
) -> None:
    write_csv(home, "a.csv", texts(10))
    for name, text in files.items():
        (home / name).write_text(text)
    write(home, "evaluation: {queries: q.jsonl, qrels: r.tsv}\n")
    with pytest.raises(ConfigError, match=said):
        run_steps(home, "p")


def test_what_a_check_does_is_the_user_s_choice(home: Path) -> None:
    write_csv(home, "a.csv", texts(DOCUMENTS))
    write(home, "evaluation: {require: {known_item_mrr: 1.5}}\n")
    with pytest.raises(ReleaseError, match="required_metrics_hold"):
        run_steps(home, "p")
    write(
        home,
        "evaluation: {require: {known_item_mrr: 1.5}, checks: {required_metrics_hold: warn}}\n",
    )
    run_steps(home, "p")
    assert live_release(run_of(home, "p").folder).checks["required_metrics_hold"] is False
    write(
        home,
        "evaluation: {require: {known_item_mrr: 1.5}, checks: {required_metrics_hold: off}}\n",
    )
    assert "required_metrics_hold" not in {check.name for check in checks_of(run_of(home, "p"))}


class Silent(HashingModel):
    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        raise AssertionError("nothing is to be embedded")


def test_measures_can_be_turned_off_to_the_last_call(released: Path) -> None:
    off = (
        "{provider_is_unchanged: off, vectors_belong_to_their_texts: off, input_types_differ: off}"
    )
    write(released, f"evaluation: {{known_items: 0, checks: {off}}}\n")

    assert not failed(checks_of(run_of(released, "p", Silent(Hashing(), Path()))))


def test_what_passed_is_not_measured_again(released: Path) -> None:
    context = run_of(released, "p")
    before = read_json(context.folder.checks)

    checks_of(run_of(released, "p", Silent(Hashing(), Path())))
    assert read_json(context.folder.checks) == before


def test_figures_of_releases_that_are_gone_are_removed(home: Path) -> None:
    write(home)
    write_csv(home, "a.csv", texts(20))
    for run in range(9):
        write_csv(home, "b.csv", [(f"extra-{run}", f"text {run}", "x")])
        run_steps(home, "p")
    kept = run_of(home, "p").folder.quality
    assert 1 < len(list(kept.glob("p-*.json"))) <= 6
    assert len(kept.joinpath("history.jsonl").read_text().splitlines()) == 9


def test_other_data_is_told_and_released(released: Path) -> None:
    other = [
        (f"id-{i}", " ".join(np.random.default_rng(i).choice(WORDS[:8], 20)), "x")
        for i in range(DOCUMENTS)
    ]
    write_csv(released, "a.csv", other)
    found = outcomes(released, HashingModel(Hashing(), Path()))
    assert not found["data_has_not_drifted"].passed
    assert not found["data_has_not_drifted"].blocks


# --- what a review has found


def test_a_search_that_looks_less_closely_is_measured_anew(released: Path) -> None:
    before = read_json(run_of(released, "p").folder.checks)
    write(released, "store: {kind: lancedb, nprobes: 1}\n")
    checks_of(run_of(released, "p"))
    after = read_json(run_of(released, "p").folder.checks)
    assert before is not None
    assert after is not None
    assert before["version"] == after["version"]
    assert before["inputs"] != after["inputs"]


def test_what_is_held_back_is_not_taken_for_unchanged(released: Path) -> None:
    write(released, "evaluation: {require: {known_item_mrr: 1.5}}\n")
    context = run_of(released, "p")
    assert failed(checks_of(context)) == ["required_metrics_hold"]
    assert ChecksStep().current(context) is None


def test_one_wrong_partition_of_four_is_stopped(released: Path) -> None:
    context = run_of(released, "p")
    state = table_state(context)
    assert state is not None
    table = context.spec.store.table(context.warehouse.tables, state.table)
    rows = [row for batch in table.scan(["partition"]) for row in batch["partition"].to_pylist()]
    own = [number for number, partition in enumerate(rows) if partition == "b02"]

    def rolled(vectors: Vectors) -> Vectors:
        vectors[own] = np.roll(vectors[own], 1, axis=0)
        return vectors

    vandalize(context, rolled)
    assert "vectors_belong_to_their_texts" in failed(checks_of(context))


def test_other_numbers_of_kept_releases_make_no_release(released: Path) -> None:
    write(released, "store: {kind: lancedb, keep_releases: 3}\n")
    assert not report(run_steps(released, "p"), "release").changed


@pytest.mark.parametrize("damage", [b"", b"PK", b"not a sketch"])
def test_a_damaged_sketch_of_the_live_release_is_none(released: Path, damage: bytes) -> None:
    (path,) = run_of(released, "p").folder.quality.glob("*.npz")
    path.write_bytes(damage)
    write_csv(released, "b.csv", [("new", "one more text of words", "x")])
    run_steps(released, "p")
    assert live(released) == 2


def test_scores_without_an_order_are_no_measure_and_pass_no_bound(home: Path) -> None:
    write_csv(home, "a.csv", texts(10))
    (home / "pairs.csv").write_text("sentence1,sentence2,score\na b,a c,1\nd e,d f,1\n")
    write(home, "evaluation: {pairs: pairs.csv, require: {pair_spearman: 0.5}}\n")
    with pytest.raises(ReleaseError, match="required_metrics_hold"):
        run_steps(home, "p")
    check = {check.name: check for check in checks_of(run_of(home, "p"))}["required_metrics_hold"]
    assert check.sentence.startswith("pair_spearman was not measured: what it is measured with is")


def test_a_label_that_is_no_column_is_refused_when_the_file_is_read(home: Path) -> None:
    write(home, "evaluation: {label: nope}\n")
    with pytest.raises(ConfigError, match="'nope' is no metadata column; there are cat"):
        run_of(home, "p")


def test_the_checks_have_the_budget_of_a_run_and_their_cost_is_on_record(home: Path) -> None:
    write_csv(home, "a.csv", texts(DOCUMENTS))
    write(home, "budget: {tokens: 20000}\n")
    run_steps(home, "p")
    assert live(home) == 1
    write(home, "budget: {tokens: 100}\n")
    write_csv(home, "b.csv", [("new", "one more text of words", "x")])
    run_steps(home, "p")
    checks = {check.name: check for check in checks_of(run_of(home, "p"))}
    assert (
        "Inconclusive: The budget of this run (100 tokens) is exhausted"
        in checks["vectors_belong_to_their_texts"].sentence
    )
    assert not checks["vectors_belong_to_their_texts"].passed
    assert not checks["vectors_belong_to_their_texts"].blocks
    assert is_settled(home)  # the next run has no more to spend
    before = run_of(home, "p").usage()
    run_steps(home, "p")
    assert run_of(home, "p").usage() == before
    write(home, "budget: {tokens: 20000}\n")
    run_steps(home, "p")
    assert is_settled(home)


class Away(HashingModel):
    """A service that embeds no canaries."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        if CANARIES[0] in inputs:
            raise ProviderError("The service is away.")
        return super().embed(inputs, input_type)


def test_what_a_service_did_not_answer_is_asked_again_and_hides_nothing(released: Path) -> None:
    write(released, "compression: [{kind: truncate, dimensions: 8}]\n")
    found = outcomes(released, Away(Hashing(), Path()))
    assert not found["provider_is_unchanged"].blocks
    assert "Inconclusive: The service is away." in found["provider_is_unchanged"].sentence
    assert found["not_worse_than_live"].blocks
    context = run_of(released, "p")
    assert not is_settled(released)
    assert "not_worse_than_live" in pipeline_status(context.spec, context.warehouse)["held_back"]
    assert all(check.conclusive for check in checks_of(context))
    record = current_checks(context)
    assert record is not None
    assert failed(record.checks) == ["not_worse_than_live"]


def test_a_table_that_was_emptied_is_held_back(released: Path) -> None:
    write_csv(released, "a.csv", [])
    with pytest.raises(ReleaseError, match="not_worse_than_live"):
        run_steps(released, "p")
    assert live(released) == 1
    checks = {check.name: check for check in checks_of(run_of(released, "p"))}
    assert not checks["data_has_not_drifted"].passed
    assert checks["data_has_not_drifted"].sentence == "The table is empty; release 1 has 700 rows."
    assert checks["not_worse_than_live"].sentence.startswith(
        "The table is empty; release 1 has 700. 100% are gone, and evaluation.may_shrink allows 50%"
    )
    context = run_of(released, "p")
    assert release(context, "we have closed").changed


def test_judgements_of_strangers_are_refused(home: Path) -> None:
    write_csv(home, "a.csv", texts(10))
    (home / "q.jsonl").write_text('{"_id": "1", "text": "a"}')
    (home / "r.tsv").write_text("query-id\tcorpus-id\tscore\n1\tnope\t1\n")
    write(home, "evaluation: {queries: q.jsonl, qrels: r.tsv}\n")
    with pytest.raises(
        ConfigError, match="none of its 1 documents, such as 'nope', is in the table"
    ):
        run_steps(home, "p")


def test_figures_of_other_judgements_are_not_compared(home: Path) -> None:
    """Documents that were judged wrongly: the figures of the right ones are no better and no
    worse."""
    rows = texts(60)
    write_csv(home, "a.csv", rows)
    queries = [{"_id": f"q{i}", "text": str(rows[i][1])} for i in range(20)]
    (home / "q.jsonl").write_text("\n".join(map(json.dumps, queries)))
    write(home, "evaluation: {queries: q.jsonl, qrels: r.tsv, known_items: 0}\n")

    def judge(shift: int) -> None:
        judged = "\n".join(f"q{i}\tid-{i + shift}\t1" for i in range(20))
        (home / "r.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n")

    judge(0)
    run_steps(home, "p")
    judge(1)
    found = checks_of(run_of(home, "p"))
    assert not failed(found)
    (compared,) = [check for check in found if check.name == "not_worse_than_live"]
    assert "no query in common" in compared.sentence


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("q.jsonl", '{"_id": "q1", "text": " "}', "q.jsonl: query 'q1' is empty"),
        (
            "p.csv",
            "sentence1,sentence2,score\nbano,\u200b,1",
            "p.csv: sentence2 of pair 1 is empty",
        ),
    ],
)
def test_an_evaluation_text_that_is_empty_is_named(
    home: Path, file: str, content: str, words: str
) -> None:
    (home / "q.jsonl").write_text('{"_id": "q1", "text": "bano"}')
    (home / "r.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tid-2\t1\n")
    (home / "p.csv").write_text("sentence1,sentence2,score\nbano,ciru,1\n")
    (home / file).write_text(content)
    write(home, "evaluation: {queries: q.jsonl, qrels: r.tsv, pairs: p.csv, known_items: 0}\n")
    write_csv(home, "a.csv", texts(8))
    with pytest.raises(ConfigError, match=words):
        run_steps(home, "p")


def test_a_query_of_the_evaluation_that_is_longer_than_the_model_reads_is_told(home: Path) -> None:
    (home / "q.jsonl").write_text(json.dumps({"_id": "q1", "text": "bano " * 300}))
    (home / "r.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tid-2\t1\n")
    write(home, "evaluation: {queries: q.jsonl, qrels: r.tsv, known_items: 0}\n")
    write_csv(home, "a.csv", texts(8))
    notes: list[str] = []
    with run_of(home, "p") as run:
        run.progress.note = notes.append  # type: ignore[method-assign]
        list(steps(run))
    (note,) = notes
    assert note.startswith("What the checks embed was too long: 'bano bano")
    assert "has 300 tokens; of a query" in note
    assert "reads 256, and it was cut there." in note
