"""Choices, metrics and checks are found in their folder and among other packages' entry points; a
bad one is named."""

import functools
import operator
from importlib.metadata import EntryPoint
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from embedding_pipelines import plugins
from embedding_pipelines.compression.base import Compressor
from embedding_pipelines.engines.base import Engine
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.base import Metric
from embedding_pipelines.plugins import choice_type, choices, names, objects, parse
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.sources.base import Source
from embedding_pipelines.stores.base import Store

STAGES = {
    "sources": Source,
    "providers": ProviderOptions,
    "compression": Compressor,
    "stores": Store,
    "engines": Engine,
}


class Elsewhere(Hashing):
    kind: Literal["elsewhere"] = "elsewhere"


class Mine(Hashing):
    more: int = 1


class Double(Hashing):
    kind: Literal["hashing"] = "hashing"


@pytest.mark.parametrize("stage", STAGES)
def test_a_choice_is_named_after_its_file_and_is_frozen_and_strict(stage: str) -> None:
    classes = choices(stage, STAGES[stage])
    assert classes
    for kind, cls in classes.items():
        assert cls.__module__ == f"embedding_pipelines.{stage}.{kind}"
        assert cls.model_config["frozen"]
        assert cls.model_config["extra"] == "forbid"


def test_the_shipped_choices_are_there() -> None:
    assert {"csv", "json", "jsonl", "parquet"} <= choices("sources", Source).keys()
    assert {"pca", "truncate", "float16", "int8", "binary"} <= choices(
        "compression", Compressor
    ).keys()
    assert {"hf", "hashing"} <= choices("providers", ProviderOptions).keys()
    assert {"lancedb"} <= choices("stores", Store).keys()


def test_parse_makes_the_choice_and_refuses_unknown_options() -> None:
    assert parse("providers", ProviderOptions, {"kind": "hashing", "dimensions": 32}) == Hashing(
        dimensions=32
    )
    for wrong in ({"kind": "nothing"}, {"kind": "hashing", "dimension": 32}, {}):
        with pytest.raises(ValidationError):
            parse("providers", ProviderOptions, wrong)


WRONG = [
    {"kind": "hashin"},
    {"kind": "aliases"},  # a file of the folder without a choice
    {"kind": 3},
    {"kind": []},
    {"dimensions": 3},
    {"kind": "hashing", "dimensions": "many", "more": 1},
    "hashing",
    None,
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_faults_are_those_of_the_union_of_all(wrong: Any) -> None:
    classes = tuple(choices("providers", ProviderOptions).values())
    union = Annotated[functools.reduce(operator.or_, classes), Field(discriminator="kind")]
    faults = []
    for adapter in TypeAdapter(choice_type("providers", ProviderOptions)), TypeAdapter(union):
        with pytest.raises(ValidationError) as caught:
            adapter.validate_python(wrong)
        faults.append(caught.value.errors(include_url=False))
    assert faults[0] == faults[1]


def test_what_a_subclass_adds_is_not_written() -> None:
    adapter = TypeAdapter(choice_type("providers", ProviderOptions))
    mine = Mine(dimensions=32, more=2)
    assert adapter.dump_python(mine, exclude_unset=True) == {"dimensions": 32}
    assert adapter.validate_json(adapter.dump_json(mine)) == Hashing(dimensions=32)


def test_a_choice_of_another_package_and_one_that_is_there_twice_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        added = with_entry(patch, f"{__name__}:Elsewhere")
        patch.setattr(plugins, "choices", lambda stage, base: added)
        assert parse("providers", ProviderOptions, {"kind": "elsewhere"}) == Elsewhere()
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "choices", plugins.choices.__wrapped__)
        entry = EntryPoint("mine", f"{__name__}:Double", "embedding_pipelines.providers")
        patch.setattr(plugins, "_entry_points", lambda folder: [entry])
        with pytest.raises(ConfigError, match="both are 'hashing'"):
            parse("providers", ProviderOptions, {"kind": "hashing"})


def with_entry(monkeypatch: pytest.MonkeyPatch, value: str) -> dict[str, type[plugins.Choice]]:
    entry = EntryPoint("mine", value, "embedding_pipelines.providers")
    monkeypatch.setattr(plugins, "_entry_points", lambda folder: [entry])
    return plugins.choices.__wrapped__("providers", ProviderOptions)


def test_another_package_adds_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = with_entry(monkeypatch, f"{__name__}:Elsewhere")
    assert classes["elsewhere"] is Elsewhere
    assert classes["hashing"] is Hashing


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (f"{__name__}:Double", "both are 'hashing'"),
        (f"{__name__}:Missing", r"'mine' \(.*:Missing\) of another package cannot be loaded"),
        ("no_such_package:X", "'mine' .* cannot be loaded: No module named 'no_such_package'"),
        (f"{__name__}:STAGES", "is no ProviderOptions"),
    ],
)
def test_a_bad_entry_point_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_entry(monkeypatch, value)


MINE = Metric("mine", "higher", "share", "of nothing", lambda evidence: None)
OTHER = Metric("other", "higher", "share", "of nothing", lambda evidence: None)
HUBNESS = Metric("hubness", "lower", "skewness", "of another package", lambda evidence: None)


def test_objects_are_those_of_the_files_and_of_other_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = objects("metrics", Metric)
    assert {"hubness", "ndcg_at_10"} <= own.keys()
    assert all(metric.name == name for name, metric in own.items())
    entry = EntryPoint("mine", f"{__name__}:MINE", "embedding_pipelines.metrics")
    monkeypatch.setattr(plugins, "_entry_points", lambda folder: [entry])
    assert objects("metrics", Metric) == own | {"mine": MINE}
    assert names("metrics")[-1] == "mine"
    assert "health" in names("metrics")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("HUBNESS", "both are 'hubness'"),
        ("OTHER", "Name the entry point as the metric is named"),
        ("Missing", "cannot be loaded"),
        ("STAGES", "is no Metric"),
    ],
)
def test_an_object_that_is_there_twice_or_not_at_all_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    entry = EntryPoint("mine", f"{__name__}:{value}", "embedding_pipelines.metrics")
    monkeypatch.setattr(plugins, "_entry_points", lambda folder: [entry])
    with pytest.raises(ConfigError, match=message):
        objects("metrics", Metric)
