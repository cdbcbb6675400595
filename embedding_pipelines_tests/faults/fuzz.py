"""Feeds damaged inputs to the readers: CSV, JSON, JSON Lines, Parquet, all but the last also packed,
and pipeline files.

    python -m embedding_pipelines_tests.faults.fuzz 10000 [--seed 0] [--kind csv] [--corpora FOLDER]

Each input ends in one of these: `right` (all records are documents), `rejected` (some are counted as
rejected), `told` (an error in a sentence). Faults of the package, with which the exit status is 1:
`traceback`, `hangs`, `died`, `too much memory`, and `silently lost`: a record that the damage left
as it was is neither in the documents nor among the bytes of the rejected ones. One input in twenty
also goes through the whole chain, to a release.

The inputs are made here. `--corpora` names a folder whose files are damaged, too; what is lost of
those is not looked for. Each fault is printed with its number, which is the seed that repeats it
(`--seed NUMBER 1`); `--keep FOLDER` writes its bytes there.
"""

import argparse
import contextlib
import csv
import datetime
import gzip
import io
import json
import lzma
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.progress import Silent
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import DOCUMENT_COLUMNS
from embedding_pipelines.spec.load import parse_pipeline, read_pipeline
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines.storage.warehouse import Warehouse, read_table
from embedding_pipelines_tests.chain import steps, write_pipeline

FAULTS = ("traceback", "hangs", "died", "too much memory", "silently lost")
MEGABYTES = 500  # more than which a small file may not take
SECONDS = 60  # of a processor, after which an input hangs; by the clock four times as long
ADDRESS_SPACE = 12 * 2**30  # so that a fault does not take the machine with it
WHOLE_CHAIN = 20  # one input in so many goes on to a release
METADATA = "{cat: string, n: int, x: float, day: date, at: timestamp, ok: bool}"
PIPELINE = """\
source: {{kind: {kind}, path: 'data/{name}', {id}text: [title, body], metadata: {metadata}, \
max_rejected: {limit}{more}}}
model: {{provider: hashing, dimensions: 8}}
partitions: 2
evaluation: {{known_items: 0, may_shrink: 1}}
"""
FIELDS = ("sku", "title", "body", "cat", "n", "x", "day", "at", "ok")
ODD = (  # what readers stumble over
    b'"', b'""', b"'", b"\\", b"\\\"", b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b"\0",
    b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"{",
    b"}", b"[", b"]", b":", b"null", b"NaN", b"-Infinity", b"1e999", b"1" * 5_000, b"-", b"0" * 400,
    b"[" * 5_000, b'{"a":' * 5_000, b"\xe2\x80\xa8", b"\x1a", b"#", b"\\N", b"''", b"sep=;\n",
    b"&a *a", b"!!python/object:os.system", b"<<: *x", b"? ", b"- - -", b"|\n", b"%YAML 9", b"---\n",
    b"${HOME}", b"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9", b"2020-13-45", b"1_000", b"0x1F",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An input: a pipeline, its file, and the records whose bytes are known."""

    kind: str  # of the pipeline's source, or "yaml"
    name: str
    content: bytes
    pipeline: str
    untouched: Mapping[str, bytes] = field(default_factory=dict)  # by a word that it alone holds
    rows: int | None = None  # of which each must be a document or rejected


@dataclass(frozen=True)
class Result:
    outcome: str
    words: str = ""
    megabytes: int = 0
    seconds: float = 0.0


# Inputs


def record(number: int, dice: random.Random) -> dict[str, Any]:
    """Values of every kind; `qz…zq` stands in no other record."""
    words = " ".join(
        dice.choice(["cats", "näh", "東京", "a, b", "it's", "x|y", "😀"]) for _ in "abc"
    )
    return {
        "sku": f"id-{number}",
        "title": f"qz{number}zq {words}",
        "body": dice.choice(
            ["", "one more sentence; and another.", "two\nlines" * dice.randrange(2)]
        ),
        "cat": f"c{number % 4}",
        "n": dice.choice([number, None, -number]),
        "x": dice.choice([number / 7, None, 1e300]),
        "day": datetime.date(2020, 1, 1 + number % 28),
        "at": datetime.datetime(2020, 1, 1, number % 24),
        "ok": dice.choice([True, False, None]),
    }


def as_json(row: Mapping[str, Any], dice: random.Random) -> bytes:
    ascii_alone = dice.random() < 0.5
    return json.dumps(row, default=str, ensure_ascii=ascii_alone).encode()


def csv_case(
    rows: list[dict[str, Any]], dice: random.Random
) -> tuple[str, list[bytes], bytes, str]:
    """Ending, records, what stands before them, more options."""
    delimiter = dice.choice([",", ",", ";", "\t", "|"])
    end = dice.choice(["\n", "\n", "\r\n"])
    quoting = dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    more = (
        f", delimiter: {json.dumps(delimiter)}" if delimiter != "," or dice.random() < 0.5 else ""
    )

    def line(cells: Sequence[Any]) -> bytes:
        text = io.StringIO()
        written = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
        written.writerow(cells)
        return text.getvalue().encode()

    return "csv", [line(list(row.values())) for row in rows], line(FIELDS), more


def text_case(
    kind: str, dice: random.Random
) -> tuple[Case, list[bytes], tuple[bytes, bytes, bytes]]:
    """A case of a text format, its records, and what stands before, between and behind them."""
    rows = [record(number, dice) for number in range(dice.choice([1, 3, 20, 40]))]
    more = ""
    if kind == "csv":
        ending, parts, head, more = csv_case(rows, dice)
        around = head, b"", b""
    else:
        ending = kind
        parts = [as_json(row, dice) for row in rows]
        around = b"", b"\n", dice.choice([b"\n", b""])
        if kind == "json":
            around = b"[", dice.choice([b",", b",\n  "]), b"]\n"
            if dice.random() < 0.3:
                more, around = ", records: a.b", (b'{"n": 1, "a": {"b": [', b",", b"]}}")
    if dice.random() < 0.2 and kind != "json":
        more += f", duplicates: {dice.choice(['first', 'last'])}"
    if dice.random() < 0.5:  # else a damaged byte often leaves it open what the text is in
        more += ", encoding: utf-8"
    packed = dice.choice(["", "", "", ".gz", ".gz", ".zip", ".xz"])
    name = f"a.{ending}{packed}"
    pipeline = PIPELINE.format(
        kind=kind,
        name=name,
        id=dice.choice(["id: sku, ", "id: sku, ", ""]),
        metadata=METADATA,
        limit=dice.choice(["1.0", "1.0", "1.0", "0.01"]),
        more=more,
    )
    marks = {f"qz{number}zq": part for number, part in enumerate(parts)}
    return Case(kind, name, b"", pipeline, marks), parts, around


def pack(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content, 1, mtime=0)
    if name.endswith(".xz"):
        return lzma.compress(content, preset=0)
    if name.endswith(".zip"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name.removesuffix(".zip"), content)
        return file.getvalue()
    return content


def parquet_case(dice: random.Random) -> Case:
    """Of structures that are damaged, or of bytes that are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [record(number, dice) for number in range(dice.choice([0, 1, 20, 300]))]
    columns = {name: [row[name] for row in rows] for name in FIELDS}
    for _ in range(dice.choice([0, 0, 1, 2])):
        name, odd = dice.choice(FIELDS), dice.randrange(8)
        size = len(rows)
        if odd == 0:
            columns.pop(name, None)
        elif odd == 1:
            columns[name] = [None] * size
        elif odd == 2:
            columns[name] = [{"a": number} for number in range(size)]
        elif odd == 3:
            columns[name] = [[str(number)] for number in range(size)]
        elif odd == 4:
            columns[name] = [os.urandom(3) for _ in range(size)]
        elif odd == 5:
            columns[f"{name}.x"] = columns.pop(name, [None] * size)
        elif odd == 6:
            columns[name] = [datetime.timedelta(1)] * size
        else:
            columns[name] = [10.0**number for number in range(min(size, 300))] + [0.0] * (
                size - 300
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        compression=dice.choice(["snappy", "zstd", "gzip", "none"]),
        row_group_size=dice.choice([7, 1000]),
        use_dictionary=dice.random() < 0.5,
        write_page_checksum=dice.random() < 0.5,
        store_schema=dice.random() < 0.5,
        data_page_version=dice.choice(["1.0", "2.0"]),
    )
    content, count = file.getvalue(), table.num_rows if table.num_columns else None
    if dice.random() < 0.7:
        # Bytes alone: the number of rows may itself be among them.
        content, count = damaged(content, dice), None
    pipeline = PIPELINE.format(
        kind="parquet",
        name="a.parquet",
        id=dice.choice(["id: sku, ", ""]),
        metadata=METADATA,
        limit="1.0",
        more="",
    )
    return Case("parquet", "a.parquet", content, pipeline, rows=count)


def yaml_case(dice: random.Random) -> Case:
    """A pipeline file of this or another form, damaged."""
    text = dice.choice(
        [
            PIPELINE.format(
                kind="csv", name="a.csv", id="id: sku, ", metadata=METADATA, limit="1%", more=""
            ),
            "source:\n  kind: jsonl\n  path: [data/*.jsonl, 's3://b/x']\n  text: title\n"
            "preprocessing:\n  chunk: {max_tokens: 64, overlap: 8}\n"
            "model: &m\n  provider: hashing\n  dimensions: 32\n"
            "compression:\n  - {kind: pca, dimensions: 16}\n  - int8\n"
            "store: {kind: lancedb, keep_releases: 3}\nschedule: '0 2 * * *'\n",
            '{"model": "bert", "data_path": "data.csv"}',
            '{"source": {"kind": "json", "path": "a.json"}, "model": {"provider": "hashing"}}',
        ]
    ).encode()
    name = "p.json" if text.startswith(b"{") else "p.yaml"
    if dice.random() < 0.5:
        text = other_structure(text, dice)
    return Case("yaml", name, damaged(text, dice), "")


def other_structure(text: bytes, dice: random.Random) -> bytes:
    """Words of a text are exchanged, left out, or made another kind of value."""
    words = text.replace(b":", b" : ").replace(b",", b" , ").split(b" ")
    for _ in range(dice.randrange(1, 4)):
        at, to = dice.randrange(len(words)), dice.randrange(len(words))
        kind = dice.randrange(4)
        if kind == 0:
            words[at], words[to] = words[to], words[at]
        elif kind == 1:
            del words[at]
            words = words or [b""]
        elif kind == 2:
            words[at] = dice.choice(
                [b"[]", b"{}", b"null", b"-1", b"1e400", b"yes", b"''", b"[[1]]"]
            )
        else:
            words.insert(at, words[to])
    return b" ".join(words)


def damaged(content: bytes, dice: random.Random) -> bytes:
    """A few bytes of a content are others, gone, more, or elsewhere."""
    for _ in range(dice.choice([1, 1, 1, 2, 5, 20])):
        at = dice.randrange(len(content) + 1)
        to = min(len(content), at + dice.choice([1, 1, 2, 10, 200]))
        kind = dice.randrange(8)
        if kind == 0 and at < len(content):
            content = (
                content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
            )
        elif kind == 1:
            content = content[:at] + dice.randbytes(to - at) + content[to:]
        elif kind == 2:
            content = content[:at] + content[to:]
        elif kind in (3, 4):
            content = content[:at] + dice.choice(ODD) + content[at:]
        elif kind == 5:
            content = content[:to] + content[at:to] * dice.choice([1, 2, 300]) + content[to:]
        elif kind == 6 and dice.random() < 0.3:
            content = content[:at]
        else:
            other = dice.randrange(len(content) + 1)
            piece = content[at:to]
            rest = content[:at] + content[to:]
            content = rest[:other] + piece + rest[other:]
    return content


def other_records(parts: list[bytes], kind: str, dice: random.Random) -> list[bytes]:
    """Some records are others in structure."""
    parts = list(parts)
    for _ in range(dice.randrange(1, 4)):
        at, how = dice.randrange(len(parts)), dice.randrange(8)
        if how == 0:
            parts[at] = parts[at] + parts[at]
        elif how == 1:
            parts.insert(dice.randrange(len(parts) + 1), parts[at])
        elif how == 2:
            parts[at] = dice.choice(ODD) + parts[at]
        elif how == 3 and kind == "csv":
            parts[at] = parts[at].replace(b",", b"", 1)
        elif how == 3:
            parts[at] = dice.choice(
                [b"null", b"[]", b"17", b'"text"', b"{}", b"[" * 9_000, b"true"]
            )
        elif how == 4:
            value = dice.choice([b"null", b"{}", b"[1,[2]]", b"1e999", b"12345678901234567890123"])
            key = dice.choice(FIELDS).encode()
            parts[at] = parts[at].replace(
                b'"' + key + b'": ', b'"' + key + b'": ' + value + b', "z":'
            )
        elif how == 5:
            key = dice.choice(FIELDS).encode()
            parts[at] = parts[at].replace(key, key.upper(), 1)
        elif how == 6:
            parts[at] = parts[at].replace(
                b"qz", b"qz" + b"w " * dice.choice([10, 3_000, 90_000]), 1
            )
        else:
            parts[at] = b""
    return parts


def bomb(case: Case, dice: random.Random) -> Case:
    """A small archive that unpacks to very much."""
    filler = dice.choice([b"\0", b"a", b"[", b'"', b" ", b"a,b\n", b'{"sku":1}\n', b"{}\n"])
    size = (300 if len(filler) == 1 else 5) * 2**20  # records take their time, each of them
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as archive:
        block = filler * (2**20 // len(filler))
        for _ in range(size // len(block)):
            archive.write(block)
    name = f"a.{case.kind}.gz"
    pipeline = case.pipeline.replace(case.name, name)
    return Case(case.kind, name, file.getvalue(), pipeline)


KINDS = ("csv", "json", "jsonl", "parquet", "yaml")


def case_of(number: int, kinds: Sequence[str], corpora: Sequence[Path] = ()) -> Case:
    """The input of this number."""
    dice = random.Random(number)
    if corpora and dice.random() < 0.2:
        return foreign(dice.choice(corpora), dice)
    kind = dice.choice(kinds)
    if kind == "parquet":
        return parquet_case(dice)
    if kind == "yaml":
        return yaml_case(dice)
    case, parts, (before, between, behind) = text_case(kind, dice)
    if dice.random() < 0.002:
        return bomb(case, dice)
    if dice.random() < 0.4:
        parts = other_records(parts, kind, dice)
    content = before + between.join(parts) + behind
    if dice.random() < 0.7:
        content = damaged(content, dice)
    packed = pack(case.name, content)
    if packed is not content and dice.random() < 0.4:
        packed = damaged(packed, dice)
        content = b""  # nothing of it is sure to be there
    # A record counts as untouched where it stands between what stood around it. The first line of
    # CSV says what the others are.
    whole = content if kind != "csv" or content.startswith(before) else b""
    edges = (b"\n", b"\n") if kind != "json" else (b"", b"")
    untouched = {
        word: part
        for word, part in case.untouched.items()
        if (edges[0] if kind != "csv" else b"\n") + part.rstrip(b"\r\n") + edges[1] in whole
    }
    return Case(kind, case.name, packed, case.pipeline, untouched)


def foreign(path: Path, dice: random.Random) -> Case:
    """A file that somebody else wrote, damaged."""
    kind = path.name.split(".")[1]
    with path.open("rb") as file:
        content = file.read(200_000)
    name = f"a.{kind}"
    pipeline = PIPELINE.format(
        kind=kind, name=name, id="", metadata="{}", limit="1.0", more=""
    ).replace("title, body", dice.choice(["text", "title", "question", "name", "a"]))
    return Case(kind, name, damaged(content, dice), pipeline)


# What becomes of one


def try_case(case: Case, home: Path, is_whole: bool) -> Result:
    """What the package makes of an input, in this process."""
    shutil.rmtree(home, ignore_errors=True)
    (home / "data").mkdir(parents=True)
    path = home / "data" / case.name
    if case.kind == "yaml":
        path = home / "pipelines" / case.name
        path.parent.mkdir()
    else:
        write_pipeline(home, "p", case.pipeline)
    path.write_bytes(case.content)
    try:
        if case.kind == "yaml":
            read_pipeline(path)
            with contextlib.suppress(UnicodeDecodeError):  # ours
                parse_pipeline(case.content.decode(), "p", case.name)
            return Result("right")
        spec = read_pipeline(home / "pipelines" / "p.yaml")
        with Run(spec, Warehouse(home), Silent()) as run:
            report = write_documents(run)
            lost = list(losses(case, run, report.statistics))
            if lost:
                return Result("silently lost", "; ".join(lost))
            if is_whole:
                list(steps(run))
            return Result("rejected" if report.statistics["rejected"] else "right")
    except EmbeddingPipelinesError as error:
        words = str(error)
        if not words.strip() or "Traceback" in words or len(words) > 5_000:
            return Result("traceback", f"no sentence: {words[:5_000]!r}")
        return Result("told", words)
    except BaseException:  # noqa: BLE001  # that is what is looked for
        return Result("traceback", traceback.format_exc())


def losses(case: Case, run: Run, statistics: Mapping[str, Any]) -> Iterator[str]:
    """Records that are neither documents nor rejected."""
    documents = [
        row
        for name in run.spec.partition_names
        for batch in run.folder.documents.read(name)
        for row in batch.to_pylist()
    ]
    rejected = read_table(run.folder.rejected)
    raws = rejected["raw"].to_pylist() if rejected is not None else []
    if len(documents) != statistics["documents"] or len(raws) != statistics["rejected"]:
        yield f"{len(documents)} documents, {len(raws)} rejected, but counted: {statistics}"
    if case.rows is not None and len(documents) + len(raws) < case.rows:
        yield f"{len(documents)} documents and {len(raws)} rejected of {case.rows} rows"
    names = [name for name in run.spec.source.metadata_types if name not in DOCUMENT_COLUMNS]
    texts = "\n".join(str(row[name]) for row in documents for name in ("text", *names))
    everything = texts.encode("utf-8", "surrogatepass") + b"\n" + b"\n".join(raws)
    left_out = {note for note in statistics.get("notes", ()) if "left out" in note}
    for word in case.untouched:
        if word.encode() not in everything and not left_out:
            yield f"{word}: {case.untouched[word]!r}"


def peak_megabytes() -> int:
    """The most memory that this process has had since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()


def work(
    pipe: Connection,
    folder: Path,
    kinds: Sequence[str],
    corpora: Sequence[Path],
    numbers: Sequence[int],
) -> None:
    """Try inputs one after the other, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    with open(folder / "output", "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for number in numbers:
        case = case_of(number, kinds, corpora)
        before, started = forget_peak(), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        result = try_case(case, folder / "home", number % WHOLE_CHAIN == 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        took, seconds = peak_megabytes() - before, time.process_time() - started
        if took > MEGABYTES and result.outcome not in FAULTS:
            result = Result("too much memory", f"{took} MB; {result.outcome}: {result.words}")
        pipe.send((number, Result(result.outcome, result.words, took, seconds)))


def fuzz(
    count: int, seed: int, kinds: Sequence[str], corpora: Sequence[Path], folder: Path
) -> Iterator[tuple[int, Result]]:
    """Each input's number, and what became of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    left = list(range(seed, seed + count))
    while left:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(theirs, folder, kinds, corpora, left))
        worker.start()
        theirs.close()
        while left:
            try:
                if not ours.poll(SECONDS * 4):
                    worker.kill()
                    worker.join()
                    yield left.pop(0), Result("hangs", "by the clock")
                    break
                number, result = ours.recv()
            except EOFError:
                worker.join()
                ends = worker.exitcode
                outcome = "hangs" if ends == -signal.SIGPROF else "died"
                yield left.pop(0), Result(outcome, f"exit status {ends}")
                break
            left.remove(number)
            yield number, result
        worker.join(1)
        worker.kill()
        worker.join()


def files_of(folder: Path) -> list[Path]:
    """The files below a folder that a source of theirs could read."""
    kinds = ("csv", "json", "jsonl", "parquet")
    return sorted(path for path in folder.rglob("*.*") if path.name.split(".")[1] in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=KINDS, help="these alone")
    parser.add_argument("--corpora", type=Path, action="append", default=[], help="see above")
    parser.add_argument("--keep", type=Path, help="write what goes wrong there")
    options = parser.parse_args()
    corpora = [path for folder in options.corpora for path in files_of(folder)]
    kinds = options.kind or KINDS
    outcomes, most, longest = Counter[str](), 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        results = fuzz(options.count, options.seed, kinds, corpora, Path(name))
        for number, result in results:
            outcomes[result.outcome] += 1
            most, longest = max(most, result.megabytes), max(longest, result.seconds)
            if result.outcome in FAULTS:
                case = case_of(number, kinds, corpora)
                print(
                    f"{number} {result.outcome} ({case.kind}, {case.name}): {result.words}",
                    flush=True,
                )
                if options.keep:
                    folder = options.keep / str(number)
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / case.name).write_bytes(case.content)
                    (folder / "pipeline.yaml").write_text(case.pipeline)
    print(f"{dict(outcomes)}; at most {most} MB and {longest:.1f} s of a processor")
    sys.exit(any(outcomes[fault] for fault in FAULTS))


if __name__ == "__main__":
    main()
