"""Runs a pipeline's steps without Dagster, in the order the data takes, and sees what the provider
is asked."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PrivateAttr

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import InputType, Limits, Provider, Vectors
from embedding_pipelines.quality import structure as verify
from embedding_pipelines.quality.check import Check
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.space import Space
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps import chunks, codec, documents, embeddings, release, vector_store
from embedding_pipelines.steps import train as model
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.storage.warehouse import Warehouse

STEPS = ("documents", "chunks", "embeddings", "codec", "vector_store", "verify", "release")


class Recording(Provider):
    """Another provider, with every text that it was asked to embed."""

    kind: str = "recording"
    inner: Provider
    request_texts: int | None = None  # smaller calls than the provider's own
    _texts: list[str] = PrivateAttr(default_factory=list)
    _calls: list[list[str]] = PrivateAttr(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return self._texts

    @property
    def calls(self) -> list[list[str]]:
        return self._calls

    @property
    def space(self) -> Space:
        return self.inner.space

    @property
    def limits(self) -> Limits:
        own = self.inner.limits
        return dataclasses.replace(own, request_texts=self.request_texts or own.request_texts)

    def tokenizer(self) -> Any:
        return self.inner.tokenizer()

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        self._calls.append(list(inputs))
        self._texts.extend(inputs)
        return self.inner.embed(inputs, input_type)


def write_pipeline(home: Path, name: str, text: str) -> Path:
    """A pipeline file in the home folder."""
    path = home / "pipelines" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_csv(
    home: Path, name: str, rows: Sequence[Sequence[object]], header: str = "id,title,cat"
) -> Path:
    """A CSV file below `data/`, all cells quoted."""
    path = home / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_bytes("\n".join([header, *lines, ""]).encode())
    return path


def context_of(home: Path, name: str) -> StepContext:
    return StepContext(find_pipeline(name, home), Warehouse(home))


def steps(context: StepContext, provider: Provider) -> Iterator[tuple[str, Any]]:
    """Every step in turn; what it reports, of `verify` its checks."""
    names = context.spec.partition_names
    yield "documents", documents.write_documents(context)
    for partition in names:
        yield "chunks", chunks.write_chunks(context, partition, provider)
    if provider.learns:
        yield "model", model.learn_model(context, provider)
    embeddings.refuse_wrong_dimensions(context, provider)
    with EmbeddingCache(context.warehouse.cache) as cache:
        for report in embeddings.write_embeddings(
            context, names, provider, cache, lambda tokens: None
        ):
            yield "embeddings", report
    yield "codec", codec.fit_codec(context, provider.space)
    yield "vector_store", vector_store.update_vector_store(context, provider.space)
    yield "verify", checks_of(context, provider)
    yield "release", release.release(context, provider.space)


def checks_of(context: StepContext, provider: Provider | None = None) -> list[Check]:
    """What `verify` finds; a recording provider is not asked, so that it has on record what was
    embedded."""
    asked = provider or context.spec.model
    with EmbeddingCache(context.warehouse.cache) as cache:
        return verify.verify(
            context, asked.inner if isinstance(asked, Recording) else asked, cache
        )[1]


def run_steps(home: Path, name: str, provider: Provider | None = None) -> list[StepReport]:
    """documents to release; raises what the first failing step raises."""
    context = context_of(home, name)
    return [
        found for step, found in steps(context, provider or context.spec.model) if step != "verify"
    ]


def run_recorded(home: Path, name: str) -> tuple[list[StepReport], list[str]]:
    """As `run_steps`, with the texts that reached the provider."""
    recording = Recording(inner=context_of(home, name).spec.model)
    return run_steps(home, name, recording), recording.texts


def report(reports: Sequence[StepReport], step: str) -> StepReport:
    """The one report of an unpartitioned step."""
    (found,) = [entry for entry in reports if entry.step == step]
    return found


def live_rows(home: Path, name: str) -> dict[str, dict[str, Any]]:
    """The live table by chunk id, all columns, vectors included."""
    searcher = Searcher(Warehouse(home), name)
    table, version = searcher._table, searcher.release.version
    names = table.schema(version).names
    rows = [row for batch in table.scan(names, version=version) for row in batch.to_pylist()]
    found = {row["chunk_id"]: row for row in rows}
    assert len(found) == len(rows) == searcher.release.rows
    return found


def assert_same_rows(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> None:
    """Row by row; vectors within the tolerance that batch shapes may cost."""
    assert left.keys() == right.keys()
    for name, row in left.items():
        other = right[name]
        assert {**row, VECTOR: None} == {**other, VECTOR: None}
        np.testing.assert_allclose(row[VECTOR], other[VECTOR], atol=1e-5)


def top(home: Path, name: str, query: str, k: int = 1, filter: str | None = None) -> list[str]:
    """Document ids of the nearest chunks."""
    return [
        hit.document_id for hit in Searcher(Warehouse(home), name).search(query, k, filter).hits
    ]
