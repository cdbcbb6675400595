"""Runs the code blocks of a page, section by section, and compares what they print with what the
page says they print.

A section begins at a heading. Its blocks run in their order, in one shell and one home folder:

console   a line that begins with "$ " is a command; the lines below it are all that it prints
sh        commands alone; they have to end well
python    a program, which prints the comments below its first line with `print(`, or else the
          block of language `text` that follows; without either, nothing is compared

A line of nothing but "…" stands for any number of lines. A command has to end well, unless the page
shows its error. RULES and TOLERANCE are what may differ from the page.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SECONDS = 900  # of a section
ANY_LINES = "…"
TOLERANCE = 0.02  # of scores and shares, which are numbers from 0 to 1
RULES = (  # applied to both sides, in this order
    (re.compile(r"\x1b\[[0-9;]*m"), ""),  # colours
    (re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?"), "DATE"),
    (re.compile(r"(?<![\w.])\d[\d,.]* ?(ms|s|min|h)\b"), "TIME"),  # 0.21 s
    (
        re.compile(r"(?<![\w.])(?!0\.\d|1\.0)(\d[\d,]+(\.\d+)?|\d\.\d+)(?!\w)"),
        "NUMBER",
    ),  # 6,806
    (re.compile(r"(?<![\w.])\d[\d,]*(?= [a-z])"), "NUMBER"),  # 2 files
    (re.compile(r"\s+"), " "),  # the width of columns
)
PROGRESS = re.compile(r"\w+ \w+: [\d,]+/[\d,]+ \w+")  # a line of what takes long
SHARE = re.compile(r"((?<![\w.])(?:0\.\d+|1\.0+)(?!\w))")
NEVER_ENDS = (
    *({"make", "dev"}, {"dagster", "dev"}, {"dg", "dev"}, {"embedding-pipelines", "serve"}),
    # And what needs a server, which embedding_pipelines_tests/serving/test_contract.py types.
    *({"embedding-pipelines", verb} for verb in ("--server", "deploy", "undeploy")),
)
CLIENT = "EmbeddingPipelines("  # in a program that needs a server, which test_contract.py runs
INSTALLS = {"pip", "git"}  # scripts/try_extras.py tries what pip installs


class Block(NamedTuple):
    """A fenced block: its section's heading, its language, the number of its first line."""

    section: str
    language: str
    text: str
    line: int


class Step(NamedTuple):
    """A command for the shell, and the lines that it has to print; None: whatever it likes."""

    command: str
    expected: list[str] | None
    line: int


def blocks_of(page: str) -> list[Block]:
    """Every fenced block of a page in Markdown. ValueError if one is not closed."""
    found, section, lines = [], "", page.splitlines()
    numbers = iter(range(len(lines)))
    for number in numbers:
        if fence := re.fullmatch(r"```(\w*)", lines[number]):
            try:
                end = lines.index("```", number + 1)
            except ValueError:
                raise ValueError(f"The block at line {number + 1} is not closed.") from None
            text = "\n".join(lines[number + 1 : end])
            found.append(Block(section, fence[1], text, number + 2))
            while next(numbers) < end:
                pass
        elif lines[number].startswith(("# ", "## ")):
            section = lines[number].lstrip("# ")
    return found


def steps_of(blocks: Sequence[Block], home: Path) -> list[Step]:
    """The commands of a section's blocks; programs in Python are written into the home folder."""
    steps: list[Step] = []
    for place, block in enumerate(blocks):
        if block.language == "console":
            steps += _dialogue(block)
        elif block.language == "sh":
            joined = block.text.replace("\\\n", "  ")
            steps += [
                Step(line, None, block.line)
                for line in joined.splitlines()
                if shlex.split(line, comments=True)
            ]
        elif block.language == "python":
            program = home / f"block_{block.line}.py"
            program.write_text(block.text, encoding="utf-8")
            following = blocks[place + 1] if place + 1 < len(blocks) else None
            expected = _comments(block.text)
            if following is not None and following.language == "text":
                expected = following.text.splitlines()
            steps.append(Step(f"python {program.name}", expected, block.line))
    return steps


def _dialogue(block: Block) -> Iterator[Step]:
    command, expected, start, continues = "", list[str](), block.line, False
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if continues or line.startswith("$ "):
            if command and not continues:
                yield Step(command, expected, start)
            start = start if continues else number
            command = f"{command}\n{line}" if continues else line.removeprefix("$ ")
            continues, expected = line.endswith("\\"), []
        elif command:
            expected.append(line)
        else:
            raise ValueError(f"Line {number} is output of no command: {line}")
    if command:
        yield Step(command, expected, start)


def _comments(program: str) -> list[str] | None:
    lines = program.splitlines()
    prints = [number for number, line in enumerate(lines) if "print(" in line]
    if not prints:
        return None
    comments = [line for line in lines[prints[0] :] if line.startswith("# ")]
    return [line.removeprefix("# ") for line in comments] or None


def is_run(command: str) -> bool:
    """Whether a command is run here: not what installs, and not what never ends."""
    words = [Path(word).name for word in shlex.split(command, comments=True)]
    if words[0] in INSTALLS or any(never <= set(words) for never in NEVER_ENDS):
        return False
    return words[0] != "make" or words[1:] == ["run"]


def targets() -> set[str]:
    """The Makefile's."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", text, re.MULTILINE))


def run_section(blocks: Sequence[Block], home: Path, after_example: str) -> list[str]:
    """Run a section's blocks in a home folder; what differs from the page, in sentences.

    `after_example` is a command that follows each `embedding-pipelines example`.
    """
    blocks = [block for block in blocks if CLIENT not in block.text]
    steps = [step for step in steps_of(blocks, home) if is_run(step.command)]
    mark, script = "--- a step ended with", [": of the page"]
    for step in steps:
        for line in _lines_of(step.command):
            script.append(line)
            if re.search(r"embedding-pipelines example\b", line):
                script.append(after_example)
        script.append(f"printf '\\n{mark} %d\\n' $?")
    (home / "blocks.sh").write_text("\n".join([*script, ""]), encoding="utf-8")
    done = subprocess.run(
        ["bash", "blocks.sh"],
        cwd=home,
        env=_variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
    )
    parts = re.split(rf"\n{mark} (\d+)\n", done.stdout.decode())
    problems = []
    for step, output, code in zip(steps, parts[::2], parts[1::2], strict=False):
        problem = differs(step.expected, output.replace(str(home), "~").splitlines(), int(code))
        if problem:
            problems.append(f"line {step.line}: $ {step.command}\n{problem}")
    return problems


def _lines_of(command: str) -> list[str]:
    """The command; of `make run` those of its recipe, each as make shows it and then run."""
    if not command.startswith("make "):
        return [command]
    words = ["make", "-n", "-C", str(ROOT), "--no-print-directory", "-o", ".venv/installed"]
    recipe = subprocess.run(
        [*words, *shlex.split(command, comments=True)[1:]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [part for line in recipe.splitlines() for part in (f"echo {shlex.quote(line)}", line)]


def _variables() -> dict[str, str]:
    """This Python's programs come first, and nothing says where a home folder is."""
    own = {name: value for name, value in os.environ.items() if not name.endswith("_HOME")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in ("XDG_STATE_HOME",) if name in os.environ}
    return {**own, **kept, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def differs(expected: Sequence[str] | None, output: Sequence[str], code: int = 0) -> str:
    """What is wrong with a command's output; empty if nothing is."""
    shown = "\n".join(output).rstrip()
    if code and not any(line.startswith("error:") for line in expected or ()):
        return f"It ended with {code}:\n{shown}"
    if expected is None:
        return ""
    lines = [line for line in output if not PROGRESS.fullmatch(line)]
    wanted, printed = [
        [line for line in map(normalized, side) if line] for side in (expected, lines)
    ]
    if agree(wanted, printed):
        return ""
    page = "\n".join(expected)
    return f"The page says:\n{page}\nIt printed:\n{shown}"


def normalized(line: str) -> str:
    for pattern, replacement in RULES:
        line = pattern.sub(replacement, line)
    return line.strip()


def agree(expected: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether the printed lines are the expected ones, both normalized."""
    if not expected:
        return not printed
    if expected[0] == ANY_LINES:
        rest = range(len(printed) + 1)
        return any(agree(expected[1:], printed[start:]) for start in rest)
    return bool(printed) and _same(expected[0], printed[0]) and agree(expected[1:], printed[1:])


def _same(expected: str, printed: str) -> bool:
    """Whether two lines have the same words, and shares that are near one another."""
    ours, theirs = SHARE.split(expected), SHARE.split(printed)
    return ours[::2] == theirs[::2] and all(
        abs(float(one) - float(other)) <= TOLERANCE
        for one, other in zip(ours[1::2], theirs[1::2], strict=True)
    )
