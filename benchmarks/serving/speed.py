"""The parts that compare rates: with the bare engine, and with infinity-emb."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.serving.bench import Bench
from benchmarks.serving.client import EMBED, Answers, after, body_of, clients, infinity_body
from benchmarks.serving.processes import Served, serve_infinity

CLIENTS = 64
OF_ENGINE, ABOVE_BARE_MS = 0.8, 10.0  # the bounds


def alone(run: Bench) -> None:
    for name in ("captions", "abstracts"):
        values = asyncio.run(_alone(run, name))
        run.add(f"alone {name}", values, values["p99_ms"] - values["bare_p99_ms"] <= ABOVE_BARE_MS)


async def _alone(run: Bench, name: str) -> dict[str, float]:
    """In turns: the bare call, and a request."""
    connection, answers, calls = run.served.connection(), Answers(), Answers()
    run.bare.call(name, 0)  # which is ready then
    until = time.perf_counter() + run.seconds
    for number, text in enumerate(run.texts[name]):
        if time.perf_counter() > until:
            break
        calls.seconds.append(run.bare.call(name, number))
        await connection.post(body_of(text), answers)
    connection.close()
    return {
        "requests": len(answers.seconds),
        "p50_ms": answers.milliseconds(50),
        "bare_p50_ms": calls.milliseconds(50),
        "p99_ms": answers.milliseconds(99),
        "bare_p99_ms": calls.milliseconds(99),
    }


def many(run: Bench) -> None:
    for name in ("captions", "abstracts"):
        engine = run.bare.rate(name, run.seconds)
        run.add(f"engine {name}", engine)
        cold = asyncio.run(_many(run.served, run.texts[name], run.seconds, body_of))
        values = asyncio.run(_many(run.served, run.texts[name], run.seconds, body_of))
        values["cold_cpu_ms"] = cold["cpu_ms"]
        values["of_engine"] = values["per_second"] / engine["per_second"]
        values["of_engine_by_cpu"] = engine["cpu_ms"] / values["cpu_ms"]
        share = values["of_engine" if run.is_apart else "of_engine_by_cpu"]
        run.add(f"many {name}", values, share >= OF_ENGINE)


async def _many(
    served: Served,
    texts: Sequence[str],
    seconds: float,
    body: Callable[[str], bytes],
    path: str = EMBED,
) -> dict[str, Any]:
    answers, cpu, started = Answers(), served.cpu_seconds, time.perf_counter()
    await clients(
        lambda: served.connection(path),
        CLIENTS,
        lambda at: body(texts[at % len(texts)]),
        after(seconds),
        answers,
    )
    taken, cpu = time.perf_counter() - started, served.cpu_seconds - cpu
    count = len(answers.seconds)
    return {
        "per_second": count / taken,
        "cpu_ms": cpu / max(1, count) * 1000,
        "p50_ms": answers.milliseconds(50),
        "p99_ms": answers.milliseconds(99),
        "statuses": answers.statuses,
    }


def infinity(run: Bench) -> None:
    assert run.infinity is not None
    with serve_infinity(run.infinity, run.cpus) as other:
        servers: dict[str, tuple[Served, str, Callable[[str], bytes]]] = {
            "ours": (run.served, EMBED, body_of),
            "theirs": (other, "/embeddings", infinity_body),
        }
        for name in ("captions", "abstracts"):
            texts, values = run.texts[name], dict[str, Any]()
            for who, (served, path, body) in [*servers.items(), *servers.items()]:
                figures = asyncio.run(_many(served, texts, run.seconds / 2, body, path))
                best = values.get(who)
                if best is None or figures["per_second"] > best["per_second"]:
                    values[who] = figures
            is_ahead = (
                values["ours"]["per_second"] > values["theirs"]["per_second"]
                and values["ours"]["p99_ms"] < values["theirs"]["p99_ms"]
            )
            run.add(f"infinity {name}", values, is_ahead)
