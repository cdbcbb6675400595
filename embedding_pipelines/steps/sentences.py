"""Sentences: what a step did, in a line, for a terminal or Dagster's log."""

from embedding_pipelines.errors import counted
from embedding_pipelines.progress import StepReport

NOUNS = {  # of statistics that are counts
    "documents": "document",
    "files": "file",
    "chunks": "chunk",
    "tokens": "token",
    "empty": "empty document",
    "vectors": "vector",
    "bytes_per_vector": "byte",
    "rows": "row",
    "html": "document",
    "truncated": "document",
    "unknown_tokens": "token",
    "written": "file",
}


def sentence(report: StepReport) -> str:
    """What a step did, in a line."""
    from embedding_pipelines.steps.chain import step_named

    step, statistics = step_named(report.step), report.statistics
    nouns = {**NOUNS, "files": statistics.get("unit", NOUNS["files"])}  # parts of any source
    words = {
        name: counted(value, nouns[name]) if name in nouns else value
        for name, value in statistics.items()
    }
    extras = [
        form.format(words[name]) for name, form in step.extras.items() if statistics.get(name)
    ]
    end = f"{report.seconds:.1f} s" if report.changed else "unchanged"
    return f"{', '.join([step.sentence.format(**words), *extras])} ({end})"
