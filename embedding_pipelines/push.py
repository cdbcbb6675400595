"""Pushes documents to a pipeline: checked at the door, embedded, written to its log, searchable.

A document is embedded before it is written. So what is in the log has its vectors in the embedding
cache, every searcher of every process lays it over its release without the model, and a run that
takes the log in pays for nothing again.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from embedding_pipelines.errors import ConfigError, DocumentError
from embedding_pipelines.overlay import (
    RowMaker,
    Rows,
    codec_of,
    read_records,
    to_json,
    unreleased,
)
from embedding_pipelines.providers.base import EmbeddingModel
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.sources.push import Push
from embedding_pipelines.sources.text import MAX_RECORD_BYTES
from embedding_pipelines.space import require_same_space
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.reading import forgotten_by
from embedding_pipelines.storage.pushed import Change, Kind, pushed_log
from embedding_pipelines.storage.warehouse import Warehouse

MAX_DOCUMENTS = 10_000  # of one request
SHOWN = 3  # documents that are wrong, in an error
Place = Callable[[int], str]  # of a document, for errors


@dataclass(frozen=True)
class Receipt:
    """What has happened, when it is on the disk and every search from now on sees it."""

    pipeline: str
    number: int  # under which it stands in the pipeline's log
    documents: int  # that were put, deleted or withdrawn
    chunks: int = 0
    embedded: int = 0  # texts that reached the model; all others were in the embedding cache
    unknown: list[str] = field(default_factory=list)
    """Ids that neither the live release nor the log has: nothing was there to delete."""
    ignored: list[str] = field(default_factory=list)
    """Fields that the pipeline has no column for. They stay in the log."""


@dataclass(frozen=True)
class Intake:
    """The documents of one request, checked and embedded: what is left is to write them."""

    documents: Sequence[Mapping[str, Any]]
    place: Place  # of each, for errors
    ids: Sequence[str]
    rows: Rows


class Pusher:
    """Takes what programs push to one pipeline; close it, or use it in a `with` block. It leaves a
    given `model` open, which has to be that of the live release, or before the first one that of
    the pipeline's file."""

    def __init__(
        self, spec: PipelineSpec, warehouse: Warehouse, model: EmbeddingModel | None = None
    ) -> None:
        self._run = Run(spec, warehouse)
        self._log = pushed_log(warehouse, spec.name)
        folder, releases = self._run.folder, read_releases(self._run.folder)
        live = releases.get(releases.live)
        options = live.spec.model if live else spec.model
        self._owns_model = model is None
        self._model = model or options.open(warehouse.home, folder.model.parent)
        if live is None and spec.model.trains:
            raise ConfigError(
                f"{spec.name}: its model is trained on its documents, and no run has done so yet. "
                f"Give it files, and run `embedding-pipelines run {spec.name}` first."
            )
        self._release = live or unreleased(spec, self._model)
        require_same_space(
            self._model.space.with_codec(self._release.space.codec),
            self._release.space.id,
            self._release.title,
            f"Run `embedding-pipelines run {spec.name}`, which builds a release in the new space.",
        )
        self._maker = RowMaker(
            warehouse, self._release, self._model, codec_of(folder, self._release)
        )
        # Numbers that a log has given, whether it was lost since or not.
        self._taken = max((entry.pushed for entry in releases.releases), default=0)

    @property
    def pipeline(self) -> str:
        return self._run.spec.name

    def close(self) -> None:
        if self._owns_model:
            self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def cut(self, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        """The texts of the chunks that `put` embeds, each once. Raises DocumentError as `put`, for
        what can be told without the model."""
        _check_count(self._run.spec.name, documents, "documents")
        self._check(Push.of(self._run.spec.source), documents)
        return self._maker.texts(documents)

    def put(
        self, documents: Sequence[Mapping[str, Any]], place: Place = "documents[{}]".format
    ) -> Receipt:
        """Put documents, by the names of the source's columns, in place of those that have their
        ids: all or none. `place` says what errors call a document, by its number.

        Raises DocumentError for documents that the pipeline cannot take, ProviderError if the model
        is unavailable.
        """
        return self.write(self.prepare(documents, place))

    def prepare(
        self, documents: Sequence[Mapping[str, Any]], place: Place = "documents[{}]".format
    ) -> Intake:
        """All of `put` but the writing, which takes long; raises as `put`."""
        spec = self._run.spec
        _check_count(spec.name, documents, "documents")
        ids = self._check(Push.of(spec.source), documents, place)
        rows = self._maker.rows(documents)
        self._check_rows(rows, ids, place)
        return Intake(documents, place, ids, rows)

    def write(self, intake: Intake) -> Receipt:
        """Put documents into the log. Raises DocumentError for what was forgotten meanwhile."""
        spec, ids = self._run.spec, intake.ids
        changes = [
            Change(name, "put", document)
            for name, document in zip(ids, intake.documents, strict=True)
        ]
        with self._log.hold():  # embedding may have taken a while
            self._require_not_forgotten(ids, intake.documents, intake.place)
            number = self._log.append(changes, self._taken)
        read = Push.of(spec.source).fields
        ignored = {name for document in intake.documents for name in document} - read
        return Receipt(
            spec.name,
            number,
            len(set(ids)),
            intake.rows.table.num_rows,
            intake.rows.embedded,
            ignored=sorted(ignored),
        )

    def delete(self, ids: Sequence[str], known_only: bool = False) -> Receipt:
        """Delete documents, whether files hold them or not; with `known_only` nothing is said of
        those that no search finds. Raises DocumentError for what is no id."""
        return self._say("delete", ids, known_only)

    def withdraw(self, ids: Sequence[str]) -> Receipt:
        """Take back all that was ever pushed of documents: from the next run on, what files say of
        them counts again. Raises as `delete`."""
        return self._say("withdraw", ids)

    def _say(self, kind: Kind, ids: Sequence[str], known_only: bool = False) -> Receipt:
        name = self._run.spec.name
        _check_count(name, ids, "ids")
        for at, each in enumerate(ids):
            if not isinstance(each, str) or not each:
                raise DocumentError(f"ids[{at}] is {each!r}. Write a document's id, a text.")
            with contextlib.suppress(UnicodeEncodeError):
                each.encode()
                continue
            raise DocumentError(f"ids[{at}] holds half a character, a lone surrogate. Replace it.")
        unique = list(dict.fromkeys(ids))
        unknown = self._unknown(kind, unique)
        if known_only:
            unique = [each for each in unique if each not in unknown]
        changes, number = [Change(each, kind) for each in unique], 0
        if changes:
            number = self._log.append(changes, self._taken)
        return Receipt(name, number, len(unique), unknown=unknown)

    def _check(
        self,
        source: Push,
        documents: Sequence[Mapping[str, Any]],
        place: Place = "documents[{}]".format,
    ) -> list[str]:
        """Their ids. Raises DocumentError for what is no document of the pipeline, or forgotten."""
        for at, document in enumerate(documents):
            check_document(place(at), document)
        _, ids, rejected = read_records(source, documents)
        if rejected:
            raise self._error({each.row: each.reason for each in rejected}, documents, place)
        self._require_not_forgotten(ids, documents, place)
        return ids

    def _require_not_forgotten(
        self, ids: Sequence[str], documents: Sequence[Mapping[str, Any]], place: Place
    ) -> None:
        forgotten = forgotten_by(self._run)
        faults = {at: _FORGOTTEN for at, name in enumerate(ids) if forgotten.has("id", name)}
        if faults:
            raise self._error(faults, documents, place)

    def _check_rows(self, rows: Rows, ids: Sequence[str], place: Place) -> None:
        """Raises DocumentError for documents of which there would be nothing to search."""
        release, faults = self._release, dict[int, str]()
        for each in rows.rejected:
            faults[each.row] = (
                f"{each.reason}: {release.title} is of another pipeline file. Run the pipeline first"
            )
        with_rows = set(rows.table["document_id"].to_pylist())
        for at, name in enumerate(ids):
            if name in rows.without_vector:
                faults[at] = f"the model has no vector for it: {rows.without_vector[name]}"
            elif name not in with_rows:
                faults.setdefault(at, _EMPTY)
        if faults:
            raise self._error(faults, ids, place)

    def _error(
        self, faults: Mapping[int, str], documents: Sequence[Any], place: Place
    ) -> DocumentError:
        key = Push.of(self._run.spec.source).id
        lines = []
        for at in sorted(faults)[:SHOWN]:
            document = documents[at]
            name = document if isinstance(document, str) else document.get(key)
            which = place(at) + (f" ({key} {repr(name)[:60]})" if name is not None else "")
            lines.append(f"{which}: {faults[at]}")
        more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        return DocumentError(f"{'; '.join(lines)}{more}. None of the documents was taken.")

    def _unknown(self, kind: Kind, ids: Sequence[str]) -> list[str]:
        """Those of which there is nothing to delete, or to withdraw."""
        words = self._log.words()
        if kind == "withdraw":
            return [name for name in ids if name not in words or words[name].kind == "withdraw"]
        candidates = [name for name in ids if name not in words or words[name].kind == "withdraw"]
        left = {*candidates}
        left -= self._maker.released(candidates)
        deletions = {name for name in ids if name in words and words[name].kind == "delete"}
        return [name for name in ids if name in left or name in deletions]


_FORGOTTEN = (
    "it was forgotten for good and may not come back unsaid; `embedding-pipelines forget PIPELINE "
    "--id ID --undo` allows it"
)
_EMPTY = "its text is empty after cleaning"


def check_document(place: str, document: Any) -> None:
    """Raises DocumentError for what no pipeline takes: no object, no JSON, or too large."""
    if not isinstance(document, Mapping):
        raise DocumentError(f"{place} is {repr(document)[:80]}, not an object.")
    try:
        size = len(to_json(document))
    except UnicodeEncodeError:
        words = "holds half a character, a lone surrogate. Replace it."
        raise DocumentError(f"{place} {words}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DocumentError(f"{place} is no JSON: {error}.") from None
    if size > MAX_RECORD_BYTES:
        raise DocumentError(f"{place} is larger than {MAX_RECORD_BYTES >> 20} MiB. Divide it.")
    for where, number in _not_finite(document, place):
        raise DocumentError(
            f"{where} is {number}, which is no number of JSON's. Send null, or leave it out."
        )


def _not_finite(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Numbers in a JSON value that are NaN or infinite, and where they stand."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _not_finite(part, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for at, part in enumerate(value):
            yield from _not_finite(part, f"{place}[{at}]")


def _check_count(name: str, items: Sequence[Any], what: str) -> None:
    if not items:
        raise DocumentError(f"{name}: {what} is empty. Send one at least.")
    if len(items) > MAX_DOCUMENTS:
        raise DocumentError(
            f"{name}: {len(items):,} {what} are more than {MAX_DOCUMENTS:,}, which is as many as one "
            "request takes. Send them in parts."
        )
