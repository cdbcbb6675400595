"""Names of metrics and checks are looked up when the file is read, and the nearest one is offered."""

from typing import Any

import pytest
from pydantic import ValidationError

from embedding_pipelines.spec.evaluation import Evaluation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"require": {"ndcg_at_1": 0.5}}, "no metric.* Did you mean 'ndcg_at_10'"),
        ({"require": {"mean_norm": 1}}, "'mean_norm' is no metric that can be better or worse"),
        ({"checks": {"space_is_healthi": "off"}}, "no check. Did you mean 'space_is_healthy'"),
        ({"checks": {"counts_add_up": "off"}}, "'counts_add_up' is no check"),
        ({"queries": "q.jsonl"}, "queries needs qrels"),
    ],
)
def test_a_name_that_does_not_exist_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Evaluation.model_validate(options)


def test_off_is_off_with_and_without_quotes() -> None:
    for off in ("off", False):
        found = Evaluation.model_validate({"checks": {"space_is_healthy": off}})
        assert found.checks == {"space_is_healthy": "off"}
