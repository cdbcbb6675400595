"""Log records as JSON, and spans: from a process that is told to, and from a program that has set
them up itself."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from embedding_pipelines import telemetry
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import ConfigError
from embedding_pipelines_tests.orchestration.support import notes

SECRET = "a text that nobody may see"
RUN = "from embedding_pipelines.cli.main import main; main()"
AS_SCHEDULED = """
import sys
from pathlib import Path
from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.spec.load import find_pipeline
home = Path(sys.argv[1])
spec = find_pipeline("notes", home)
with open_instance(home) as instance:
    job = pipeline_definitions([spec], home).resolve_job_def("notes")
    assert job.execute_in_process(instance=instance, tags=all_partitions(spec)).success
"""


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP server on loopback: its address, and the spans that came."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    spans.extend((names["service.name"], each) for each in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


def child(home: Path, code: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**kept, HOME_VARIABLE: str(home), **variables},
        capture_output=True,
        text=True,
        cwd=home,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def records(output: str) -> list[dict[str, Any]]:
    """The JSON lines of what was printed, between lines of others."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def check_records(lines: list[dict[str, Any]]) -> None:
    """Those of one run of the 40 notes, from nothing."""
    assert {line["pipeline"] for line in lines} == {"notes"}
    (run_id,) = {line["run_id"] for line in lines}
    assert len(run_id) == 36
    assert lines[0]["message"] == "The run begins."
    assert lines[-1]["message"] == "The run ends."
    embedded = [line for line in lines if line.get("step") == "embeddings" and "partition" in line]
    assert {line["partition"] for line in embedded} == {"b00", "b01", "b02", "b03"}
    assert sum(line["embedded"] for line in embedded) == 40


@pytest.mark.slow
def test_a_run_of_dagster_prints_records_whether_or_not_spans_arrive(home: Path) -> None:
    notes(home)
    nobody = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    done = child(home, AS_SCHEDULED, str(home), EMBEDDING_PIPELINES_LOG="json", **nobody)
    check_records(records(done.stderr))


@pytest.mark.slow
def test_nothing_is_printed_or_imported_without_being_told(home: Path) -> None:
    notes(home)
    code = f"""
try:
    {RUN}
finally:
    import sys
    print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = child(home, code, "run", "notes")
    assert done.stdout.splitlines()[-1] == "[]"
    assert records(done.stderr) == []


@pytest.mark.slow
def test_a_command_prints_records_and_sends_spans_of_run_steps_partitions_and_requests(
    home: Path,
) -> None:
    notes(home)
    with collector() as (address, spans):
        variables = {"EMBEDDING_PIPELINES_LOG": "json", "OTEL_EXPORTER_OTLP_ENDPOINT": address}
        done = child(home, RUN, "run", "notes", **variables)
    check_records(records(done.stderr))
    assert not records(done.stdout)
    assert {service for service, _ in spans} == {"embedding-pipelines"}
    (run,) = [each for _, each in spans if each.name == "run notes"]
    steps = {each.name: each for _, each in spans if each.name.startswith("step ")}
    assert {each.parent_span_id for each in steps.values()} == {run.span_id}
    assert {"step documents", "step embeddings", "step release"} <= steps.keys()
    below = [each for _, each in spans if each.parent_span_id == steps["step embeddings"].span_id]
    assert sum(each.name.startswith("partition ") for each in below) == 4
    requests = [each for each in below if each.name == "embeddings"]
    assert requests
    assert {each.trace_id for _, each in spans} == {run.trace_id}
    labels = {each.key: each.value for each in requests[0].attributes}
    assert labels["gen_ai.request.model"].string_value
    assert labels["embedding_pipelines.texts"].int_value > 0


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Those of a program that has set up OpenTelemetry itself."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    return exporter


def test_of_an_error_a_span_has_the_class_alone(spans: InMemorySpanExporter) -> None:
    with contextlib.suppress(KeyError), telemetry.span("work", number=1) as more:
        more["count"] = 2
        raise KeyError(SECRET)
    (span,) = spans.get_finished_spans()
    assert span.attributes == {"number": 1, "count": 2, "error.type": "KeyError"}
    assert not span.status.is_ok
    assert SECRET not in span.to_json()


def test_a_span_of_another_thread_has_its_parent(spans: InMemorySpanExporter) -> None:
    with telemetry.span("parent"):
        context = telemetry.current()

        def work() -> None:
            with telemetry.span("child", context):
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        telemetry.past_span("before", 1.5)
    child, before, parent = spans.get_finished_spans()
    assert child.parent is not None
    assert child.parent.span_id == parent.context.span_id
    assert (before.end_time or 0) - (before.start_time or 0) == 1_500_000_000


def test_a_wrong_format_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="there is no format 'yaml'"):
        telemetry.set_up({"EMBEDDING_PIPELINES_LOG": "yaml"})


@pytest.mark.parametrize("lacking", ["opentelemetry.sdk", telemetry.EXPORTER])
def test_who_has_opentelemetry_but_not_the_extra_sends_nothing_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacking: str
) -> None:
    for name in (lacking, f"{lacking}.trace", f"{lacking}.trace_exporter"):
        monkeypatch.setitem(sys.modules, name, None)
    wish = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    telemetry.set_up(wish | {"OTEL_TRACES_EXPORTER": "none"})
    assert caplog.messages == []
    telemetry.set_up(wish)
    (message,) = caplog.messages
    assert message.startswith("OTEL_EXPORTER_OTLP_ENDPOINT is set, and no spans are sent: run pip")


@pytest.mark.slow
def test_records_of_other_threads_have_the_fields_of_the_run() -> None:
    handler = telemetry.JsonLines()
    logger = logging.getLogger(telemetry.ROOT)
    logger.addHandler(handler)
    try:
        with telemetry.common_fields(pipeline="notes"):
            record = logging.LogRecord("x", logging.WARNING, "", 0, "line\n%s", ("two",), None)
            record.fields = {"partition": "b01"}
            line = json.loads(handler.format(record))
        assert line["message"] == "line\ntwo"
        assert (line["pipeline"], line["partition"], line["level"]) == ("notes", "b01", "warning")
        assert handler.common == {}
    finally:
        logger.removeHandler(handler)
