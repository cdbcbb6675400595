"""Has work done by a child of this process, whose calls to the system the shim (`shim.c`) counts
and has go wrong.

A child begins with all that its parent has imported, which takes seconds; so a fault costs no more
than the work that it strikes.
"""

import ctypes
import gc
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import platformdirs

from embedding_pipelines.errors import EmbeddingPipelinesError, describe_os_error
from embedding_pipelines.files import replacing

SOURCE = Path(__file__).with_name("shim.c")
KINDS = ("kill", "kill-after", "torn", "ENOSPC", "EIO", "EIO-read", "EACCES", "EMFILE")
PRELOAD = "LD_PRELOAD"
HANGS_AFTER_SECONDS = 300


def library() -> Path:
    """The compiled shim, in the user's cache folder. Exits with a sentence without a compiler."""
    content = hashlib.blake2b(SOURCE.read_bytes()).hexdigest()[:16]
    path = Path(platformdirs.user_cache_dir("embedding_pipelines")) / "faults" / f"{content}.so"
    if not path.exists():
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            sys.exit(f"Install a C compiler (`cc`), on Linux: {SOURCE.name} is compiled with it.")
        with replacing(path) as draft:
            command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(draft), str(SOURCE), "-ldl"]
            subprocess.run(command, check=True)
    return path


def start_again_with_shim() -> None:
    """Replace this process by itself with the shim loaded, unless it is."""
    shim = str(library())
    if shim not in os.environ.get(PRELOAD, ""):
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, PRELOAD: shim})


def prepare_children() -> None:
    """Load what children would each load anew, and have their garbage collection leave it alone:
    it would copy all of the parent's pages in each of them."""
    for name in ("lancedb", "obstore", "ir_measures"):
        import_module(name)
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Fault:
    """What the call `at` (from 1) below a folder ends in, of those that the kind can strike."""

    kind: str
    at: int


COUNT = Fault("", 0)  # none: calls are counted alone


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    value: Any = None  # what its work returned
    # With COUNT: the calls that each kind can strike.
    calls: Mapping[str, int] = field(default_factory=dict)
    sentence: str = ""  # an error as the command line says it
    traceback: str = ""  # or of an error that nobody expected, or why there is no end
    output: str = ""
    is_killed: bool = False


def in_child(work: Callable[[], Any], folder: Path, fault: Fault | None = None) -> Ended:
    """Do `work` in a child; with a fault below `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        result, output = Path(scratch, "result"), Path(scratch, "output")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which LanceDB starts anew in a child
            child = os.fork()
        if not child:
            _be_child(work, folder, fault, result, output)
        status = _wait(child)
        text = output.read_text(errors="replace") if output.exists() else ""
        if status is None:
            return Ended(traceback="It hangs.", output=text)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return Ended(is_killed=True, output=text)
        if not result.exists():
            return Ended(traceback=f"It ended with status {status}.", output=text)
        value: Ended = pickle.loads(result.read_bytes())  # noqa: S301  # of a child of our own
        return Ended(value.value, value.calls, value.sentence, value.traceback, text)


def _wait(child: int) -> int | None:
    until = time.monotonic() + HANGS_AFTER_SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be_child(
    work: Callable[[], Any], folder: Path, fault: Fault | None, result: Path, output: Path
) -> None:
    """Never returns."""
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        warnings.simplefilter("ignore")
        shim = ctypes.CDLL(None)
        shim.fault_count.restype = ctypes.c_long
        if fault is not None:
            names = os.fsencode(folder), fault.kind.encode(), ctypes.c_long(fault.at)
            assert shim.fault_arm(*names) == 0
        value, sentence, trace = None, "", ""
        try:
            value = work()
        except EmbeddingPipelinesError as error:
            sentence = str(error)
        except OSError as error:
            sentence = describe_os_error(error)
        except BaseException:  # noqa: BLE001  # that is what is looked for
            trace = traceback.format_exc()
        calls = {kind: shim.fault_count(kind.encode()) for kind in KINDS}
        assert shim.fault_arm(b"", b"", ctypes.c_long(0)) == 0
        sys.stdout.flush()
        result.write_bytes(pickle.dumps(Ended(value, calls, sentence, trace)))
    except BaseException:  # noqa: BLE001  # nothing of the parent may run in the child
        traceback.print_exc()
    finally:
        os._exit(0)
