"""Errors of the system, in sentences."""

import errno
import os
from typing import Annotated, Any, Literal

import pyarrow as pa
import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_pipelines.errors import describe_os_error, faults_in_words


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "writable"),
        (errno.EMFILE, "ulimit"),
        (errno.EACCES, "the right to it"),
        (errno.EIO, "Look after that disk"),
        (errno.ENOTDIR, "Look after it"),
    ],
)
def test_an_error_of_the_system_says_where_what_and_what_to_do(number: int, remedy: str) -> None:
    words = describe_os_error(OSError(number, os.strerror(number), "/data/x"))
    assert words.startswith(f"/data/x: {os.strerror(number)}. ")
    assert remedy in words
    assert words.endswith("then try again; what was released is as before.")


def test_one_without_a_name_or_a_number_is_told_in_its_own_words() -> None:
    assert describe_os_error(OSError(errno.ENOSPC, "x")).startswith("No space left on device. ")
    with pytest.raises(OSError, match="nowhere") as caught:
        pa.OSFile("/nowhere/x")
    assert "No such file" in describe_os_error(caught.value)
    assert describe_os_error(OSError("lost\nin two lines")).startswith("lost in two lines. ")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str = Field(alias="Text")


class Body(BaseModel):
    """A value of each kind that requests and files have."""

    model_config = ConfigDict(extra="forbid")

    text: str = "x"
    texts: list[str] = ["x"]
    pair: tuple[int, ...] = ()
    either: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = "x"
    parts: list[Annotated[str, Field(min_length=1)] | Part] = []
    number: int | str = 1
    k: int = Field(1, ge=1, le=9)
    share: float = Field(0.5, gt=0, lt=1)
    flag: bool = False
    options: dict[str, Any] = {}
    mode: Literal["text", "hybrid"] = "text"
    name: str = Field("ab", min_length=2, max_length=3, pattern="^a")
    few: list[int] = Field([1], max_length=2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text": 5}, "text: must be text"),
        ({"texts": "x"}, "texts: must be a list: [ … ]"),
        ({"pair": "x"}, "pair: must be a list: [ … ]"),
        ({"texts": ["a", 5]}, "texts[1]: must be text"),
        ({"either": 5}, "either: must be text or a list: [ … ]"),
        ({"either": ["a", 5]}, "either[1]: must be text"),
        ({"either": []}, "either: must not be empty"),
        ({"either": ""}, "either: must not be empty"),
        ({"parts": [5]}, "parts[0]: must be text or an object: { … }"),
        ({"parts": [{}]}, "parts[0].Text: is missing"),
        ({"parts": [{"Text": "x", "Id": 1}]}, "parts[0].Id: is no option here"),
        ({"number": []}, "number: must be a whole number or text"),
        ({"k": "x"}, "k: must be a whole number, not 'x'"),
        ({"k": 1.5}, "k: must be a whole number, not 1.5"),
        ({"k": 0}, "k: must be 1 or more, not 0"),
        ({"k": 10}, "k: must be 9 or less, not 10"),
        ({"share": 0}, "share: must be more than 0, not 0"),
        ({"share": 1}, "share: must be less than 1, not 1"),
        ({"share": "x" * 99}, f"share: must be a number, not '{'x' * 59}…"),
        ({"flag": 2}, "flag: must be true or false, not 2"),
        ({"options": []}, "options: must be an object: { … }"),
        ({"mode": "words"}, "mode: must be 'text' or 'hybrid', not 'words'"),
        ({"name": "a"}, "name: must have 2 characters or more"),
        ({"name": "abcd"}, "name: must have 3 characters at most"),
        ({"name": "ba"}, "name: must match pattern '^a'"),
        ({"few": [1, 2, 3]}, "few: must have 2 entries at most"),
        ({"colour": 1, "text": None}, "text: must be text; colour: is no option here"),
    ],
)
def test_a_wrong_value_is_told_in_our_words(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(values)
    assert faults_in_words(caught.value.errors()) == words
    assert "should" not in words


def test_a_value_that_may_be_a_secret_is_not_quoted() -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate({"k": "sk-123"})
    assert faults_in_words(caught.value.errors(include_input=False)) == "k: must be a whole number"
