"""The content of a pipeline file: `PipelineSpec`, one choice per stage, checked as a whole.

It is pure data: nothing here reads a file or loads a model.
"""

import json
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from embedding_pipelines.compression.base import Compressor
from embedding_pipelines.engines.base import Engine
from embedding_pipelines.plugins import choice_type, choices
from embedding_pipelines.preprocessing.base import Preprocessing
from embedding_pipelines.providers.aliases import parse_model
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.schemas import digest
from embedding_pipelines.sources.base import FileSource, Source
from embedding_pipelines.sources.events import ADDRESS
from embedding_pipelines.spec.evaluation import Evaluation, Optimized
from embedding_pipelines.spec.output import output_problem
from embedding_pipelines.spec.permissions import as_source, as_written
from embedding_pipelines.spec.receipts import ReceiptOptions
from embedding_pipelines.spec.search import Search
from embedding_pipelines.stores.base import Store
from embedding_pipelines.variables import restore_all

if TYPE_CHECKING:
    AnySource = Source
    AnyProvider = ProviderOptions
    AnyCompressor = Compressor
    AnyStore = Store
    AnyEngine = Engine
else:
    AnySource = choice_type("sources", Source)
    AnyProvider = choice_type("providers", ProviderOptions)
    AnyCompressor = choice_type("compression", Compressor)
    AnyStore = choice_type("stores", Store)
    AnyEngine = choice_type("engines", Engine)

MAX_PARTITIONS = 256  # Dagster records about 32 ms of events per partition: 8 s for all
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")  # also a Dagster group, job and asset key, and a folder
NOT_IN_DAGSTER = {  # names that Dagster accepts for no job, beside Python's keywords
    "arg_dict", "bool", "conf", "config", "context", "dict", "float", "input", "input_arg_dict",
    "int", "meta", "output", "output_arg_dict", "str", "type",
}  # fmt: skip
CRON_ALIAS = re.compile(r"@(hourly|daily|midnight|weekly|monthly|yearly|annually)")
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day, month, weekday
CRON_NAMES = {
    3: ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
    4: ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"),  # from 0, unlike months
}
CRON_PART = re.compile(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d{1,4}))?")
LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days of each month
OWNER = re.compile(  # what Dagster accepts
    r"team:[A-Za-z0-9_.-]+|[A-Za-z0-9_][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}"
)


# What may hold secrets: it is stored as it is written, and its variables are replaced when the model,
# or the connection to a database, opens.
KEPT_AS_WRITTEN = (
    ("model", "options"),
    ("model", "gen_params"),
    ("source", "url"),
    ("permissions", "url"),
)


def _model(value: Any) -> Any:
    """`hf:org/model`, an alias, or `{provider: hf, model: …}` as the options of a provider."""
    if isinstance(value, str):
        return parse_model(value)
    if isinstance(value, dict) and "provider" in value:
        return {"kind" if key == "provider" else key: part for key, part in value.items()}
    return value


def _of_kind(value: Any) -> Any:
    """`int8` is the same as `{kind: int8}`."""
    return {"kind": value} if isinstance(value, str) else value


def _store(value: Any) -> Any:
    """As `_of_kind`; options alone are LanceDB's, which is the store of a file that names none."""
    return {"kind": "lancedb", **value} if isinstance(value, dict) else _of_kind(value)


class Budget(BaseModel):
    """The most that one run may spend, as the provider bills it; None: no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd: float | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=0)


class Migration(BaseModel):
    """The model that a pipeline leaves. Its line, which searches read until the cutover, is kept up
    beside that of `model`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    old_model: Annotated[AnyProvider, BeforeValidator(_model)]
    keep_old_days: float = Field(7, ge=0)  # that the old line is kept up after the cutover


class PipelineSpec(BaseModel):
    """One pipeline: a source, a model, a compression and a store."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    description: str = ""
    owners: tuple[str, ...] = ()
    source: AnySource
    preprocessing: Preprocessing = Preprocessing()
    model: Annotated[AnyProvider, BeforeValidator(_model)]
    migration: Migration | None = None
    output_dim: int | None = None  # dimensions in the table; checked, and never cut to
    compression: tuple[Annotated[AnyCompressor, BeforeValidator(_of_kind)], ...] = ()
    optimized: Optimized | None = None  # how `optimize` chose the compression
    store: Annotated[AnyStore, BeforeValidator(_store)] = Field(
        {"kind": "lancedb"}, validate_default=True
    )
    engine: Annotated[AnyEngine, BeforeValidator(_of_kind)] = Field(
        {"kind": "inline"}, validate_default=True
    )
    output: str | None = None  # a folder, or a prefix of a bucket: where each release is delivered
    search: Search = Search()
    evaluation: Evaluation = Evaluation()
    receipts: ReceiptOptions = ReceiptOptions()
    # Who may see which document: a source of ids and principals, whose `text` are the principals.
    permissions: Annotated[AnySource | None, BeforeValidator(as_source)] = None
    budget: Budget | None = None
    schedule: str | None = None
    events: str | None = None  # the queue that the notifications of the source's bucket go to
    partitions: int = Field(16, ge=1, le=MAX_PARTITIONS)
    seed: int = 0  # of samples for metrics
    _written: dict[str, str] = PrivateAttr(default_factory=dict)  # see `keep_variables`

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        """`data_path: data.csv` is a source of the kind that its ending says; `input_type: text`
        alone is one without files."""
        if not isinstance(values, dict) or not {"data_path", "input_type"} & values.keys():
            return values
        values = dict(values)
        if values.pop("input_type", "text") != "text":
            raise ValueError("input_type: only 'text' is supported")
        if "data_path" in values:
            if "source" in values:
                raise ValueError("data_path and source say the same thing: keep one of them")
            path = str(values.pop("data_path"))
            values["source"] = {"kind": _kind_of(path), "path": path}
        values.setdefault("source", {"kind": "push"})
        return values

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name a pipeline: use a letter, then lower-case letters, digits "
                "and '_'; 63 at most. The file's name is the pipeline's"
            )
        if keyword.iskeyword(name) or name in NOT_IN_DAGSTER:  # else no pipeline at all would load
            raise ValueError(
                f"{name!r} cannot name a pipeline: Dagster takes no job of this name. Write "
                f"another, such as 'my_{name}'. The file's name is the pipeline's"
            )
        return name

    @field_validator("model")
    @classmethod
    def _check_images(cls, model: ProviderOptions, info: ValidationInfo) -> ProviderOptions:
        source = info.data.get("source")
        if source is not None and source.has_images and not model.takes_images:
            raise ValueError(
                f"the provider {model.kind} takes texts alone, and the source has images; write "
                "{provider: clip, model: openai/clip-vit-base-patch32}, or another of its models"
            )
        taken = source.metadata_types.keys() & model.metadata_types if source else ()
        for name in sorted(taken):
            raise ValueError(
                f"the model gives the table a column {name!r}, and source.metadata names one, too; "
                "rename it in the source, or leave it out"
            )
        return model

    @field_validator("migration")
    @classmethod
    def _check_migration(
        cls, migration: Migration | None, info: ValidationInfo
    ) -> Migration | None:
        model, source = info.data.get("model"), info.data.get("source")
        if migration is None or model is None:
            return migration
        if migration.old_model == model:
            raise ValueError(
                "old_model is the model itself; name the one before, or leave this out"
            )
        if source is not None and source.has_images and not migration.old_model.takes_images:
            raise ValueError("old_model takes texts alone, and the source has images")
        return migration

    @field_validator("evaluation")
    @classmethod
    def _check_label(cls, evaluation: Evaluation, info: ValidationInfo) -> Evaluation:
        source, label = info.data.get("source"), evaluation.label
        if source is None or label is None or label in source.metadata_types:
            return evaluation
        columns = ", ".join(source.metadata_types)
        others = f"there are {columns}" if columns else "source.metadata names none"
        raise ValueError(f"label: {label!r} is no metadata column; {others}")

    @field_validator("budget")
    @classmethod
    def _check_price(cls, budget: Budget | None, info: ValidationInfo) -> Budget | None:
        model = info.data.get("model")
        if model is None or budget is None or budget.usd is None or model.price is not None:
            return budget
        raise ValueError(
            "usd: the price of this model is unknown; set model.usd_per_million_tokens, or use "
            "budget.tokens"
        )

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, schedule: str | None) -> str | None:
        if schedule is not None and not _is_cron(schedule.strip()):
            raise ValueError(
                f"{schedule!r} is no cron schedule: write minute, hour, day, month and weekday "
                "such as '0 2 * * *', or @daily; the day has to be one of the month"
            )
        return schedule

    @field_validator("events")
    @classmethod
    def _check_events(cls, events: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source")
        if events is None or source is None:
            return events
        if "@" in events or "?" in events:
            raise ValueError(
                "the queue's address holds credentials; leave them out and change them, since they "
                "were in a file, and set AWS's usual environment variables"
            )
        if not ADDRESS.fullmatch(events):
            raise ValueError(f"{events!r} is no URL of an SQS queue: write https://sqs.…")
        paths = source.path if isinstance(source, FileSource) else ()
        if not paths or not all(path.startswith("s3://") for path in paths):
            raise ValueError(
                "a queue has events of S3 alone; name only s3:// addresses in source.path"
            )
        return events

    @field_validator("output")
    @classmethod
    def _check_output(cls, output: str | None, info: ValidationInfo) -> str | None:
        if output is None or (source := info.data.get("source")) is None:
            return output
        # Of relative places alone; a run and `validate` know where the home is.
        if problem := output_problem(output, source, Path("/the-home-of-this-pipeline")):
            raise ValueError(problem)
        return output

    @field_serializer("permissions")
    def _write_permissions(self, permissions: Source | None) -> dict[str, Any] | None:
        return None if permissions is None else as_written(permissions)

    @field_validator("owners")
    @classmethod
    def _check_owners(cls, owners: tuple[str, ...]) -> tuple[str, ...]:
        for owner in owners:
            if not OWNER.fullmatch(owner):
                raise ValueError(
                    f"{owner!r} is no owner for Dagster: write an e-mail address in plain letters, "
                    "such as ann@example.org, or 'team:name'"
                )
        return owners

    def keep_variables(self, written: Mapping[str, str]) -> None:
        """Remember each text that was written with a `${NAME}`, by what it has become."""
        self._written.update(written)

    def as_written(self, value: Any) -> Any:
        """A JSON value of this pipeline as it is stored: with variables, not with their values."""
        return restore_all(value, self._written)

    @property
    def metadata_types(self) -> dict[str, str]:
        """The table's columns beside its own: the documents' metadata, and what the model gives."""
        return self.source.metadata_types | self.model.metadata_types

    @property
    def models(self) -> list[ProviderOptions]:
        """Those that its runs embed with: while it migrates also the one that it leaves."""
        return [self.model, *([self.migration.old_model] if self.migration else [])]

    @property
    def partition_names(self) -> list[str]:
        """`b00` … in order."""
        width = max(2, len(str(self.partitions - 1)))
        return [f"b{number:0{width}d}" for number in range(self.partitions)]


def fingerprint(*parts: BaseModel | str | None) -> str:
    """128-bit hex digest of configuration; every option that changes a result belongs in it."""
    texts = [
        part.model_dump_json() if isinstance(part, BaseModel) else json.dumps(part)
        for part in parts
    ]
    return digest(*(text.encode() for text in texts)).hex()


def partition_of(document_id: str, partitions: int) -> int:
    """The partition of a document, stable for ever: only its id decides."""
    return int.from_bytes(digest(document_id.encode())[:8], "little") % partitions


def _is_cron(schedule: str) -> bool:
    """Whether Dagster takes a schedule, and it comes on some day of some year."""
    if CRON_ALIAS.fullmatch(schedule):
        return True
    fields = schedule.split()
    if len(fields) != len(CRON_RANGES):
        return False
    values = [_cron_values(text, at) for at, text in enumerate(fields)]
    if not all(values):
        return False
    days, months = values[2], values[3]
    comes = any(min(days) <= LONGEST[month - 1] for month in months)
    # A weekday beside it is another way to come; Dagster refuses 30 February all the same.
    return comes or (fields[4] != "*" and months != {2})


def _cron_values(field: str, at: int) -> set[int]:
    """The numbers that a schedule's field names; none if it is wrong."""
    lowest, highest = CRON_RANGES[at]
    values: set[int] = set()
    for part in field.split(","):
        match = CRON_PART.fullmatch(part)
        if match is None:
            return set()
        start, end, step = match.groups()
        low = lowest if start is None else _cron_number(start, at)
        only = start is not None and end is None and step is None
        high = low if only else highest if end is None else _cron_number(end, at)
        size = 1 if step is None else int(step)
        if not (lowest <= low <= high <= highest and 1 <= size <= max(high, 1)):
            return set()
        values |= {*range(low, high + 1, size)}
    return values


def _cron_number(text: str, at: int) -> int:
    """A number, or the number of a month's or a weekday's name; -1 if it is neither."""
    names = CRON_NAMES.get(at, ())
    if text.upper() in names:
        return names.index(text.upper()) + CRON_RANGES[at][0]
    return int(text) if re.fullmatch(r"[0-9]{1,2}", text) else -1


def _kind_of(path: str) -> str:
    for kind, source in choices("sources", Source).items():
        if path.endswith(source.suffixes):  # type: ignore[attr-defined]
            return kind
    raise ValueError(
        f"data_path: the kind of {path!r} is not clear from its ending; write source.kind"
    )
