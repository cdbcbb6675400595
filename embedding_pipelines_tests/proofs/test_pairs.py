"""The model orders pairs of sentences as sentence-transformers has it, and as people do: on STS-B
to its published figure."""

from pathlib import Path

import pytest

from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.metrics.similarity import cosine_spearman
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines_tests.corpora import OWN, own_and, pairs_of, reference_vectors

pytestmark = [pytest.mark.slow]

PIPELINE = (
    "source: {kind: csv, path: unread.csv}\nmodel: hf:sentence-transformers/all-MiniLM-L6-v2\n"
)
PAIRS = {OWN: 400, "stsb": 1_379}
PUBLISHED_SPEARMAN = 0.820  # MTEB's STSBenchmark for all-MiniLM-L6-v2


@pytest.mark.parametrize("name", own_and("stsb"))
def test_the_spearman_of_the_model_is_reached(proof_home: Path, name: str) -> None:
    pairs = pairs_of(name)
    assert len(pairs) == PAIRS[name]
    spec = parse_pipeline(PIPELINE, "pairs", "pairs.yaml")
    texts = spec.preprocessing.clean.texts([text for pair in pairs for text in pair[:2]])
    # Cut as sentence-transformers cuts it: a docstring may be longer than the model reads.
    cut: list[str] = []
    vectors = embed_all(texts, spec.model.open(proof_home), None, on_cut=cut.append).vectors
    scores = [pair.score for pair in pairs]
    expected = PUBLISHED_SPEARMAN
    if name == OWN:
        reference = reference_vectors(texts)
        expected = cosine_spearman(reference[::2], reference[1::2], scores)
        assert expected > 0.8  # the grades are such that a good model sees them
    spearman = cosine_spearman(vectors[::2], vectors[1::2], scores)
    assert spearman == pytest.approx(expected, abs=0.002)
