"""Failures: how a step that went wrong is told, on the run's page and on the command line."""

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._core.events import RunFailureReason
from dagster_shared.error import SerializableErrorInfo

from embedding_pipelines.errors import EmbeddingPipelinesError


class Refused(DagsterUserCodeProcessError, dg.Failure):
    """An error that a user can mend: its sentence, no traceback and no retries.

    Dagster shows an error that came over from another process as that process told it. That is the
    one way to keep its own frames off the screen of somebody who has misspelt a column.
    """

    def __init__(self, error: EmbeddingPipelinesError) -> None:
        told = SerializableErrorInfo(message=f"{error}\n", stack=[], cls_name=type(error).__name__)
        super().__init__(str(error), user_code_process_error_infos=[told])  # type: ignore[no-untyped-call]
        self.allow_retries = False


def was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether the run failed because the user or the machine stopped it."""
    failures = (
        event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE
    )
    reason = RunFailureReason.UNEXPECTED_TERMINATION
    return any(failure.job_failure_data.failure_reason is reason for failure in failures)


def problem_of(result: dg.ExecuteInProcessResult) -> str:
    """Why a run failed: a step's own sentence, else that of the checks that are in the way, else
    the exception that nobody expected, with the place to look."""
    failed = [
        f"{evaluation.check_name}: {evaluation.description}"
        for evaluation in result.get_asset_check_evaluations()
        if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR
    ]
    if failed:
        return "Checks stand in the way of the release:\n" + "\n".join(
            f"  {line}" for line in failed
        )
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            if failure.user_failure_data is not None and failure.user_failure_data.description:
                return failure.user_failure_data.description
            return f"Step {event.step_key!r} failed: {_unexpected(failure.error)} {_where(result.run_id)}"
    last = [event.message for event in result.all_events if event.message][-1:]
    return f"{last[0] if last else 'No event says why.'} {_where(result.run_id)}"


def _unexpected(error: SerializableErrorInfo | None) -> str:
    """Type, message and place of the exception that Dagster wrapped."""
    if error is None:
        return "no reason is on record."
    while error.cause is not None and (error.cls_name or "").startswith("Dagster"):
        error = error.cause
    place = f" ({' '.join(error.stack[-1].split())})" if error.stack else ""
    return f"{error.message.strip()}{place}."


def _where(run_id: str) -> str:
    return f"This should not happen. The whole traceback is in the log of run {run_id}: `dagster dev` shows it."
