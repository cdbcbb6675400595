"""The Dagster instance of a home, when several processes meet in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FIRST_RUNS = """
import os, sys, time, traceback
from pathlib import Path
import dagster as dg
from embedding_pipelines.orchestration.instance import open_instance

home, start = Path(sys.argv[1]), time.time() + 0.5
children = []
for number in range(4):
    child = os.fork()
    if not child:
        code = 1
        try:
            time.sleep(max(0, start - time.time()))
            with open_instance(home) as instance:
                run = instance.create_run_for_job(dg.GraphDefinition(name=f"p{number}").to_job())
                instance.report_run_failed(run, "enough")
                instance.all_instigator_state()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
with open_instance(home) as instance:
    print(codes, len(instance.get_runs()))
"""


@pytest.mark.slow
def test_first_runs_of_a_home_at_the_same_moment_share_one_instance(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_RUNS, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.stdout.strip() == "[0, 0, 0, 0] 4", done.stderr[-2_000:]
