"""`python -m benchmarks.finetune`: what fine-tuning MiniLM on SciFact's train judgements is worth.

The pipeline's own way, by its command line: a base pipeline, the same one fine-tuned (killed in the
middle of its training, then run again), and one whose pairs are shuffled, which its gate has to hold
back. The test queries judge these, so that nothing is learned of documents that they ask for. A
fourth knows no test query, and learns from all judgements that SciFact has for training, as its
leader boards do; a fifth searches by that model. Prints JSON: nDCG@10 of the 300 test queries with
paired tests, STS-B, and what the runs said.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from embedding_pipelines.metrics.confidence import paired_loss
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.checks import current_checks
from embedding_pipelines.storage.warehouse import Warehouse

DATA = Path(__file__).parents[2] / "shared" / "data"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PIPELINE = """\
source: {{kind: jsonl, path: data/corpus.jsonl, id: _id, text: [title, text]}}
preprocessing: {{chunk: null}}
model: {{provider: hf, model: {model}{more}}}
"""
JUDGED = """\
evaluation:
  queries: data/queries.jsonl
  qrels: data/test.tsv
  pairs: data/stsb.tsv
"""
PERMUTATIONS = 100_000
RECIPE = "epochs: 2, hard_negatives: 0, learning_rate: 1.0e-4"  # of those tried, the best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="with scifact/ and stsb/")
    parser.add_argument("--home", type=Path, help="to keep; else a folder that is removed")
    parser.add_argument("--finetune", default=RECIPE, help="options, as in a pipeline file")
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--no-bad", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_measure(options, options.home or Path(folder)), indent=1))
    return 0


def _measure(options: argparse.Namespace, home: Path) -> dict[str, Any]:
    _lay_out(options.data, home)
    recipe = ", finetune: {{pairs: data/{}, queries: data/queries.jsonl, {}}}"
    _write(home, "base")
    _write(home, "tuned", more=recipe.format("train.tsv", options.finetune))
    _write(home, "bad", more=recipe.format("shuffled.tsv", options.finetune))
    _write(home, "all", more=recipe.format("train.tsv", options.finetune), judged=False)
    result: dict[str, Any] = {"recipe": options.finetune, "runs": {}}
    result["runs"]["base"] = _run(home, "base")
    if not options.no_kill:
        result["killed_at_step"] = _kill_in_training(home, "tuned")
    result["runs"]["tuned"] = _run(home, "tuned")
    result["runs"]["all"] = _run(home, "all")
    _write(home, "judged", model=str(_trained(home, "all")[0].relative_to(home)))
    result["runs"]["judged"] = _run(home, "judged")
    names = ("pairs", "held_out", "left_out", "texts", "data")
    result["training"] = {
        name: {key: _trained(home, name)[1][key] for key in names} for name in ("tuned", "all")
    }
    base = _figures(home, "base")["ndcg_at_10"]
    result["scifact_test_ndcg_at_10"] = {
        name: _compare(base, _figures(home, name)["ndcg_at_10"]) for name in ("tuned", "judged")
    }
    for name in ("base", "tuned", "judged"):
        metrics = _metrics(home, name)
        result[name] = {
            key: metrics[key] for key in sorted(metrics) if "ndcg" in key or "pair" in key
        }
    result["checks"] = {"tuned": _gate(home, "tuned")}
    if not options.no_bad:
        result["runs"]["bad"] = _run(home, "bad")
        result["checks"]["bad"] = _gate(home, "bad")
    return result


def _lay_out(data: Path, home: Path) -> None:
    (home / "data").mkdir(parents=True, exist_ok=True)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv"):
        shutil.copyfile(data / "scifact" / name, home / "data" / name.rpartition("/")[2])
    shutil.copyfile(data / "stsb" / "test.tsv", home / "data" / "stsb.tsv")
    head, *lines = (home / "data" / "train.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    documents = [row[1] for row in rows]
    random.Random(0).shuffle(documents)
    shuffled = [f"{row[0]}\t{name}\t{row[2]}" for row, name in zip(rows, documents, strict=True)]
    (home / "data" / "shuffled.tsv").write_text("\n".join([head, *shuffled, ""]))


def _write(home: Path, name: str, model: str = MODEL, more: str = "", judged: bool = True) -> None:
    path = home / "pipelines" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(PIPELINE.format(model=model, more=more) + (JUDGED if judged else ""))


def _trained(home: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a fine-tuned model, and what its training has on record."""
    folder = home / "data/warehouse/pipelines" / name / "model"
    record: dict[str, Any] = json.loads((folder / "trained.json").read_text())
    return folder / record["folder"], record


def _command(home: Path, name: str) -> list[str]:
    code = "from embedding_pipelines.cli.main import main; main()"
    return [sys.executable, "-c", code, "--home", str(home), "run", name]


def _run(home: Path, name: str) -> dict[str, Any]:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.run(_command(home, name), capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [
        line.strip() for line in (process.stdout + process.stderr).splitlines() if line.strip()
    ]
    return {
        "exit_code": process.returncode,
        "cpu_seconds": round(after.ru_utime - before.ru_utime, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "output": lines[-40:],
    }


def _kill_in_training(home: Path, name: str) -> int | None:
    """Kill a run once its training has left a second checkpoint; its step."""
    folder = home / "data/warehouse/pipelines" / name / "model"
    process = subprocess.Popen(
        _command(home, name),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    while process.poll() is None:
        states = sorted(folder.glob(".checkpoints-*/checkpoint-*/trainer_state.json"))
        if len(states) > 1:
            process.kill()
            process.wait()
            return max(int(path.parent.name.rpartition("-")[2]) for path in states)
        time.sleep(0.2)
    return None


def _figures(home: Path, name: str) -> dict[str, dict[str, float]]:
    """By metric and query, of what the last run wrote."""
    folder = Warehouse(home).pipeline(name)
    newest = max(folder.quality.glob("*-*-*.json"), key=lambda path: path.stat().st_mtime)
    figures: dict[str, dict[str, float]] = json.loads(newest.read_text())["per_query"]
    return figures


def _metrics(home: Path, name: str) -> dict[str, float]:
    releases = read_releases(Warehouse(home).pipeline(name))
    release = releases.get(releases.live)
    return dict(release.metrics) if release else {}


def _gate(home: Path, name: str) -> dict[str, Any]:
    with Run(find_pipeline(name, home), Warehouse(home)) as run:
        record = current_checks(run)
    checks = record.checks if record else []
    return {
        "released": read_releases(Warehouse(home).pipeline(name)).live is not None,
        "blocked_by": [check.name for check in checks if check.blocks],
        **{check.name: check.sentence for check in checks if check.name == "not_worse_than_base"},
    }


def _compare(base: dict[str, float], tuned: dict[str, float]) -> dict[str, Any]:
    """A paired test by random signs, two-sided, and the bound of the checks."""
    shared = sorted(base.keys() & tuned.keys())
    gains = np.array([tuned[query] - base[query] for query in shared])
    generator = np.random.default_rng(0)
    means = [
        float((gains * generator.choice([-1.0, 1.0], len(gains))).mean())
        for _ in range(PERMUTATIONS)
    ]
    extreme = sum(abs(mean) >= abs(gains.mean()) for mean in means)
    return {
        "queries": len(shared),
        "base": round(float(np.mean([base[query] for query in shared])), 4),
        "tuned": round(float(np.mean([tuned[query] for query in shared])), 4),
        "gain": round(float(gains.mean()), 4),
        "p": (extreme + 1) / (PERMUTATIONS + 1),
        "better_queries": int((gains > 0).sum()),
        "worse_queries": int((gains < 0).sum()),
        "gain_at_least_99": round(paired_loss(base, tuned).certain, 4),
    }


if __name__ == "__main__":
    raise SystemExit(main())
