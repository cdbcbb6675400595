"""The parts with more work than a server does at once: bulk, a peak, and callers who leave."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.serving.bench import Bench
from benchmarks.serving.client import Answers, Connection, after, body_of, clients
from benchmarks.serving.processes import Served
from benchmarks.serving.speed import many

MIXED_CLIENTS, BULK_CLIENTS, BULK_TEXTS = 8, 2, 256
OVERLOAD, LEAVE, TIMEOUT_SECONDS = 4, 1_000, 10
JOB_TEXTS, JOB_REQUEST, THINK_SECONDS = 100_000, 2_048, 0.05
LONGEST_BULK = 75.0  # seconds, whatever is left to do
OF_BATCH, OF_PEAK, RETRY_FACTOR, BULK_SHARE = 3.0, 0.8, 2.0, 0.2  # the bounds
# Another one. A batch looks who is there before it is taken, and callers hang up one at a time: so it
# may hold the text of one, 48 tokens at most, who leaves at that moment. This is two such batches.
LEFT_TOKENS = 100


class Lane:
    """Batches of a lane, and their seconds, from here on."""

    def __init__(self, served: Served, name: str) -> None:
        self._served, self._name = served, name
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        family = r"embedding_pipelines_serving_infer_seconds"
        labels = rf'\{{model="[^"]*",lane="{self._name}"\}}'
        return (
            self._served.metric(f"{family}_count{labels}"),
            self._served.metric(f"{family}_sum{labels}"),
        )

    def read(self) -> tuple[float, float]:
        count, seconds = self._now()
        return count - self._before[0], seconds - self._before[1]


def mixed(run: Bench) -> None:
    values = asyncio.run(_mixed(run))
    run.add("mixed", values, values["p99_of_batch"] <= OF_BATCH and values["bulk_texts"] > 0)


async def _mixed(run: Bench) -> dict[str, Any]:
    served, short, long = run.served, run.texts["captions"], run.texts["abstracts"]
    small, large, lane = Answers(), Answers(), Lane(run.served, "bulk")

    def part(number: int) -> bytes:  # documents: queries that fit one batch are not bulk
        first = number * BULK_TEXTS
        texts = [f"{at} {long[at % len(long)]}" for at in range(first, first + BULK_TEXTS)]
        body = {"input": texts, "encoding_format": "base64", "truncate": True}
        return json.dumps(body).encode()

    def single(number: int) -> bytes:
        return body_of(short[number % len(short)])

    until = after(run.seconds)
    await asyncio.gather(
        clients(served.connection, MIXED_CLIENTS, single, until, small),
        clients(served.connection, BULK_CLIENTS, part, until, large),
    )
    count, seconds = lane.read()
    batch = seconds / max(1, count) * 1000
    return {
        "batch_ms": batch,
        "p50_ms": small.milliseconds(50),
        "p99_ms": small.milliseconds(99),
        "p99_of_batch": small.milliseconds(99) / batch if batch else float("inf"),
        "interactive": len(small.seconds),
        "bulk_texts": len(large.seconds) * BULK_TEXTS,
        "statuses": small.statuses + large.statuses,
    }


def bulk(run: Bench) -> None:
    values = asyncio.run(_bulk(run))
    is_fed = values["bulk_share_of_batches"] >= BULK_SHARE
    run.add("bulk", values, values["p99_of_batch"] <= OF_BATCH and is_fed)


async def _bulk(run: Bench) -> dict[str, Any]:
    """A job of documents that no cache holds, and people who read between their questions."""
    served, short = run.served, run.texts["captions"]
    small, large, started = Answers(), Answers(), time.perf_counter()
    lanes = {name: Lane(served, name) for name in ("interactive", "bulk")}
    is_over = after(LONGEST_BULK)

    def part(number: int) -> bytes:
        first = number * JOB_REQUEST
        texts = [f"{short[at % len(short)]} {at}" for at in range(first, first + JOB_REQUEST)]
        return json.dumps({"input": texts, "encoding_format": "base64"}).encode()

    job = asyncio.create_task(
        clients(
            served.connection,
            BULK_CLIENTS,
            part,
            lambda: is_over() or len(large.seconds) * JOB_REQUEST >= JOB_TEXTS,
            large,
        )
    )
    await clients(
        served.connection,
        MIXED_CLIENTS,
        lambda at: body_of(short[at % len(short)]),
        job.done,
        small,
        THINK_SECONDS,
    )
    await job
    taken = time.perf_counter() - started
    count, seconds = lanes["bulk"].read()
    others, _ = lanes["interactive"].read()
    batch = seconds / max(1, count) * 1000
    return {
        "bulk_texts": len(large.seconds) * JOB_REQUEST,
        "bulk_per_second": len(large.seconds) * JOB_REQUEST / taken,
        "bulk_share_of_batches": count / max(1, count + others),
        "batch_ms": batch,
        "p50_ms": small.milliseconds(50),
        "p99_ms": small.milliseconds(99),
        "p99_of_batch": small.milliseconds(99) / batch if batch else float("inf"),
        "interactive": len(small.seconds),
        "statuses": small.statuses + large.statuses,
    }


def overload(run: Bench) -> None:
    if "many abstracts" not in run.figures:
        many(run)
    values = asyncio.run(_overload(run, run.figures["many abstracts"]["per_second"]))
    is_plain = set(values["statuses"]) <= {200, 429} and not values["connections_lost"]
    low, high = values["retry_after_of_truth"] or (1.0, 1.0)
    is_true = low >= 1 / RETRY_FACTOR and high <= RETRY_FACTOR
    run.add("overload", values, values["of_peak"] >= OF_PEAK and is_plain and is_true)


async def _overload(run: Bench, peak: float) -> dict[str, Any]:
    """Requests by the clock, whatever is answered; those that are late are not counted as good."""
    served, texts, seconds = run.served, run.texts["abstracts"], run.seconds
    answers, tasks, free = Answers(), set[asyncio.Task[None]](), list[Connection]()
    started, sent, dropped = time.perf_counter(), 0, 0

    async def one(number: int) -> None:
        nonlocal dropped
        connection = free.pop() if free else served.connection()
        try:
            header = f"X-Request-Timeout: {TIMEOUT_SECONDS}\r\n"
            await connection.post(body_of(texts[number % len(texts)]), answers, header)
            free.append(connection)
        except (OSError, asyncio.IncompleteReadError):
            dropped += 1

    # The first TIMEOUT_SECONDS fill the queue; what is counted comes after them.
    fill = TIMEOUT_SECONDS
    good = 0
    while (now := time.perf_counter() - started) < fill + seconds:
        while sent < now * peak * OVERLOAD:
            tasks.add(task := asyncio.create_task(one(sent)))
            task.add_done_callback(tasks.discard)
            sent += 1
        if now < fill:
            good = -len(answers.seconds)
        await asyncio.sleep(0.005)
    good += len(answers.seconds)
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return {
        "sent_per_second": sent / (fill + seconds),
        "good_per_second": good / seconds,
        "of_peak": good / seconds / peak,
        "statuses": answers.statuses,
        "connections_lost": dropped,
        "retry_after_s": _percentiles([promised for _, promised in answers.retry_after]),
        "retry_after_of_truth": _promises(answers),
        "p99_ms": answers.milliseconds(99),
    }


def _promises(answers: Answers) -> list[float]:
    """A Retry-After is the wait that a request would have: the promised seconds by those of the
    accepted request that was sent at about the same time; the 5th and the 95th percentile."""
    sent = np.array([at for at, _ in answers.waits])
    order = np.argsort(sent)
    if not len(order) or not answers.retry_after:
        return []
    waits = np.array([wait for _, wait in answers.waits])[order]
    at = np.searchsorted(sent[order], [when for when, _ in answers.retry_after])
    truth = waits[np.minimum(at, len(waits) - 1)]
    promised = np.array([each for _, each in answers.retry_after])
    return _percentiles((promised / truth).tolist())


def _percentiles(values: Sequence[float]) -> list[float]:
    return [float(each) for each in np.percentile(values, (5, 95))] if values else []


def leave(run: Bench) -> None:
    values = asyncio.run(_leave(run.served, run.texts["captions"]))
    run.add("leave", values, values["tokens"] <= LEFT_TOKENS)


async def _leave(served: Served, texts: Sequence[str]) -> dict[str, Any]:
    """Behind a bulk request, so that all of them wait when they leave."""
    tokens = r"embedding_pipelines_serving_tokens_total\{model=\"[^\"]*\",lane=\"interactive\"\}"
    before = served.metric(tokens)
    bulk, answers = served.connection(), Answers()
    waiting = asyncio.create_task(bulk.post(body_of(*texts[:2_000]), answers))
    await asyncio.sleep(0.2)
    for number in range(LEAVE):
        connection = served.connection()
        await connection.send(body_of(f"{texts[number]} {number}"))
        connection.close()
    await waiting
    bulk.close()
    return {
        "left": LEAVE,
        "abandoned": served.metric(r"embedding_pipelines_serving_abandoned_total"),
        "tokens": served.metric(tokens) - before,
    }
