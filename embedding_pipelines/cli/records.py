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
        _confirm(yes, f"delete {name}", f"Delete {name} on {server}?")
        yield from remote.delete(server, name, keep_file)
        return
    name = find_released(name)
    deletion = plan_deletion(home_folder(), name, keep_file)
    size = f"{deletion.size_bytes / MEGABYTE:,.1f} MB"
    what = f"{counted(len(deletion.releases), 'release')}, {size}"
    _confirm(yes, f"delete {name}: {what}", f"Delete {name}: {what}?")
    deletion = delete_pipeline(home_folder(), name, keep_file)
    gone = [*map(str, deletion.paths), *deletion.outputs]
    result = asdict(deletion) | {"paths": list(map(str, deletion.paths))}
    yield Output([result], partial(say, f"{name}: deleted, {what}", *gone))


def _confirm(yes: bool, command: str, question: str) -> None:
    """Ask before something is deleted, unless that was said. Raises ConfigError where nobody can
    answer."""
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"{command}. Say --yes to delete it.")
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
) -> Outcomes:
    """Erase documents for good, and leave them out of every later run.

    They go from rows, table, cache, rejected records, report and Dagster's history. Older releases
    go too, since they hold them: there is none to roll back to until the next is made. Then files
    are decoded and searched for their texts, and a receipt says what was looked at.
    """
    from embedding_pipelines.forget.forget import allow_again, find, source_name, why_equal
    from embedding_pipelines.forget.forget import forget as erase
    from embedding_pipelines.orchestration.erasure import delete_runs_that_quote
    from embedding_pipelines.remote import refresh

    if not ids and not sources:
        raise typer.BadParameter("name documents by --id, or a source file by --source.")
    spec = load_spec(name)
    with open_run(spec) as run:
        files = [source_name(run, given) for given in sources or ()]
        what = ", ".join([*map(repr, ids or ()), *map(repr, files)])
        if undo:
            count = allow_again(run, ids or (), files)
            if not count:
                raise ConfigError(f"{spec.name}: {what} is not forgotten, so nothing was undone.")
            words = f"{spec.name}: {what} may come back with the next run, if the source holds it."
            result = {"pipeline": spec.name, "undone": count}
            yield Output([result], partial(say, words))
            return
        refresh(run.warehouse, spec.name)
        traces = find(run, ids or (), files)
        equal = ""
        if traces.equal:
            equal = f" ({traces.equal:,} of them named by none: {why_equal(spec.source)})"
        question = f"{counted(len(traces.ids), 'document')}{equal} and all releases but a new one"
        if not yes:
            if not sys.stdin.isatty():
                raise ConfigError(
                    f"forget {spec.name}: {question}. Say --yes to erase them for good."
                )
            typer.confirm(f"Erase {question} of {spec.name} for good?", abort=True, err=True)
        receipt = erase(
            run, ids or (), files, partial(delete_runs_that_quote, home_folder(), spec.name)
        )
    checked = receipt.checked
    live = f"release {receipt.release} is live" if receipt.release else "there is no release"
    lines = [
        f"{spec.name}: forgot {counted(receipt.documents, 'document')}; {live}",
        f"looked for {counted(checked['texts'], 'text')} in {counted(checked['files'], 'file')} and "
        f"{counted(checked['tables'], 'table')} of {counted(checked['rows'], 'row')}, and searched by "
        f"{counted(checked.get('searches', 0), 'vector')}: "
        f"{'texts are left' if receipt.left else 'nothing is left'}",
        *receipt.notes,
        f"receipt: {receipt.path}",
    ]
    yield Output([asdict(receipt)], partial(say, *lines))
    if receipt.left:
        yield Problem(
            f"{spec.name}: texts are left in {', '.join(receipt.left)}, below "
            f"{open_warehouse().root}. Say the same command again. Do not delete those files, for "
            f"the pipeline needs them: if texts stay, `embedding-pipelines delete {spec.name} "
            "--keep-file` and a run make all of it anew without them.",
            spec.name,
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
    rows = [{"pipeline": name, "vectors": count} for name, count in use.used_by.items()]
    rows.append({"pipeline": None, "vectors": use.unused})
    size = f"{use.size_bytes / MEGABYTE:,.1f} MB"
    words = [
        f"{use.path}: {counted(use.vectors, 'vector')}, {size}",
        *(f"  {name}: {count:,}" for name, count in use.used_by.items()),
        f"  of no pipeline: {use.unused:,}",
    ]
    if forget:
        question = f"{counted(use.unused, 'vector')} of no pipeline, those of programs too"
        if not yes:
            if not sys.stdin.isatty():
                raise ConfigError(f"cache: {question}. Say --yes to forget them.")
            typer.confirm(f"Forget {question}?", abort=True, err=True)
        before = forget_unused(home_folder())
        now = use.path.stat().st_size if use.path.exists() else 0
        gone = before.size_bytes - now
        count = counted(before.unused, "vector")
        words.append(f"Forgot {count}: the file is {gone / MEGABYTE:,.1f} MB smaller.")
    elif use.unused:
        words.append("To forget what no pipeline uses: embedding-pipelines cache --forget unused")
    result = {"path": str(use.path), "size_bytes": use.size_bytes, "vectors": use.vectors}
    yield Output([result | {"used_by": rows, "forgotten": bool(forget)}], partial(say, *words))
