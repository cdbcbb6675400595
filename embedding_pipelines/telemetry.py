"""What machines read of a run: log records with its fields, and OpenTelemetry's spans.

Records go through Python's `logging`, spans through OpenTelemetry's API: whoever has set these up
gets them, and nobody has to. `set_up` does it for a process that the environment tells to:
EMBEDDING_PIPELINES_LOG=json prints records on stderr, a JSON object a line; an endpoint in
OTEL_EXPORTER_OTLP_ENDPOINT gets the spans, if the extra `telemetry` is installed. Of an error a
span has the class alone, for its words may quote a text.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import need

ROOT = "embedding_pipelines"  # the logger above all of this package's
LOG_VARIABLE = "EMBEDDING_PIPELINES_LOG"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORTER = "opentelemetry.exporter.otlp.proto.http"
FIELDS = "fields"  # the attribute of a log record that holds them


class JsonLines(logging.StreamHandler[Any]):
    """Prints records as JSON objects, a line each: time, level, logger, message and fields. `common`
    are those of the run at work; what a record says of itself goes first."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.common: dict[str, Any] = {}

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.common,
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            values["error"] = record.exc_info[0].__name__
        return json.dumps(values, default=str)


def set_up(environment: Mapping[str, str]) -> None:
    """Do what the environment says, once, and warn where the extra is missing for it. Raises
    ConfigError for a format of logs that is none."""
    wish = environment.get(LOG_VARIABLE, "")
    if wish not in ("", "json"):
        raise ConfigError(
            f"{LOG_VARIABLE}: there is no format {wish!r}. Set it to json, or unset it."
        )
    if wish and not _handlers():
        logger = logging.getLogger(ROOT)
        logger.addHandler(JsonLines())
        logger.propagate = False
        logger.setLevel(logging.INFO)
    is_wanted = environment.get("OTEL_TRACES_EXPORTER") != "none"
    endpoint = next(filter(environment.get, ENDPOINTS), None)
    if is_wanted and endpoint and _is_installed():
        _export(environment)
    elif is_wanted and endpoint:
        logging.getLogger(ROOT).warning(
            "%s is set, and no spans are sent: run pip install 'embedding-pipelines[telemetry]', or "
            "set OTEL_TRACES_EXPORTER=none.",
            endpoint,
        )


def _is_installed() -> bool:
    """Whether all of the extra is; other packages bring OpenTelemetry's API alone."""
    try:
        return find_spec("opentelemetry.sdk") is not None and find_spec(EXPORTER) is not None
    except ModuleNotFoundError:
        return False


def _handlers() -> list[JsonLines]:
    handlers = logging.getLogger(ROOT).handlers
    return [handler for handler in handlers if isinstance(handler, JsonLines)]


def _export(environment: Mapping[str, str]) -> None:
    """Send spans to the endpoint, unless this process sends them somewhere already."""
    trace = need("opentelemetry.trace", "telemetry")
    sdk = need("opentelemetry.sdk.trace", "telemetry")
    if isinstance(trace.get_tracer_provider(), sdk.TracerProvider):
        return
    names = {} if "OTEL_SERVICE_NAME" in environment else {"service.name": "embedding-pipelines"}
    resource = need("opentelemetry.sdk.resources", "telemetry").Resource.create(names)
    exporter = need("opentelemetry.exporter.otlp.proto.http.trace_exporter", "telemetry")
    export = need("opentelemetry.sdk.trace.export", "telemetry")
    provider = sdk.TracerProvider(resource=resource)  # at its exit a process sends what is left
    provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextlib.contextmanager
def common_fields(**fields: Any) -> Iterator[None]:
    """The fields of every record that this process prints meanwhile."""
    handlers = _handlers()
    before = [handler.common for handler in handlers]
    for handler in handlers:
        handler.common = {**handler.common, **fields}
    try:
        yield
    finally:
        for handler, common in zip(handlers, before, strict=True):
            handler.common = common


def current() -> Any:
    """The context of the span at work here, for other threads; None: no traces."""
    trace = sys.modules.get("opentelemetry.trace")
    return trace and need("opentelemetry.context", "telemetry").get_current()


@contextlib.contextmanager
def span(name: str, parent: Any = None, **attributes: Any) -> Iterator[dict[str, Any]]:
    """A span as long as the context is open, below the one at work in this thread, or else below
    `parent`. What is put into the mapping meanwhile are further attributes. Without OpenTelemetry in
    this process, nothing."""
    more: dict[str, Any] = {}
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield more
        return
    if trace.get_current_span().get_span_context().is_valid:
        parent = None
    with trace.get_tracer(ROOT).start_as_current_span(
        name, parent, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as each:
        try:
            yield more
        except BaseException as error:
            each.set_attribute("error.type", type(error).__name__)
            each.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            each.set_attributes(more)


def past_span(name: str, seconds: float, **attributes: Any) -> None:
    """A span of something that ended just now."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        now = time.time_ns()
        start = now - round(seconds * 1e9)
        trace.get_tracer(ROOT).start_span(name, start_time=start, attributes=attributes).end(now)
