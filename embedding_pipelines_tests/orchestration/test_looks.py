"""A sensor whose bucket sends events to a queue: it lists the bucket now and then, and misses nothing."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from embedding_pipelines.orchestration.looks import LISTED_SECONDS, Memory, look
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.documents import read_files, write_documents
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.buckets import Proxy, TestBucket
from embedding_pipelines_tests.chain import run_steps
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.drawn import drawing, encoded
from embedding_pipelines_tests.orchestration.support import (
    NOTES,
    live_rows,
    tick,
    write_notes,
    write_pipeline,
)
from embedding_pipelines_tests.orchestration.test_sensors import asked, quiet
from embedding_pipelines_tests.queues import TestQueue, new_queue


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that was taken is there again at the next look, and an empty queue says so."""
    for name in ("HIDDEN_SECONDS", "WAIT_SECONDS"):
        monkeypatch.setattr(f"embedding_pipelines.sources.events.{name}", 0)


class Shop:
    """A pipeline on a bucket with a queue, and the ticks of its sensor."""

    def __init__(self, home: Path, instance: dg.DagsterInstance, proxy: Proxy, bucket: TestBucket):
        self.home, self.instance, self.bucket, self.proxy = home, instance, bucket, proxy
        self.queue: TestQueue = new_queue(bucket)
        text = NOTES.replace("data/notes/*.jsonl", f"{bucket.uri}/notes").partition("evaluation:")[
            0
        ]
        self.text = f"{text}events: {self.queue.url}\n{UNMEASURED}"
        write_pipeline(home, text=self.text)
        self.spec: PipelineSpec = find_pipeline("notes", home)
        self.cursor: str | None = None

    def put(self, name: str, rows: range) -> None:
        self.bucket.put(f"notes/{name}.jsonl", write_notes(self.home, "l", rows).read_bytes())

    def tick(self) -> dg.SensorResult:
        result = tick(self.spec, self.instance, "source", self.cursor)
        self.cursor = result.cursor or self.cursor
        return result

    def listings(self) -> int:
        """Requests for a listing until now."""
        return sum("list-type=2" in path for path in self.proxy.paths)

    def run(self) -> None:
        run_steps(self.home, "notes")

    def settle(self) -> None:
        """A release of all there is, and looks that see it and delete its events."""
        self.run()
        for _ in range(3):
            quiet(self.tick())
        assert json.loads(self.cursor or "{}")["decision"] == "null"
        assert self.queue.count() == 0

    def pass_time(self, seconds: float) -> None:
        memory = json.loads(self.cursor or "{}")
        self.cursor = json.dumps({**memory, "listed_at": memory["listed_at"] - seconds})


@pytest.fixture
def shop(home: Path, instance: dg.DagsterInstance, proxy: Proxy, bucket: TestBucket) -> Shop:
    made = Shop(home, instance, proxy, bucket)
    made.put("a", range(40))
    assert asked(made.tick())
    made.settle()
    return made


def test_each_change_asks_for_one_run_without_a_listing(shop: Shop) -> None:
    changes: list[tuple[Callable[[], None], str]] = [
        (lambda: shop.put("b", range(40, 50)), "1 new"),
        (lambda: shop.put("b", range(40, 49)), "1 changed"),
        (lambda: shop.put("c d+é", range(50, 52)), "1 new"),
        (lambda: shop.bucket.delete("notes/b.jsonl"), "1 deleted"),
    ]
    for change, why in changes:
        before = shop.listings()
        assert quiet(shop.tick()) == "no file has changed"
        change()
        assert asked(shop.tick()).tags["why"] == why
        assert shop.listings() == before
        assert quiet(shop.tick())  # not twice
        assert shop.queue.count()  # it is not taken in yet
        shop.settle()
        assert shop.queue.count() == 0
    assert live_rows(shop.home) == 42


def test_ten_looks_at_a_quiet_bucket_list_nothing(shop: Shop) -> None:
    before = shop.listings()
    for _ in range(10):
        assert quiet(shop.tick()) == "no file has changed"
    assert shop.listings() == before


def test_an_event_that_was_lost_is_found_by_the_next_listing(shop: Shop) -> None:
    shop.put("b", range(40, 50))
    shop.queue.lose()
    assert quiet(shop.tick()) == "no file has changed"
    shop.pass_time(LISTED_SECONDS)
    assert asked(shop.tick()).tags["why"] == "1 new"


def test_a_tick_that_dies_loses_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put("b", range(40, 50))
    before = shop.cursor
    assert asked(shop.tick())
    shop.cursor = before  # neither request nor cursor was recorded
    assert asked(shop.tick()).tags["why"] == "1 new"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    shop.put("c", range(50, 60))
    with monkeypatch.context() as patch:
        patch.setattr("embedding_pipelines.orchestration.sensors.pending", die)
        with pytest.raises(KeyboardInterrupt):
            shop.tick()
    assert asked(tick(shop.spec, shop.instance, "source", before)).tags["why"] == "2 new"


def test_a_tick_that_dies_loses_no_message_of_another_kind(shop: Shop) -> None:
    shop.put("b", range(40, 50))
    shop.queue.lose()
    shop.queue.send("Look!")
    before = shop.cursor
    assert asked(shop.tick()).tags["why"] == "1 new"
    shop.cursor = before
    assert asked(shop.tick()).tags["why"] == "1 new"


def test_other_options_of_the_source_are_seen_at_once(shop: Shop) -> None:
    write_pipeline(shop.home, text=shop.text.replace("text: [", "max_rejected: 3, text: ["))
    shop.spec = find_pipeline("notes", shop.home)
    assert asked(shop.tick())


def test_events_that_come_twice_late_and_in_another_order_ask_for_nothing_more(shop: Shop) -> None:
    for name, rows in (("b", range(40, 50)), ("b", range(40, 49)), ("c", range(50, 60))):
        shop.put(name, rows)
    shop.bucket.delete("notes/c.jsonl")
    bodies = shop.queue.bodies()
    assert len(bodies) == 4
    shop.settle()
    random.Random(0).shuffle(bodies)
    for body in bodies * 2:
        shop.queue.send(body)
    before = shop.listings()
    assert quiet(shop.tick()) == "no file has changed"
    assert (shop.queue.count(), shop.listings()) == (0, before)
    assert live_rows(shop.home) == 49


def test_a_message_of_another_kind_is_answered_by_a_listing(shop: Shop) -> None:
    shop.put("b", range(40, 50))
    shop.queue.lose()
    shop.queue.send("the night's upload is done")
    assert asked(shop.tick()).tags["why"] == "1 new"
    assert shop.queue.count() == 1  # until that is read
    shop.settle()
    assert shop.queue.count() == 0


def test_events_of_other_objects_are_deleted(shop: Shop) -> None:
    shop.bucket.put("logs/x.jsonl", "{}")
    shop.bucket.put("notes/readme.txt", "{}")
    before = shop.listings()
    assert quiet(shop.tick()) == "no file has changed"
    assert (shop.queue.count(), shop.listings()) == (0, before)


def test_more_objects_than_are_looked_at_one_by_one_are_listed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.orchestration.looks.MOST_NAMES", 3)
    for number in range(4):
        shop.put(f"n{number}", range(50 + number, 51 + number))
    before = shop.listings()
    assert asked(shop.tick()).tags["why"] == "4 new"
    assert shop.listings() > before


def test_without_the_queue_the_bucket_is_listed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:1")
    shop.put("b", range(40, 50))
    assert asked(shop.tick()).tags["why"] == "1 new"


def test_what_failed_is_asked_for_again_after_a_while(shop: Shop) -> None:
    shop.put("b", range(40, 50))
    assert asked(shop.tick())
    assert "asked for again at" in quiet(shop.tick())  # no run came
    memory = json.loads(shop.cursor or "")
    decision = json.loads(memory["decision"])
    decision["at"] -= 1_000
    shop.cursor = json.dumps({**memory, "decision": json.dumps(decision)})
    assert asked(shop.tick()).tags["why"] == "1 new"


@pytest.mark.parametrize("cursor", [None, "", "null", "[]", '{"listed_at": "x"}', "{}", "…"])
def test_any_cursor_that_is_not_its_own_lists(cursor: str | None) -> None:
    assert not Memory.of(cursor).is_calm
    assert time.time() - Memory.of(cursor).listed_at > LISTED_SECONDS


def test_images_with_captions_are_listed_since_no_event_names_what_another_caption_changes(
    home: Path, bucket: TestBucket, proxy: Proxy, instance: dg.DagsterInstance
) -> None:
    """The stamp of an image holds its caption's digest, which an event of the table does not tell."""
    place, queue = f"{bucket.uri}/photos", new_queue(bucket)
    bucket.put("photos/a.png", encoded(drawing(1)))
    bucket.put("photos/words.csv", "file,text\na.png,a house\n")
    captions = f"{{path: '{place}/words.csv', text: text}}"
    text = f"source: {{kind: images, path: '{place}', captions: {captions}}}\n"
    text += f"model: {{provider: clip}}\nevents: {queue.url}\npartitions: 2\n"
    write_pipeline(home, "photos", text)
    spec = find_pipeline("photos", home)
    write_documents(Run(spec, Warehouse(home)))
    calm = Memory(listed_at=time.time(), decision="null")
    for words, is_new in (("a house", False), ("a home", True)):
        bucket.put("photos/words.csv", f"file,text\na.png,{words}\n")
        run = Run(spec, Warehouse(home))
        (file,) = look(run, calm, time.time()).files
        assert (file.stamp != tuple(read_files(run)[file.name].stamp)) is is_new
