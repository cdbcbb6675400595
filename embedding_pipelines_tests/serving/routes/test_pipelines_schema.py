"""Management keeps what its OpenAPI document says, whatever it is sent."""

import sys
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks

from embedding_pipelines.serving.runs import Runs
from embedding_pipelines_tests.chain import write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.homes import KEY
from embedding_pipelines_tests.serving.live import live

HEADERS = {"Authorization": f"Bearer {KEY}"}
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 12  # of each operation


def test_management_keeps_to_the_document(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "things", HASHING)
    write_csv(tmp_path, "a.csv", [(1, "red fox", "animal")])
    with live(tmp_path, KEY) as (address, server, _):
        server.runs = Runs(tmp_path, (sys.executable, "-c", "pass"))  # which ends at once
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json").include(
            path_regex="^/api/embedding-pipelines"
        )
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) >= 9
        for operation in operations:

            @settings(
                max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(HealthCheck)
            )
            @given(case=operation.as_strategy())
            def keep_to_the_document(case: schemathesis.Case) -> None:
                reply = case.call(headers=HEADERS)
                assert reply.status_code < 500, reply.text
                case.validate_response(reply, headers=HEADERS, checks=CHECKS)

            keep_to_the_document()
