"""No vector is zero, NaN or infinite; normalized models give unit length."""

from embedding_pipelines.errors import counted
from embedding_pipelines.quality.base import Candidate, Check, Outcome


class VectorsAreSound(Check):
    def evaluate(self, candidate: Candidate) -> Outcome:
        faults = {fault: count for fault, count in candidate.faults.items() if count}
        vectors = faults.pop("vectors", 0)
        words = (f"{count} {fault.replace('_', ' ')}" for fault, count in faults.items())
        sentence = counted(vectors, "sound vector") if not faults else counted(vectors, "vector")
        sentence += f": {', '.join(words)}" if faults else "."
        if faults:
            sentence += (
                ". The model, or a service, gave vectors that say nothing: see that it answers as "
                "it should, then embed all again: `embedding-pipelines run "
                f"{candidate.run.spec.name} --re-embed`."
            )
        return self.outcome(not faults, sentence, dict(candidate.faults))
