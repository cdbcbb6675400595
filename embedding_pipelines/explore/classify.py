"""Labels of new texts, by the vote of their nearest neighbours in a live table."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedding_pipelines.access import Principals
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.search import Searcher
from embedding_pipelines.storage.warehouse import Warehouse


@dataclass(frozen=True)
class Classification:
    """What the neighbours of a text vote for."""

    text: str
    label: str | None  # None: no neighbour has one
    share: float  # of the votes, 0 to 1
    votes: dict[str, float]  # the share of each label, the largest first
    neighbours: list[str]  # the ids of the documents that voted, the nearest first


def classify(
    home: Path,
    name: str,
    texts: Sequence[str],
    label: str | None = None,
    k: int = 10,
    principals: Principals = None,
) -> list[Classification]:
    """The labels of texts by their `k` nearest chunks in the live table of a pipeline.

    `label` is a metadata column, by default `evaluation.label` of the release. A neighbour's vote
    weighs as much as its cosine, and nothing below 0. `knn_accuracy` of each release says how often
    this is right for the table's own rows. Raises ReleaseError without a release, ConfigError for a
    column that it lacks, and as a search does.
    """
    with Searcher(Warehouse(home), name) as searcher:
        spec = searcher.release.spec
        columns = list(spec.source.metadata_types)
        label = label or spec.evaluation.label
        if label not in columns:
            what = "Name the column of the labels" if label is None else f"There is no {label!r}"
            raise ConfigError(
                f"{what}: the metadata of release {searcher.release.number} of {name!r} "
                f"has {', '.join(columns) or 'no columns'}."
            )
        return [_classify(searcher, text, label, k, principals) for text in texts]


def _classify(
    searcher: Searcher, text: str, label: str, k: int, principals: Principals
) -> Classification:
    weights: dict[str, float] = defaultdict(float)
    every = searcher.search(text, k, principals=principals).hits
    hits = [hit for hit in every if hit.metadata[label] not in (None, "")]
    for hit in hits:
        weights[str(hit.metadata[label])] += max(hit.score, 0.0)
    total = sum(weights.values())
    if not total:
        return Classification(text, None, 0.0, {}, [])
    votes = {name: weights[name] / total for name in sorted(weights, key=weights.__getitem__)[::-1]}
    best = next(iter(votes))
    neighbours = list(dict.fromkeys(hit.document_id for hit in hits))
    return Classification(text, best, votes[best], votes, neighbours)
