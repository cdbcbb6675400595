"""Commands that change what is live: `run`, with `plan` of it, `release` and `rollback`."""

import contextlib
import gc
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import (
    PAUSED,
    Name,
    Names,
    Outcomes,
    Output,
    Problem,
    ServerUrl,
    find_released,
    load_spec,
    load_specs,
    open_run,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import (
    TerminalProgress,
    counted,
    make_console,
    say,
    words_of,
)
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.environment import instance_folder
from embedding_pipelines.errors import EmbeddingPipelinesError

if TYPE_CHECKING:
    from embedding_pipelines.plan import Plan
    from embedding_pipelines.spec.pipeline import PipelineSpec

app = typer.Typer()


@app.command()
def run(
    names: Names = None,
    re_embed: Annotated[
        bool, typer.Option("--re-embed", help="Make all vectors anew, past the cache; this costs.")
    ] = False,
    until: Annotated[
        str, typer.Option(metavar="50%", help="Stop when this share of the tokens is embedded.")
    ] = "",
    time_limit: Annotated[
        str, typer.Option("--for", metavar="30m", help="Stop after this time: 90s, 30m, 2h.")
    ] = "",
    server: ServerUrl = None,
) -> Outcomes:
    """Read what changed, embed what is new, check, release.

    Stop it at any time: it keeps what it embedded, and the next run goes on from there. With --until
    or --for it stops by itself, with exit code 3, and releases nothing before all is embedded.
    """
    from embedding_pipelines.steps.embeddings import re_embed as embed_anew

    if server:
        if re_embed or until or time_limit:
            words = "`--server` takes no other option: a server runs a pipeline whole."
            raise typer.BadParameter(words)
        for end in remote.runs(server, names):
            yield from _ended(*end) if isinstance(end, tuple) else [end]
        return
    if re_embed and not names:
        raise typer.BadParameter(
            "`--re-embed`: name the pipeline, for every text is paid for again."
        )
    share = _parse_share(until) if until else None
    deadline = time.monotonic() + _parse_seconds(time_limit) if time_limit else None
    specs, problems = load_specs(names)
    yield from problems
    if problems and names:
        return
    if re_embed:
        for spec in specs:
            with open_run(spec) as pipeline:
                embed_anew(pipeline)
    for spec in specs:
        if share is not None and any(model.uses_batch_jobs for model in spec.models):
            yield Problem(
                f"{spec.name}: run --until does not go with batch jobs, which take all texts at "
                "once. Leave it out, or set a budget.",
                spec.name,
            )
            continue
        try:
            result, problem = run_one(spec, share=share, deadline=deadline)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "What was embedded is kept: the same command goes on from there."
            ) from None
        yield from _ended(result, problem)


def _ended(result: dict[str, Any], problem: str) -> Outcomes:
    """What a run has done, and why it went no further, if it did not."""
    name = result["pipeline"]
    yield Output([result], partial(_say_end, result, problem))
    if problem:
        yield Problem(f"{name}: {problem}", name)
    elif result["paused"]:
        yield Problem(
            f"{name}: {result['paused']}. Nothing is released until all is embedded; "
            f"`embedding-pipelines run {name}` goes on from here.",
            name,
            PAUSED,
        )


@app.command()
def retry(name: Name) -> Outcomes:
    """Send rejected texts again, and no others.

    What follows is done as ever: texts that are accepted are released. The source is not read and
    no other text is paid for. A record of the source that was rejected is read again when its file
    or the pipeline file changes.
    """
    from embedding_pipelines.remote import refresh
    from embedding_pipelines.steps.embeddings import rejected_texts
    from embedding_pipelines.steps.old_line import lines_of

    spec = load_spec(name)
    with contextlib.ExitStack() as stack:
        run = open_run(spec)
        refresh(run.warehouse, spec.name)
        both = [stack.enter_context(line) for line in lines_of(run)]
        before = sum(map(rejected_texts, both))
        if not before:
            result = {"pipeline": spec.name, "rejected": 0, "accepted": 0}
            yield Output([result], partial(say, f"{spec.name}: no text is rejected."))
            return
        figures, problem = run_one(spec, retry_rejected=True)
        left = sum(map(rejected_texts, both))
    lines = [f"{spec.name}: {before - left:,} of {counted(before, 'rejected text')} accepted."]
    if left:
        lines.append(f"Why the others are not: embedding-pipelines rejected {spec.name}")

    def show() -> None:
        say(*lines)
        _say_end(figures, problem)

    yield Output([figures | {"rejected": left, "accepted": before - left}], show)
    if problem:
        yield Problem(f"{spec.name}: {problem}", spec.name)


def _parse_share(text: str) -> float:
    """Of 50%: 0.5. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,2}(?:\.\d+)?) ?%", text.strip())
    if not match or not float(match[1]):
        raise typer.BadParameter(f"`--until` is {text!r}: write a share from 1% to 99%, as 50%.")
    return float(match[1]) / 100


def _parse_seconds(text: str) -> float:
    """Of 30m: 1800. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?) ?([smh])", text.strip())
    if not match:
        raise typer.BadParameter(f"`--for` is {text!r}: write seconds, minutes or hours, as 30m.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _say_end(result: dict[str, Any], problem: str) -> None:
    """The last line of a run: what is live now, how long it took, and what to do next."""
    name, took = result["pipeline"], words_of(result["seconds"])
    release = next((step for step in result["steps"] if step["step"] == "release"), None)
    if problem or result["paused"]:
        if result["steps"]:
            say(f"{name}: stopped after {took}.")
    elif release is None:
        say(f"{name}: nothing is released by this run, which took {took}.")
    else:
        what = "is live" if release["changed"] else "stays live, nothing has changed"
        if release["release"] != release["live"]:
            what = f"is the newest, and release {release['live']} stays live after a rollback"
            if any(step["step"] == "old_line" for step in result["steps"]):
                what = f"waits for `embedding-pipelines migrate {name} cutover`"
        rows = counted(release["rows"], "row")
        say(
            f"{name}: release {release['release']} {what}: {rows}, {took} in all.",
            f'Next: embedding-pipelines search {name} "…"',
        )


def run_one(
    spec: "PipelineSpec",
    force_reason: str = "",
    share: float | None = None,
    deadline: float | None = None,
    retry_rejected: bool = False,
) -> tuple[dict[str, Any], str]:
    """Bring a pipeline up to date, with its progress on the terminal: what was done, and the error
    that ended it, if one did.

    With a reason, release the newest table version as it is, though checks of its quality failed.
    `share` and `deadline` are as those of `Limited`, `retry_rejected` as that of `run_pipeline`.
    """
    with _without_collection():
        from embedding_pipelines.activity import forget_activity
        from embedding_pipelines.progress import Limited, as_rows
        from embedding_pipelines.remote import is_current
        from embedding_pipelines.steps.chain import steps_of, up_to_date

    started, run_id, problem = time.perf_counter(), None, ""
    steps = [step.name for step in steps_of(spec)]
    with TerminalProgress(make_console(), spec.name, steps) as progress:
        limited = Limited(progress, share, deadline)
        with open_run(spec) as run:
            reports = None
            if not force_reason and not retry_rejected and is_current(run.warehouse, spec.name):
                reports = up_to_date(run, instance_folder(home_folder()))
            if reports is not None:
                forget_activity(run)
        if reports is None:
            with _without_collection():
                from embedding_pipelines.orchestration.launch import run_pipeline
                from embedding_pipelines.vectors import do_without_pandas

            do_without_pandas()
            outcome = run_pipeline(home_folder(), spec, limited, force_reason, retry_rejected)
            run_id, problem = outcome.run_id, outcome.problem
        for report in reports or ():
            progress.finish(report)
    result = {
        "pipeline": spec.name,
        "run_id": run_id,
        "seconds": round(time.perf_counter() - started, 3),
        "notes": progress.notes,
        "paused": limited.paused or None,
        "steps": as_rows(progress.reports),
    }
    return result, problem


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """For imports, whose objects Python looks through for cycles neither now nor later: three times
    take 0.11 s of a run's processor time. Where all is imported already nothing is kept from it:
    what an earlier run left is garbage."""
    modules = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        gc.enable()


@app.command()
def plan(names: Names = None, server: ServerUrl = None) -> Outcomes:
    """Say what a run would do, cost and take.

    It reads and cuts documents in a copy, in the system's temporary folder. It embeds nothing and
    changes nothing; a service may be asked once which model it serves.
    """
    is_first = True
    for plan in remote.plans(server, names) if server else _plans(names):
        if isinstance(plan, Problem):
            yield plan
            continue
        lines = ([] if is_first else [""]) + plan_in_words(plan)
        yield Output([vars(plan)], partial(say, *lines))
        is_first = False


def _plans(names: list[str] | None) -> "Iterator[Plan | Problem]":
    """Of the pipelines of this folder; in place of a plan why there is none."""
    from embedding_pipelines.plan import plan_of

    specs, problems = load_specs(names)
    yield from problems
    if problems and names:
        return
    for spec in specs:
        try:
            yield plan_of(spec, open_warehouse())
        except EmbeddingPipelinesError as error:
            yield Problem(f"{spec.name}: {error}", spec.name)


def plan_in_words(plan: "Plan") -> list[str]:
    """What a plan says, in lines for people."""
    rows = {"new": plan.rows_new, "changed": plan.rows_changed, "deleted": plan.rows_deleted}
    changes = [f"{count:,} {word}" for word, count in rows.items() if count]
    unchanged = f"{counted(plan.rows_unchanged, 'row')} unchanged" if plan.rows_unchanged else ""
    what = ", ".join([*changes, *filter(None, [unchanged])]) or "no rows"
    lines = [f"{plan.pipeline}: {what}{'' if changes else '; a run has nothing to do'}"]
    if plan.built_anew:
        lines.append(f"  builds   the table anew, since {plan.built_anew} changed")
    if plan.texts_to_embed or plan.images_to_embed:
        requests = f"{counted(plan.requests, 'request')} to {plan.provider}"
        lines.append(f"  embeds   {', '.join(_to_embed(plan))}, in {requests}")
    if plan.cache_hits:
        kind = "vector" if plan.has_images else "text"
        lines.append(f"  cached   {counted(plan.cache_hits, kind)}, which cost nothing")
    if plan.texts_waiting:
        lines.append(f"  waits    for {counted(plan.texts_waiting, 'text')} in batch jobs")
    if plan.tokens_to_check:
        lines.append(f"  checks   embed up to {counted(plan.tokens_to_check, 'token')} more")
    if plan.tokens or plan.images_to_embed or plan.tokens_to_check:
        lines.append(f"  costs    {_usd_in_words(plan.usd)}")
    if plan.within_budget is False:
        lines.append("  budget   does not suffice: the run ends there, and the next one goes on")
    elif plan.has_budget:
        lines.append(f"  budget   {'suffices' if plan.within_budget else 'not known to suffice'}")
    if plan.tokens or plan.images_to_embed:
        took = "" if plan.seconds is None else f"about {words_of(plan.seconds)}: "
        lines.append(f"  takes    {took}{plan.seconds_from}")
    if plan.output:
        lines.append(f"  delivers the release to {plan.output}")
    if plan.held_back:
        lines.append(f"  checks   a run will hold this back: {plan.held_back}")
    return lines + [f"  missing  {what}" for what in plan.missing]


def _to_embed(plan: "Plan") -> Iterator[str]:
    if plan.images_to_embed:
        yield counted(plan.images_to_embed, "image")
    if plan.texts_to_embed:
        yield f"{counted(plan.texts_to_embed, 'text')}, about {counted(plan.tokens, 'token')}"


def _usd_in_words(usd: float | None) -> str:
    if usd is None:
        return "not known: set model.usd_per_million_tokens"
    if not usd:
        return "nothing, the model runs here"
    return "less than 0.01 USD" if usd < 0.01 else f"about {usd:,.2f} USD"


@app.command()
def release(
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Release it though checks of its quality failed.")
    ] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; the release keeps it.")] = "",
    server: ServerUrl = None,
) -> Outcomes:
    """Release what checks hold back, with a reason.

    `run` releases whatever passes. A broken table is never released.
    """
    if not force or not reason.strip():
        raise typer.BadParameter(
            "`run` releases what passes its checks. To release what they hold back, give "
            "--force and --reason '…'; the release keeps the reason."
        )
    if server:
        result, problem = remote.release(server, name, reason.strip())
    else:
        result, problem = run_one(load_spec(name), force_reason=reason.strip())
    yield Output([result], partial(_say_end, result, problem))
    if problem:
        yield Problem(problem, result["pipeline"])


@app.command()
def rollback(
    name: Name,
    to: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Which release (default: the one before).")
    ] = None,
    server: ServerUrl = None,
) -> Outcomes:
    """Make an earlier release live again."""
    if server:
        result = remote.rollback(server, name, to)
    else:
        from embedding_pipelines.remote import rollback as go_back

        name = find_released(name)
        before, now = go_back(open_warehouse(), name, to)
        result = {"pipeline": name, "before": before.number, "live": now.number, "rows": now.rows}
    name, rows = result["pipeline"], counted(result["rows"], "row")
    place = f" --server {server}" if server else ""
    lines = (
        f"{name}: live release {result['before']} -> {result['live']} ({rows})",
        f"To undo it: embedding-pipelines rollback {name} --to {result['before']}{place}",
    )
    yield Output([result], partial(say, *lines))
