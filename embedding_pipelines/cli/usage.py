"""What is wrong with a command that typer refuses, in our words: what, where, and what to do."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from embedding_pipelines.errors import did_you_mean

PROGRAM = "embedding-pipelines"
NUMBERS = {"int": "a whole number", "float": "a number", "bool": "true or false"}

BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def describe(error: Any) -> str:
    """A sentence for an error of typer, whose classes have no public names: what it is about is
    told by its attributes."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    words = _words(error, context, path)
    return f"{words} `{path} --help` shows how it is used."


def _words(error: Any, context: Any, path: str) -> str:
    message, option = str(error.message), getattr(error, "option_name", None)
    quoted = re.findall(r"'([^']*)'", message)
    if message.startswith("No such command") and quoted:
        return (
            f"There is no command {quoted[0]!r}.{did_you_mean(quoted[0], context.command.commands)}"
        )
    if option and message.startswith("No such option"):
        near = did_you_mean(option, _options(context)).replace("'", "`")
        return f"`{path}` has no option `{option}`.{near}"
    if option:
        takes_none = "does not take" in message
        return (
            f"`{option}` takes no value." if takes_none else f"`{option}` needs a value after it."
        )
    if message.startswith("Got unexpected extra"):
        return _too_many(message.partition(" (")[2].removesuffix(")"), context, path)
    parameter = getattr(error, "param", None)
    if parameter is None:
        return f"{message[:1].upper()}{message[1:]}".rstrip(".") + "."
    if type(error).__name__ == "MissingParameter":
        choices = re.findall(r"[\w-]+", parameter.get_missing_message(context).partition(":")[2])
        return f"{_name(parameter)} is missing{_one_of(choices)}."
    return _wrong_value(error, parameter, quoted)


def _too_many(words: str, context: Any, path: str) -> str:
    """Mostly a query of several words that nobody has quoted."""
    query = context.params.get("query")
    if query is None:
        return f"{words!r} is too much."
    name = shlex.quote(str(context.params.get("name")))
    whole = f"{path} {name} {shlex.quote(f'{query} {words}')}"
    return f"{words!r} is too much: put a query of several words in quotes, as `{whole}`."


def _wrong_value(error: Any, parameter: Any, quoted: Sequence[str]) -> str:
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    if not details:  # it says what is wrong with the value
        return f"{_name(parameter)}: {error.message}".rstrip(".") + "."
    number = NUMBERS.get(str(details[0]["type"]).partition("_")[0])
    value = details[0]["input"]
    if number:
        return f"{_name(parameter)} is {value!r}: write {number}."
    limits = [
        f"{BOUNDS[name]} {limit:g}"
        for name, limit in details[0].get("ctx", {}).items()
        if name in BOUNDS
    ]
    if limits:
        return f"{_name(parameter)} is {value!r}: write a number that is {' and '.join(limits)}."
    return f"{_name(parameter)} is {value!r}{_one_of(quoted[1:])}."


def _one_of(choices: Sequence[str]) -> str:
    return f": write one of {', '.join(choices)}" if choices else ""


def _name(parameter: Any) -> str:
    """An option as it is written, or an argument's name."""
    if parameter.param_type_name == "argument":
        return str(parameter.get_error_hint()).strip("'")
    return f"`{parameter.opts[-1]}`"


def _options(context: Any) -> list[str]:
    """The options of a command."""
    parameters = context.command.params if context is not None else ()
    return [name for parameter in parameters for name in parameter.opts if name.startswith("-")]
