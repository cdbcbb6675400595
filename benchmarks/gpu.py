"""The engine at work on a GPU: `python -m benchmarks.engine` on a machine that has one.

For each corpus, real tokens per second, padding not counted, of

    pipeline    windows of a pipeline's partitions, the cache, Parquet shards: everything but Dagster
    encode      `SentenceTransformer.encode()` in float16, the best of some batch sizes
    tokenizer   the tokenizer alone, all cores
    device      the batches alone, token ids at hand

The first texts of a corpus are embedded in float32, too, to compare half precision with. BERT-base
and BERT-large have random weights: only their rate counts. The limit is what large matrix products
reach on the device in the same run.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.inference.encoder import Engine, packed_batches, token_batches
from embedding_pipelines.inference.torch import Torch
from embedding_pipelines.providers.hf import Hf
from embedding_pipelines.schemas import embeddings_schema
from embedding_pipelines.storage.warehouse import Shards, ShardWriters
from embedding_pipelines.vectors import cosine, to_column

# A run takes a second or more.
TEXTS = {"abstracts": 5_183, "captions": 60_000, "paragraphs": 20_000}
PARTITIONS = 16
ENCODE_BATCHES = (32, 256, 1_024)
ENCODE_SHARE = 0.25  # of the texts: `encode()` is slow
COMPARED_TEXTS = 2_000
CHUNKS = pa.schema([("chunk_id", pa.string()), ("text", pa.string()), ("tokens", pa.int32())])
# Layers, hidden size, heads.
LARGER = {"BERT-base": (12, 768, 12), "BERT-large": (24, 1_024, 16)}


def matrix_limit(device: str, precision: str, size: int = 8_192) -> float:
    """FLOP/s of products of square matrices of random numbers, the best of several runs."""
    import torch

    kind = getattr(torch, precision)
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(10):
            product = left @ right
        product[0, 0].item()  # waits for it
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def measure(
    folder: Path, corpora: dict[str, list[str]], device: str, rounds: int, peers: bool = True
) -> dict[str, Any]:
    """All figures of one model; without `encode` and cosines unless `peers`."""
    engine = Engine(folder, "auto", device=device)
    backend, results = engine.backend, dict[str, Any]()
    for name, texts in corpora.items():
        started = time.perf_counter()
        tokens = engine._tokens(texts, "document")
        tokenized = time.perf_counter() - started
        count = int(tokens.lengths.sum())
        group = token_batches if backend.pads else packed_batches
        rows = group(tokens.lengths, engine.batch_tokens)
        batches = [tokens.take(part) for part in rows]
        row: dict[str, Any] = {
            "texts": len(texts),
            "tokens": count,
            "tokenizer": round(count / tokenized),
            "device": round(count / best(rounds, run_batches, backend, batches)),
        }
        seconds = [run_pipeline(folder, texts, tokens.lengths, device) for _ in range(rounds + 1)]
        row["pipeline"] = round(count / min(seconds[1:]))
        row["pipeline_rounds"] = [round(count / second) for second in seconds]
        row["flops_per_token"] = round(flops(folder, tokens.lengths) / count)
        if peers:
            row |= encode(folder, texts, tokens.lengths, device)
            row |= compare(folder, tokens.take(np.arange(min(len(texts), COMPARED_TEXTS))), device)
        results[name] = row
    return {"engine": backend.name, "precision": backend.precision, "corpora": results}


def run_batches(backend: Any, batches: Sequence[Any]) -> None:
    running: list[Any] = []
    for batch in batches:
        running.append(backend.start(batch))
        if len(running) > backend.in_flight:
            backend.finish(running.pop(0))
    for handle in running:
        backend.finish(handle)


def best(rounds: int, work: Callable[..., None], *arguments: Any) -> float:
    seconds = []
    for _ in range(rounds + 1):  # the first warms up
        started = time.perf_counter()
        work(*arguments)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def run_pipeline(folder: Path, texts: Sequence[str], lengths: Any, device: str) -> float:
    """Seconds from the shards of chunks to those of embeddings, through a new cache."""
    home = Path(tempfile.mkdtemp())
    chunks, shards = Shards(home / "chunks"), Shards(home / "embeddings")
    names = [f"b{number:02}" for number in range(PARTITIONS)]
    for number, name in enumerate(names):
        rows = range(number, len(texts), PARTITIONS)
        columns = {
            "chunk_id": [f"{row}#0" for row in rows],
            "text": [texts[row] for row in rows],
            "tokens": lengths[number::PARTITIONS].astype(np.int32),
        }
        batch = pa.RecordBatch.from_pydict(columns, schema=CHUNKS)
        chunks.write(name, CHUNKS, [batch], "", "", {})
    with Hf(model=str(folder), device=device).open(home) as model:
        model.embed(["warm"], "document")
        schema = embeddings_schema(model.space.dimensions, model.space.id)
        started = time.perf_counter()
        batches = (batch for name in names for batch in chunks.read(name))
        cache = EmbeddingCache(home / "cache.sqlite")
        embedded = embed(batches, model, cache, "document", lambda tokens: None)

        with ShardWriters(shards) as writers:
            drafts = []
            for name in names:
                draft = writers.begin(name, schema, "", "", {})
                left = chunks.required(name).rows
                while left:
                    part = next(embedded)
                    left -= part.rows.num_rows
                    arrays = [part.rows["chunk_id"], to_column(part.vectors)]
                    draft.add(pa.RecordBatch.from_arrays(arrays, schema=schema))
                draft.add(None)
                drafts.append(draft)
            for draft in drafts:
                draft.manifest.result()
        seconds = time.perf_counter() - started
    shutil.rmtree(home)
    return seconds


def encode(folder: Path, texts: Sequence[str], lengths: Any, device: str) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(folder), device=device, local_files_only=True)
    model = model if device == "cpu" else model.half()
    part = texts[: max(8, int(len(texts) * ENCODE_SHARE))]
    model.encode(part[:64], show_progress_bar=False)
    rates = {}
    for size in ENCODE_BATCHES:
        started = time.perf_counter()
        model.encode(part, batch_size=size, show_progress_bar=False)
        rates[size] = round(int(lengths[: len(part)].sum()) / (time.perf_counter() - started))
    return {"encode": max(rates.values()), "encode_rates": rates}


def compare(folder: Path, texts: Any, device: str) -> dict[str, Any]:
    """Cosines of half precision to float32, and the rate of each."""
    vectors, rates = {}, {}
    for precision in ("float32", "bfloat16", "float16"):
        backend = Torch(folder, device, precision)
        rows = token_batches(texts.lengths, backend.batch_tokens)
        batches = [texts.take(part) for part in rows]
        rates[precision] = round(texts.lengths.sum() / best(2, run_batches, backend, batches))
        vectors[precision] = np.concatenate(
            [backend.finish(backend.start(batch)) for batch in batches]
        )
    result: dict[str, Any] = {"rates": rates}
    for precision in ("bfloat16", "float16"):
        cosines = cosine(vectors[precision], vectors["float32"])
        result[f"cosine_{precision}"] = [float(cosines.mean()), float(cosines.min())]
    return result


def flops(folder: Path, lengths: Any) -> float:
    """Of a forward pass over all texts: matrix products and attention."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    tokens, squares = float(lengths.sum()), float((lengths.astype(float) ** 2).sum())
    return float(layers * (24.0 * width * width * tokens + 4.0 * width * squares))


def random_bert(folder: Path, like: Path, layers: int, width: int, heads: int) -> Path:
    """A BERT of random weights with the tokenizer of another model."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    source: Any = SentenceTransformer(str(like), device="cpu", local_files_only=True)
    config = transformers.BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        vocab_size=len(source.tokenizer),
    )
    torch.manual_seed(0)
    source[0].model = transformers.BertModel(config)
    source[1].embedding_dimension = width
    source.save(str(folder), create_model_card=False)
    return folder


def run(
    folder: Path, corpora: dict[str, list[str]], device: str, rounds: int, larger: bool = True
) -> dict[str, Any]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    on_gpu = device.startswith("cuda")
    results: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if on_gpu else "processor",
        "cores": cores,
        "models": {folder.name: measure(folder, corpora, device, rounds)},
    }
    if larger:
        abstracts = {"abstracts": corpora["abstracts"]}
        for name, sizes in LARGER.items():
            with tempfile.TemporaryDirectory() as place:
                bert = random_bert(Path(place) / name, folder, *sizes)
                results["models"][name] = measure(bert, abstracts, device, rounds, peers=False)
    precision = results["models"][folder.name]["precision"]
    results["limit_tflops"] = round(
        matrix_limit(device, precision, 8_192 if on_gpu else 1_024) / 1e12, 2
    )
    for model in results["models"].values():
        for row in model["corpora"].values():
            share = row["flops_per_token"] / (results["limit_tflops"] * 1e12)
            row["device_of_limit"] = round(row["device"] * share, 3)
            row["device_busy"] = round(row["pipeline"] / row["device"], 3)
    return results


def show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{results['machine']}, {results['cores']} cores; "
        f"matrix products {results['limit_tflops']:,} TFLOP/s; tokens/s"
    )
    columns = ("model", "corpus", "pipeline", "encode", "ratio", "tokenizer", "device", "of limit")
    for column in (*columns, "cosine bf16", "fp16"):
        table.add_column(column)
    for model, figures in results["models"].items():
        for corpus, row in figures["corpora"].items():
            peer = row.get("encode")
            cosines = [row.get(f"cosine_{kind}") for kind in ("bfloat16", "float16")]
            table.add_row(
                f"{model}, {figures['precision']}",
                f"{row['texts']:,} {corpus}",
                f"{row['pipeline']:,}",
                f"{peer:,}" if peer else "",
                f"{row['pipeline'] / peer:.1f}" if peer else "",
                f"{row['tokenizer']:,}",
                f"{row['device']:,}",
                f"{row['device_of_limit']:.2f}",
                *(f"{pair[0]:.6f} / {pair[1]:.5f}" if pair else "" for pair in cosines),
            )
    Console(width=180).print(table)


def main(folder: Path, corpora: dict[str, list[str]], rounds: int, path: Path | None) -> None:
    results = run(folder, corpora, "cuda", rounds)
    show(results)
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
