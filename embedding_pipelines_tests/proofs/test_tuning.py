"""Compression with a proven floor, on short texts and a real model: small where it may be, refused
where it may not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import CompressionError
from embedding_pipelines.metrics.neighbours import Neighbours, recall
from embedding_pipelines.optimize import optimizer as tune_step
from embedding_pipelines.optimize.optimizer import Tuned, Wish, refit, tune
from embedding_pipelines.optimize.trial import Corpus
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.edit import edit_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, run_steps, steps, write_pipeline
from embedding_pipelines_tests.corpora import OWN, captions, own_and, sentences

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

TEXTS, OTHERS = {OWN: 5_500, "captions/captions_en.csv": 8_000}, 500
FLOOR = 0.99
PIPELINE = """\
source: {kind: jsonl, path: data/texts.jsonl, text: text}
model: hf:sentence-transformers/all-MiniLM-L6-v2
store: {kind: lancedb, index_rows: 4000}
"""


class Embedded(NamedTuple):
    """A home folder whose pipeline has its embeddings, and texts that are not among them."""

    home: Path
    others: list[str]


@pytest.fixture(scope="module", params=own_and("captions/captions_en.csv"))
def embedded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedded]:
    home, count = tmp_path_factory.mktemp("home"), TEXTS[request.param]
    texts = sentences() if request.param == OWN else captions(count + OTHERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        (home / "data").mkdir()
        lines = (json.dumps({"text": text}) + "\n" for text in texts[:count])
        (home / "data" / "texts.jsonl").write_text("".join(lines))
        write_pipeline(home, "texts", PIPELINE)
        context = run_of(home, "texts")
        for step, _ in steps(context):
            if step == "codec":
                break
        yield Embedded(home, texts[count : count + OTHERS])


@pytest.fixture(scope="module")
def tuned(embedded: Embedded) -> Tuned:
    return tune(run_of(embedded.home, "texts"), Wish(("auto",), floor=FLOOR))


def test_vectors_are_four_times_smaller_and_keep_the_floor(tuned: Tuned) -> None:
    assert not tuned.problem
    found = tuned.spec.optimized
    assert found is not None
    assert found.queries == tune_step.QUERIES
    assert found.times_smaller is not None
    assert found.times_smaller >= 4
    assert found.recall_at_10 is not None
    assert found.lower_bound is not None
    assert found.recall_at_10 >= found.lower_bound >= FLOOR


def test_the_released_table_finds_what_was_promised_of_it(tuned: Tuned, embedded: Embedded) -> None:
    """Other texts are asked, which are not in the corpus at all."""
    path = embedded.home / "pipelines" / "texts.yaml"
    with edit_pipeline(path, tuned.options, tuned.spec):
        refit(run_of(embedded.home, "texts"))
        run_steps(embedded.home, "texts")
    searcher = Searcher(Warehouse(embedded.home), "texts")
    release, context = searcher.release, run_of(embedded.home, "texts")
    assert release.spec.compression == tuned.spec.compression
    asked = Corpus(context).asked(searcher.model.embed(embedded.others, "query").vectors)
    names = [
        name
        for partition in context.spec.partition_names
        for batch in context.folder.embeddings.read(partition, ["chunk_id"])
        for name in batch["chunk_id"].to_pylist()
    ]
    truth = Neighbours(
        [[names[row] for row in rows] for rows in asked.exact.ids], asked.exact.cosines
    )
    found = [
        [hit.chunk_id for hit in searcher.search_vector(vector, searcher.model.space).hits]
        for vector in asked.vectors
    ]
    assert recall(found, truth).mean() > 0.985


def test_what_no_compression_keeps_is_refused(tuned: Tuned, embedded: Embedded) -> None:
    context = run_of(embedded.home, "texts")
    path = embedded.home / "pipelines" / "texts.yaml"
    before = path.read_bytes()
    refused = tune(context, Wish(("auto",), 96, FLOOR))
    assert "no compression is proven to keep a recall of 0.99" in refused.problem
    assert "The best is pca 96" in refused.problem
    with pytest.raises(CompressionError, match=r"2000 queries cannot prove a recall of 0\.9999"):
        tune(context, Wish(("auto",), floor=0.9999))
    assert path.read_bytes() == before
