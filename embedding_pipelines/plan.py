"""plan: what a run would do and cost. Nothing is embedded, and the warehouse stays as it is.

Documents are read and chunks are cut as in a run, in a copy of the pipeline's folder that is
removed afterwards; what follows is counted from them.
"""

import timeit
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from embedding_pipelines.embedding.batch_jobs import BatchJobs
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.lookup import look_up
from embedding_pipelines.embedding.packing import pack
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.inference.weights import local_folder, operations_per_token
from embedding_pipelines.providers.common.http import ServiceOptions
from embedding_pipelines.quality.checks.not_worse_than_live import NotWorseThanLive, shrunk
from embedding_pipelines.quality.evaluate import cost, effects
from embedding_pipelines.releases import read_releases
from embedding_pipelines.remote import refresh
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.steps.copy import copy_with_chunks
from embedding_pipelines.steps.embeddings import check_dimensions
from embedding_pipelines.steps.old_line import old_line_of
from embedding_pipelines.steps.output import is_delivered
from embedding_pipelines.steps.vector_store import compare, open_table, stored_rows
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.validate import faults

REQUEST_SECONDS = 0.5  # of a service that nobody has asked yet
WORDS_PER_SECOND = 500_000  # of `hashing` and `word2vec` on one core

COSTS = (
    *("cache_hits", "texts_waiting", "texts_to_embed", "images_to_embed"),
    *("tokens", "requests", "tokens_to_check"),
)


@dataclass
class Plan:
    """Rows are chunks, as they stand in the table; texts are counted once, however often they
    occur. Of a pipeline that migrates, rows are those of the new line, and cost is of both."""

    pipeline: str
    model: str
    rows_new: int = 0
    rows_changed: int = 0
    rows_deleted: int = 0
    rows_unchanged: int = 0
    cache_hits: int = 0  # texts in the embedding cache: they cost nothing
    texts_waiting: int = 0  # in batch jobs that are running
    texts_to_embed: int = 0
    images_to_embed: int = 0
    tokens: int = 0  # by the model's tokenizer, or an estimate from above
    requests: int = 0
    tokens_to_check: int = 0  # more at most, for the checks
    usd: float | None = None  # of both; None: the price is unknown
    within_budget: bool | None = None  # of one run; None: no budget, or a key is missing
    seconds: float | None = None  # of embedding; None: nobody can tell yet
    seconds_from: str = ""  # what they are reckoned from, in words
    missing: list[str] = field(default_factory=list)  # before a run can begin
    built_anew: str = ""  # what changed, so that all rows go into a new table
    held_back: str = ""  # why the run would be, as far as that can be foreseen
    output: str = ""  # where the run would deliver its release
    provider: str = ""  # and its model, as a pipeline file names them
    has_images: bool = False  # so that vectors are not of texts alone
    has_budget: bool = False


def plan(run: Run) -> Plan:
    """What a run of the pipeline would do now.

    Raises as the steps `documents` and `chunks` do, BusyError if another process is at work on the
    pipeline, and ConfigError for a model of code that the file does not vouch for: nobody expects a
    plan to run it.
    """
    if not run.spec.model.is_trusted:
        raise ConfigError(
            f"{run.spec.model.kind}: a plan runs no code that a pipeline file names. Set `trusted: "
            "true` in `model:` if it may; `run` needs no such word for code in the home folder."
        )
    refresh(run.warehouse, run.spec.name)
    with copy_with_chunks(run) as copy:
        result = _count(copy)
    old = old_line_of(run)
    if old is not None:
        with old, copy_with_chunks(old) as copy:
            _add_cost(result, _count(copy))
    return result


def plan_of(spec: PipelineSpec, warehouse: Warehouse) -> Plan:
    """The plan of a pipeline. Raises ConfigError with all that is wrong with its file and with what
    it names, but for keys that are missing, and else as `plan`."""
    wrong = [
        fault.what for fault in faults(spec, warehouse) if not fault.is_key and not fault.is_doubt
    ]
    if wrong:
        raise ConfigError(f"\n{spec.name}: ".join(wrong))
    with Run(spec, warehouse) as run:
        return plan(run)


def _add_cost(result: Plan, other: Plan) -> None:
    """What another line of the pipeline costs in the same run; rows stay those of one."""
    for name in COSTS:
        setattr(result, name, getattr(result, name) + getattr(other, name))
    if not (other.texts_to_embed or other.images_to_embed or other.tokens_to_check):
        return
    result.usd = None if None in (result.usd, other.usd) else (result.usd or 0) + (other.usd or 0)
    seconds = (result.seconds, other.seconds)
    result.seconds = None if None in seconds else sum(map(float, filter(None, seconds)))
    if other.within_budget is not None:  # each line has the budget to itself
        result.within_budget = other.within_budget and result.within_budget is not False
    result.missing += [what for what in other.missing if what not in result.missing]


def _count(run: Run) -> Plan:
    """What stands between the copy's chunks and a release."""
    spec, options = run.spec, run.spec.model
    is_trained = not options.trains or step_named("train").current(run) is not None
    if is_trained:
        check_dimensions(run)
    step, names = step_named("embeddings"), spec.partition_names
    stale = [name for name in names if not is_trained or step.current(run, name) is None]
    result = Plan(
        spec.name,
        str(run.model.space) if is_trained else options.kind,
        provider=f"{options.kind}:{getattr(options, 'model', '')}".rstrip(":"),
        has_images=spec.source.has_images,
        has_budget=spec.budget is not None,
    )
    _count_rows(run, result, stale, is_trained)
    _foresee(run, result, is_trained)
    direct = _count_texts(run, result, stale, is_trained)
    if is_trained and (result.rows_new or result.rows_changed or result.rows_deleted):
        result.tokens_to_check = cost(run)
    later = result.tokens - direct
    budget = BudgetTracker.of(spec.budget, options, batch_jobs=later > 0)
    is_other = bool(result.rows_new or result.rows_changed or result.rows_deleted)
    if spec.output is not None and (is_other or not is_delivered(run)):
        result.output = spec.output
    result.missing += [f"{what[0].upper()}{what[1:]}" for what in options.missing_keys()]
    if spec.budget is not None and (spec.budget.usd is not None or spec.budget.tokens is not None):
        fits = budget.holds(later or direct)
        result.within_budget = None if fits and result.missing else fits
    if options.price is not None and options.batch_price is not None:
        direct += result.tokens_to_check
        result.usd = round((later * options.batch_price + direct * options.price) / 1e6, 6)
    result.seconds, result.seconds_from = _seconds(run, result)
    return result


def _count_rows(run: Run, result: Plan, stale: list[str], is_trained: bool) -> None:
    table = None
    if is_trained and codec_path(run) is not None:  # else the table would be a new one
        table, _ = open_table(run, load_codec(run))
    with stored_rows(table, run.spec.partition_names) as rows_of:
        for partition in run.spec.partition_names:
            # What the provider rejected is not sent again.
            is_embedded = partition not in stale
            difference = compare(run, rows_of(partition), partition, is_embedded)
            changed = difference.added - difference.new
            result.rows_new += difference.new
            result.rows_changed += changed
            result.rows_unchanged += difference.unchanged
            result.rows_deleted += len(difference.remove) - changed


def _foresee(run: Run, result: Plan, is_trained: bool) -> None:
    """What is as sure before the run as after it: a new table, and a source that has shrunk."""
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    if live is None or not (result.rows_new or result.rows_changed or result.rows_deleted):
        return
    if not result.rows_changed and not result.rows_unchanged and result.rows_new:
        changes = {
            "metadata": run.spec.metadata_types != live.spec.metadata_types,
            "model": is_trained and run.model.space != live.space.with_codec(None),
            "compression": run.spec.compression != live.spec.compression,
        }
        result.built_anew = ", ".join(name for name, differs in changes.items() if differs)
    cut = run.folder.chunks.manifests(run.spec.partition_names)
    documents = sum(entry.statistics["documents"] - entry.statistics["empty"] for entry in cut)
    rows = result.rows_new + result.rows_changed + result.rows_unchanged
    if effects(run.spec).get(NotWorseThanLive().name) == "block":
        result.held_back, _ = shrunk(run, live, documents, rows, run.spec.evaluation.may_shrink)


def _count_texts(run: Run, result: Plan, stale: list[str], is_trained: bool) -> int:
    """Count as `embed` works: each text once, looked up, packed into requests. Returns the tokens
    of direct requests: all of them, or with batch jobs those of texts that a job has rejected."""
    model, shards, direct = run.model, run.folder.chunks, 0
    uses_batch_jobs = run.spec.model.uses_batch_jobs
    waiting, rejected = set[bytes](), set[bytes]()
    if uses_batch_jobs:
        jobs = BatchJobs(run.warehouse.batch_jobs, run.model, run.cache, "document")
        waiting, rejected = jobs.pending_keys(), jobs.rejected
    columns = ["tokens", *run.spec.source.content_columns]
    batches = (batch for name in stale for batch in shards.read(name, columns))
    space = model.space if is_trained else None
    for texts in look_up(batches, space, "document", run.cache):
        misses = {key: text for key, text in texts.misses.items() if key not in waiting}
        tokens = [count for _, count in misses.values()]
        images = tokens.count(0) if run.spec.source.has_images else 0
        sizes = [len(text.encode()) for text, _ in misses.values()]
        at_once = misses.keys() & rejected if uses_batch_jobs else misses
        direct += sum(misses[key][1] for key in at_once)
        result.texts_waiting += len(texts.misses) - len(misses)
        result.cache_hits += texts.hits
        result.texts_to_embed += len(misses) - images
        result.images_to_embed += images
        result.tokens += sum(tokens)
        result.requests += sum(1 for _ in pack(tokens, model.limits, sizes))
    return direct


def _seconds(run: Run, result: Plan) -> tuple[float | None, str]:
    """Seconds of embedding, and where they come from: the pace of the last run, else an estimate;
    no faster than the account's stated requests. Of images and texts, those of the images."""
    if not result.tokens and not result.images_to_embed:
        return 0.0, ""
    options = run.spec.model
    manifests = run.folder.embeddings.manifests(run.spec.partition_names)
    name = "images_per_second" if result.images_to_embed else "tokens_per_second"
    figures = (entry.statistics.get(name) for entry in manifests)
    rates: list[float] = [rate for rate in figures if rate]
    if rates:
        seconds: float | None = (result.images_to_embed or result.tokens) / median(rates)
        source = "at the pace of this pipeline's last run"
    elif isinstance(options, ServiceOptions):
        seconds = result.requests * REQUEST_SECONDS / options.concurrent_requests
        source = (
            f"an estimate before the first run: {REQUEST_SECONDS} s a request, "
            f"{options.concurrent_requests} at a time"
        )
    else:
        seconds, source = _local_seconds(run, result.tokens)
    stated: float | None = getattr(options, "requests_per_minute", None)
    slowest = 60 * result.requests / stated if stated else 0.0
    if slowest > (seconds or 0):
        seconds, source = slowest, "at the stated requests_per_minute"
    return None if seconds is None else round(seconds, 1), source


def _local_seconds(run: Run, tokens: int) -> tuple[float | None, str]:
    """Of a model on this machine, by the size of the model and what the processor computes now."""
    options, home = run.spec.model, run.warehouse.home
    if options.kind in ("hashing", "word2vec"):
        words = f"an estimate before the first run: {WORDS_PER_SECOND:,} words a second"
        return tokens / WORDS_PER_SECOND, words
    folder = local_folder(getattr(options, "model", ""), None, home)
    operations = operations_per_token(folder) if folder and options.kind == "hf" else None
    if operations is None:
        return None, "not known before the first run"
    speed = _operations_per_second()
    words = (
        f"an estimate before the first run: {operations / 1e6:,.0f} million operations a token, "
        f"and this processor does about {speed / 1e9:,.0f} billion a second"
    )
    return tokens * operations / speed, words


def _operations_per_second() -> float:
    """Of a product of matrices now, halved for all that is not one."""
    left = np.ones((512, 512), np.float32)
    best = min(timeit.repeat(lambda: left @ left, number=1, repeat=8))
    return 2 * 512**3 / best / 2
