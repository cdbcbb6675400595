"""The command `compare`: which model finds most in a pipeline's own data, and what each costs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import (
    Name,
    Outcomes,
    Output,
    ServerUrl,
    load_spec,
    open_run,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import (
    TerminalProgress,
    counted,
    figure,
    make_console,
    print_table,
    print_words,
)

if TYPE_CHECKING:
    from embedding_pipelines.compare.compare import Comparison, ModelResult
    from embedding_pipelines.compare.figures import Figure

SAMPLE = 2_000  # documents, as in `compare.py`, which loads NumPy
TITLES = {
    "ndcg_at_10": "nDCG@10",
    "judged_recall_at_100": "R@100",
    "known_item_mrr": "MRR of known items",
}

app = typer.Typer()


@app.command()
def compare(
    name: Name,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="As in a pipeline file: an alias, hf:ORG/NAME, '{provider: hf, model: …}'.",
        ),
    ],
    documents: Annotated[
        int, typer.Option(min=10, metavar="NUMBER", help="How many to take as a sample.")
    ] = SAMPLE,
    server: ServerUrl = None,
) -> Outcomes:
    """Measure other models on the pipeline's own data, beside its own.

    All embed the same sample of chunks and answer the same queries by exact search: those with
    relevance judgements, if there are any, and known items. Figures stand with 95% intervals; the
    differences to the pipeline's own model are paired by query. A sample is easier to search than
    all documents: compare the models, not the figures with those of a release. Nothing of the
    pipeline changes; its report shows what was compared last. Embeddings go to the cache, so a run
    with the chosen model does not pay for them again.
    """
    if server:
        from pydantic import TypeAdapter

        from embedding_pipelines.compare.compare import Comparison

        values = remote.compare(server, name, models, documents)
        measured = TypeAdapter(Comparison).validate_python(values)
        yield Output([values], lambda: show_comparison(measured))
        return
    from embedding_pipelines.compare.compare import compare_models, write_comparison
    from embedding_pipelines.spec.load import parse_model

    spec, options = load_spec(name), [parse_model(text) for text in models]
    try:
        with (
            TerminalProgress(make_console(stderr=True), spec.name) as progress,
            open_run(spec, progress) as run,
        ):
            comparison = compare_models(run, options, documents)
    except KeyboardInterrupt:
        words = f"{spec.name} is as it was; what was embedded is in the cache."
        raise KeyboardInterrupt(words) from None
    write_comparison(open_warehouse(), comparison)
    yield Output([asdict(comparison)], lambda: show_comparison(comparison))


def show_comparison(comparison: "Comparison") -> None:
    console = make_console()
    size = f"{comparison.documents:,} of {counted(comparison.all_documents, 'document')}"
    queries = []
    if comparison.judged_queries:
        queries.append(f"{comparison.judged_queries:,} queries with judgements")
    if comparison.known_items:
        queries.append(f"{counted(comparison.known_items, 'known item')}")
    print_words(console, f"{comparison.pipeline}: {size}, {' and '.join(queries)}")
    if 0 < comparison.sample_size < comparison.documents:
        print_words(
            console,
            f"The sample is larger than --documents {comparison.sample_size:,}: the queries are about "
            "all of these. Lower evaluation.known_items, or give fewer judgements, to take fewer.",
        )
    print_table(console, [_quality(row) for row in comparison.models], cut=["model"])
    console.print()
    print_table(console, [_cost(row) for row in comparison.models], cut=["model"])
    for row in comparison.models[1:]:
        print_words(console, _verdict(row, comparison.models[0]))


def _quality(row: "ModelResult") -> dict[str, Any]:
    cells: dict[str, Any] = {"model": row.model}
    for name, title in TITLES.items():
        if name in row.figures:
            own = row.figures[name]
            cells[title] = f"{own.mean:.3f} ({own.low:.2f}-{own.high:.2f})"
    return cells


def _cost(row: "ModelResult") -> dict[str, Any]:
    return {
        "model": row.model,
        "bytes": row.bytes_per_vector,
        "tokens/s": figure(row.tokens_per_second, ",.0f"),
        "USD, all": figure(row.usd_corpus, ",.2f"),
        "unseen": row.tokens_unseen,
        "rejected": row.rejected,
    }


def _verdict(row: "ModelResult", own: "ModelResult") -> str:
    """The difference that counts most, in a sentence."""
    name = next(name for name in (*TITLES, *row.differences) if name in row.differences)
    change = row.differences[name]
    return (
        f"{row.model} {_word(change)} {own.model}: {TITLES.get(name, name)} {change.mean:+.4f}, "
        f"from {change.low:+.4f} to {change.high:+.4f} over {change.queries:,} queries"
    )


def _word(change: "Figure") -> str:
    if change.low > 0:
        return "finds more than"
    return "finds less than" if change.high < 0 else "is not proven to differ from"
