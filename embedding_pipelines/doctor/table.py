"""Looks at a LanceDB table, whoever made it: what of its rows and files a search stumbles over.

The table is read in one pass, page by page, and nothing is written. What has to be known of all
rows at once, whether an id or a vector comes twice, goes through files in the system's temporary
folder, so that memory does not grow with the table.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.doctor.examine import Finding
from embedding_pipelines.doctor.mixture import FOLLOWS, Mixture, find_mixture
from embedding_pipelines.doctor.repeats import Repeats
from embedding_pipelines.errors import counted
from embedding_pipelines.stores.survey import Columns, Survey, open_table
from embedding_pipelines.vectors import unit

PAGE_BYTES = 16 << 20  # of vectors that are read at once
PAGE_ROWS = 8_192
SAMPLE = 2_048  # rows, by chance, in which models are told apart
AT_UNIT_LENGTH = 1e-3  # a length differs from 1 by no more: half precision does that
SOME = 0.005  # a share of the rows that is no accident, and so is all but that
LENGTHS_APART = 0.9  # of the variance of lengths that lies between two groups: there are two
LEAST_RATIO = 1.2  # between the mean lengths of these groups
# Of two groups. All pairs of six corpora under one model (MiniLM) share 0.014 to 0.5 and follow words
# by 6 to 33 standard deviations; with one corpus turned, as another model's, 0 to 0.015 and 1.4.
SHARED, SHARED_WITHOUT_TEXTS = 0.1, 0.01
FEW_FILES = 20
FEW_UNINDEXED = 10_000  # rows that are compared in a millisecond or so
SHOWN = 3


def examine_table(path: Path) -> Iterator[Finding]:
    """Every finding about the table in a folder `NAME.lance`. Raises ConfigError if there is none,
    StoreError if LanceDB cannot open it."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder, open_table(path) as table:
        columns = Columns.of(table.schema)
        yield Finding("table", bool(columns.vectors), _title(table, columns), _figures(table))
        with closing(_Rows(table, columns, Path(folder))) as rows:
            rows.read()
            yield from rows.findings()
        yield from _files(table)


def _title(table: Survey, columns: Columns) -> str:
    parts = [f"vectors {', '.join(map(repr, columns.vectors))}"] if columns.vectors else []
    parts += [f"id {columns.id!r}"] if columns.id else ["no column of ids"]
    parts += [f"text {columns.text!r}"] if columns.text else ["no column of texts"]
    words = f"{counted(table.rows, 'row')}, version {table.version}; {', '.join(parts)}"
    if columns.vectors:
        return words
    return f"{words}. There is no column of vectors: a list of numbers, best of a fixed size."


def _figures(table: Survey) -> dict[str, Any]:
    return {"rows": table.rows, "version": table.version, "size_bytes": table.size_bytes}


@dataclass
class _Vectors:
    """What was seen of one column of vectors."""

    name: str
    repeats: Repeats  # of vectors
    with_texts: Repeats  # of vectors with their texts
    sizes: Counter[int] = field(default_factory=Counter)  # rows by dimensions
    missing: int = 0
    zero: int = 0
    not_finite: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)  # rows by what is wrong with them
    lengths: list[float] = field(default_factory=list)  # of the sample, as the next ones
    sample: list[NDArray[np.float32]] = field(default_factory=list)
    sample_texts: list[str] = field(default_factory=list)
    sample_rows: list[int] = field(default_factory=list)
    units: int = 0  # rows at unit length
    is_numeric: bool = True  # not packed bits

    def example(self, what: str, rows: NDArray[np.intp], names: Sequence[str]) -> None:
        shown = self.examples.setdefault(what, [])
        shown += [names[row] for row in rows[: SHOWN - len(shown)]]


class _Rows:
    """One pass over the rows."""

    def __init__(self, table: Survey, columns: Columns, folder: Path) -> None:
        self._table, self._columns = table, columns
        self._ids, self._texts = Repeats(folder / "ids"), Repeats(folder / "texts")
        self._vectors = [
            _Vectors(name, Repeats(folder / f"v{number}"), Repeats(folder / f"t{number}"))
            for number, name in enumerate(columns.vectors)
        ]
        self._no_text = self._blank = self._no_id = 0
        self._examples: list[str] = []
        count = min(SAMPLE, table.rows)
        self._sample_rows: NDArray[np.int64] = np.sort(
            np.random.default_rng(0).choice(max(table.rows, 1), count, replace=False)
        )

    def close(self) -> None:
        for repeats in (self._ids, self._texts):
            repeats.close()
        for vectors in self._vectors:
            vectors.repeats.close()
            vectors.with_texts.close()

    def read(self) -> None:
        columns = self._columns
        scalars = [name for name in (columns.id, columns.text) if name is not None]
        names = list(dict.fromkeys([*scalars, *columns.vectors]))
        if not names:
            return
        first = 0
        for page in self._table.pages(names, self._page_rows()):
            rows = [str(first + row) for row in range(page.num_rows)]
            if columns.id is not None:
                rows = self._add_ids(page.column(columns.id).to_pylist(), rows)
            hashes = np.zeros(page.num_rows, np.uint64)
            texts = [""] * page.num_rows
            if columns.text is not None:
                texts, hashes = self._add_texts(page.column(columns.text).to_pylist(), rows)
            for vectors in self._vectors:
                self._add_vectors(vectors, page, rows, texts, hashes, first)
            first += page.num_rows

    def _page_rows(self) -> int:
        width = sum(
            field.type.list_size if pa.types.is_fixed_size_list(field.type) else 2_048
            for field in map(self._table.schema.field, self._columns.vectors)
        )
        return max(64, min(PAGE_ROWS, PAGE_BYTES // (4 * max(width, 1))))

    def _add_ids(self, values: list[Any], rows: list[str]) -> list[str]:
        self._no_id += sum(value is None for value in values)
        hashes = [hash(repr(value)) for value in values if value is not None]
        self._ids.add(np.array(hashes, np.int64).view(np.uint64))
        return [
            row if value is None else repr(value) for row, value in zip(rows, values, strict=True)
        ]

    def _add_texts(
        self, values: list[str | None], rows: list[str]
    ) -> tuple[list[str], NDArray[np.uint64]]:
        texts = [value or "" for value in values]
        self._no_text += sum(value is None for value in values)
        blank = [row for row, text in enumerate(texts) if not text.strip()]
        self._blank += len(blank)
        self._examples += [rows[row] for row in blank[: SHOWN - len(self._examples)]]
        hashes = np.array([hash(text) for text in texts], np.int64).view(np.uint64)
        self._texts.add(hashes)
        return texts, hashes

    def _add_vectors(
        self,
        vectors: _Vectors,
        page: pa.RecordBatch,
        rows: list[str],
        texts: list[str],
        hashes: NDArray[np.uint64],
        first: int,
    ) -> None:
        column = page.column(vectors.name)
        is_there = column.is_valid().to_numpy(zero_copy_only=False)
        vectors.missing += int((~is_there).sum())
        vectors.example("no vector", np.flatnonzero(~is_there), rows)
        at = np.flatnonzero(is_there)
        if not len(at):
            return
        entries = column.drop_null()
        matrix, sizes = _matrix(entries)
        vectors.sizes.update(sizes)
        if matrix is None:
            return
        at = at[: len(matrix)] if len(matrix) == len(at) else at[_of_usual_size(entries, matrix)]
        vectors.is_numeric = not np.issubdtype(matrix.dtype, np.unsignedinteger)
        content = _hashes(matrix)
        vectors.repeats.add(content)
        vectors.with_texts.add(content ^ (hashes[at] * np.uint64(0x9E3779B97F4A7C15)))
        if not vectors.is_numeric:
            return
        numbers = matrix.astype(np.float32, copy=False)
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(numbers, axis=1)
        wrong, zero = ~np.isfinite(numbers).all(axis=1), ~numbers.any(axis=1)
        vectors.not_finite += int(wrong.sum())
        vectors.zero += int(zero.sum())
        vectors.example("not finite", at[wrong], rows)
        vectors.example("zero", at[zero], rows)
        vectors.units += int((np.abs(lengths - 1) <= AT_UNIT_LENGTH).sum())
        begin, end = np.searchsorted(self._sample_rows, (first, first + page.num_rows))
        mask = np.isin(at, self._sample_rows[begin:end] - first) & ~wrong & ~zero
        vectors.lengths += lengths[mask].tolist()
        vectors.sample += list(numbers[mask])
        vectors.sample_texts += [texts[row] for row in at[mask]]
        vectors.sample_rows += (at[mask] + first).tolist()

    def findings(self) -> Iterator[Finding]:
        total = self._table.rows
        if self._columns.id is not None:
            yield self._of_ids(self._columns.id)
        if self._columns.text is not None:
            yield self._of_texts(self._columns.text, total)
        for vectors in self._vectors:
            yield _of_values(vectors, total)
            yield _of_repeats(vectors, self._texts.distinct if self._columns.text else None)
            if vectors.is_numeric:
                yield _of_models(vectors, total)

    def _of_ids(self, name: str) -> Finding:
        count, repeated = self._ids.count, self._ids.count - self._ids.distinct
        figures = {"ids": count, "repeated_ids": repeated, "missing_ids": self._no_id}
        faults = []
        if repeated:
            faults.append(
                f"{counted(repeated, 'row')} of {count:,} have an id that stands in another row, "
                "too: a search returns a text twice, and an update changes one of them. Delete the "
                f"older ones, and from now on write by `merge_insert({name!r})` to a table whose "
                f"key is set (`set_unenforced_primary_key({name!r})`)"
            )
        if self._no_id:
            faults.append(f"{counted(self._no_id, 'row')} have no id: none can be updated")
        words = ". ".join(faults) or f"{count:,} in {name!r}, none of them twice"
        return Finding("ids", not faults, words, figures)

    def _of_texts(self, name: str, total: int) -> Finding:
        figures = {"missing_texts": self._no_text, "blank_texts": self._blank}
        if not self._blank:
            return Finding("texts", True, f"none is missing in {name!r}", figures)
        words = (
            f"{counted(self._blank, 'row')} of {total:,} have no text in {name!r} "
            f"({', '.join(self._examples)}): they are found, and nothing is shown. Delete them, or "
            "write their texts and embed them again"
        )
        return Finding("texts", False, words, figures)


def _matrix(column: pa.Array) -> tuple[NDArray[Any] | None, Counter[int]]:
    """The vectors of a column without nulls as [n, d]: all of them, or of a list of any size those
    of the usual size; and how many have each size."""
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        values = column.flatten()
        matrix = np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(column), size)
        return matrix, Counter({size: len(column)})
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    sizes = Counter(lengths.tolist())
    usual = sizes.most_common(1)[0][0]
    if not usual:
        return None, sizes
    rows = column.filter(pa.array(lengths == usual))
    return rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), usual), sizes


def _of_usual_size(column: pa.Array, matrix: NDArray[Any]) -> NDArray[np.bool_]:
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    mask: NDArray[np.bool_] = lengths == matrix.shape[1]
    return mask


def _hashes(matrix: NDArray[Any]) -> NDArray[np.uint64]:
    """A number uint64[n] for each row's bytes: equal rows have the same."""
    content = np.ascontiguousarray(matrix).view(np.uint8).reshape(len(matrix), -1)
    pad = -content.shape[1] % 4
    content = np.pad(content, ((0, 0), (0, pad))) if pad else content
    words = content.view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(1).integers(1, 2**63, words.shape[1], np.uint64) | np.uint64(1)
    with np.errstate(over="ignore"):
        hashes: NDArray[np.uint64] = (words * factors).sum(axis=1, dtype=np.uint64)
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(0xD6E8FEB86659FD93)
    return hashes


def _of_values(vectors: _Vectors, total: int) -> Finding:
    sizes = {str(size): rows for size, rows in vectors.sizes.most_common()}
    figures = {
        "dimensions": sizes,
        "missing_vectors": vectors.missing,
        "zero_vectors": vectors.zero,
        "vectors_not_finite": vectors.not_finite,
    }
    faults = []
    for what, rows, why in (
        ("no vector", vectors.missing, "no search finds them"),
        ("zero", vectors.zero, "their cosine to anything is undefined, and they come in any place"),
        ("not finite", vectors.not_finite, "their distance is not a number, and spoils an index"),
    ):
        if rows:
            verb = {"no vector": "have no vector"}.get(what, f"have a vector that is {what}")
            shown = ", ".join(vectors.examples[what])
            faults.append(f"{counted(rows, 'row')} of {total:,} {verb} ({shown}): {why}")
    if len(vectors.sizes) > 1:
        shown = ", ".join(f"{size} in {rows:,}" for size, rows in vectors.sizes.most_common(SHOWN))
        faults.append(
            f"vectors have unlike dimensions ({shown} rows): they are of several models, and LanceDB "
            "neither searches nor indexes such a column"
        )
    if faults:
        words = f"{'. '.join(faults)}. Embed these rows again, or delete them"
        return Finding(f"vectors {vectors.name}", False, words, figures)
    size = next(iter(vectors.sizes), 0)
    return Finding(f"vectors {vectors.name}", True, f"{size:,} dimensions, all finite", figures)


def _of_repeats(vectors: _Vectors, texts: int | None) -> Finding:
    """Vectors that stand in several rows. `texts`: how many different ones there are."""
    count, distinct = vectors.repeats.count, vectors.repeats.distinct
    repeated, unlike = count - distinct, vectors.with_texts.distinct - distinct
    figures = {"repeated_vectors": repeated}
    what = f"repeats {vectors.name}"
    if texts is None:
        is_well = repeated <= SOME * count
        words = f"{counted(repeated, 'row')} of {count:,} have the vector of another row"
        return Finding(what, is_well, words if repeated else "no vector comes twice", figures)
    figures |= {"repeated_vectors_of_unlike_texts": unlike}
    doubles = max(0, vectors.with_texts.distinct - texts)
    figures["texts_with_several_vectors"] = doubles
    faults = []
    if unlike > SOME * count:
        faults.append(
            f"{counted(unlike, 'text')} of {count:,} have the vector of another text: the model was "
            "given the beginnings of long texts alone, or a service answered wrongly. Look at what "
            "it was sent, and embed them again"
        )
    if repeated - unlike > SOME * count:
        faults.append(
            f"{counted(repeated - unlike, 'row')} of {count:,} repeat text and vector of another: "
            "they take places among the results. Delete all but one"
        )
    words = ". ".join(faults) or (
        f"{counted(repeated, 'row')} of {count:,} have the vector of another"
        if repeated
        else "no vector comes twice"
    )
    return Finding(what, not faults, words, figures)


def _of_models(vectors: _Vectors, total: int) -> Finding:
    """Whether the vectors are of one model: by their lengths, and by their directions."""
    what, count = f"model {vectors.name}", len(vectors.sample)
    rows = sum(vectors.sizes.values())
    if not count:
        return Finding(what, True, "there are no vectors to compare", {})
    at_unit = vectors.units / max(1, rows - vectors.zero - vectors.not_finite)
    lengths = np.array(vectors.lengths)
    figures: dict[str, Any] = {"sample": count, "share_at_unit_length": round(at_unit, 4)}
    figures["mean_length"] = round(float(lengths.mean()), 4)
    faults = []
    if SOME < at_unit < 1 - SOME:
        others = lengths[np.abs(lengths - 1) > AT_UNIT_LENGTH]
        mean = float(others.mean()) if len(others) else 0.0
        faults.append(
            f"{at_unit:.0%} of the vectors have length 1, and the others {mean:.3g} on average: dot "
            "products and Euclidean distances put the longer ones elsewhere"
        )
    elif groups := _groups_of_lengths(lengths):
        share, low, high = groups
        figures |= {"mean_lengths": [round(low, 4), round(high, 4)]}
        faults.append(f"{share:.0%} of the vectors are about {low:.3g} long, the others {high:.3g}")
    mixture = find_mixture(unit(np.array(vectors.sample)), vectors.sample_texts)
    if mixture is not None:
        figures |= {"shared_directions": round(mixture.shared, 4)}
        figures |= {"share_of_second_group": round(float(mixture.in_second.mean()), 4)}
        if mixture.follow_words is not None:
            figures["follow_words_across"] = round(mixture.follow_words, 1)
        if _are_two_models(mixture):
            faults.append(_of_mixture(mixture, vectors.sample_rows, total))
    if faults:
        words = (
            f"{'. '.join(faults)}. They look like those of several models or settings, whose "
            "distances mean nothing to one another: embed all rows again with one of them"
        )
        return Finding(what, False, words, figures)
    length = "length 1" if at_unit > 1 - SOME else f"{figures['mean_length']:.3g} long on average"
    return Finding(what, True, f"of one kind, by {counted(count, 'row')}; {length}", figures)


def _groups_of_lengths(lengths: NDArray[np.float64]) -> tuple[float, float, float] | None:
    """If there are two groups of lengths: the share of the shorter, and both means (Otsu, "A
    threshold selection method from gray-level histograms", 1979)."""
    ordered = np.sort(np.log(lengths[lengths > 0]))
    count, variance = len(ordered), float(ordered.var())
    if count < 100 or variance < 1e-6:
        return None
    sums, at = np.cumsum(ordered), np.arange(1, count)
    left, right = sums[:-1] / at, (sums[-1] - sums[:-1]) / (count - at)
    between = at * (count - at) * (left - right) ** 2 / count**2
    best = int(between.argmax())
    share = (best + 1) / count
    low, high = float(np.exp(left[best])), float(np.exp(right[best]))
    is_apart = between[best] > LENGTHS_APART * variance and high > LEAST_RATIO * low
    return (share, low, high) if is_apart and SOME < share < 1 - SOME else None


def _are_two_models(mixture: Mixture) -> bool:
    if mixture.follow_words is None:
        return mixture.shared < SHARED_WITHOUT_TEXTS
    return mixture.shared < SHARED and mixture.follow_words < FOLLOWS


def _of_mixture(mixture: Mixture, rows: Sequence[int], total: int) -> str:
    """What tells the groups apart, and where in the table the smaller one is."""
    at = np.sort(np.array(rows)[mixture.in_second])
    first, last = int(np.quantile(at, 0.05)), int(np.quantile(at, 0.95))
    where = ""
    if last - first < 0.7 * total and len(at) > 0.8 * np.mean(
        (np.array(rows) >= first) & (np.array(rows) <= last)
    ) * len(rows):
        where = f", most of them between rows {first:,} and {last:,}"
    words = ""
    if mixture.follow_words is not None:
        words = ", and texts with the same words are no nearer across the two groups than others"
    return (
        f"{mixture.in_second.mean():.0%} of the rows share hardly any direction with the others "
        f"({mixture.shared:.0%} of what one model's do){words}{where}"
    )


def _files(table: Survey) -> Iterator[Finding]:
    """What of the table's files slows searches down, or takes room."""
    for index in table.indices:
        figures = {"indexed_rows": index.indexed, "unindexed_rows": index.unindexed}
        share = index.unindexed / max(1, index.indexed + index.unindexed)
        words = f"{index.kind} on {', '.join(index.columns)} covers {index.indexed:,} rows"
        is_well = share <= 0.1 or index.unindexed <= FEW_UNINDEXED
        if not is_well:
            words += (
                f", and not {index.unindexed:,} ({share:.0%}), which every search compares one by "
                "one: `table.optimize()` adds them"
            )
        yield Finding(f"index {index.name}", is_well, words, figures)
    if not table.has_vector_index and table.rows >= 100_000:
        yield Finding(
            "index",
            False,
            f"none on vectors: every search compares all {table.rows:,} rows. "
            "`table.create_index(...)` makes one",
            {},
        )
    dead = table.physical_rows - table.rows
    figures = {"dead_rows": dead, "files": table.files, "small_files": table.small_files}
    faults = []
    if dead > 0.2 * max(table.physical_rows, 1):
        faults.append(
            f"{dead:,} of {table.physical_rows:,} rows in the files are deleted, and are read all "
            "the same (and their texts are still there)"
        )
    if table.small_files > FEW_FILES:
        faults.append(
            f"{table.small_files:,} of {table.files:,} files are small, and each is opened by a search"
        )
    words = ". ".join(faults)
    words = (
        f"{words}. `table.optimize()` merges them"
        if faults
        else (f"{counted(table.files, 'file')} of rows, {dead:,} deleted rows in them")
    )
    yield Finding("files", not faults, words, figures)
    figures = {"old_versions": table.old_versions, "bytes_of_old_versions": table.old_bytes}
    is_well = table.old_bytes <= max(table.size_bytes - table.old_bytes, 64 << 20)
    words = (
        f"{counted(table.old_versions, 'old version')}, {table.old_bytes / 1e6:,.1f} MB of theirs"
    )
    if not is_well:
        words += (
            f" in a table of {table.size_bytes / 1e6:,.1f} MB: "
            "`table.optimize(cleanup_older_than=timedelta(days=7))` deletes them, but for what tags "
            "name"
        )
    yield Finding("versions", is_well, words, figures)
