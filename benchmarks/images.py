"""Images beside plain transformers: `python -m benchmarks.images`.

A CLIP of the size of ViT-B/32 with random weights embeds photographs, in one run and in turns

    plain       transformers alone: open, its processor, the model, one image a call; also on one
                thread, and the better of the two is compared
    ours        the embeddings step's own way: read, decode, resize in processes ahead of the model

and how near their vectors are; then where the time of ours goes, part by part. Clock times on a busy
machine are no figures; the rates of one run are compared, and processor seconds. Whether retrieval
is learned is in `clip_training.py`.
"""

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.cache import IN_MEMORY, EmbeddingCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.images import ImageLoader
from embedding_pipelines.images import decode, digest, prepare
from embedding_pipelines.providers.base import EmbeddingModel
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.vectors import Vectors, unit


def large_clip(folder: Path, tokenizer: Path) -> Path:
    """ViT-B/32 with random weights, in the format of Hugging Face."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    for path in tokenizer.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def plain_loop(folder: Path) -> Callable[[Sequence[Path]], Vectors]:
    """One image a call, as the model's card shows it."""
    import torch
    from PIL import Image
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    kind: Any = CLIPModel
    model = kind.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder)

    def run(paths: Sequence[Path]) -> Vectors:
        rows = []
        with torch.inference_mode():
            for path in paths:
                inputs = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
                rows.append(model.get_image_features(**inputs).pooler_output)
        return unit(torch.cat(rows).numpy())

    return run


def one_thread(run: Callable[[Sequence[Path]], Vectors]) -> Callable[[Sequence[Path]], Vectors]:
    """On a busy machine torch's threads wait for each other by spinning."""
    import torch

    def alone(paths: Sequence[Path]) -> Vectors:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run(paths)
        finally:
            torch.set_num_threads(threads)

    return alone


def our_way(model: EmbeddingModel) -> Callable[[Sequence[Path]], Vectors]:
    """What the embeddings step does with images that the cache does not have. It has their digests
    from the documents step; the first call with an image takes that time."""
    digests: dict[Path, str] = {}

    def run(paths: Sequence[Path]) -> Vectors:
        for path in paths:
            if path not in digests:
                digests[path] = digest(decode(path.read_bytes()))
        rows = pa.RecordBatch.from_pydict(
            {
                "text": [""] * len(paths),
                "tokens": [0] * len(paths),
                "uri": [str(path) for path in paths],
                "image": [digests[path] for path in paths],
            }
        )
        cache = EmbeddingCache(IN_MEMORY)
        with ImageLoader(Path, model.resize) as loader:
            parts = embed([rows], model, cache, "document", lambda _: None, loader=loader)
            return np.concatenate([part.vectors for part in parts])

    return run


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """A result, seconds by the clock, and seconds of processors, ended children included."""
    before, started = os.times(), time.perf_counter()
    result = work()
    seconds, after = time.perf_counter() - started, os.times()
    spent = sum(after[:4]) - sum(before[:4])
    return result, seconds, spent


def compare(paths: Sequence[Path], tokenizer: Path, rounds: int, precision: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = large_clip(Path(place) / "clip", tokenizer)
        model = Clip(model=str(folder), precision=precision).open(Path(place))
        ours, plain = our_way(model), plain_loop(folder)
        few = list(paths[:8])
        cosines = (plain(few) * ours(few)).sum(axis=1)  # loads both, too
        ours(paths)  # knows the digests
        some, single = list(paths[: len(paths) // 4]), one_thread(plain)
        ways = {"plain": (plain, some), "plain, one thread": (single, some), "ours": (ours, paths)}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (way, each) in ways.items():
                _, seconds, used = timed(functools.partial(way, each))
                rates[name].append(round(len(each) / seconds, 2))
                spent[name].append(round(1000 * used / len(each), 1))
        resize = model.resize
        data = [path.read_bytes() for path in paths]
        pixels, _, decode_cpu = timed(lambda: [decode(each) for each in data])
        squares, _, resize_cpu = timed(lambda: np.stack([prepare(each, resize) for each in pixels]))
        _, _, model_cpu = timed(lambda: model.embed_images(squares))
        count, computed_by = len(paths), model.computed_by
        model.close()
    best = [max(pair) for pair in zip(rates["plain"], rates["plain, one thread"], strict=True)]
    least = [min(pair) for pair in zip(spent["plain"], spent["plain, one thread"], strict=True)]
    return {
        "computed_by": computed_by,
        "images": count,
        "least_cosine": float(cosines.min()),
        "images_per_second": rates,
        "processor_ms_per_image": spent,
        "ratio_by_clock": [
            round(own / other, 2) for own, other in zip(rates["ours"], best, strict=True)
        ],
        "ratio_by_processor_seconds": [
            round(other / own, 2) for own, other in zip(spent["ours"], least, strict=True)
        ],
        "parts_of_ours_in_processor_ms": {
            "decode": round(1000 * decode_cpu / count, 2),
            "resize": round(1000 * resize_cpu / count, 2),
            "model": round(1000 * model_cpu / count, 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    options = parser.parse_args()
    paths = sorted((options.data / "flickr200" / "images").iterdir())[: options.images]
    tokenizer = options.data / "clip_tokenizer"
    result = compare(paths, tokenizer, options.rounds, options.precision)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
