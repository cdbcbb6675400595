"""The embedding engine beside `SentenceTransformer.encode()` with its defaults, on the same texts
in turns.

    python -m benchmarks.engine [--data FOLDER] [--model NAME] [--rounds 3] [--precision auto]
        [--beside int8] [--json FILE]

Three corpora: abstracts (SciFact, near the limit of 256 tokens), image captions (short) and
paragraphs of mixed length (PEPs). Rates are real tokens per second, padding not counted. The
matrix-product limit of this processor is measured in the same run, in the precision that the engine
computes in: what a model would reach if it consisted of large matrix products alone.

`--beside int8` runs the engine in a second precision beside the first instead, with its accuracy;
`--processes 2` runs it twice at a time, to see whether runs that share a machine stand in each
other's way. On a machine with a CUDA GPU it measures what `benchmarks/gpu.py` says instead.
"""

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import gpu
from embedding_pipelines.inference.encoder import Engine, token_batches
from embedding_pipelines.inference.torch import accelerator
from embedding_pipelines.inference.weights import model_folder

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = {"abstracts": 1_000, "captions": 8_000, "paragraphs": 2_000}
# The products of one layer for a batch of 1,024 tokens: query, key, value and output; up; down.
CALIBRATED = 100  # abstracts that int8 is calibrated on
SHAPES = ((1_024, 384, 384), (1_024, 384, 1_536), (1_024, 1_536, 384))


def abstracts(data: Path) -> list[str]:
    with (data / "scifact" / "corpus.jsonl").open(encoding="utf-8") as file:
        return [f"{entry['title']}\n{entry['text']}" for entry in map(json.loads, file)]


def corpora(data: Path, share: float, counts: Mapping[str, int]) -> dict[str, list[str]]:
    """The texts of the three corpora, as many of each as there are and `counts` says; a share of
    them for a quick look."""
    with (data / "captions" / "captions_en.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    with (data / "peps" / "peps.jsonl").open(encoding="utf-8") as file:
        paragraphs = [
            part.strip()
            for line in file
            for part in json.loads(line)["text"].split("\n\n")
            if part.strip()
        ]
    every = max(1, len(paragraphs) // counts["paragraphs"])
    corpora = {
        "abstracts": abstracts(data),
        "captions": captions,
        "paragraphs": paragraphs[::every],
    }
    return {name: texts[: max(8, int(counts[name] * share))] for name, texts in corpora.items()}


def flops(lengths: list[int], layers: int = 6, width: int = 384) -> float:
    """Of a forward pass: 24 * width^2 a token and layer for the products, 4 * width * length for
    attention."""
    return sum(length * layers * (24 * width * width + 4 * width * length) for length in lengths)


def matrix_limit(precision: str) -> float:
    """FLOP/s of large matrix products on all cores, the best of several runs."""
    import torch

    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        precision
    ]
    best = 0.0
    for rows, inner, columns in SHAPES:
        left, right = torch.randn(rows, inner).to(kind), torch.randn(inner, columns).to(kind)
        for _ in range(6):
            started = time.perf_counter()
            for _ in range(20):
                left @ right
            best = max(best, 20 * 2 * rows * inner * columns / (time.perf_counter() - started))
    return best


def padding(lengths: list[int], budget: int, window: int = 4_096) -> float:
    """The share of tokens that are padding when texts come in windows, as the pipeline reads
    them."""
    padded = sum(
        len(batch) * part[batch[0]]
        for start in range(0, len(lengths), window)
        for part in [lengths[start : start + window]]
        for batch in token_batches(part, budget)
    )
    return float(1 - sum(lengths) / padded)


def compare(texts: list[str], engine: Engine, encoder: Any, rounds: int) -> dict[str, Any]:
    """Rates of both in turns, medians, and how near the vectors are."""
    lengths = [len(entry.ids) for entry in engine._cutting_tokenizer.encode_batch_fast(texts)]
    tokens = sum(lengths)
    seconds: dict[str, list[float]] = {"engine": [], "encode": []}
    for _ in range(rounds):
        started = time.perf_counter()
        own = engine.embed(texts, "document")
        seconds["engine"].append(time.perf_counter() - started)
        started = time.perf_counter()
        other = encoder.encode(texts, show_progress_bar=False)
        seconds["encode"].append(time.perf_counter() - started)
    cosines = (own * other).sum(axis=1)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "texts": len(texts),
        "tokens": tokens,
        "encode_tokens_per_second": round(tokens / median["encode"]),
        "engine_tokens_per_second": round(tokens / median["engine"]),
        "ratio": round(median["encode"] / median["engine"], 2),
        "gflops": round(flops(lengths) / median["engine"] / 1e9, 1),
        "encode_gflops": round(flops(lengths) / median["encode"] / 1e9, 1),
        "padding": round(padding(lengths, engine.backend.batch_tokens), 4),
        "cosine_mean": round(float(cosines.mean()), 6),
        "cosine_min": round(float(cosines.min()), 6),
    }


def side_by_side(arguments: argparse.Namespace) -> None:
    """The same texts by one process alone, then by several at once; their summed rate beside the
    one."""
    code = (
        "import sys, time; from pathlib import Path; from benchmarks.engine import *\n"
        "engine = Engine(model_folder(MODEL, None, Path()), sys.argv[2])\n"
        "texts = corpora(Path(sys.argv[1]), 0.5, TEXTS)['abstracts']\n"
        "engine.embed(texts[:8], 'document'); print('ready', flush=True); input()\n"
        "started = time.perf_counter(); engine.embed(texts, 'document'); print(time.perf_counter() - started)\n"
    )
    rates: dict[int, float] = {}
    for count in (1, arguments.processes, 1):
        command = [sys.executable, "-c", code, str(arguments.data), arguments.precision]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        seconds = [float(process.communicate()[0]) for process in running]
        rates[count] = max(rates.get(count, 0.0), count / max(seconds))
    print(
        f"{arguments.processes} at once do {rates[arguments.processes] / rates[1]:.2f} of what one does alone"
    )


def compare_precisions(
    folder: Path, arguments: argparse.Namespace, texts: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Both precisions in turns on each corpus: ratios within a round, medians; cosines to float32;
    nDCG@10 of SciFact's test queries over a part of its abstracts."""
    with tempfile.TemporaryDirectory() as temporary:
        samples = Path(temporary, "samples.txt")  # none of them is measured below
        lines = (" ".join(text.split()) for text in abstracts(arguments.data)[-CALIBRATED:])
        samples.write_text("\n".join(lines), encoding="utf-8")
        engines = {
            precision: Engine(folder, precision, samples if precision == "int8" else None)
            for precision in ("float32", arguments.precision, arguments.beside)
        }
        for engine in engines.values():
            engine.embed(["warm"], "document")
    _, first, second = engines.values()
    results: dict[str, Any] = {"first": first.backend.precision, "second": second.backend.precision}
    for name, part in texts.items():
        wall: list[float] = []
        processor: list[float] = []
        for _ in range(arguments.rounds):
            one, other = _seconds(first, part), _seconds(second, part)
            wall.append(one[0] / other[0])
            processor.append(one[1] / other[1])
        right, own, quick = (engine.embed(part, "document") for engine in engines.values())
        cosines = [(right * vectors).sum(axis=1) for vectors in (own, quick)]
        results[name] = {
            "rate": round(statistics.median(wall), 2),  # of the second, the first's being 1
            "rate_by_processor": round(statistics.median(processor), 2),
            "cosine_mean": [round(float(values.mean()), 5) for values in cosines],
            "cosine_min": [round(float(values.min()), 5) for values in cosines],
        }
    results["ndcg_at_10"] = [
        round(_ndcg(engine, arguments.data, arguments.share), 4) for engine in engines.values()
    ]
    return results


def _seconds(engine: Engine, texts: list[str]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    engine.embed(texts, "document")
    return time.perf_counter() - clock, time.process_time() - processor


def _ndcg(engine: Engine, data: Path, share: float) -> float:
    """nDCG@10 of the test queries, over the abstracts that are relevant to one and a share of 700
    others. Relevance is 0 or 1 in SciFact."""
    relevant: dict[str, set[str]] = {}
    with (data / "scifact" / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            relevant.setdefault(row["query-id"], set()).add(row["corpus-id"])
    with (data / "scifact" / "queries.jsonl").open(encoding="utf-8") as file:
        entries = map(json.loads, file)
        queries = {entry["_id"]: entry["text"] for entry in entries if entry["_id"] in relevant}
    needed = {document for documents in relevant.values() for document in documents}
    with (data / "scifact" / "corpus.jsonl").open(encoding="utf-8") as file:
        every = [json.loads(line) for line in file]
    rest = [entry for entry in every if entry["_id"] not in needed][: int(700 * share)]
    corpus = [entry for entry in every if entry["_id"] in needed] + rest
    texts = [f"{entry['title']}\n{entry['text']}" for entry in corpus]
    scores = engine.embed(list(queries.values()), "query") @ engine.embed(texts, "document").T
    gains = []
    for name, row in zip(queries, scores, strict=True):
        best = [corpus[place]["_id"] for place in (-row).argsort(kind="stable")[:10]]
        discounts = [1 / math.log2(rank + 2) for rank in range(10)]
        gain = sum(
            discount
            for document, discount in zip(best, discounts, strict=False)
            if document in relevant[name]
        )
        gains.append(gain / sum(discounts[: len(relevant[name])]))
    return statistics.mean(gains)


def show(results: dict[str, Any]) -> None:
    table = Table(
        title=f"{results['engine']}, {results['precision']}; limit {results['limit_gflops']} GFLOP/s"
    )
    for column in (
        "corpus",
        "tokens",
        "encode()",
        "engine",
        "ratio",
        "of the limit",
        "padding",
        "cosine mean / min",
    ):
        table.add_column(column, justify="left" if column == "corpus" else "right")
    for name, row in results["corpora"].items():
        table.add_row(
            f"{row['texts']:,} {name}",
            f"{row['tokens']:,}",
            f"{row['encode_tokens_per_second']:,}",
            f"{row['engine_tokens_per_second']:,}",
            f"{row['ratio']:.2f}",
            f"{row['gflops'] / results['limit_gflops']:.2f}",
            f"{row['padding']:.1%}",
            f"{row['cosine_mean']:.5f} / {row['cosine_min']:.5f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=str(__doc__).split("\n\n")[0]
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default=MODEL, help="its name, or a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the texts, for a quick look")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--beside", metavar="PRECISION", help="compare two precisions instead")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.processes > 1:
        side_by_side(arguments)
        return
    from sentence_transformers import SentenceTransformer

    folder = model_folder(arguments.model, None, Path())
    if accelerator() == "cuda":
        on_gpu = corpora(arguments.data, arguments.share, gpu.TEXTS)
        gpu.main(folder, on_gpu, arguments.rounds, arguments.json)
        return
    if arguments.beside:
        parts = corpora(arguments.data, arguments.share, TEXTS)
        compared = json.dumps(compare_precisions(folder, arguments, parts), indent=2)
        print(compared)
        if arguments.json:
            arguments.json.write_text(compared + "\n", encoding="utf-8")
        return
    engine = Engine(folder, arguments.precision)
    encoder: Any = SentenceTransformer(str(folder), device=_device(engine), local_files_only=True)
    if engine.backend.precision == "float16":
        encoder = encoder.half()  # as anybody does on a GPU
    for one in (
        lambda: engine.embed(["warm"], "document"),
        lambda: encoder.encode(["warm"], show_progress_bar=False),
    ):
        one()
    precision = engine.backend.precision
    results: dict[str, Any] = {
        "engine": engine.backend.name,
        "precision": precision,
        "limit_gflops": round(matrix_limit(precision) / 1e9, 1),
        "corpora": {},
    }
    for name, texts in corpora(arguments.data, arguments.share, TEXTS).items():
        results["corpora"][name] = compare(texts, engine, encoder, arguments.rounds)
    results["limit_gflops"] = max(results["limit_gflops"], round(matrix_limit(precision) / 1e9, 1))
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _device(engine: Engine) -> str:
    return (
        "cpu"
        if engine.backend.name.endswith(("CPU", "cpu"))
        else engine.backend.name.rsplit(", ", 1)[1]
    )


if __name__ == "__main__":
    main()
