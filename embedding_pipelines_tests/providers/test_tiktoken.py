"""The converted vocabulary counts as tiktoken does, and the error for one that is unavailable
names the remedy."""

from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers import _tiktoken
from embedding_pipelines.schemas import digest

WORDS = [
    "the", "cat", "sleeps", "on", "warm", "roof", "don't", "LLama", "RESUMÉ", "naïve", "2024", "3333", "--", "====",
    "...\n", "漢字", "😀", "été",
]  # fmt: skip
SPACES = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u0085", "\u00a0", "\u2028"]
SAMPLES = [*WORDS, *SPACES, "'s", "'LL", "'LLama", "'ſ", "1", "12345", "<|endoftext|>"]


def ranks() -> dict[bytes, int]:
    """All bytes, then half the pieces of the words and spaces, in an order that has nothing to do
    with their length."""
    found = {
        text[start:end]
        for word in [*WORDS, *SPACES]
        for text in (word.encode(), b" " + word.encode())
        for start in range(len(text))
        for end in range(start + 2, len(text) + 1)
    }
    drawn = {digest(token): token for token in found}
    joined = [drawn[number] for number in sorted(drawn) if number[0] % 2]
    return {
        token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *joined])
    }


@pytest.fixture(scope="module")
def encoding() -> tiktoken.Encoding:
    """tiktoken itself, with cl100k_base's own pattern and our vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks())
        pattern = openai_public.cl100k_base()["pat_str"]
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks(), special_tokens={})


TOKENIZER = _tiktoken.convert(ranks())


@settings(max_examples=100, derandomize=True)
@given(
    text=st.text() | st.lists(st.sampled_from(SAMPLES) | st.characters(), max_size=60).map("".join)
)
def test_it_cuts_and_joins_as_tiktoken_does(encoding: tiktoken.Encoding, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    found = TOKENIZER.encode(text)
    assert found.ids == encoding.encode_ordinary(text)
    assert TOKENIZER.decode(found.ids) == text


def test_characters_of_all_kinds_are_cut_as_tiktoken_does(encoding: tiktoken.Encoding) -> None:
    for start in range(0, 0x3400, 0x400):
        text = "".join(f"a{chr(code)} {chr(code)}1\n" for code in range(start, start + 0x400))
        assert TOKENIZER.encode(text).ids == encoding.encode_ordinary(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache folders and a network that leads nowhere; the folder that keeps the converted
    vocabulary."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    for scheme in ("http", "https", "all"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    return tmp_path / "cache" / "embedding-pipelines" / "tokenizers"


def test_an_unavailable_vocabulary_is_an_error_with_the_remedy(machine: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"ProxyError.*TIKTOKEN_CACHE_DIR names\. Or write tokenizer_of: estimate"
    ):
        _tiktoken.cl100k()
    assert not machine.exists()


def test_what_was_converted_is_kept_and_needs_tiktoken_no_more(
    machine: Path, encoding: tiktoken.Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, _tiktoken.ENCODING, encoding)
    ids = _tiktoken.cl100k().encode("the cat sleeps").ids
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, _tiktoken.ENCODING)
    again = _tiktoken.cl100k().encode("the cat sleeps").ids
    assert again == ids == encoding.encode("the cat sleeps")
    assert [path.name for path in machine.iterdir()] == ["cl100k_base-1.json"]


def test_a_damaged_one_is_named(machine: Path) -> None:
    machine.mkdir(parents=True)
    (machine / "cl100k_base-1.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cl100k_base-1\.json is damaged .* Delete it"):
        _tiktoken.cl100k()
