"""Events of buckets in a queue (Amazon SQS): which objects may have changed, so that nobody has to
list a bucket to learn that nothing has.

An event is a hint, not the truth: whoever takes one looks at the object as it is now. So it does not
matter in what order events come, or how often; one that is lost is found by the next listing. A
message stays in the queue, hidden for some seconds, until somebody deletes it.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from embedding_pipelines.errors import BucketError
from embedding_pipelines.extras import need

HIDDEN_SECONDS = 20  # less than between two looks of a sensor, which so meets it again
AT_ONCE = 10  # messages of one reply, and of one deletion: SQS takes no more
MOST_MESSAGES = 1_000  # of one look; the rest waits for the next
PATIENCE_SECONDS = 10
WAIT_SECONDS = 1  # for the first messages of a look
ADDRESS = re.compile(r"https?://[^/\s]+/\S+")


@dataclass(frozen=True)
class Event:
    """One message. `names` are URIs of objects; None where it is none that this project reads, so
    that anything may have changed."""

    handle: str
    names: frozenset[str] | None


class Queue:
    """An SQS queue that a bucket's notifications go to, by its URL. Every method raises BucketError
    if it does not answer, or refuses."""

    def __init__(self, url: str) -> None:
        boto3, config = need("boto3", "buckets"), need("botocore.config", "buckets")
        self._errors = need("botocore.exceptions", "buckets")
        self._url = url
        region = re.match(r"https?://sqs\.([\w-]+)\.", url)
        with self._explained():
            self._client = boto3.client(
                "sqs",
                # AWS's other tools know AWS_REGION, boto3 (1.44) AWS_DEFAULT_REGION alone.
                region_name=region[1] if region else os.environ.get("AWS_REGION"),
                config=config.Config(
                    connect_timeout=PATIENCE_SECONDS,
                    read_timeout=PATIENCE_SECONDS,
                    retries={"total_max_attempts": 3},
                ),
            )

    def receive(self) -> list[Event]:
        """The messages that are not hidden, MOST_MESSAGES at most; hidden from now on for
        HIDDEN_SECONDS."""
        events: dict[str, Event] = {}
        with self._explained():
            while len(events) < MOST_MESSAGES:
                reply = self._client.receive_message(
                    QueueUrl=self._url,
                    MaxNumberOfMessages=AT_ONCE,
                    VisibilityTimeout=HIDDEN_SECONDS,
                    WaitTimeSeconds=0
                    if events
                    else WAIT_SECONDS,  # which asks all of the queue's machines
                )
                messages = {each["MessageId"]: each for each in reply.get("Messages", [])}
                is_new = not messages.keys() <= events.keys()
                for key, each in messages.items():  # only a message's last handle deletes it
                    events[key] = Event(each["ReceiptHandle"], names_of(each["Body"]))
                if not is_new:
                    break
        return list(events.values())

    def delete(self, events: Sequence[Event]) -> None:
        """One that is not deleted for any reason comes again, and is deleted then."""
        with self._explained():
            for start in range(0, len(events), AT_ONCE):
                entries = [
                    {"Id": str(number), "ReceiptHandle": event.handle}
                    for number, event in enumerate(events[start : start + AT_ONCE])
                ]
                self._client.delete_message_batch(QueueUrl=self._url, Entries=entries)

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._errors.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "an error")
            raise BucketError(
                f"{self._url}: the queue answers with {code}. See that it is there, and give these "
                "credentials the rights to receive and to delete its messages."
            ) from None
        except (self._errors.BotoCoreError, ValueError) as error:
            raise BucketError(f"{self._url}: the queue cannot be read ({error}).") from None


def names_of(body: str) -> frozenset[str] | None:
    """The objects that a message names: as S3 sends it, by way of SNS, or by way of EventBridge.
    None of any other."""
    try:
        return frozenset(_names(json.loads(body)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _names(value: Any) -> Iterator[str]:
    if value.get("Type") == "Notification":  # SNS, with the message in it
        yield from _names(json.loads(value["Message"]))
    elif value.get("source") == "aws.s3":  # EventBridge, which writes keys as they are
        detail = value["detail"]
        yield f"s3://{detail['bucket']['name']}/{detail['object']['key']}"
    elif value.get("Event") != "s3:TestEvent":  # which S3 sends when somebody sets it up
        for record in value["Records"]:
            bucket, entry = record["s3"]["bucket"], record["s3"]["object"]
            yield f"s3://{bucket['name']}/{unquote_plus(entry['key'])}"
