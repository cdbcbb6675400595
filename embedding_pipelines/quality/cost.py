"""measuring_cost: what the checks of a candidate would ask the provider for, told before it is
done."""

from collections.abc import Iterator
from typing import get_args

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.providers.base import InputType, Provider
from embedding_pipelines.quality.canaries import CANARIES
from embedding_pipelines.quality.checks import wanted_checks
from embedding_pipelines.quality.queries import judged_queries, known_item_queries, scored_pairs
from embedding_pipelines.steps.chain import StepContext


def tokens_to_measure(context: StepContext, provider: Provider, cache: EmbeddingCache) -> int:
    """Tokens at most, by the model's tokenizer: a text that the cache knows costs nothing."""
    space, tokenizer = provider.space, provider.tokenizer()
    texts = dict.fromkeys(_texts(context))
    keys = {text: cache.key(space.id, text[1], text[0]) for text in texts}
    known = cache.get_many(list(keys.values()), space.dimensions)
    new = sum(len(tokenizer.encode(text[0]).ids) for text, key in keys.items() if key not in known)
    return new + _asked_anew(context, provider)


def _texts(context: StepContext) -> Iterator[tuple[str, InputType]]:
    """What is asked for through the cache, with its input type."""
    for item in known_item_queries(context, context.spec.evaluation.known_items):
        yield item.query, "query"
        yield item.rest, "document"
    judged = judged_queries(context)
    for query in judged.queries.values() if judged else ():
        yield query, "query"
    for left, right, _ in scored_pairs(context):
        yield left, "document"
        yield right, "document"


def _asked_anew(context: StepContext, provider: Provider) -> int:
    """What is asked for past the cache."""
    checks, tokenizer, tokens = wanted_checks(context.spec), provider.tokenizer(), 0
    if "provider_is_unchanged" in checks:
        tokens += len(get_args(InputType)) * sum(
            len(tokenizer.encode(text).ids) for text in CANARIES
        )
    if "vectors_belong_to_their_texts" in checks:
        made = [
            context.folder.chunks.manifest(partition) for partition in context.spec.partition_names
        ]
        longest = [
            entry.statistics["tokens"] / entry.rows for entry in made if entry and entry.rows
        ]
        tokens += round(context.spec.evaluation.embedded_again * max(longest, default=0))
    return tokens
