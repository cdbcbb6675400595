"""compare: the better model is the better one, by figures that a whole evaluation confirms; what it
says a service is sent is what it is sent, once; and the pipeline stays as it was."""

from collections.abc import Iterator
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.compare.compare import Comparison, compare_models, compare_table
from embedding_pipelines.errors import BudgetError, ConfigError
from embedding_pipelines.progress import Silent
from embedding_pipelines.spec.load import parse_model
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import hashing, run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.embedding.service import DIALECT
from embedding_pipelines_tests.providers.wire import WireServer, serve

PIPELINE = """\
source: {kind: csv, path: data/a.csv, id: id, text: [title]}
model: {provider: hashing, dimensions: 256}
partitions: 2
evaluation: {known_items: 40}
"""
ANIMALS = ("fox", "hen", "owl", "cat", "elk", "bat", "cow")
ROWS = [
    (
        n,
        f"tale {n} of the {ANIMALS[n % 7]} called name{n * 31 % 997}. It met "
        f"word{n * 17 % 613} and thing{n % 50} in town{n * 7 % 211}, and went home.",
        "",
    )
    for n in range(300)
]
FEW = "{provider: hashing, dimensions: 8}"


@pytest.fixture
def tales(home: Path) -> Path:
    write_pipeline(home, "tales", PIPELINE)
    write_csv(home, "a.csv", ROWS)
    return home


def compare(home: Path, *models: str, documents: int = 100) -> Comparison:
    with run_of(home, "tales") as run:
        return compare_models(run, [parse_model(text) for text in models], documents)


def contents(home: Path) -> dict[str, bytes]:
    """Every file of the warehouse but the cache's."""
    folder = Warehouse(home).root
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("cache.sqlite")
    }


def test_a_worse_model_is_proven_worse_and_the_pipeline_stays_as_it_was(tales: Path) -> None:
    run_steps(tales, "tales")
    before = contents(tales)
    result = compare(tales, FEW)
    own, few = result.models
    assert (result.documents, result.all_documents, result.known_items) == (100, 300, 40)
    assert (own.dimensions, own.bytes_per_vector, few.bytes_per_vector) == (256, 1_024, 32)
    assert own.figures["known_item_mrr"].mean > few.figures["known_item_mrr"].mean + 0.3
    change = few.differences["known_item_mrr"]
    assert change.low < change.mean < change.high < 0
    assert own.differences == {}
    assert (own.usd, own.usd_corpus, own.rejected, own.tokens_unseen) == (0, 0, 0, 0)
    assert own.tokens_per_second is not None
    assert contents(tales) == before


def test_a_sample_is_the_same_each_time_and_orders_models_as_all_documents_do(tales: Path) -> None:
    sample, again, whole = (compare(tales, FEW, documents=most) for most in (100, 100, 5_000))
    assert [row.figures for row in sample.models] == [row.figures for row in again.models]
    assert (whole.documents, whole.chunks) == (300, whole.all_chunks)
    for result in (sample, whole):
        own, few = (row.figures["known_item_mrr"].mean for row in result.models)
        assert own > few
    # Fewer others stand in the way of an answer.
    assert (
        sample.models[1].figures["known_item_mrr"].mean
        >= whole.models[1].figures["known_item_mrr"].mean
    )


def test_the_pipelines_own_judgements_count(tales: Path) -> None:
    queries = [(n, f"called name{n * 31 % 997}. in town{n * 7 % 211},") for n in range(0, 300, 10)]
    write_csv(tales, "queries.csv", queries, "id,text")
    qrels = [(n, n, 1) for n, _ in queries]
    write_csv(tales, "qrels.csv", qrels, "query_id,document_id,score")
    more = "evaluation: {queries: data/queries.csv, qrels: data/qrels.csv, known_items: 0}\n"
    write_pipeline(tales, "tales", PIPELINE.replace("evaluation: {known_items: 40}\n", more))
    result = compare(tales, FEW, documents=40)
    own, few = result.models
    assert (result.judged_queries, result.known_items, result.documents) == (30, 0, 40)
    assert own.figures["ndcg_at_10"].mean > 0.7 > 2 * few.figures["ndcg_at_10"].mean
    assert own.figures["ndcg_at_10"].queries == 30
    assert "known_item_mrr" not in own.figures


def test_a_model_is_trained_beside_the_pipelines_own(tales: Path) -> None:
    trained = "{provider: word2vec, train: {dimensions: 8, epochs: 1}}"
    write_pipeline(
        tales, "tales", PIPELINE.replace("{provider: hashing, dimensions: 256}", trained)
    )
    run_steps(tales, "tales")
    before = contents(tales)
    result = compare(tales, trained.replace("dimensions: 8", "dimensions: 12"), FEW, documents=50)
    assert [row.dimensions for row in result.models] == [8, 12, 8]
    assert contents(tales) == before


def test_a_text_that_a_model_does_not_read_whole_is_counted(tales: Path) -> None:
    result = compare(tales, "{provider: hashing, dimensions: 256, max_tokens: 5}")
    assert result.models[0].tokens_unseen == 0
    assert result.models[1].tokens_unseen > 1_000


SERVICE = "{{provider: openai, base_url: '{url}/v1', model: little, dimensions: 64, usd_per_million_tokens: {price}}}"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[WireServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with serve(DIALECT) as running:
        yield running


def test_a_service_is_sent_what_was_said_and_nothing_twice(
    tales: Path, service: WireServer
) -> None:
    model = SERVICE.format(url=service.url, price=2.0)
    first = compare(tales, model, documents=5_000).models[1]
    sent = [text for body in service.requests for text in body["input"]]
    assert len(sent) == len(set(sent)) == 300 + 40
    assert first.tokens_sent == first.tokens
    assert first.usd == pytest.approx(first.tokens * 2 / 1e6)
    assert 0 < (first.usd_corpus or 0) < (first.usd or 0)
    asked = len(service.requests)
    again = compare(tales, model, documents=5_000).models[1]
    assert (again.tokens_sent, again.tokens_per_second, again.figures) == (0, None, first.figures)
    assert len(service.requests) == asked
    write_pipeline(tales, "tales", PIPELINE.replace("{provider: hashing, dimensions: 256}", model))
    made = [report for report in run_steps(tales, "tales") if report.step == "embeddings"]
    assert [report.statistics["embedded_tokens"] for report in made] == [0, 0]


def test_the_budget_of_the_file_holds(tales: Path, service: WireServer) -> None:
    write_pipeline(tales, "tales", PIPELINE + "budget: {usd: 0.000001}\n")
    with pytest.raises(BudgetError, match="exhausted"):
        compare(tales, SERVICE.format(url=service.url, price=2.0))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("minlm", "The model minlm: 'minlm' is no known alias. Did you mean 'minilm'"),
        ("{provider: hashing, size: 3}", "size"),
        ("{provider: hashing", "The model {provider: hashing"),
    ],
)
def test_a_wrong_model_is_named(model: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_model(model)
    assert words in str(caught.value)


def test_what_a_model_lacks_is_said_before_anything_is_embedded(
    tales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        compare(tales, "openai:text-embedding-3-small")
    with pytest.raises(ConfigError, match="vouched for"):
        compare(tales, "{provider: custom, cls: 'data.a:Model'}")
    assert not Warehouse(tales).cache.exists()


def test_the_pipelines_own_model_alone_is_no_comparison(tales: Path) -> None:
    with pytest.raises(ConfigError, match="hashing is the model of pipeline 'tales'"):
        compare(tales, "{provider: hashing, dimensions: 256}")


@pytest.mark.parametrize("qrels", ["", "queries: q.csv, qrels: r.csv, "])
def test_without_queries_there_is_nothing_to_compare_by(tales: Path, qrels: str) -> None:
    (tales / "q.csv").write_text("query_id,text\nq1,the fox\n")
    (tales / "r.csv").write_text("query_id,document_id,relevance\nq1,nowhere,1\nq1,3,0\n")
    text = PIPELINE.replace("known_items: 40", f"{qrels}known_items: 0")
    write_pipeline(tales, "tales", text)
    with pytest.raises(ConfigError, match="has no queries to compare models by"):
        compare(tales, FEW)


def write_table(folder: Path, vectors: np.ndarray | None) -> Path:
    """A table that this project did not make, of the tales and two rows without any text."""
    texts = [text for _, text, _ in ROWS]
    columns = {"content": [*texts, "", None], "note": ["a"] * (len(texts) + 2)}
    if vectors is not None:
        rows = [*vectors.tolist(), *np.zeros((2, vectors.shape[1])).tolist()]
        columns["embedding"] = pa.array(rows, pa.list_(pa.float32(), vectors.shape[1]))
    lancedb.connect(folder).create_table("foreign", pa.table(columns))
    return folder / "foreign.lance"


@pytest.fixture(scope="module")
def own_vectors() -> np.ndarray:
    with hashing(dimensions=256) as model:
        return np.array(model.embed([text for _, text, _ in ROWS], "document").vectors)


def test_models_are_compared_on_a_table_that_anybody_made_and_with_its_own_vectors(
    home: Path, tmp_path: Path, own_vectors: np.ndarray
) -> None:
    path = write_table(tmp_path / "foreign", own_vectors)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    options = [parse_model("{provider: hashing, dimensions: 256}"), parse_model(FEW)]
    result = compare_table(home, path, options, Silent(), documents=100)
    own, stored, few = result.models
    assert (result.documents, result.all_documents) == (100, 302)
    assert result.known_items == 100
    assert stored.model == f"the table's vectors, asked with {own.model}"
    assert stored.figures == own.figures  # they are that model's
    assert stored.differences["known_item_mrr"].mean == 0
    assert few.differences["known_item_mrr"].high < 0
    assert {file: file.read_bytes() for file in before} == before
    assert not (Warehouse(home).root / "pipelines").exists()


def test_vectors_of_another_model_find_nothing_with_this_ones_queries(
    home: Path, tmp_path: Path, own_vectors: np.ndarray
) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(256, 256)))
    path = write_table(tmp_path / "foreign", (own_vectors @ turn).astype(np.float32))
    options = [parse_model("{provider: hashing, dimensions: 256}")]
    own, stored = compare_table(home, path, options, Silent(), documents=100).models
    assert stored.figures["known_item_mrr"].mean < 0.2 < own.figures["known_item_mrr"].mean


def test_a_table_without_texts_is_told(home: Path, tmp_path: Path) -> None:
    lancedb.connect(tmp_path).create_table("bare", pa.table({"id": [1, 2]}))
    with pytest.raises(ConfigError, match="no column of texts"):
        compare_table(home, tmp_path / "bare.lance", [parse_model(FEW)], Silent())
