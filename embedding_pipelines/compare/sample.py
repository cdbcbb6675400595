"""The sample that models are compared on: chunks of some documents, and queries to them."""

import heapq
from dataclasses import dataclass

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.quality.queries import (
    KnownItemQuery,
    Qrels,
    known_item_queries,
    read_qrels,
)
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import digest


@dataclass(frozen=True)
class Sample:
    """Chunks of some documents, in the order of their partitions, and the queries to them."""

    documents: list[str]  # of each chunk
    texts: list[str]
    tokens: int  # by the tokenizer of the pipeline's own model
    all_documents: int
    all_chunks: int
    all_tokens: int
    judged: Qrels | None
    items: list[KnownItemQuery]

    @property
    def queries(self) -> list[str]:
        """The texts of all queries, judged ones first."""
        judged = [self.judged.queries[name] for name in self.judged_ids] if self.judged else []
        return [*judged, *(item.query for item in self.items)]

    @property
    def judged_ids(self) -> list[str]:
        return sorted(self.judged.queries) if self.judged else []


def take_sample(copy: Run, most: int) -> Sample:
    """The sample. Documents of judgements and of known items come first, then those with the
    smallest digests."""
    judged, items = read_qrels(copy), known_item_queries(copy, copy.spec.evaluation.known_items)
    names, chunks, tokens = set[str](), 0, 0
    needed = set(judged.documents if judged else ()) | {item.document_id for item in items}
    smallest: list[tuple[int, str]] = []  # negated digests: the greatest goes first
    for partition in copy.spec.partition_names:
        last = None
        for batch in copy.folder.chunks.read(partition, ["document_id", "tokens"]):
            chunks += batch.num_rows
            tokens += int(batch["tokens"].to_numpy().sum())
            for name in batch["document_id"].to_pylist():
                if name != last:
                    entry = (-int.from_bytes(digest(name.encode())[:8], "big"), name)
                    keep = heapq.heappush if len(smallest) < most else heapq.heappushpop
                    keep(smallest, entry)
                    names.add(name)
                last = name
    answers = set[str]().union(*map(judged.answers, judged.queries)) if judged else set[str]()
    if answers.isdisjoint(names) and not items:
        raise ConfigError(
            f"Pipeline {copy.spec.name!r} has no queries to compare models by: its texts are too "
            "short for known items, or evaluation.known_items is 0. Name evaluation.queries and "
            "evaluation.qrels, whose relevant documents are among the pipeline's."
        )
    sample = needed & names
    for _, name in sorted(smallest, reverse=True):
        if len(sample) >= most:
            break
        sample.add(name)
    documents, texts, part = list[str](), list[str](), 0
    for partition in copy.spec.partition_names:
        for batch in copy.folder.chunks.read(partition, ["document_id", "text", "tokens"]):
            rows = (batch[name].to_pylist() for name in ("document_id", "text", "tokens"))
            for name, text, count in zip(*rows, strict=True):
                if name in sample:
                    documents.append(name)
                    texts.append(text)
                    part += count
    return Sample(documents, texts, part, len(names), chunks, tokens, judged, items)
