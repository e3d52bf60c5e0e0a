"""``haqsearch`` in processes that begin with everything imported: one process imports it, and forks for every call.

They are killed like any other. Imports, which take longer than the searches of these tests, are done once. Run as a
program this is that process: it reads a JSON object a line, ``{"run": arguments, "cwd": folder, "err": file}`` or
``{"wait": pid, "block": bool}``, and answers with a process id or with a return code, null while there is none.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any


class Forked:
    """A process that runs ``haqsearch ARGUMENTS`` in ``cwd``; the part of ``subprocess.Popen`` that these tests need."""

    def __init__(self, arguments: Sequence[object], cwd: Path) -> None:
        self._err = NamedTemporaryFile()
        self.pid = int(_ask(run=list(map(str, arguments)), cwd=str(cwd), err=self._err.name))
        self.returncode: int | None = None

    def poll(self, block: bool = False) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(wait=self.pid, block=block)
        return self.returncode

    def wait(self) -> int:
        return int(self.poll(block=True) or 0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def err(self) -> str:
        """What it has written to its standard error so far."""
        return Path(self._err.name).read_text()


@cache
def _forker() -> subprocess.Popen[str]:
    from .conftest import ENVIRONMENT

    return subprocess.Popen(
        [sys.executable, __file__], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ask(**question: Any) -> Any:
    forker = _forker()
    assert forker.stdin is not None and forker.stdout is not None
    forker.stdin.write(json.dumps(question) + "\n")
    forker.stdin.flush()
    return json.loads(forker.stdout.readline())


def _import_all() -> None:
    """What a search of the digits imports on its way: libraries load much of themselves only when they are first used."""
    import pyarrow.parquet  # noqa: F401
    import torch

    import haqsearch.agents.ddpg
    import haqsearch.agents.tpe
    import haqsearch.cli.pipeline
    import haqsearch.evaluate
    import haqsearch.export.onnx_qdq
    import haqsearch.report.run_page
    import haqsearch.search.loop  # noqa: F401
    from haqsearch.cli import build_app
    from haqsearch.data import digits
    from haqsearch.graph import trace

    build_app()
    digits.load([])
    with torch.random.fork_rng():
        trace(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.zeros(1, 2))


def _run(arguments: list[str], cwd: str, err: str) -> int:
    from haqsearch.cli import main

    os.chdir(cwd)
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, os.devnull, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags), stream)
    sys.argv = ["haqsearch", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve() -> None:
    sys.path[0] = ""  # as of ``python -c``
    _import_all()
    for line in sys.stdin:
        question = json.loads(line)
        if "run" in question:
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    code = _run(question["run"], question["cwd"], question["err"])
                    sys.stderr.flush()
                finally:
                    os._exit(code)
            answer: int | None = pid
        else:
            done, status = os.waitpid(question["wait"], 0 if question["block"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
