"""Commands about what did not get in, and what goes: `rejected`, `delete`, `forget`, `clean` and
`cache`."""

import sys
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import (
    Name,
    OptionalName,
    Outcomes,
    Output,
    PipelineId,
    Problem,
    ServerUrl,
    find_released,
    load_spec,
    one_of,
    open_run,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import counted, make_console, print_rejected, say
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError

MEGABYTE = 1e6

app = typer.Typer()


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / MEGABYTE:,.1f} MB"


@app.command()
def rejected(
    name: Name,
    number: Annotated[int, typer.Option("-n", min=1, metavar="NUMBER", help="How many.")] = 20,
) -> Outcomes:
    """Show the records and texts that could not be used, and why.

    Records are of the last run, also of one that ended because they were too many. Documents
    without text follow them, and partitions that ended every worker of a cluster.
    """
    from embedding_pipelines.status import read_rejections
    from embedding_pipelines.steps.embeddings import quarantine_note, quarantined

    spec = load_spec(name)
    run = open_run(spec)
    rejections, aside = read_rejections(run, number), quarantine_note(run)
    rows = [asdict(row) for row in rejections.rows]

    def show() -> None:
        print_rejected(make_console(), rows)
        every = rejections.total + rejections.empty
        empty = (
            f", {counted(rejections.empty, 'document')} without text" if rejections.empty else ""
        )
        shown = "" if every == len(rows) else f", {len(rows):,} of them shown"
        say(f"{spec.name}: {rejections.total:,} rejected{empty}{shown}")
        for path in rejections.tables:
            say(f"the whole table: {path}")
        if aside:
            say(f"put aside: {aside}")

    result: dict[str, Any] = {"pipeline": spec.name, "total": rejections.total, "rejected": rows}
    result |= {"empty": rejections.empty, "quarantined": quarantined(run)}
    yield Output([result | {"tables": list(map(str, rejections.tables))}], show)


@app.command()
def delete(
    name: OptionalName = None,
    pipeline_id: PipelineId = None,
    keep_file: Annotated[
        bool, typer.Option("--keep-file", help="Keep the pipeline file: the next run starts anew.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: ServerUrl = None,
) -> Outcomes:
    """Delete a pipeline with all that it has produced.

    That is its file, rows, table, releases, exports, report and what it delivered to its `output`.
    Its source is not touched. Embedded vectors stay in the cache, so that a pipeline that is made
    again costs nothing.
    """
    from embedding_pipelines.delete import delete_pipeline, plan_deletion

    name = one_of(name, pipeline_id)
    if server:
        _confirm(yes, f"delete {name}. Say --yes to delete it.", f"Delete {name} on {server}?")
        yield from remote.delete(server, name, keep_file)
        return
    name = find_released(name)
    deletion = plan_deletion(home_folder(), name, keep_file)
    size = f"{deletion.size_bytes / MEGABYTE:,.1f} MB"
    what = f"{counted(len(deletion.releases), 'release')}, {size}"
    remedy = f"delete {name}: {what}. Say --yes to delete it."
    _confirm(yes, remedy, f"Delete {name}: {what}?")
    deletion = delete_pipeline(home_folder(), name, keep_file)
    gone = [*map(str, deletion.paths), *deletion.outputs]
    result = asdict(deletion) | {"paths": list(map(str, deletion.paths))}
    yield Output([result], partial(say, f"{name}: deleted, {what}", *gone))


def _confirm(yes: bool, remedy: str, question: str) -> None:
    """Ask before something goes, unless that was said. Raises ConfigError with the remedy where nobody
    can answer."""
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(remedy)
        typer.confirm(question, abort=True, err=True)


@app.command()
def forget(
    name: Name,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="A document, as search shows it.")
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="FILE", help="A source file: all documents of it."),
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Let it come back with the next run; restores nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: ServerUrl = None,
) -> Outcomes:
    """Erase documents for good, and leave them out of every later run.

    They go from rows, table, cache, rejected records, report and Dagster's history. Older releases
    go too, since they hold them: there is none to roll back to until the next is made. Then files
    are decoded and searched for their texts, and a receipt says what was looked at.
    """
    if not ids and not sources:
        raise typer.BadParameter("name documents by --id, or a source file by --source.")
    if server:
        yield from _forget_there(server, name, ids or [], sources or [], undo, yes)
        return
    from embedding_pipelines.forget.forget import allow_again, forget_newest, why_equal
    from embedding_pipelines.forget.traces import Traces
    from embedding_pipelines.orchestration.erasure import delete_runs_that_quote

    spec, ids, sources = load_spec(name), ids or [], sources or []

    def confirm(traces: Traces) -> None:
        equal = ""
        if traces.equal:
            equal = f" ({traces.equal:,} of them named by none: {why_equal(spec.source)})"
        _confirm_forgetting(yes, spec.name, f"{counted(len(traces.ids), 'document')}{equal}")

    with open_run(spec) as run:
        if undo:
            yield _undone(spec.name, allow_again(run, ids, sources), [*ids, *sources])
            return
        erase_history = partial(delete_runs_that_quote, home_folder(), spec.name)
        receipt = forget_newest(run, ids, sources, erase_history, confirm)
    yield from _say_receipt(spec.name, asdict(receipt), f"{open_warehouse().root}")


def _forget_there(
    server: str, name: str, ids: list[str], sources: list[str], undo: bool, yes: bool
) -> Outcomes:
    """The same on a server, which alone can count the documents."""
    names = [*ids, *sources]
    if not undo:
        _confirm_forgetting(yes, f"{name} on {server}", ", ".join(map(repr, names)))
    name, result = remote.forget(server, name, ids, sources, undo)
    if undo:
        yield _undone(name, result["undone"], names)
    else:
        yield from _say_receipt(name, result, f"the warehouse of {server}")


def _confirm_forgetting(yes: bool, name: str, what: str) -> None:
    what = f"{what} and all releases but a new one"
    remedy = f"forget {name}: {what}. Say --yes to erase them for good."
    _confirm(yes, remedy, f"Erase {what} of {name} for good?")


def _undone(name: str, count: int, names: list[str]) -> Output:
    """That documents may come back. Raises ConfigError if none of them was forgotten."""
    what = ", ".join(map(repr, names))
    if not count:
        raise ConfigError(f"{name}: {what} is not forgotten, so nothing was undone.")
    words = f"{name}: {what} may come back with the next run, if the source holds it."
    return Output([{"pipeline": name, "undone": count}], partial(say, words))


def _say_receipt(name: str, receipt: dict[str, Any], place: str) -> Outcomes:
    """What was forgotten and looked at; `place`: where the pipeline's files are."""
    checked, left, release = receipt["checked"], receipt["left"], receipt["release"]
    live = f"release {release} is live" if release else "there is no release"
    lines = [
        f"{name}: forgot {counted(receipt['documents'], 'document')}; {live}",
        f"looked for {counted(checked['texts'], 'text')} in {counted(checked['files'], 'file')} and "
        f"{counted(checked['tables'], 'table')} of {counted(checked['rows'], 'row')}, and searched by "
        f"{counted(checked.get('searches', 0), 'vector')}: "
        f"{'texts are left' if left else 'nothing is left'}",
        *receipt["notes"],
        f"receipt: {receipt['path']}",
    ]
    yield Output([receipt], partial(say, *lines))
    if left:
        yield Problem(
            f"{name}: texts are left in {', '.join(left)}, below {place}. Say the same command again. "
            "Do not delete those files, for the pipeline needs them: if texts stay, "
            f"`embedding-pipelines delete {name} --keep-file` and a run make all of it anew without "
            "them.",
            name,
        )


@app.command()
def clean(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")
    ] = False,
) -> Outcomes:
    """Delete what no release, candidate or next run needs.

    Those are old versions of tables, tables, shards and codecs that nothing names, and what killed
    processes left. Vectors that no pipeline uses leave the embedding cache as `warehouse.yaml` says
    (`cache: {unused_days: 90, max_gb: 20}`), by default none. Dagster does the same each week.
    """
    from embedding_pipelines.clean import clean as clean_home

    cleaning = clean_home(home_folder(), dry_run)
    lines, rows = [], []
    for name, entries in cleaning.garbage.items():
        sizes: dict[str, list[int]] = {}
        for entry in entries:
            sizes.setdefault(entry.what, []).append(entry.size_bytes)
            path = str(entry.path)
            rows.append({"what": entry.what, "path": path, "size_bytes": entry.size_bytes})
            rows[-1]["pipeline"] = name
        for what, each in sizes.items():
            lines.append(f"{name}: {counted(len(each), what)}, {_megabytes(sum(each))}")
    if cleaning.vectors:
        vectors = counted(cleaning.vectors, "vector")
        lines.append(f"embedding cache: {vectors}, {_megabytes(cleaning.vector_bytes)}")
    verb = "would go" if dry_run else "deleted"
    lines.append(f"{_megabytes(cleaning.size_bytes)} {verb}" if lines else "nothing to delete")
    lines += [
        f"{name}: not looked at, for this machine has only what its searches read. Clean where it runs."
        for name in cleaning.partial
    ]
    result = {"dry_run": dry_run, "garbage": rows, "vectors": cleaning.vectors}
    result |= {"vector_bytes": cleaning.vector_bytes, "size_bytes": cleaning.size_bytes}
    result |= {"left_alone": cleaning.left_alone, "partial": cleaning.partial}
    yield Output([result], partial(say, *lines))
    for sentence in cleaning.left_alone:
        yield Problem(f"left alone: {sentence}")


@app.command()
def cache(
    forget: Annotated[
        Literal["unused"] | None, typer.Option(help="Forget the vectors that no pipeline uses.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Outcomes:
    """Show how many vectors the cache holds, and for which pipelines.

    A vector stays in the cache for ever, since it may have been paid for: a text that comes back
    costs nothing. `--forget unused` deletes those that no chunk, release or check of a pipeline of
    this home has, those that programs have embedded among them, and makes the file smaller.
    """
    from embedding_pipelines.cache_use import cache_use, forget_unused

    use = cache_use(home_folder())
    unused, size = use.unused, f"{use.size_bytes / MEGABYTE:,.1f} MB"
    counts: list[tuple[str | None, int | None]] = [*use.used_by.items()]
    counts += [*((name, None) for name in use.faults), (None, unused)]
    words = [f"{use.path}: {counted(use.vectors, 'vector')}, {size}"]
    for name, count in counts:
        number = "nobody can tell" if count is None else f"{count:,}"
        words.append(f"  {name or 'of no pipeline'}: {number}")
    if forget and unused is not None:
        what = f"{counted(unused, 'vector')} of no pipeline, those of programs too"
        _confirm(yes, f"cache: {what}. Say --yes to forget them.", f"Forget {what}?")
        before = forget_unused(home_folder())
        now = use.path.stat().st_size if use.path.exists() else 0
        gone = before.size_bytes - now
        words.append(
            f"Forgot {counted(before.unused or 0, 'vector')}: the file is {gone / MEGABYTE:,.1f} MB "
            "smaller."
        )
    elif unused:
        words.append("To forget what no pipeline uses: embedding-pipelines cache --forget unused")
    rows = [{"pipeline": name, "vectors": count} for name, count in counts]
    result: dict[str, Any] = {"path": str(use.path), "size_bytes": use.size_bytes}
    result |= {"vectors": use.vectors, "used_by": rows}
    result["forgotten"] = bool(forget) and unused is not None
    yield Output([result], partial(say, *words))
    for name, fault in use.faults.items():
        yield Problem(f"{name}: {fault}", name)
    if forget and use.faults:
        yield Problem(f"cache: nothing is forgotten, since {', '.join(use.faults)} may use it.")
