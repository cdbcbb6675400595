"""Queries that people sent to the live release find on the whole the same documents; compared where
`receipts:` keeps queries."""

import numpy as np

from embedding_pipelines.embedding.texts import count_tokens
from embedding_pipelines.errors import StoreError, counted
from embedding_pipelines.quality.base import Candidate, Check, Outcome
from embedding_pipelines.quality.queries import has_vector
from embedding_pipelines.quality.real_queries import answers
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run

LEAST_ANSWERS = 10  # fewer say nothing
LEAST_OVERLAP = (
    0.6  # of the documents that people were shown, as a mean: below, most answers differ
)


class RealQueriesAnswerAlike(Check):
    effect = "warn"

    def cost(self, run: Run) -> int:
        releases = read_releases(run.folder)
        live = releases.get(releases.live)
        queries = [answer.query for answer in answers(run, live)] if live else []
        return sum(count_tokens(queries, run.model.tokenizer)) if queries else 0

    def collect(self, candidate: Candidate) -> None:
        if candidate.live is None:
            return
        given = answers(candidate.run, candidate.live)
        clean = candidate.run.spec.preprocessing.clean
        texts = [clean.text(answer.query) for answer in given]
        vectors = candidate.embed(texts, "query")
        shares = dict[str, float]()
        for answer, text, vector, is_sound in zip(
            given, texts, vectors, has_vector(vectors), strict=True
        ):
            if not is_sound:
                continue
            try:
                rows = candidate.find(text, vector, len(answer.documents) * 3, answer.filter)
            except StoreError:
                continue  # the filter is of a column that is gone, which the file says
            most = len(answer.documents)
            hits = list(dict.fromkeys(rows["document_id"].to_pylist()))[:most]
            shares[answer.query] = len({*hits} & {*answer.documents}) / most
        candidate.collected[self.name] = shares

    def evaluate(self, candidate: Candidate) -> Outcome:
        shares: dict[str, float] = candidate.collected.get(self.name, {})
        if candidate.live is None:
            return self.outcome(True, "Skipped: no release was live before this one.")
        if len(shares) < LEAST_ANSWERS:
            few = f"{counted(len(shares), 'query')} kept" if shares else "no query is kept"
            return self.outcome(
                True, f"Skipped: of release {candidate.live.number} {few}, {LEAST_ANSWERS} needed."
            )
        overlap = float(np.mean(list(shares.values())))
        figures = {"overlap": round(overlap, 4), "queries": len(shares)}
        sentence = (
            f"Of what {len(shares)} queries to release {candidate.live.number} were shown, "
            f"{overlap:.0%} is found again."
        )
        if overlap >= LEAST_OVERLAP:
            return self.outcome(True, sentence, figures)
        worst = sorted(shares, key=lambda query: shares[query])[:3]
        return self.outcome(
            False,
            f"{sentence} Least of: {', '.join(map(repr, worst))}. If that is not what you want, "
            f"see what has changed: `embedding-pipelines diff {candidate.run.spec.name}`.",
            figures,
        )
