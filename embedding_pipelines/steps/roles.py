"""roles: whether a model that tells queries from documents is told which is which. A warning, not a condition."""

from typing import get_args

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.doubt import UNLIKE_TEXTS
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.evaluation.roles import same_for_both_roles
from embedding_pipelines.providers.base import Provider, Role, Vectors
from embedding_pipelines.steps.verify import Check

ROLES = "roles_are_told_apart"
ROLES_SENTENCE = "Queries and documents get different vectors where the model is told which is which; else a warning."


def roles_are_told_apart(provider: Provider, ledger: Ledger) -> Check:
    """Whether the prompts or input types that the space names reach the model: the same texts in both roles tell.

    They are asked for once per space, through the ledger. Raises as `embed`.
    """
    prompts = provider.space.prompts
    if prompts.get("query", "") == prompts.get("document", ""):
        return Check(ROLES, True, "The model makes no difference between queries and documents.")
    found = {role: _embedded(provider, ledger, role) for role in get_args(Role)}
    if not np.isfinite([found[role] for role in found]).all():
        return Check(ROLES, False, "It could not be told: the model has no vectors for the texts that would tell.")
    fault = same_for_both_roles(found["query"], found["document"], prompts)
    cosine = float((found["query"] * found["document"]).sum(axis=1).mean())
    return Check(ROLES, fault is None, fault or "Queries and documents get vectors of their own.", {"cosine": cosine})


def _embedded(provider: Provider, ledger: Ledger, role: Role) -> Vectors:
    """Two texts in one role, float32[2, d]."""
    lengths = [len(provider.tokenizer().encode(text).ids) for text in UNLIKE_TEXTS]
    batch = pa.RecordBatch.from_pydict({"text": list(UNLIKE_TEXTS), "tokens": lengths})
    (window,) = embed([batch], provider, ledger, role, lambda tokens: None)
    return window.vectors
