"""Measurements side by side: this project and its peers, in one run, on one corpus, with the same
weights.

    pip install -e '.[bench]'                  the peers, as an optional extra with pinned versions
    python -m benchmarks                       keeping a store true to a corpus that changes; or: make bench
    python -m benchmarks --documents 60        a quick look: minutes instead of the better part of an hour
    python -m benchmarks --systems ours,floor --json out.json
    python -m benchmarks.search                searching 100,000 vectors      } both have
    python -m benchmarks.engine                the engine beside `encode()`  } docstrings of their own

What `python -m benchmarks` does, for each system in `benchmarks/systems`, one file each:

cold     a corpus that was never seen (SciFact: 5,183 abstracts)
no-op    once more, nothing changed
change   1% of the documents edited, 0.5% deleted, 0.5% added
copy     120 of the texts once more, under other ids, in a second file

Each phase is a process of its own, measured from start to end with all of its children: wall
seconds, peak resident memory, texts that reached the model. After each phase the store is read and
compared with what it should hold: the very ids, each with the vector of its present text. In the
end the bytes on the disk are counted: all that a system keeps, without the corpus and without the
model.

What is done once per machine (imports' byte code, this project's converted model) is done before,
and reported apart. Peers run as their own documentation sets them up, with batches, telemetry off
and no network; where one fails, the table says so and goes on. Nothing is written into this folder.

A system is added by one file in `benchmarks/systems`: a `System` with `sync` and `dump`.
"""
