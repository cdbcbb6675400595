"""Frozen canary texts get the vectors that they got the first time."""

from pathlib import Path
from typing import get_args

import numpy as np

from embedding_pipelines.embedding.texts import count_tokens
from embedding_pipelines.files import replacing
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.run import Run
from embedding_pipelines.vectors import Vectors, cosine

LEAST_COSINE = 0.995  # the same model in other precisions and batches: 0.9996 and above
CANARIES = (
    "The harbour was full of fishing boats.",
    "Divide both sides of the equation by seven.",
    "How do I return a parcel that arrived damaged?",
    "def mean(values): return sum(values) / len(values)",
    "Die Sitzung wurde auf Donnerstag verschoben.",
    "Insulin lowers the concentration of glucose in the blood.",
    "42",
    "Once upon a time there was a king who had three daughters, and the youngest of them asked "
    "too many questions.",
)


class ProviderIsUnchanged(Check):
    def cost(self, run: Run) -> int:
        return len(get_args(InputType)) * sum(count_tokens(CANARIES, run.model.tokenizer))

    def collect(self, candidate: Candidate) -> None:
        """Past the cache. The first vectors of a space are kept for all pipelines."""
        run = candidate.run
        path = run.warehouse.root / "canaries" / f"{run.model.space.id}.npz"
        now = {
            input_type: candidate.embed(CANARIES, input_type, use_cache=False, are_ours=True)
            for input_type in get_args(InputType)
        }
        candidate.collected[self.name] = now
        first = _load(path)
        if first is None:
            with replacing(path) as draft, draft.open("wb") as file:
                np.savez(file, **now)  # type: ignore[arg-type]
            first = now
        # A text that is rejected has NaN, here zeros: 1 where it was rejected then and now.
        pairs = ((np.nan_to_num(first[name]), np.nan_to_num(now[name])) for name in now)
        candidate.canary_cosines = np.concatenate(
            [cosine(then, today, both_zero=1) for then, today in pairs]
        )

    def evaluate(self, candidate: Candidate) -> Outcome:
        least, space = candidate.metrics["canary_cosine"], candidate.run.model.space
        passed = least >= LEAST_COSINE
        sentence = f"The canaries are at a cosine of {least:.4f} or more to those of the first run."
        if not passed:
            sentence = (
                "The provider returns other vectors for the same texts than it used to (cosine "
                f"{least:.4f}): {space.provider}:{space.model} was changed under its name. Stored "
                "vectors and queries no longer belong together. Set the model's `revision` (or "
                "another name), so that everything is embedded again."
            )
        return self.outcome(passed, sentence, {"cosine": least})


def _load(path: Path) -> dict[InputType, Vectors] | None:
    """The first vectors; None if there are none that can be read: today's are then the first."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {input_type: archive[input_type] for input_type in get_args(InputType)}
    except Exception:  # noqa: BLE001  # of zipfile and numpy, whatever damaged bytes make of it
        return None
