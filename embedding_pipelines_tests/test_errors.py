"""Errors of the system, in sentences."""

import errno
import os

import pyarrow as pa
import pytest

from embedding_pipelines.errors import describe_os_error


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
