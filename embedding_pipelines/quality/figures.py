"""What is kept of each release for the candidates after it: every query's figures, and a sketch of
the vectors."""

import zipfile

from embedding_pipelines.files import delete, list_files, read_json, write_atomic, write_json
from embedding_pipelines.metrics.drift import Sketch
from embedding_pipelines.quality.evidence import Candidate
from embedding_pipelines.releases import Release, read_releases
from embedding_pipelines.run import Run


def keep_figures(candidate: Candidate) -> None:
    """Write a candidate's; those of releases that are gone are deleted."""
    folder, judgements = candidate.run.folder, candidate.judgements
    folder.quality.mkdir(parents=True, exist_ok=True)
    names = {_name(entry.table, entry.version) for entry in read_releases(folder).releases}
    for path in list_files(folder.quality, "*-*-*.*"):
        if path.stem not in names:
            delete(path)
    judged = judgements.queries.items() if judgements else ()
    queries = [{"id": name, "text": text, "from": ""} for name, text in judged] + [
        {"id": item.id, "text": item.query, "from": item.document_id} for item in candidate.items
    ]
    name = _name(candidate.name, candidate.version)
    write_json(folder.queries, {"queries": queries})
    write_json(folder.quality / f"{name}.json", {"per_query": candidate.query_metrics})
    if candidate.sketch is not None:
        write_atomic(folder.quality / f"{name}.npz", candidate.sketch.to_bytes())


def query_figures(run: Run, release: Release) -> dict[str, dict[str, float]]:
    """A release's figures by metric and query; empty if none were kept."""
    path = run.folder.quality / f"{_name(release.table, release.version)}.json"
    figures: dict[str, dict[str, float]] = (read_json(path) or {}).get("per_query", {})
    return figures


def sketch_of(run: Run, release: Release) -> Sketch | None:
    """The sketch of a release's vectors; None if there is none that can be read."""
    path = run.folder.quality / f"{_name(release.table, release.version)}.npz"
    try:
        return Sketch.from_bytes(path.read_bytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _name(table: str, version: int) -> str:
    return f"{table}-{version}"
