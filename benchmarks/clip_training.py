"""A small CLIP learns in minutes, and is searched: `python -m benchmarks.clip_training drawn linear`.

Architecture and files are those of a real model, the weights are random at first. Plain transformers
trains it by CLIP's own loss and writes a folder; the pipeline loads that as it loads real weights,
embeds pictures that it was not trained on, and finds them by words through its own search.

    drawn         shapes of a colour on another colour, with a sentence for each. Every shape and every
                  colour is trained, but a quarter of their pairs is not: pictures of those are searched
    linear        photographs, by a model that nobody trained: from its vectors of half of them, the
                  pipeline's own, a linear map is fitted to MiniLM's vectors of their captions. The
                  other half is searched by its captions; for several random halves
    photographs   half of the 200 photographs with four captions each; searched are the other half, by
                  all of their captions, and the trained half by the fifth, a weaker figure. Trained on
                  25 and 50 photographs, too, to see what more of them bring

Chance stands beside each figure.
"""

import argparse
import csv
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from embedding_pipelines.images import Pixels, Resize, decode, prepare
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Limits, Response
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.providers.hf import Hf
from embedding_pipelines.schemas import digest
from embedding_pipelines.search import Searcher
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors, unit
from embedding_pipelines_tests.chain import live_rows, run_steps, write_pipeline
from embedding_pipelines_tests.clips import SIZE, tiny_clip
from embedding_pipelines_tests.corpora import minilm

COLOURS = {
    "red": (220, 40, 40), "orange": (245, 140, 20), "yellow": (245, 220, 60), "green": (40, 160, 70),
    "blue": (40, 80, 200), "purple": (130, 60, 170), "white": (245, 245, 245), "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "ring", "cross", "bar")
HELD_OUT = 4  # of so many pairs of a shape and a colour, one is not trained
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1
AT_ONCE = 64  # drawings
MARGIN = 8  # pixels that a crop may move
RIDGES = (
    0.01,
    0.03,
    0.1,
    0.3,
    1.0,
    3.0,
    10.0,
)  # in parts of the mean square of the images' vectors
PIPELINE = """\
source: {{kind: images, path: {name}/}}
model: {{provider: clip, model: model, precision: float32}}
partitions: 2
evaluation: {{known_items: 0, may_shrink: 1}}
"""


@dataclass(frozen=True)
class Example:
    """A picture's file, and sentences that say what is on it."""

    path: Path
    captions: Sequence[str]


def draw(path: Path, shape: str, colour: str, field: str, random: np.random.Generator) -> Path:
    """A shape somewhere on a field, of some size, in 64 x 64 pixels."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIZE * 4, SIZE * 4), COLOURS[field])
    pen, fill = ImageDraw.Draw(picture), COLOURS[colour]
    half = int(random.integers(45, 90))
    x, y = (int(each) for each in random.integers(half, SIZE * 4 - half, 2))
    box, third = (x - half, y - half, x + half, y + half), half // 3
    if shape == "circle":
        pen.ellipse(box, fill)
    elif shape == "square":
        pen.rectangle(box, fill)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=third)
    elif shape == "cross":
        pen.rectangle((x - third, y - half, x + third, y + half), fill)
        pen.rectangle((x - half, y - third, x + half, y + third), fill)
    else:
        pen.rectangle((x - half, y - third, x + half, y + third), fill)
    noise = random.normal(0, 6, (SIZE, SIZE, 3))
    pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def drawings(folder: Path, count: int, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """About `count` pictures to train on, and one of each kind that is not trained."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    pairs = list(product(SHAPES, COLOURS))
    held = {
        (shape, colour)
        for row, shape in enumerate(SHAPES)
        for column, colour in enumerate(COLOURS)
        if (row + column) % HELD_OUT == 0
    }
    kinds = [(*pair, field) for pair in pairs for field in COLOURS if field != pair[1]]
    train_kinds = [kind for kind in kinds if kind[:2] not in held]
    train, test = list[Example](), list[Example]()
    for number in range(count):
        shape, colour, field = train_kinds[number % len(train_kinds)]
        path = draw(folder / f"train-{number}.png", shape, colour, field, random)
        train.append(Example(path, [f"a {colour} {shape} on a {field} field"]))
    for number, (shape, colour, field) in enumerate(kind for kind in kinds if kind[:2] in held):
        path = draw(folder / f"test-{number}.png", shape, colour, field, random)
        test.append(Example(path, [f"a {colour} {shape} on a {field} field"]))
    return train, test


def photographs(data: Path) -> list[Example]:
    captions = dict[str, list[str]]()
    with (data / "captions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    examples = [Example(data / "images" / name, texts) for name, texts in sorted(captions.items())]
    return [examples[each] for each in np.random.default_rng(0).permutation(len(examples))]


def train(
    folder: Path,
    examples: Sequence[Example],
    steps: int,
    batch: int,
    flips: bool = False,
    seed: int = 0,
) -> float:
    """Train the model in `folder` by CLIP's loss, and write it there again; the last loss. Pictures
    are moved a little each time, and with `flips` turned to their mirror's image."""
    import torch
    from transformers import AutoTokenizer, CLIPModel

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    kinds: tuple[Any, Any] = (CLIPModel, AutoTokenizer)
    model, tokenizer = (kind.from_pretrained(folder) for kind in kinds)
    values = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (np.array(values[f"image_{name}"], np.float32) for name in ("mean", "std"))
    larger = Resize(SIZE + MARGIN, True, "bicubic")
    files = np.stack([prepare(decode(each.path.read_bytes()), larger) for each in examples])
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    model.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of a model so small, two wait for each other
    for _ in range(steps):
        rows = random.permutation(len(examples))[:batch]
        squares = np.stack([_moved(files[row], random, flips) for row in rows])
        pixels = torch.from_numpy((squares / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
        texts = [str(random.choice(examples[row].captions)) for row in rows]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        loss = model(**tokens, pixel_values=pixels, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as CLIP's paper does
    torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)
    return float(loss.detach())


def _moved(pixels: Pixels, random: np.random.Generator, flips: bool) -> Pixels:
    y, x = random.integers(0, MARGIN + 1, 2)
    square = pixels[y : y + SIZE, x : x + SIZE]
    return square[:, ::-1] if flips and random.random() < 0.5 else square


@dataclass(frozen=True)
class LinearMap:
    """From images' vectors to texts': `v` becomes the direction of (v - images) @ weights."""

    images: Vectors  # the mean of those that it was fitted to
    texts: Vectors
    weights: Vectors

    @classmethod
    def fit(cls, images: Vectors, texts: Vectors) -> "LinearMap":
        """Ridge regression of texts[n, e] on images[n, d]; how strongly it is held back is chosen by
        what each row would be without itself."""
        middle, aim = images.mean(axis=0), texts.mean(axis=0)
        rows, targets = (images - middle).astype(float), (texts - aim).astype(float)
        kernel, count = rows @ rows.T, len(rows)
        tries = []
        for ridge in RIDGES:
            inverse = np.linalg.inv(kernel + ridge * np.trace(kernel) / count * np.eye(count))
            dual = inverse @ targets
            left_out = targets - dual / np.diag(inverse)[:, None]
            tries.append((float((unit(left_out) * unit(targets)).sum(axis=1).mean()), ridge, dual))
        _, _, dual = max(tries, key=lambda each: each[:2])
        return cls(middle, aim, (rows.T @ dual).astype(np.float32))


class Mapped(EmbeddingModel):
    """Shows images by the provider clip's vectors, mapped to MiniLM's, which are those of texts."""

    options: Clip
    resources = ()
    limits = Limits(256, 8_192, 64, concurrent_requests=1, request_images=64)

    def __init__(self, clip: EmbeddingModel, texts: EmbeddingModel, to_texts: LinearMap) -> None:
        super().__init__(clip.options, clip.home)
        self._clip, self._texts, self._map = clip, texts, to_texts

    @property
    def tokenizer(self) -> Any:
        return self._texts.tokenizer

    @property
    def resize(self) -> Resize:
        return self._clip.resize

    @property
    def space(self) -> Space:
        revision = digest(self._map.weights.tobytes()).hex()
        values = self._clip.space.model_dump() | {"model": "linear", "revision": revision}
        return Space(**values | {"dimensions": self._map.weights.shape[1], "max_tokens": 256})

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        return Response(unit(self._texts.embed(inputs, input_type).vectors - self._map.texts))

    def embed_images(self, pixels: Pixels) -> Vectors:
        vectors = self._clip.embed_images(pixels)
        mapped: Vectors = unit((vectors - self._map.images) @ self._map.weights)
        return mapped


def make(
    home: Path, name: str, examples: Sequence[Example], model: EmbeddingModel | None = None
) -> list[str]:
    """A pipeline of these pictures, released; their documents."""
    folder = home / name
    folder.mkdir(parents=True)
    documents = [f"{number}{each.path.suffix}" for number, each in enumerate(examples)]
    for document, each in zip(documents, examples, strict=True):
        (folder / document).symlink_to(each.path)
    write_pipeline(home, name, PIPELINE.format(name=name))
    run_steps(home, name, model)
    return documents


def search(
    home: Path, name: str, examples: Sequence[Example], model: EmbeddingModel | None = None
) -> dict[str, float]:
    """How often a caption's own picture is among the first 10, and the first, of all pictures of the
    pipeline `name`, which is made of these examples: by the project's own search."""
    documents = make(home, name, examples, model)
    ranks = []
    with Searcher(home, name, model) as searcher:
        for document, each in zip(documents, examples, strict=True):
            captions = list(each.captions)
            for result in searcher.search(captions, k=len(examples), too_long="cut"):
                names = [hit.document_id for hit in result.hits]
                ranks.append(names.index(document))
    count = len(examples)
    return {
        "pictures": count,
        "queries": len(ranks),
        "recall_at_10": round(float(np.mean(np.array(ranks) < 10)), 3),
        "chance_at_10": round(10 / count, 3),
        "recall_at_1": round(float(np.mean(np.array(ranks) < 1)), 3),
        "chance_at_1": round(1 / count, 3),
        "median_rank": float(np.median(ranks)) + 1,
    }


def learn_drawings(home: Path, count: int, steps: int) -> dict[str, Any]:
    """Train on `count` drawings, and search those of the pairs that were left out."""
    examples, held = drawings(home / "drawings", count)
    tiny_clip(home / "model")
    loss = train(home / "model", examples, steps, AT_ONCE)
    return {"loss": round(loss, 3), "pairs_left_out": search(home, "held", held)}


def learn_photographs(home: Path, data: Path, count: int, steps: int) -> dict[str, Any]:
    """Train on four captions of each of `count` photographs; search those of the other half, and
    those `count` by their fifth caption."""
    examples = photographs(data)
    half, others = examples[:count], examples[len(examples) // 2 :]
    tiny_clip(home / "model")
    pairs = [Example(each.path, each.captions[:4]) for each in half]
    loss = train(home / "model", pairs, steps, count, flips=True)
    fifth = [Example(each.path, each.captions[4:]) for each in half]
    return {
        "trained": count,
        "loss": round(loss, 3),
        "other_photographs": search(home, "others", others),
        "trained_photographs_by_another_caption": search(home, "same", fifth),
    }


def map_photographs(home: Path, data: Path, halves: int) -> dict[str, Any]:
    """Fit a linear map on a random half of the photographs, and search the other one; several
    times."""
    examples = photographs(data)
    tiny_clip(home / "model")
    clip = Clip(model="model", precision="float32").open(home)
    texts = Hf(model=str(minilm())).open(home)
    documents = make(home, "all", examples)
    rows = {row["document_id"]: row["vector"] for row in live_rows(home, "all").values()}
    images = np.array([rows[document] for document in documents], np.float32)
    captions = [caption for each in examples for caption in each.captions]
    vectors = texts.embed(captions, "document").vectors.reshape(len(examples), -1, 384)
    results = []
    for number in range(halves):
        order = np.random.default_rng(number).permutation(len(examples))
        half, others = order[: len(order) // 2], order[len(order) // 2 :]
        fitted = LinearMap.fit(images[half], vectors[half].mean(axis=1))
        model = Mapped(clip, texts, fitted)
        results.append(search(home, f"half_{number}", [examples[at] for at in others], model))
    recalls = [each["recall_at_10"] for each in results]
    clip.close()
    texts.close()
    return {
        "mean_recall_at_10": round(float(np.mean(recalls)), 3),
        "least_recall_at_10": min(recalls),
        "chance_at_10": results[0]["chance_at_10"],
        "halves": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("what", nargs="+", choices=("drawn", "linear", "photographs"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--halves", type=int, default=10)
    options = parser.parse_args()
    data = options.data.resolve() / "flickr200"
    if {*options.what} != {"drawn"} and not data.is_dir():
        parser.error(f"{data} is missing. Name the folder that holds flickr200/ by --data.")
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        if "drawn" in options.what:
            report(learn_drawings(home / "drawn", 3_000, options.steps))
        if "linear" in options.what:
            report(map_photographs(home / "linear", data, options.halves))
        if "photographs" in options.what:
            for count in (100, 50, 25):
                report(learn_photographs(home / str(count), data, count, options.steps))


def report(result: dict[str, Any]) -> None:
    print(json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
