"""What the parts of one run share."""

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.serving.processes import Bare, Served, serve


class Bench:
    """What the parts of one run share; servers and the engine start when they are first needed."""

    def __init__(
        self, options: argparse.Namespace, folder: Path, texts: dict[str, list[str]]
    ) -> None:
        self.texts, self.folder, self.seconds = texts, folder, float(options.seconds)
        self.cpus: str | None = options.server_cpus
        self.device: str = options.device
        self.is_apart = bool(options.server_cpus and options.client_cpus)
        self.infinity: str | None = options.infinity
        load = os.getloadavg()[0]
        self.figures: dict[str, dict[str, Any]] = {
            "machine": {
                "load_average": load,
                "cpus": self.cpus or os.cpu_count(),
                "device": self.device,
            }
        }
        self._open = contextlib.ExitStack()
        self._served: Served | None = None
        self._bare: Bare | None = None

    @property
    def served(self) -> Served:
        """A server without a release."""
        if self._served is None:
            home = self.folder / "plain"
            home.mkdir()
            self._served = self._open.enter_context(serve(home, self.cpus, self.device))
        return self._served

    @property
    def bare(self) -> Bare:
        if self._bare is None:
            self._bare = Bare(self.texts, self.cpus, self.device)
            self._open.callback(self._bare.close)
        return self._bare

    def add(self, name: str, values: dict[str, Any], keeps: bool | None = None) -> None:
        """Note the figures of a part, and whether it keeps its bound."""
        if keeps is not None:
            values["keeps"] = bool(keeps)
        self.figures[name] = values
        print(name, json.dumps(values), flush=True)

    def close(self) -> None:
        self._open.close()
