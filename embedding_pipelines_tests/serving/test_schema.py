"""The API keeps what its OpenAPI document says, whatever it is sent: no status 500, no reply of
another shape."""

from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks

from embedding_pipelines_tests.serving.homes import KEY
from embedding_pipelines_tests.serving.live import live

HEADERS = {"Authorization": f"Bearer {KEY}"}
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 12  # of each operation
HEALTH = list(HealthCheck)


PATHS = r"^/(v1|v2|rerank|health|ready|metrics)"


def test_every_operation_keeps_to_the_document(built_home: Path) -> None:
    with live(built_home, KEY) as (address, _, _):
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json").include(path_regex=PATHS)
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) >= 9
        for operation in operations:

            @settings(max_examples=EXAMPLES, derandomize=True, suppress_health_check=HEALTH)
            @given(case=operation.as_strategy())
            def keep_to_the_document(case: schemathesis.Case) -> None:
                reply = case.call(headers=HEADERS)
                assert reply.status_code != 500, reply.text
                case.validate_response(reply, headers=HEADERS, checks=CHECKS)

            keep_to_the_document()
