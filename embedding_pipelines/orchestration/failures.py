"""Failures: how a step that went wrong is reported, on the run's page and on the command line."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from embedding_pipelines.errors import (
    Busy,
    BusyError,
    EmbeddingPipelinesError,
    StoreError,
    Unreachable,
    describe_os_error,
)

# What databases say through SQLAlchemy: of SQLite and of PostgreSQL, the first line.
SQLITE_ERROR = re.compile(r"\(sqlite3\.\w+\) (.+)")
DATABASE_ERROR = re.compile(r"\(psycopg2\.[\w.]+\) (.+)")
UNSET = re.compile(r'environment variable "(\w+)" which is not set')


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """An error that the user can fix fails the step with its sentence. Where somebody has retries,
    only what may pass by itself is retried: network, disk, rate limits, another process at work."""
    try:
        yield
    except EmbeddingPipelinesError as error:
        may_pass = isinstance(error, Busy | Unreachable | BusyError)
        raise dg.Failure(str(error), allow_retries=may_pass) from None
    except OSError as error:
        raise dg.Failure(describe_os_error(error), allow_retries=True) from error


@contextlib.contextmanager
def readable_records(folder: Path) -> Iterator[None]:
    """Databases of an instance that cannot be read or written are a StoreError: the disk is full,
    say, or the server is down. Dagster wraps the database's own error. So is a dagster.yaml that
    names a variable that is not set, or a package that is not installed."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if problem := _of_cause(folder, cause):
                raise StoreError(problem) from error
            cause = cause.__cause__ or cause.__context__
        raise


def _of_cause(folder: Path, cause: BaseException) -> str:
    """What the matter is with an instance's records; empty if this is not why."""
    if isinstance(cause, sqlite3.Error):
        return _of_records(folder, str(cause))
    if isinstance(cause, SQLAlchemyError) and (match := DATABASE_ERROR.search(str(cause))):
        return _of_server(folder, match[1])
    settings = folder / "dagster.yaml"
    if isinstance(cause, ModuleNotFoundError) and cause.name in ("dagster_postgres", "psycopg"):
        remedy = (
            "run: pip install 'embedding-pipelines[postgres]'"
            if cause.name == "dagster_postgres"
            else "let the address begin with postgresql+psycopg2://"
        )
        return f"{settings} names PostgreSQL, and there is no package {cause.name!r}; {remedy}"
    if match := UNSET.search(str(cause)):
        return f"{settings} names the variable {match[1]} of the environment. Set it."
    return ""


def _of_records(folder: Path, words: str) -> str:
    return (
        f"Dagster's records in {folder} cannot be used: {words}. Is there room on the disk, and may "
        "this user write there? Then run again; what was released is as before."
    )


def _of_server(folder: Path, words: str) -> str:
    return (
        f"Dagster's records on the server that {folder / 'dagster.yaml'} names cannot be used: "
        f"{words.strip().rstrip('.')}. Is the server up, and is its address right? Then run again; "
        "what was released is as before."
    )


def was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether the run failed because the user or the machine stopped it."""
    failures = (
        event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE
    )
    reasons = (event.job_failure_data.failure_reason for event in failures)
    return any(reason is not None and reason.name == "UNEXPECTED_TERMINATION" for reason in reasons)


def problem_of(result: dg.ExecuteInProcessResult, records: Path) -> str:
    """Why a run failed: a step's own sentence, else that of the checks that are in the way, else
    what is the matter with the instance's `records`, else the exception that nobody expected, with
    the place to look."""
    checks = [
        f"{evaluation.check_name}: {evaluation.description}"
        for evaluation in result.get_asset_check_evaluations()
        if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR
    ]
    if checks:
        return "These checks block the release:\n" + "\n".join(f"  {line}" for line in checks)
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            if failure.user_failure_data is not None and failure.user_failure_data.description:
                return failure.user_failure_data.description
            if problem := _database_error(failure.error, records):
                return problem
            reason = _unexpected(failure.error)
            return f"Step {event.step_key!r} failed: {reason} {_where(result.run_id)}"
        is_end = event.event_type == dg.DagsterEventType.RUN_FAILURE
        if is_end and (problem := _database_error(event.job_failure_data.error, records)):
            return problem
    last = [event.message for event in result.all_events if event.message][-1:]
    return f"{last[0] if last else 'No event says why.'} {_where(result.run_id)}"


def _database_error(error: Any, records: Path) -> str:
    """What a database said, if that is why; Dagster's are the only ones that speak here, through
    SQLAlchemy: our own say a sentence."""
    while error is not None:
        if match := SQLITE_ERROR.search(error.message):
            return _of_records(records, match[1])
        if match := DATABASE_ERROR.search(error.message):
            return _of_server(records, match[1])
        error = error.cause
    return ""


def _unexpected(error: Any) -> str:
    """Type, message and place of the exception that Dagster wrapped."""
    if error is None:
        return "no reason is on record."
    while error.cause is not None and (error.cls_name or "").startswith("Dagster"):
        error = error.cause
    place = f" ({' '.join(error.stack[-1].split())})" if error.stack else ""
    return f"{error.message.strip()}{place}."


def _where(run_id: str) -> str:
    return (
        "This should not happen. The whole traceback is in the log of run "
        f"{run_id}: `dagster dev` shows it."
    )
