"""Which rejected records are of documents that are forgotten."""

import csv
import json
import re
from collections.abc import Collection
from typing import Any

from embedding_pipelines.forget.traces import Traces
from embedding_pipelines.run import Run
from embedding_pipelines.sources.base import Source
from embedding_pipelines.sources.fields import lookup
from embedding_pipelines.sources.json_records import parse
from embedding_pipelines.steps.documents import read_files
from embedding_pipelines.steps.reading import FileStatistics
from embedding_pipelines.storage.quotes import Needles
from embedding_pipelines.storage.warehouse import read_table

DOUBLE = '{"document_id": '  # begins a rejected record that is a whole document


def rejected_records(run: Run, traces: Traces, files: Collection[str]) -> list[dict[str, Any]]:
    """Rejected records of these files, and those that have one of the ids or quote a text."""
    needles, records, entries = Needles(traces.own_texts), [], read_files(run)
    for path in (run.folder.rejected, run.folder.rejected_by_failure):
        rows = read_table(path)
        for row in rows.to_pylist() if rows is not None else ():
            entry = entries.get(row["file"])
            encoding = entry.encoding if entry is not None else None
            text = (row["raw"] or b"").decode(encoding or "utf-8", "replace")
            has_id = _record_id(run.spec.source, text, entry) in traces.ids
            if row["file"] in files or has_id or needles.are_in(text):
                records.append(row)
    return records


def _record_id(source: Source, text: str, entry: FileStatistics | None) -> str | None:
    """The id of a rejected record, None if it has none or nobody can tell: of CSV the cell in the
    id's column, of all else the id's field."""
    if source.id is None:
        return None
    if entry is not None and entry.id_cell is not None and not text.startswith(DOUBLE):
        delimiter, at = entry.id_cell
        quote, escape = getattr(source, "quote", None), getattr(source, "escape", None)
        cells = csv.reader(
            [text],
            delimiter=delimiter,
            quotechar=quote,
            escapechar=escape,
            quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        )
        try:
            row = next(cells, [])
        except csv.Error:
            return None
        return row[at] if at < len(row) else None
    record = parse(text)
    if not isinstance(record, dict):
        return _field_of(text, source.id)
    try:
        value = lookup(record, "document_id" if text.startswith(DOUBLE) else source.id)
    except KeyError:
        return None
    except ValueError:
        return _field_of(text, source.id)
    return None if value is None else str(value)


def _field_of(text: str, name: str) -> str | None:
    """The value of a field where text merely looks like JSON: most rejected records are broken."""
    key = re.escape(json.dumps(name.rpartition(".")[2], ensure_ascii=False))
    match = re.search(key + r'\s*:\s*(?:("(?:[^"\\\n]|\\.)*")|([^\s,"}\]]+))', text)
    if match is None:
        return None
    return str(json.loads(match[1], strict=False)) if match[1] else match[2]
