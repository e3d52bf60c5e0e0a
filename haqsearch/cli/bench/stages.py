"""Recipes made ready for many searches: what depends on neither agent nor seed is built once, and shared."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from haqsearch.cli.assemble import Assembly
from haqsearch.cli.names import data_roots
from haqsearch.config import Recipe, load_recipe
from haqsearch.errors import HaqError
from haqsearch.spec import Evaluation, Policy

if TYPE_CHECKING:
    from haqsearch.evaluate.cache import ScoreCache

SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Stage:
    """A recipe with its network prepared. ``name``: its file's, without ``.toml``; ``folder``: where its studies go."""

    name: str
    assembly: Assembly
    scores: ScoreCache
    folder: Path

    def evaluate(self, policy: Policy, part: tuple[int, int | None] = (0, None)) -> Evaluation:
        """As ``Evaluator.evaluate``, but nothing is scored twice: ``seconds`` are the processor's, of the first time."""
        try:
            scored = self.scores.score(policy, "search", part)
        except (HaqError, RuntimeError) as error:
            return Evaluation.failed(f"{type(error).__name__}: {error}")
        return self.assembly.evaluator.evaluation(policy, scored.scores, "ptq", scored.seconds)

    def with_recipe(self, recipe: Recipe) -> Stage:
        """The same network, prepared in the same way, under another budget or on another device."""
        return replace(self, assembly=self.assembly.with_recipe(recipe))


def make_stages(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    data_root: Path | None,
    folder: Path,
    say: Callable[[str], None],
) -> list[Stage]:
    """A stage per recipe; those that prepare one network in one way share it, and all share ``folder``/scores.jsonl.

    Prepared networks are kept in ``folder`` too; of two processes that start there, one waits for the other's.
    """
    from haqsearch.evaluate.cache import ScoreCache

    ready: dict[tuple[Path, str], Stage] = {}
    found = []
    for path in recipes:
        recipe = load_recipe(path, overrides)
        blank = Assembly(recipe, path.parent, tuple(data_roots(data_root)))
        digest = blank.preparation_digest
        key = (path.parent.resolve(), digest)
        if key not in ready:
            assembly = replace(blank, out=folder / f"prepared-{digest}")
            assembly.check()
            with waiting(folder / f"prepared-{digest}.lock"):
                say(f"{path.stem}: preparing {assembly.model_name}")
                assembly.check_prepared()
                assembly.round_weights(say)
            scores = ScoreCache(assembly.evaluator, folder / SCORES)
            ready[key] = Stage(path.stem, assembly, scores, folder / path.stem)
        stage = replace(ready[key].with_recipe(recipe), name=path.stem, folder=folder / path.stem)
        stage.assembly.check_prepared()
        found.append(stage)
    return found


@contextmanager
def waiting(lock: Path) -> Iterator[None]:
    """Hold ``lock``, as soon as no other process does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
