"""What a model is fine-tuned on shares no document and no query with what judges it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.files import write_json
from embedding_pipelines.inference.finetuning import Finetuning
from embedding_pipelines.quality.base import Candidate
from embedding_pipelines.quality.checks.not_worse_than_base import NotWorseThanBase
from embedding_pipelines.quality.queries import known_item_queries, query_key, read_qrels
from embedding_pipelines.quality.training import collect, examples_of, measure
from embedding_pipelines.run import Run
from embedding_pipelines.spec.evaluation import Evaluation
from embedding_pipelines_tests.chain import hashing, run_of, write_pipeline

NUMBER = 200
PIPELINE = """\
source: {kind: jsonl, path: data/corpus.jsonl, id: id, text: [text]}
model: {provider: hashing}
evaluation: {known_items: 8, queries: data/queries.jsonl, qrels: data/test.tsv}
partitions: 4
"""
TOPICS = ["cat", "bank", "hospital", "star", "music", "ice", "kitchen", "motor"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("training")
    data = home / "data"
    data.mkdir()
    texts = [f"Item {n} is about the {TOPICS[n % 8]}. It came in {n} parts." for n in range(NUMBER)]
    _write(data / "corpus.jsonl", [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)])
    queries = [{"_id": f"q{n}", "text": f"where is {TOPICS[n % 8]} {n}"} for n in range(NUMBER)]
    _write(data / "queries.jsonl", queries)
    head = "query-id\tcorpus-id\tscore\n"
    for name, part in (("test", range(20)), ("train", range(10, NUMBER))):  # ten are in both
        rows = "".join(f"q{n}\td{n}\t1\n" for n in part)
        (data / f"{name}.tsv").write_text(head + rows)
    write_pipeline(home, "p", PIPELINE)
    with run_of(home, "p") as run:
        from embedding_pipelines.steps.chain import step_named

        for step in ("documents", "chunks"):
            list(step_named(step).work(run, run.spec.partition_names))
    return home


@pytest.fixture
def run(home: Path) -> Iterator[Run]:
    with run_of(home, "p") as run:
        yield run


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


BEIR = Finetuning(pairs="data/train.tsv", queries="data/queries.jsonl")


@pytest.mark.parametrize("options", [BEIR, Finetuning(pairs="known_items")])
def test_nothing_that_judges_is_trained_on(run: Run, options: Finetuning) -> None:
    split, corpus = collect(run, options)
    trained = {name for documents in split.train.values() for name in documents}
    held = {name for part in split.held_out.values() for each in part.values() for name in each}
    assert len(trained) > 100
    assert trained.isdisjoint(held)
    assert {f"d{n}" for n in range(20)} <= held  # of the pipeline's own judgements
    items = known_item_queries(run, 8)
    assert {item.document_id for item in items} <= held
    judged = read_qrels(run)
    assert judged is not None
    own = {query_key(text) for text in (*judged.queries.values(), *(item.query for item in items))}
    assert own.isdisjoint(map(query_key, split.train))
    model = hashing()
    for example in examples_of(run, model, split, corpus, 2):
        texts = (example.text, *example.negatives)
        assert len(set(texts)) == 3
        names = [corpus.documents[corpus.texts.index(text)] for text in texts]
        assert not any(map(split.holds_out, names))
        assert names[0] in split.train[example.query]
        assert names[1] not in split.train[example.query]
    figures = measure(run, model, split, corpus)
    assert len(figures["judged"]) == 20
    assert all(0 <= value <= 1 for part in figures.values() for value in part.values())


def test_every_form_of_a_file_of_pairs_is_read(run: Run) -> None:
    data = run.warehouse.home / "data"
    rows = [
        {"query": f"where is {TOPICS[n % 8]} {n}", "document_id": f"d{n}"} for n in range(NUMBER)
    ]
    _write(data / "pairs.jsonl", rows)
    lines = [f'"{row["query"]}",{row["document_id"]}' for row in rows]
    (data / "pairs.csv").write_text("\n".join(["query,doc_id", *lines, ""]))
    splits = [
        collect(run, options)[0]
        for options in (BEIR, *(Finetuning(pairs=f"data/pairs.{end}") for end in ("jsonl", "csv")))
    ]
    assert splits[0].train == splits[1].train == splits[2].train
    texts = [{"query": row["query"], "positive": f"answer {n}"} for n, row in enumerate(rows)]
    documents = (data / "corpus.jsonl").read_text().splitlines()
    texts[50]["positive"] = json.loads(documents[3])["text"]  # of a document that judges
    _write(data / "texts.jsonl", texts)
    split, corpus = collect(run, Finetuning(pairs="data/texts.jsonl"))
    (example, *_) = examples_of(run, hashing(), split, corpus, 1)
    assert example.text.startswith("answer ")
    assert split.held_out["pairs"][rows[50]["query"]] == {"d3": 1}


def test_of_a_query_with_answers_on_both_sides_those_that_do_not_judge_are_trained_on(
    run: Run,
) -> None:
    rows = [{"query": "where are both", "document_id": name} for name in ("d3", "d51", "d52")]
    rows += [{"query": f"item {n}", "document_id": f"d{n}"} for n in range(NUMBER)]
    _write(run.warehouse.home / "data" / "both.jsonl", rows)
    split, _ = collect(run, Finetuning(pairs="data/both.jsonl"))
    free = {name: 1 for name in ("d51", "d52") if not split.holds_out(name)}
    assert split.holds_out("d3")
    assert free
    assert split.train["where are both"] == free
    assert "where are both" not in split.held_out["pairs"]
    assert split.left_out == 0


def test_what_is_wrong_with_pairs_is_one_sentence(run: Run) -> None:
    data = run.warehouse.home / "data"
    with pytest.raises(
        ConfigError, match=r"finetune\.pairs: .*none\.jsonl cannot be read: No such"
    ):
        collect(run, Finetuning(pairs="data/none.jsonl"))
    _write(data / "odd.jsonl", [{"query": "a", "text": "b"}])
    with pytest.raises(ConfigError, match=r"odd\.jsonl has no column 'positive' or 'passage' or"):
        collect(run, Finetuning(pairs="data/odd.jsonl"))
    _write(data / "few.jsonl", [{"query": "a", "document_id": "none"}])
    with pytest.raises(
        SourceError, match=r"gives 0 queries to train on .* 1 others are of no document"
    ):
        collect(run, Finetuning(pairs="data/few.jsonl"))
    with pytest.raises(SourceError, match="receipts gives 0 queries to train on"):
        collect(run, Finetuning(pairs="receipts"))
    with pytest.raises(ValueError, match="queries are for a file of pairs"):
        Finetuning(pairs="receipts", queries="data/queries.jsonl")


def test_queries_that_a_model_was_trained_on_judge_nothing(run: Run) -> None:
    judged = read_qrels(run)
    assert judged is not None
    text = judged.queries["q3"]
    item = known_item_queries(run, 1)[0]
    trained = {"queries": [query_key(text.upper()), query_key(item.query)]}
    write_json(run.folder.model, trained)
    spec = run.spec.model_copy(update={"model": _Trains()})
    other = Run(spec, run.warehouse)
    rest = read_qrels(other)
    assert rest is not None
    assert judged.queries.keys() - rest.queries.keys() == {"q3"}
    assert item not in known_item_queries(other, 8)
    assert read_qrels(run) == judged  # of a model that is not trained
    run.folder.model.unlink()


class _Trains:
    trains = True


@pytest.mark.parametrize(
    ("trained", "passes", "words"),
    [
        (0.9, True, r"0\.8000 -> 0\.9000 over 300 judged queries\.$"),
        (0.79, True, r"0\.8000 -> 0\.7900 over 300 judged queries, which may be chance\.$"),
        (
            0.5,
            False,
            r"0\.8000 -> 0\.5000 over 300 judged queries\. Over judged queries it fell by",
        ),
    ],
)
def test_a_model_that_lost_what_its_base_knew_is_held_back(
    trained: float, passes: bool, words: str
) -> None:
    check = NotWorseThanBase()
    names = [f"q{number}" for number in range(300)]
    figures: dict[str, Any] = {
        "base": {"judged": dict.fromkeys(names, 0.8)},
        "trained": {"judged": dict.fromkeys(names, trained)},
    }
    outcome = check.evaluate(_candidate({check.name: figures}))
    assert outcome.passed == passes
    assert outcome.blocks != passes
    assert re.search(words, outcome.sentence)
    assert np.isclose(outcome.statistics["judged"]["loss"], 0.8 - trained)
    assert check.evaluate(_candidate({})).sentence == "Skipped: the model is not fine-tuned."


def _candidate(collected: dict[str, Any]) -> Candidate:
    spec = SimpleNamespace(evaluation=Evaluation())
    return cast(Candidate, SimpleNamespace(collected=collected, run=SimpleNamespace(spec=spec)))
