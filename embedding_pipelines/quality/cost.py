"""measuring_cost: what the checks of a candidate would ask the provider for, told before it is
done."""

from collections.abc import Iterator
from typing import get_args

from embedding_pipelines.providers.base import InputType
from embedding_pipelines.quality.canaries import CANARIES
from embedding_pipelines.quality.checks import enabled_checks
from embedding_pipelines.quality.queries import judged_queries, known_item_queries, scored_pairs
from embedding_pipelines.run import Run


def tokens_to_measure(run: Run) -> int:
    """Tokens at most, by the model's tokenizer: a text that the cache knows costs nothing."""
    space, tokenizer = run.model.space, run.model.tokenizer
    texts = dict.fromkeys(_texts(run))
    keys = {text: run.cache.key(space.id, text[1], text[0]) for text in texts}
    known = run.cache.get_many(list(keys.values()), space.dimensions)
    new = sum(len(tokenizer.encode(text[0]).ids) for text, key in keys.items() if key not in known)
    return new + _asked_anew(run)


def _texts(run: Run) -> Iterator[tuple[str, InputType]]:
    """What is asked for through the cache, with its input type."""
    for item in known_item_queries(run, run.spec.evaluation.known_items):
        yield item.query, "query"
        yield item.rest, "document"
    judged = judged_queries(run)
    for query in judged.queries.values() if judged else ():
        yield query, "query"
    for left, right, _ in scored_pairs(run):
        yield left, "document"
        yield right, "document"


def _asked_anew(run: Run) -> int:
    """What is asked for past the cache."""
    checks, tokenizer, tokens = enabled_checks(run.spec), run.model.tokenizer, 0
    if "provider_is_unchanged" in checks:
        tokens += len(get_args(InputType)) * sum(
            len(tokenizer.encode(text).ids) for text in CANARIES
        )
    if "vectors_belong_to_their_texts" in checks:
        made = [run.folder.chunks.manifest(partition) for partition in run.spec.partition_names]
        longest = [
            entry.statistics["tokens"] / entry.rows for entry in made if entry and entry.rows
        ]
        tokens += round(run.spec.evaluation.embedded_again * max(longest, default=0))
    return tokens
