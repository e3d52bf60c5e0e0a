"""Scores of policies on disk, shared by every search that asks for them: no policy is scored twice.

A score is found again only if nothing it depends on has changed: the network, the calibration inputs, the steps of
quantization, the samples scored, and the code that computes. So it cannot go stale.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from haqsearch.evaluate.evaluator import Evaluator
from haqsearch.evaluate.metrics import Scores
from haqsearch.spec import Policy

PACKAGE = Path(__file__).parents[1]
# What decides a score. Not the native kernels: they give the reference's codes, bit for bit.
NUMERICS = ("quant", "calibrate", "graph", "ptq", "kernels", "runtime", "spec/formats.py", "spec/ptq.py",
            "evaluate/metrics.py", "evaluate/prepared.py", "evaluate/weights.py")  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """Scores, and the processor seconds that they took when they were made."""

    scores: Scores
    seconds: float


class ScoreCache:
    """Scores of an evaluator's policies by post-training quantization, remembered in ``file``, one JSON object a line.

    Several processes may share the file. A line that one of them did not finish before it was killed is skipped.
    """

    def __init__(self, evaluator: Evaluator, file: Path) -> None:
        self.evaluator, self.file = evaluator, file
        self.known: dict[str, Scored] = {}
        self._read_to = 0
        self._contexts: dict[str, str] = {}

    def score(self, policy: Policy, split: str = "search", part: tuple[int, int | None] = (0, None)) -> Scored:
        """Scores on ``split`` (search or report), or on its samples ``part[0]`` to ``part[1] - 1``.

        Raises what lowering and running ``policy`` raise.
        """

        def make() -> Scores:
            return self.evaluator.score(self.evaluator.prepared.lower(policy), split, part)

        samples = f" {part[0]}:{part[1] or ''}" if part != (0, None) else ""
        return self.remembered(f"{policy.digest}{samples}", split, make)

    def remembered(self, what: str, split: str, make: Callable[[], Scores]) -> Scored:
        """Scores on ``split`` of what ``what`` names; made now if they are not known."""
        key = f"{self._context(split)} {what}"
        if key not in self.known:
            self._read()
        if key not in self.known:
            start = time.process_time()
            scores = make()
            self._put(key, Scored(scores, time.process_time() - start))
        return self.known[key]

    def _put(self, key: str, scored: Scored) -> None:
        self.known[key] = scored
        line = json.dumps({"key": key, "seconds": round(scored.seconds, 4), **asdict(scored.scores)})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            torn = end and file.read(1) != b"\n"
            file.write(f"{chr(10) if torn else ''}{line}\n".encode())

    def _read(self) -> None:
        """Take in what this and other processes have appended since the last time."""
        if not self.file.is_file():
            return
        with self.file.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if line.endswith(b"\n"):
                    self._read_to += len(line)
                    self.known.update(_entry(line))

    def _context(self, split: str) -> str:
        """Digest of all that a score on ``split`` depends on but the policy."""
        if split not in self._contexts:
            prepared, splits = self.evaluator.prepared, self.evaluator.splits
            pipeline = getattr(prepared.weight, "pipeline", None)
            content = hashlib.sha256(f"{code_digest()} {torch.__version__} {prepared.graph.digest} {split}".encode())
            content.update(str(getattr(pipeline, "steps", "")).encode())
            for tensor in (splits.calibrate[0], *getattr(splits, split)):
                content.update(str(tuple(tensor.shape)).encode())
                content.update(tensor.contiguous().numpy().tobytes())
            self._contexts[split] = content.hexdigest()[:16]
        return self._contexts[split]


def _entry(line: bytes) -> Iterator[tuple[str, Scored]]:
    try:
        content = json.loads(line)
        key, seconds = str(content.pop("key")), float(content.pop("seconds"))
        yield key, Scored(Scores(**content), seconds)
    except (ValueError, TypeError, KeyError, AttributeError):  # torn, or another version's: scored anew
        return


@cache
def code_digest() -> str:
    """Digest of the code that decides a policy's scores. It changes with what the code says, not with its comments."""
    content = hashlib.sha256()
    for place in NUMERICS:
        path = PACKAGE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = ast.parse(file.read_bytes())
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, False):
                    node.body = node.body[1:]
            content.update(f"{file.relative_to(PACKAGE)} {ast.dump(tree)}".encode())
    return content.hexdigest()[:16]
