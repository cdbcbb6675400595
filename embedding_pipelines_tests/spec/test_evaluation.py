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
        ({"may_shrink": 50}, "50 is no share: write a number from 0 to 1, or 0% to 100%"),
        ({"may_shrink": "101%"}, "101% is no share"),
        ({"may_lose": -0.1}, "-0.1 is no share"),
        ({"may_shrink": float("nan")}, "nan is no share"),
        ({"may_shrink": "half"}, "may_shrink"),
        ({"may_shrink": "1..5%"}, "may_shrink"),
    ],
)
def test_a_name_that_does_not_exist_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Evaluation.model_validate(options)


def test_off_is_off_with_and_without_quotes() -> None:
    for off in ("off", False):
        found = Evaluation.model_validate({"checks": {"space_is_healthy": off}})
        assert found.checks == {"space_is_healthy": "off"}


@pytest.mark.parametrize(
    ("value", "share"), [("50%", 0.5), ("0%", 0), ("100 %", 1), ("2.5%", 0.025), (0.3, 0.3), (1, 1)]
)
def test_a_share_is_a_number_or_percents(value: object, share: float) -> None:
    assert Evaluation.model_validate({"may_shrink": value}).may_shrink == pytest.approx(share)
