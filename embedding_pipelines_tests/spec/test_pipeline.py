"""`PipelineSpec`: short forms, names, and every option in the fingerprint of what it changes."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.utils import DISALLOWED_NAMES
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from embedding_pipelines.preprocessing.chunk import Chunk
from embedding_pipelines.preprocessing.clean import Clean
from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.run import Run
from embedding_pipelines.sources.csv import Csv
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.spec.pipeline import (
    NOT_IN_DAGSTER,
    OWNER,
    PipelineSpec,
    fingerprint,
    partition_of,
)
from embedding_pipelines.steps.chunks import _configuration
from embedding_pipelines.steps.codec import codec_key
from embedding_pipelines.steps.reading import source_configuration
from embedding_pipelines.steps.vector_store import layout
from embedding_pipelines.storage.warehouse import Warehouse

BASE: dict[str, Any] = {
    "name": "p",
    "source": {
        "kind": "csv",
        "path": "data/*.csv",
        "id": "id",
        "text": "title",
        "metadata": ["cat"],
    },
    "model": {"provider": "hashing"},
    "preprocessing": {"clean": {}, "chunk": {"max_tokens": 100, "overlap": 10}},
    "compression": ["int8"],
}
# What a change of each option must change. An option that is missing here fails the test below.
CHANGES: dict[str, dict[str, Any]] = {
    "documents": {
        "source.path": "other/*.csv",
        "source.id": "key",
        "source.text": ["title", "body"],
        "source.metadata": {"cat": "int"},
        "source.missing": ["-"],
        "source.nanoseconds": "cut",
        "source.duplicates": "first",
        "source.max_rejected": 0.5,
        "source.encoding": "cp1252",
        "source.delimiter": ";",
        "source.quote": None,
        "source.escape": "\\",
        "source.comment": "#",
        "source.skip_rows": 1,
    },
    "chunks": {
        "source.metadata": {"cat": "int"},
        "preprocessing.chunk.max_tokens": 99,
        "preprocessing.chunk.overlap": 9,
        "preprocessing.chunk": None,
        "preprocessing.html": False,
        "model.max_tokens": 50,
        **{f"preprocessing.clean.{name}": "other" for name in Clean.model_fields},
    },
    "embeddings": {"model.dimensions": 32, "model.max_tokens": 50},
    "codec": {
        "compression": [],
        "compression.0": {"kind": "pca", "dimensions": 8},
        "model.dimensions": 32,
    },
    "vector_store": {
        "store.index": "rq",
        "store.index_rows": 500,
        "store.keep_releases": 3,
        "search.mode": "hybrid",
    },
}
CHANGES_NOTHING = {
    "budget", "name", "description", "owners", "output_dim", "schedule", "partitions", "seed",
    "evaluation", "optimized", "source.kind", "model.kind", "store.kind", "store.refine",
    "store.nprobes", "search.language", "receipts", "events", "permissions",
    "engine", "output", "search.rerank", "search.rerank_candidates", "migration",
}  # fmt: skip


def change(option: str, value: Any) -> PipelineSpec:
    values = PipelineSpec.model_validate(BASE).model_dump()
    *path, last = option.split(".")
    place: Any = values
    for part in path:
        place = place[part]
    if last == "0":
        values["compression"] = (value,)
    elif option.startswith("preprocessing.clean."):
        place[last] = not place[last] if isinstance(place[last], bool) else "NFKC"
    else:
        place[last] = value
    return PipelineSpec.model_validate(values)


def configurations(spec: PipelineSpec) -> dict[str, str]:
    run = Run(spec, Warehouse(Path("/nowhere")))
    return {
        "documents": source_configuration(run),
        "chunks": _configuration(run),
        "embeddings": run.model.space.id,
        "codec": codec_key(run),
        "vector_store": layout(spec),
    }


@pytest.mark.parametrize(
    ("step", "option"), [(step, option) for step in CHANGES for option in CHANGES[step]]
)
def test_a_changed_option_makes_its_step_run_again(step: str, option: str) -> None:
    before = configurations(PipelineSpec.model_validate(BASE))
    assert configurations(change(option, CHANGES[step][option]))[step] != before[step]


def test_what_makes_texts_of_files_is_part_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def configuration() -> str:
        values = {**BASE, "source": {"kind": "markdown", "path": "*.md"}, "evaluation": {}}
        return configurations(PipelineSpec.model_validate(values))["documents"]

    before = configuration()
    assert configuration() == before
    monkeypatch.setattr("embedding_pipelines.sources.markdown._VERSION", 99)
    assert configuration() != before


def test_every_option_is_tried() -> None:
    spec = PipelineSpec.model_validate(BASE)
    options = {option for changes in CHANGES.values() for option in changes} | CHANGES_NOTHING
    nested = ("source", "model", "preprocessing", "store", "search")
    fields = {name for name in PipelineSpec.model_fields if name not in nested}
    for name in ("source", "model", "store", "search"):
        fields |= {f"{name}.{option}" for option in type(getattr(spec, name)).model_fields}
    fields |= {f"preprocessing.clean.{option}" for option in Clean.model_fields}
    fields |= {f"preprocessing.chunk.{option}" for option in Chunk.model_fields}
    assert fields <= options


@pytest.mark.parametrize("option", ["budget", "description", "owners", "output_dim", "schedule"])
def test_an_option_that_is_no_part_of_the_result_makes_nothing_run_again(option: str) -> None:
    value = {
        "budget": {"tokens": 5},
        "description": "x",
        "owners": ["team:x"],
        "output_dim": 64,
        "schedule": "@daily",
    }[option]
    assert configurations(change(option, value)) == configurations(
        PipelineSpec.model_validate(BASE)
    )


def test_short_forms_are_the_long_ones_with_defaults() -> None:
    for name in ("p.yaml", "p.json"):
        spec = parse_pipeline('{"model":"bert","data_path":"data.csv"}', "p", name)
        assert spec.source == Csv(path=("data.csv",))
        assert spec.model.model_dump()["model"] == "google-bert/bert-base-uncased"
        assert (spec.store.kind, spec.compression, spec.partitions) == ("lancedb", (), 16)
    packed = parse_pipeline("model: 'hashing:'\ndata_path: x.jsonl.gz\n", "p", "p.yaml")
    assert packed.source.kind == "jsonl"
    short = parse_pipeline(
        "model: minilm\ndata_path: x.csv\ncompression: [int8]\nstore: lancedb\n", "p", "p.yaml"
    )
    long = "model: {provider: hf, model: sentence-transformers/all-MiniLM-L6-v2,\n"
    long += f"        revision: {ALIASES['minilm'].revision}}}\n"
    long += "source: {kind: csv, path: x.csv}\n"
    long += "compression: [{kind: int8}]\nstore: {kind: lancedb}\n"
    assert parse_pipeline(long, "p", "p.yaml") == short


def test_a_spec_survives_json_and_can_be_built_again() -> None:
    spec = PipelineSpec.model_validate(BASE)
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec
    assert fingerprint(spec) == fingerprint(PipelineSpec.model_validate(spec.model_dump()))


@pytest.mark.parametrize(
    "name", ["", "9lives", "Upper", "with-dash", "with space", "ä", "../x", "a" * 64]
)
def test_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a pipeline"):
        PipelineSpec.model_validate({**BASE, "name": name})


@pytest.mark.parametrize("name", sorted(name for name in DISALLOWED_NAMES if name.islower()))
def test_a_name_that_dagster_refuses_is_refused_here(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"'{name}' cannot name a pipeline: Dagster takes no job of this name"
    ):
        PipelineSpec.model_validate({**BASE, "name": name})


def test_no_other_name_is_refused_for_dagsters_sake() -> None:
    assert NOT_IN_DAGSTER <= DISALLOWED_NAMES
    for name in ("my_config", "types", "match", "default"):
        assert PipelineSpec.model_validate({**BASE, "name": name}).name == name


@pytest.mark.parametrize(
    "schedule", ["0 2 * * *", "*/15 0-6 1,15 * MON-FRI", "@daily", "59 23 31 12 7"]
)
def test_schedules_are_accepted(schedule: str) -> None:
    assert PipelineSpec.model_validate({**BASE, "schedule": schedule}).schedule == schedule


@pytest.mark.parametrize(
    "schedule",
    [
        "", "daily", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "*/0 * * * *",
        "1,,2 * * * *", "a b c d e", "0 0 31 2 *", "0 0 30 2 MON", "0 0 31 4,6 *", "5-1 * * * *",
        "0 0 * * 8", "0 0 ? * *", "* * * * * *", "@reboot", "0 0 * FEBR *", "*/90 * * * *",
    ],
)  # fmt: skip
def test_wrong_schedules_are_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match="no cron schedule"):
        PipelineSpec.model_validate({**BASE, "schedule": schedule})


CRON_PARTS = ["*", "0", "1", "5", "29", "30", "31", "59", "60", "*/2", "1-5", "MON", "jan", "L",
              "MON-FRI", "1,2", "1,,2", "5/15", "?", "5#1", "H", "", "2", "1-31/40", "SUN-SAT", "0-7"]  # fmt: skip


@given(st.lists(st.sampled_from(CRON_PARTS), min_size=5, max_size=5))
def test_a_schedule_that_is_accepted_comes(parts: list[str]) -> None:
    schedule = " ".join(parts)
    try:
        PipelineSpec.model_validate({**BASE, "schedule": schedule})
    except ValidationError:
        return

    @dg.job
    def nothing() -> None: ...

    plan = dg.ScheduleDefinition(job=nothing, cron_schedule=schedule)
    assert plan.cron_schedule == schedule


@pytest.mark.parametrize("owner", ["a@b.c", "é@ü.de", "@b.de", "a@b", "team:", "me", "-a@b.de"])
def test_an_owner_that_dagster_refuses_is_refused_here(owner: str) -> None:
    with pytest.raises(ValueError, match="is no owner for Dagster"):
        PipelineSpec.model_validate({**BASE, "owners": [owner]})


@given(st.from_regex(OWNER, fullmatch=True))
def test_dagster_takes_each_owner_that_is_accepted(owner: str) -> None:
    dg.AssetSpec("x", owners=[owner])


def test_partitions_are_where_they_were_when_the_first_pipeline_was_made() -> None:
    ids = ("a", "shutil.copy2", "", "😀", "U+1F600")
    assert [partition_of(name, 16) for name in ids] == [12, 10, 8, 12, 1]
    assert PipelineSpec.model_validate(BASE).partition_names[::15] == ["b00", "b15"]
    many = PipelineSpec.model_validate({**BASE, "partitions": 256})
    assert many.partition_names[::255] == ["b000", "b255"]


@given(st.text(), st.integers(1, 256))
def test_every_id_has_a_partition(name: str, partitions: int) -> None:
    assert 0 <= partition_of(name, partitions) < partitions
