"""A node of a Ray cluster is killed at a random moment while it embeds.

    python -m embedding_pipelines_tests.faults.nodes 20 [seed]

One cluster of three nodes on this machine, a new home each round. In the end every row has to be the
one of a run in one process, and no text may have been embedded twice but those that were out on the
node that was killed: a request that is computed, and one that waits behind it.
"""

import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedding_pipelines_tests.clusters import (
    add_node,
    assert_same_vectors,
    embed,
    local_cluster,
    requests,
    vectors_of,
    write_home,
)

TEXTS = [f"text number {n // 2} is here" for n in range(480)]  # each of them twice
SECONDS = 0.05  # of a text
REQUEST_TEXTS = 10
START_SECONDS = 120.0
NODES = ("one", "two", "three")


@dataclass
class Outcome:
    """What has been tried, and what is wrong with it."""

    rounds: int
    killed_at_work: int = 0  # rounds whose node had done something, and was not done
    twice: int = 0  # texts
    problems: list[str] = field(default_factory=list)


def try_nodes(rounds: int, folder: Path, seed: int) -> Outcome:
    outcome, choose = Outcome(rounds), random.Random(seed)
    reference = write_home(folder / "inline", "inline", TEXTS)
    embed(reference)
    expected = vectors_of(reference)
    with local_cluster(0) as cluster:
        nodes = {name: add_node(cluster, NODE=name) for name in NODES}
        for number in range(rounds):
            name = choose.choice(NODES)
            home = folder / f"round {number}"
            try:
                _round(cluster, nodes.pop(name), name, choose.random(), home, expected, outcome)
            except Exception as error:  # noqa: BLE001  # the next round may tell more
                outcome.problems.append(f"round {number}: {type(error).__name__}: {error}")
            nodes[name] = add_node(cluster, NODE=name)
            print(f"round {number}: {outcome}", file=sys.stderr, flush=True)
    return outcome


def _round(
    cluster: Any, node: Any, name: str, moment: float, home: Path, expected: Any, outcome: Outcome
) -> None:
    engine = f"{{kind: ray, address: '{cluster.address}', workers: 3, min_workers: 3}}"
    run = write_home(home, engine, TEXTS, SECONDS)
    killed_after = list[int]()

    def kill() -> None:
        deadline = time.monotonic() + START_SECONDS
        while not requests(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(moment * len(set(TEXTS)) * SECONDS / len(NODES))
        cluster.remove_node(node, allow_graceful=False)
        killed_after.append(len(requests(home)))

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        embed(run)
    finally:
        killing.join()
    assert_same_vectors(expected, vectors_of(run))
    log = requests(home)
    outcome.killed_at_work += name in {node for _, node, _ in log} and killed_after[0] < len(log)
    places = defaultdict[str, list[str]](list)
    for _, place, texts in log:
        for text in texts:
            places[text].append(place)
    twice = {text: at for text, at in places.items() if len(at) > 1}
    outcome.twice += len(twice)
    if len(twice) > 2 * REQUEST_TEXTS or not all(at[0] == name for at in twice.values()):
        outcome.problems.append(f"{home.name}: embedded twice: {twice}")


def main() -> int:
    rounds = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    with tempfile.TemporaryDirectory() as folder:
        outcome = try_nodes(rounds, Path(folder), seed)
    print(f"seed {seed}: {outcome}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
