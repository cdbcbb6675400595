"""Messages of a queue: which objects they name, whoever sent them on."""

import json

import pytest

from embedding_pipelines.errors import BucketError
from embedding_pipelines.sources.events import Queue, names_of
from embedding_pipelines.sources.paths import covers
from embedding_pipelines_tests.buckets import TestBucket
from embedding_pipelines_tests.queues import new_queue


def of_s3(*keys: str) -> str:
    records = [{"s3": {"bucket": {"name": "shop"}, "object": {"key": key}}} for key in keys]
    return json.dumps({"Records": records})


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (of_s3("a/b+c%C3%A4.jsonl", "d"), {"s3://shop/a/b cä.jsonl", "s3://shop/d"}),
        (json.dumps({"Type": "Notification", "Message": of_s3("a")}), {"s3://shop/a"}),
        (
            json.dumps(
                {
                    "source": "aws.s3",
                    "detail": {"bucket": {"name": "shop"}, "object": {"key": "a+b"}},
                }
            ),
            {"s3://shop/a+b"},
        ),
        (json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}), set()),
        ("look at it, please", None),
        ("[]", None),
        ('{"Records": [{"eventSource": "aws:other"}]}', None),
        ("[" * 100_000, None),
    ],
)
def test_objects_that_a_message_names(body: str, names: set[str] | None) -> None:
    assert names_of(body) == names


@pytest.mark.parametrize(
    ("path", "uri", "is_covered"),
    [
        ("s3://shop/a", "s3://shop/a/b/c.jsonl", True),
        ("s3://shop", "s3://shop/c.jsonl", True),
        ("s3://shop/a", "s3://shop/a/.b/c.jsonl", False),
        ("s3://shop/a", "s3://shop/a/b.txt", False),
        ("s3://shop/a", "s3://shop/ab/c.jsonl", False),
        ("s3://shop/a", "s3://other/a/c.jsonl", False),
        ("s3://shop/a/b.txt", "s3://shop/a/b.txt", True),
        ("s3://shop/a/*.txt", "s3://shop/a/b.txt", True),
        ("s3://shop/a/*.txt", "s3://shop/a/b/c.txt", False),
        ("s3://shop/**/c*", "s3://shop/a/b/c.txt", True),
        ("s3://shop/a/**", "s3://shop/a/b/c.txt", True),
        ("s3://shop/a", "s3://shop/a/b.jsonl/", False),
        ("data/*.jsonl", "s3://shop/a", False),
    ],
)
def test_whether_a_path_has_an_object(path: str, uri: str, is_covered: bool) -> None:
    assert covers([path], (".jsonl",), uri) == is_covered


def test_messages_stay_until_they_are_deleted(
    bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.sources.events.MOST_MESSAGES", 25)
    queue = new_queue(bucket)
    for number in range(31):
        bucket.put(f"notes/{number}.jsonl", "{}")
    reader = Queue(queue.url)
    events = reader.receive()
    count = queue.count()  # with the one that S3 sends first
    assert count == 32
    assert 25 <= len(events) <= count
    reader.delete(events)
    assert queue.count() == count - len(events)
    rest = reader.receive()
    assert not {event.handle for event in events} & {event.handle for event in rest}
    reader.close()


def test_a_queue_that_is_not_there_is_a_sentence(bucket: TestBucket) -> None:
    url = f"{bucket.address}/123456789012/none"
    with pytest.raises(BucketError, match=r"/none: the queue answers with .*NonExistentQueue"):
        Queue(url).receive()


def test_a_queue_that_does_not_answer_is_a_sentence(
    bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:1")
    with pytest.raises(BucketError, match="the queue cannot be read"):
        Queue(f"{bucket.address}/123456789012/none").receive()
