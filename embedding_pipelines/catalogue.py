"""The models that have a short name or published facts, in one table. A model that is not in it
works as well."""

from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.providers.common.prices import MODELS, PRICES_OF

PRICES_ARE_OF = PRICES_OF  # the day on which the prices were taken


def catalogue() -> list[dict[str, str | int | float | None]]:
    """One row per alias and per listed model without one, by provider, model and alias.

    `context` is in tokens of one text, `usd_per_million` and `usd_batch` in USD per million tokens
    (0: free, on one's own machine), `retires` a date such as "2028-05-14", `revision` the commit on
    the hub that an alias stands for. What is not known is None.
    """
    names: list[tuple[str, str | None]] = [(str(named), alias) for alias, named in ALIASES.items()]
    names += [(model, None) for model in MODELS.keys() - {name for name, _ in names}]
    return [
        _row(model, alias)
        for model, alias in sorted(names, key=lambda name: (name[0], name[1] or ""))
    ]


def _row(name: str, alias: str | None) -> dict[str, str | int | float | None]:
    kind, _, model = name.partition(":")
    facts = MODELS.get(name)
    return {
        "alias": alias,
        "provider": kind,
        "model": model or None,
        "dimensions": facts.dimensions if facts else None,
        "context": facts.max_tokens if facts else None,
        "usd_per_million": facts.usd if facts else None,
        "usd_batch": facts.usd_batch if facts else None,
        "retires": facts.retires.isoformat() if facts and facts.retires else None,
        "revision": ALIASES[alias].revision if alias else None,
    }
