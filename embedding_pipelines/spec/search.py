"""What a pipeline file may say under `search:`: how queries are answered unless they say otherwise."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["vector", "text", "hybrid"]
# Whose words the store can reduce to their stems.
Language = Literal[
    "Arabic", "Danish", "Dutch", "English", "Finnish", "French", "German", "Greek", "Hungarian",
    "Italian", "Norwegian", "Portuguese", "Romanian", "Russian", "Spanish", "Swedish", "Tamil",
    "Turkish",
]  # fmt: skip


class Search(BaseModel):
    """How queries are answered: by vectors, by the words of the text (BM25), or by both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "vector"
    language: Language = "English"  # of the texts: "running" finds "runs"
    rerank: str | None = Field(None, min_length=1)
    """A cross-encoder that puts what was found in its order: a folder below the home folder, or a
    model of the Hugging Face hub."""
    rerank_candidates: int = Field(50, ge=1, le=1_000)
    """How many it reads of each search, or as many as are asked for, if those are more."""

    @property
    def text_index(self) -> str | None:
        """The language of the full-text index that the table has; None: it has none, since a third
        of the texts' size is too much for nothing."""
        return None if self.mode == "vector" else self.language
