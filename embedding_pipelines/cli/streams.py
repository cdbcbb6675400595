"""Stdout and stderr that a reader may close and that take every text."""

import codecs
import io
import os
import sys
from typing import Any, TextIO

PLAIN = {"…": "...", "·": "-", "–": "-", "—": "-", "×": "x", "→": "->"}  # of our own words
HANDLER = "plain"  # of characters that the terminal's encoding lacks


class Descriptor(io.FileIO):
    """A file descriptor of the process. When its reader has gone (`… | head -1`) the rest is
    dropped, since a run goes on to its end; `problem` names what else kept a text from it."""

    problem = ""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            pass
        except OSError as error:
            self.problem = str(error.strerror)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)
        return memoryview(data).nbytes


def prepare_streams() -> list[Descriptor]:
    """Put such streams in the place of stdout and stderr; what they write to. A stream that is
    closed, or that a program has put there, stays."""
    codecs.register_error(HANDLER, _plain)
    descriptors = []
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        stream.flush()
        descriptor = Descriptor(number, "wb", closefd=False)
        buffer = io.BufferedWriter(descriptor)
        text = io.TextIOWrapper(buffer, stream.encoding, HANDLER, line_buffering=True)
        setattr(sys, name, text)
        descriptors.append(descriptor)
    return descriptors


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Signs of our own become ASCII; anything else is escaped, so that it can still be told."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    escaped = (letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(
        PLAIN.get(letter, code) for letter, code in zip(letters, escaped, strict=True)
    ), error.end
