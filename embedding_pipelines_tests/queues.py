"""A queue on loopback that a bucket's notifications go to."""

import time
from dataclasses import dataclass
from typing import Any

import boto3

from embedding_pipelines_tests.buckets import TestBucket

KINDS = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]


@dataclass(frozen=True)
class TestQueue:
    """A queue of SQS, and what the tests do with it past what is tested."""

    url: str
    client: Any

    __test__ = False

    def count(self) -> int:
        """Messages, hidden or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        values = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)
        return sum(int(values["Attributes"][name]) for name in names)

    def send(self, body: str) -> None:
        self.client.send_message(QueueUrl=self.url, MessageBody=body)

    def bodies(self) -> list[str]:
        """Of the messages, which are hidden for no time."""
        reply = self.client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, VisibilityTimeout=0
        )
        return [each["Body"] for each in reply.get("Messages", [])]

    def lose(self) -> None:
        self.client.purge_queue(QueueUrl=self.url)


def new_queue(bucket: TestBucket) -> TestQueue:
    """A new queue, to which a bucket sends its events from now on."""
    sqs = boto3.client("sqs", endpoint_url=bucket.address, region_name="us-east-1")
    url = sqs.create_queue(QueueName=f"queue{time.time_ns()}")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    s3 = boto3.client("s3", endpoint_url=bucket.address, region_name="us-east-1")
    to = {"QueueArn": attributes["Attributes"]["QueueArn"], "Events": KINDS}
    s3.put_bucket_notification_configuration(
        Bucket=bucket.name, NotificationConfiguration={"QueueConfigurations": [to]}
    )
    return TestQueue(url, sqs)
