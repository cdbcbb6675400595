"""Every alias is a model that a pipeline file may name, and stands in the catalogue with what is
published of it."""

import json
from datetime import date

import pytest

from embedding_pipelines.catalogue import catalogue
from embedding_pipelines.plugins import choices
from embedding_pipelines.providers.aliases import ALIASES, Alias
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.providers.common.prices import MODELS, PRICES_OF

ROWS = catalogue()


def row(alias: str) -> dict[str, object]:
    [found] = [row for row in ROWS if row["alias"] == alias]
    return found


def test_every_alias_and_every_listed_model_has_a_row() -> None:
    assert sorted(str(row["alias"]) for row in ROWS if row["alias"]) == sorted(ALIASES)
    assert {f"{row['provider']}:{row['model'] or ''}" for row in ROWS} == MODELS.keys() | set(
        map(str, ALIASES.values())
    )


def test_rows_are_sorted_and_can_be_written_as_json() -> None:
    keys = [(f"{row['provider']}:{row['model'] or ''}", str(row["alias"] or "")) for row in ROWS]
    assert keys == sorted(keys)
    assert json.loads(json.dumps(ROWS)) == ROWS
    assert isinstance(PRICES_OF, date)


def test_a_row_says_what_is_published() -> None:
    assert row("openai-small") == {
        "alias": "openai-small",
        "provider": "openai",
        "model": "text-embedding-3-small",
        "dimensions": 1536,
        "context": 8191,
        "usd_per_million": 0.02,
        "usd_batch": 0.01,
        "retires": None,
        "revision": None,
    }
    retiring = [row["retires"] for row in ROWS if row["model"] == "gemini-embedding-001"]
    assert retiring == ["2028-05-14"]
    assert row("minilm")["usd_per_million"] == 0
    assert row("hashing")["model"] is None


@pytest.mark.parametrize(("alias", "named"), ALIASES.items())
def test_an_alias_is_a_provider_a_model_and_of_the_hub_s_models_a_commit(
    alias: str, named: Alias
) -> None:
    assert alias == alias.lower()
    assert ":" not in alias
    assert named.provider in choices("providers", ProviderOptions)
    assert bool(named.revision) == (named.provider in ("hf", "clip"))
    assert row(alias)["revision"] == named.revision
    if named.revision:
        assert row(alias)["dimensions"]
        assert row(alias)["context"]
        assert len(bytes.fromhex(named.revision)) == 20


def test_no_two_models_share_a_commit() -> None:
    commits = [named.revision for named in ALIASES.values() if named.revision]
    assert len(set(commits)) == len(commits)
