"""From bucket to bucket, on this machine: `make clip-demo`.

A loopback S3 server holds two buckets. Drawn pictures are uploaded to one; the pipeline's sensor sees
them, a run embeds them by CLIP, and Parquet lies in the other one. Then a picture is searched by words
and by another picture, one is renamed, and one is deleted.

Without a real model (`make clip-demo MODEL=openai/clip-vit-base-patch32`) a tiny one with random weights
is made: all happens as ever, and what it finds by words is chance.
"""

import io
import json
import logging
import os
import random
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq

from embedding_pipelines.files import write_atomic
from embedding_pipelines.objects import open_bucket
from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.orchestration.launch import run_pipeline
from embedding_pipelines.orchestration.resources import RESOURCES
from embedding_pipelines.progress import Silent, StepReport
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.sentences import sentence
from embedding_pipelines_tests.buckets import CREDENTIALS, request, serve_s3
from embedding_pipelines_tests.clips import tiny_clip

IN, OUT = "photos-in", "photos-out"
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 211, 60),
    "green": (42, 157, 83),
    "blue": (38, 84, 176),
    "purple": (120, 60, 160),
}
SHAPES = ("circle", "square", "triangle", "star", "stripes", "ring")
PIPELINE = """\
source: {{kind: images, path: s3://{IN}/, captions: {{path: s3://{IN}/captions.csv, file: name, text: caption}}}}
model: {{provider: clip, model: "{model}", labels: {{names: [circle, square, star], top: 2}}}}
output: s3://{OUT}/results/
partitions: 4
evaluation: {{known_items: 0, may_shrink: 1}}
"""


class Told(Silent):
    """A progress that prints a line for each step, and keeps what it reports."""

    def __init__(self) -> None:
        self.reports: dict[str, StepReport] = {}

    def note(self, text: str) -> None:
        say(f"  note: {text}")

    def finish(self, report: StepReport) -> None:
        self.reports[report.step] = report
        say(f"  {report.step:<13} {sentence(report)}")


def main(model: str, count: int = 36) -> int:
    """Prints what happens; 0 if all of it was as it should be."""
    with (
        tempfile.TemporaryDirectory(prefix="clip-demo-") as folder,
        serve_s3(Path(folder) / "s3.log") as address,
    ):
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": address}
        home = Path(folder) / "home"
        for name in (IN, OUT):
            request(address, "PUT", f"/{name}")
        if not model:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
            tiny_clip(home / "models" / "tiny-clip")
            say("No MODEL is given: a tiny CLIP with random weights stands in for one.")
        (home / "pipelines").mkdir(parents=True, exist_ok=True)
        text = PIPELINE.format(IN=IN, OUT=OUT, model=model or "models/tiny-clip")
        write_atomic(home / "pipelines" / "photos.yaml", text)
        return Demo(home, address).play(count)


class Demo:
    """One home with the pipeline `photos`, and the server of its buckets."""

    def __init__(self, home: Path, address: str) -> None:
        self.home, self.address = home, address
        self.spec = find_pipeline("photos", home)
        self.cursor: str | None = None
        self.problems: list[str] = []

    def play(self, count: int) -> int:
        say("", f"1. Upload {count} pictures and captions.csv to s3://{IN}")
        pictures = drawn(count)
        for name, (data, _) in pictures.items():
            self.put(name, data)
        lines = [f"{name},{caption}" for name, (_, caption) in pictures.items()]
        self.put("captions.csv", "\n".join(["name,caption", *lines, ""]).encode())
        reports = self.sense_and_run()
        self.expect(reports["embeddings"].statistics["embedded"] == count, "every picture is new")
        self.show_output(count)
        first = next(iter(pictures))
        say("", "2. Search")
        self.search("a red circle")
        self.search(picture("red", "circle", random.Random(7)))
        say("", f"3. Rename {first}: its pixels are known, nothing is embedded")
        self.put(f"album/{first}", pictures[first][0])
        self.delete(first)
        reports = self.sense_and_run()
        self.expect(reports["embeddings"].statistics["embedded"] == 0, "nothing is embedded")
        self.show_output(count)
        say("", f"4. Delete album/{first}: it is gone everywhere")
        self.delete(f"album/{first}")
        self.sense_and_run()
        rows = self.show_output(count - 1)
        self.expect(all(first not in str(row["document_id"]) for row in rows), "no row is left")
        with Searcher(self.home, "photos") as searcher:
            hits = searcher.search_image(pictures[first][0], k=count).hits
        self.expect(all(first not in hit.document_id for hit in hits), "no search finds it")
        say("", "; ".join(self.problems) or "All of it was as it should be.")
        return len(self.problems)

    def sense_and_run(self) -> dict[str, StepReport]:
        """Let the sensor look, and do what it asks for; the reports by step."""
        with open_instance(self.home) as instance:
            definitions = pipeline_definitions([self.spec], self.home)
            sensor = definitions.resolve_sensor_def("photos_source_sensor")
            with dg.build_sensor_context(
                instance=instance, cursor=self.cursor, definitions=definitions, resources=RESOURCES
            ) as context:
                result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        (asked,) = result.run_requests or (None,)
        self.expect(asked is not None, f"the sensor asks for a run: {result.skip_reason}")
        say(f"  sensor        asks for a run: {asked.tags['why'] if asked else '-'}")
        told = Told()
        outcome = run_pipeline(self.home, self.spec, told)
        self.expect(not outcome.problem, f"the run ends well: {outcome.problem}")
        return told.reports

    def show_output(self, count: int) -> list[dict[str, object]]:
        """What the index names; its rows."""
        bucket, folder = open_bucket(f"s3://{OUT}/results")
        index = json.loads(bucket.read(f"{folder}/index.json") or b"{}")
        rows = []
        for file in index["files"].values():
            data = io.BytesIO(bucket.read(f"{folder}/{file['name']}") or b"")
            rows += pq.read_table(data).to_pylist()
        say(
            "",
            f"   s3://{OUT}/results/index.json: release {index['release']}, "
            f"{index['rows']} rows in {len(index['files'])} files",
        )
        row = rows[0]
        for name in ("document_id", "text", "labels", "source_uri", "source_tag"):
            say(f"     {name:<16} {row[name]}")
        say(f"     {'vector':<16} {index['dimensions']} numbers, such as {row['vector'][0]:.4f}")
        self.expect(len(rows) == count, f"{count} rows are delivered")
        return rows

    def search(self, what: str | bytes) -> None:
        with Searcher(self.home, "photos") as searcher:
            if isinstance(what, str):
                say(f"  by the words {what!r}:")
                hits = searcher.search(what, k=3).hits
            else:
                say("  by a new picture of a red circle:")
                hits = searcher.search_image(what, k=3).hits
        for rank, hit in enumerate(hits, 1):
            say(f"    {rank}  {hit.score:.3f}  {hit.document_id}: {hit.text}")

    def put(self, name: str, data: bytes) -> None:
        request(self.address, "PUT", f"/{IN}/{name}", data)

    def delete(self, name: str) -> None:
        request(self.address, "DELETE", f"/{IN}/{name}")

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(f"Expected, and was not so: {what}")


def drawn(count: int) -> dict[str, tuple[bytes, str]]:
    """Pictures by their names, each with a caption."""
    chance = random.Random(0)
    kinds = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    pictures = {}
    for number in range(count):
        colour, shape = kinds[number % len(kinds)]
        name = f"{number:03}-{colour}-{shape}.jpg"
        pictures[name] = (picture(colour, shape, chance), f"{colour} {shape} on a wall")
    return pictures


def picture(colour: str, shape: str, chance: random.Random) -> bytes:
    """A JPEG of a shape somewhere on a wall, in a light that falls from one side."""
    from PIL import Image, ImageDraw, ImageFilter

    width, height = chance.choice([(240, 180), (180, 240), (220, 220)])
    ground = chance.randint(170, 235)
    image = Image.new("RGB", (width, height), (ground, ground - 6, ground - 14))
    pen, side = ImageDraw.Draw(image), chance.randint(70, 120)
    x, y = chance.randint(10, width - side - 10), chance.randint(10, height - side - 10)
    box, fill = (x, y, x + side, y + side), COLOURS[colour]
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=side // 5)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y + side), (x + side // 2, y), (x + side, y + side)], fill=fill)
    elif shape == "star":
        pen.regular_polygon((x + side / 2, y + side / 2, side / 2), 3, fill=fill)
        pen.regular_polygon((x + side / 2, y + side / 2, side / 2), 3, rotation=180, fill=fill)
    else:
        for at in range(0, side, side // 4):
            pen.rectangle((x + at, y, x + at + side // 8, y + side), fill=fill)
    light = Image.linear_gradient("L").resize((width, height)).rotate(chance.choice([0, 180]))
    shade = Image.new("RGB", (width, height), (40, 40, 60))
    image = Image.composite(image, Image.blend(image, shade, 0.35), light)
    file = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(0.6)).save(file, "JPEG", quality=90)
    return file.getvalue()


def say(*lines: str) -> None:
    """Lines of 80 characters; what follows of a longer one is indented."""
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        print(textwrap.fill(line, 80, subsequent_indent=indent, break_on_hyphens=False), flush=True)


if __name__ == "__main__":
    logging.disable()  # what a run notes is printed
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
