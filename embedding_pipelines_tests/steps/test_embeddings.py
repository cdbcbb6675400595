"""The step `embeddings` at a service that rejects texts, and at a budget that ends it in the middle."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import BudgetError, ConfigError
from embedding_pipelines.run import Run
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.embeddings import RETRY, rejected_texts
from embedding_pipelines_tests.chain import (
    checks_of,
    live_rows,
    run_of,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING, UNMEASURED
from embedding_pipelines_tests.embedding.service import DIALECT
from embedding_pipelines_tests.providers.wire import serve

DIMENSIONS = 64


def retry(run: Run) -> int:
    """Send the rejected texts again; how many were accepted."""
    before = rejected_texts(run)
    list(step_named("embeddings").work(run, run.spec.partition_names, {RETRY: True}))
    return before - rejected_texts(run)


def test_a_rejected_text_is_requested_again_on_demand(home: Path) -> None:
    """Through the steps: it is missing in the table, its neighbours are there, and a mended service
    takes it in."""
    write_csv(home, "a.csv", [(f"d{n}", f"text number {n}", "x") for n in range(60)])
    source = "source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}\npartitions: 4\n"
    with serve(DIALECT, DIMENSIONS) as server:
        model = f"{{provider: openai, model: little, dimensions: {DIMENSIONS}, base_url: '{server.url}/v1'}}"
        write_pipeline(home, "p", f"{source}model: {model}\n{UNMEASURED}")
        server.poisoned = {"text number 7": "Not this one."}.get
        run_steps(home, "p")
        assert live_rows(home, "p").keys() == {f"d{n}#0" for n in range(60) if n != 7}
        run, requests = run_of(home, "p"), len(server.requests)
        rows = pq.read_table(run.folder.rejected_texts).to_pylist()
        assert [(row["chunk_id"], row["text"]) for row in rows] == [("d7#0", "text number 7")]
        assert "Not this one." in rows[0]["reason"]
        run_steps(home, "p")
        assert len(server.requests) == requests
        write_csv(home, "b.csv", [("alone", "text number 7", "x")])  # rejected too
        run_steps(home, "p")
        (counted, *_) = checks_of(run)
        assert (counted.statistics["documents"], counted.statistics["rejected_texts"]) == (61, 2)
        (home / "data" / "b.csv").unlink()
        run_steps(home, "p")
        assert retry(run) == 0
        assert pipeline_status(run.spec, run.warehouse)["rejected_texts"] == 1
        server.poisoned = lambda _: None
        run.warehouse.cache.unlink()  # what the shards hold is not paid for again
        before = live_rows(home, "p")
        assert retry(run) == 1
        run_steps(home, "p")
        rows = live_rows(home, "p")
        assert len(rows) == 60
        assert {name: row for name, row in rows.items() if name in before} == before
        assert {server.billed[f"text number {n}"] for n in range(60)} == {1}
        assert pq.read_table(run.folder.rejected_texts).num_rows == 0


def test_what_a_run_has_spent_is_on_record_though_its_budget_ends_it_in_the_middle(
    home: Path,
) -> None:
    write_csv(home, "a.csv", [(f"d{n}", f"text number {n}", "x") for n in range(60)])
    source = "source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}\npartitions: 1\n"
    with serve(DIALECT, DIMENSIONS) as server:
        options = (
            f"dimensions: {DIMENSIONS}, base_url: '{server.url}/v1', usd_per_million_tokens: 2"
        )
        model = f"{{provider: openai, model: little, {options}}}"
        budget = "budget: {tokens: 60}\n"
        write_pipeline(home, "p", f"{source}model: {model}\n{UNMEASURED}{budget}")
        run = run_of(home, "p")
        with pytest.raises(BudgetError):
            run_steps(home, "p")
        assert 0 < len(server.billed) < 60
        usd = sum(server.billed.values()) * 3 * 2 / 1e6
        assert run.usage()["usd"] == pytest.approx(usd, abs=1e-8)
        assert run.usage()["embedded_tokens"] > 0
        write_pipeline(home, "p", f"{source}model: {model}\n{UNMEASURED}")
        run_steps(home, "p")
        assert len(server.billed) == 60
        assert run.usage()["usd"] == pytest.approx(60 * 3 * 2 / 1e6, abs=1e-8)


def test_nothing_is_retried_while_other_texts_were_never_embedded(home: Path) -> None:
    write_csv(home, "a.csv", [(f"d{n}", f"text number {n}", "x") for n in range(60)])
    write_pipeline(home, "p", HASHING)
    run_steps(home, "p")
    run = run_of(home, "p")
    assert retry(run) == 0
    write_csv(home, "a.csv", [(f"d{n}", f"text number {n} more", "x") for n in range(60)])
    for name in ("documents", "chunks"):
        list(step_named(name).work(run, run.spec.partition_names))
    with pytest.raises(ConfigError, match=r"were never embedded\. Run `embedding-pipelines run p`"):
        retry(run)
