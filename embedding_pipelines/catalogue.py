"""All models with a short name or published figures, in one table. Any other works as well."""

from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.providers.common.prices import MODELS


def catalogue() -> list[dict[str, str | int | float | None]]:
    """One row per alias and per listed model without one, by provider, model and alias.

    `context` is in tokens of one text, `usd_per_million` and `usd_batch` in USD per million tokens
    (0: free, on one's own machine), `retires` a date such as "2028-05-14", `revision` the commit on
    the hub that an alias stands for. None where it is unknown.
    """
    models: list[tuple[str, str | None]] = [(str(ALIASES[alias]), alias) for alias in ALIASES]
    models += [(name, None) for name in MODELS.keys() - {name for name, _ in models}]
    models.sort(key=lambda model: (model[0], model[1] or ""))
    rows = []
    for name, alias in models:
        kind, _, model = name.partition(":")
        entry = MODELS.get(name)
        row: dict[str, str | int | float | None] = {
            "alias": alias,
            "provider": kind,
            "model": model or None,
            "dimensions": entry.dimensions if entry else None,
            "context": entry.max_tokens if entry else None,
            "usd_per_million": entry.usd_per_million if entry else None,
            "usd_batch": entry.usd_batch if entry else None,
            "retires": entry.retires.isoformat() if entry and entry.retires else None,
            "revision": ALIASES[alias].revision if alias else None,
        }
        rows.append(row)
    return rows
