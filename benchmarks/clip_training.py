"""A small CLIP learns in minutes, and is searched: `python -m benchmarks.clip_training drawn`.

Architecture and files are those of a real model, the weights are random at first. Plain transformers
trains it by CLIP's own loss and writes a folder; the pipeline loads that as it loads real weights,
embeds pictures that it was not trained on, and finds them by words through its own search.

    drawn         shapes of a colour on another colour, with a sentence for each. Every shape and every
                  colour is trained, but a quarter of their pairs is not: pictures of those are searched
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
from embedding_pipelines.search import Searcher
from embedding_pipelines_tests.chain import run_steps, write_pipeline
from embedding_pipelines_tests.clips import SIZE, tiny_clip

COLOURS = {
    "red": (220, 40, 40), "orange": (245, 140, 20), "yellow": (245, 220, 60), "green": (40, 160, 70),
    "blue": (40, 80, 200), "purple": (130, 60, 170), "white": (245, 245, 245), "black": (20, 20, 20),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "ring", "cross", "bar")
HELD_OUT = 4  # of so many pairs of a shape and a colour, one is not trained
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1
AT_ONCE = 64  # drawings
MARGIN = 8  # pixels that a crop may move


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
    trained = [kind for kind in kinds if kind[:2] not in held]
    train, test = list[Example](), list[Example]()
    for number in range(count):
        shape, colour, field = trained[number % len(trained)]
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


def search(home: Path, name: str, examples: Sequence[Example]) -> dict[str, float]:
    """How often a caption's own picture is among the first 10, and the first, of all pictures of the
    pipeline `name`, which is made of these examples: by the project's own search."""
    folder = home / name
    folder.mkdir(parents=True)
    for number, each in enumerate(examples):
        (folder / f"{number}{each.path.suffix}").symlink_to(each.path)
    write_pipeline(
        home,
        name,
        f"source: {{kind: images, path: {name}/}}\n"
        "model: {provider: clip, model: model}\n"
        "partitions: 2\nevaluation: {known_items: 0, may_shrink: 1}\n",
    )
    run_steps(home, name)
    ranks = []
    with Searcher(home, name) as searcher:
        for number, each in enumerate(examples):
            captions = list(each.captions)
            for result in searcher.search(captions, k=len(examples), too_long="cut"):
                names = [hit.document_id for hit in result.hits]
                ranks.append(names.index(f"{number}{each.path.suffix}"))
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


def learn_photographs(home: Path, data: Path, trained: int, steps: int) -> dict[str, Any]:
    """Train on four captions of each of `trained` photographs; search those of the other half, and
    the trained ones by their fifth caption."""
    examples = photographs(data)
    half, others = examples[:trained], examples[len(examples) // 2 :]
    tiny_clip(home / "model")
    known = [Example(each.path, each.captions[:4]) for each in half]
    loss = train(home / "model", known, steps, trained, flips=True)
    fifth = [Example(each.path, each.captions[4:]) for each in half]
    return {
        "trained": trained,
        "loss": round(loss, 3),
        "other_photographs": search(home, "others", others),
        "trained_photographs_by_another_caption": search(home, "same", fifth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("what", choices=("drawn", "photographs"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    data = options.data.resolve() / "flickr200"
    with tempfile.TemporaryDirectory() as place:
        if options.what == "drawn":
            print(json.dumps(learn_drawings(Path(place), 3_000, options.steps), indent=2))
            return
        for trained in (100, 50, 25):
            home = Path(place) / str(trained)
            result = learn_photographs(home, data, trained, options.steps)
            print(json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
