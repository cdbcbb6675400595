"""Two writers of one pipeline on one bucket, killed and put to sleep at random.

    python -m embedding_pipelines_tests.faults.two_writers 200 [server | http://… | s3://bucket/folder]

`server` starts an S3 server for it, the address of one that runs names that one, where a bucket
`two-writers` is made; without an address the bucket is a folder.
Each writer, in a home of its own, does the same again and again: take the lease, add an entry to
what is published, publish, and write down that it did. Leases last a second. In the end everything
that was written down must be published, once. What a writer was told is not published may be there
where the one that overtook it was killed before it published anything: then the writer's next run
goes on with it.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from embedding_pipelines.errors import BucketError, BusyError, EmbeddingPipelinesError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.storage import lease
from embedding_pipelines.storage.bucket import bucket_of, open_uri, require_commits
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.buckets import CREDENTIALS, request, serve_s3
from embedding_pipelines_tests.shared import at_work, machine, remote_of

LEASE_SECONDS = 1.0
PAUSE_SECONDS = 1.5  # of a writer that sleeps through its lease
ROUND_SECONDS = 0.7  # at most
END_SECONDS = 120  # for what comes after the last round
SHARE_ASLEEP = 0.3  # of the rounds; in the others a writer is killed
HTTP = ("http://", "https://")


@dataclass
class Outcome:
    """What the writers have done, and what is wrong with it."""

    rounds: int
    acknowledged: int
    published: int
    overtaken: int  # that were told so
    leases: int
    problems: list[str]


def write(home: Path, log: Path) -> None:
    """Until somebody ends it."""
    lease.LEASE_SECONDS, lease.RENEWED_SECONDS = LEASE_SECONDS, LEASE_SECONDS / 4
    path = Warehouse(home).pipeline("p").folder / "documents" / "entries.json"
    while True:
        entry, token = uuid.uuid4().hex, ""
        try:
            with at_work(home) as writer:
                token = writer._lease._token
                note(log, "holds", entry, token, home.name)
                entries = (read_json(path) or {"entries": []})["entries"]
                write_json(path, {"entries": [*entries, entry]}, durable=False)
                time.sleep(random.random() * 0.1)
            note(log, "published", entry, token, home.name)
        except BusyError:
            if token:
                note(log, "overtaken", entry, token, home.name)
            time.sleep(0.05)
        except BucketError as error:
            note(log, "failed", str(error).replace("\n", " "), "", home.name)


def _context() -> multiprocessing.context.ForkServerContext:
    """Makes forks of a process that has used no object store, whose library's threads a fork would
    lack."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["embedding_pipelines_tests.faults.two_writers"])
    return context


def note(log: Path, *words: str) -> None:
    """One line, whole or not at all."""
    with log.open("ab", buffering=0) as file:
        file.write(f"{json.dumps(words)}\n".encode())


def try_two(rounds: int, uri: str, folder: Path, seed: int) -> Outcome:
    """Let two writers work through so many kills and pauses, then look at what is there."""
    choose, log = random.Random(seed), folder / "log"
    homes = [machine(folder / name, uri) for name in ("one", "two")]
    context = _context()

    def start(home: Path) -> multiprocessing.Process:
        process = context.Process(target=write, args=(home, log), daemon=True)
        process.start()
        return process  # type: ignore[return-value]

    writers = {home: start(home) for home in homes}
    for _ in range(rounds):
        time.sleep(choose.random() * ROUND_SECONDS)
        home = choose.choice(homes)
        number = writers[home].pid
        if number is None or not writers[home].is_alive():
            raise SystemExit(f"The writer in {home} ended by itself, of what it says above.")
        if choose.random() < SHARE_ASLEEP:
            os.kill(number, signal.SIGSTOP)
            time.sleep(PAUSE_SECONDS)
            os.kill(number, signal.SIGCONT)
        else:
            os.kill(number, signal.SIGKILL)
            writers[home].join()
            writers[home] = start(home)
    before, ends_at = _count(log), time.monotonic() + END_SECONDS
    while _count(log) == before and time.monotonic() < ends_at:  # they still make headway
        time.sleep(LEASE_SECONDS)
    for process in writers.values():
        process.kill()
        process.join()
    return judge(rounds, homes[0], log)


def _count(log: Path) -> int:
    """How often somebody has published."""
    return log.read_text().count('"published"') if log.exists() else 0


def judge(rounds: int, home: Path, log: Path) -> Outcome:
    """What is published, beside what the writers have written down."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    done = [entry for word, entry, *_ in lines if word == "published"]
    writer = {entry: name for word, entry, _, name in lines if word == "holds"}
    leases = {token for word, _, token, _ in lines if word == "holds"}
    remote = remote_of(home)
    newest = remote.newest()
    assert newest is not None
    remote.fetch(remote.generations.read(newest))
    record = read_json(remote.folder.folder / "documents" / "entries.json") or {"entries": []}
    entries = record["entries"]
    problems = [f"{entry} is lost" for entry in done if entry not in entries]
    problems += [f"{entry} is there {n} times" for entry, n in Counter(entries).items() if n > 1]
    overtaken = [entry for word, entry, *_ in lines if word == "overtaken"]
    for entry, following in zip(entries, [*entries[1:], ""], strict=True):
        if entry in overtaken and writer[entry] != writer.get(following):
            problems.append(f"{entry} was overtaken, and is there")
    problems += [words for word, words, *_ in lines if word == "failed"]
    return Outcome(rounds, len(done), len(entries), len(overtaken), len(leases), problems)


def prepare(uri: str, folder: Path, stack: contextlib.ExitStack) -> str:
    """The URI of a place that can hold a warehouse. Raises EmbeddingPipelinesError for any other,
    and OSError for a server that does not answer."""
    uri = uri or (folder / "bucket").as_uri()
    if uri == "server" or uri.startswith(HTTP):
        is_own = uri == "server"
        address = stack.enter_context(serve_s3(folder / "server.log")) if is_own else uri
        os.environ.update({**CREDENTIALS, "AWS_ENDPOINT_URL": address})
        request(address, "PUT", "/two-writers")
        uri = f"s3://two-writers/{uuid.uuid4().hex}"
    given = bucket_of(machine(folder / "trial", uri))
    assert given is not None
    with _context().Pool(1) as child:
        child.apply(_try_out, (given,))
    return uri


def _try_out(uri: str) -> None:
    require_commits(*open_uri(uri))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int)
    parser.add_argument("address", nargs="?", default="")
    parser.add_argument("seed", nargs="?", type=int, default=time.time_ns())
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        try:
            uri = prepare(given.address, Path(folder), stack)
        except (EmbeddingPipelinesError, OSError, http.client.HTTPException) as error:
            parser.error(f"{given.address or 'the folder'} cannot hold the bucket: {error}")
        outcome = try_two(given.rounds, uri, Path(folder), given.seed)
    print(f"seed {given.seed}: {outcome}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
