"""What the chosen few policies get: rounding in network order, fine-tuning, and a score as integer programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from haqsearch.cli.assemble import Assembly
from haqsearch.spec import Evaluation, Policy

if TYPE_CHECKING:
    from haqsearch.evaluate import Prepared
    from haqsearch.runtime import IntegerProgram


@dataclass(frozen=True)
class Candidate:
    """A policy that may win: its integer program and its score on the search split."""

    policy: Policy
    program: IntegerProgram
    evaluation: Evaluation


@dataclass(frozen=True)
class Finisher:
    """Finishes policies of one run. ``tick`` is called at every training step; what is trained is kept in ``folder``."""

    assembly: Assembly
    folder: Path
    say: Callable[[str], None]
    tick: Callable[[], None]
    _rounded: dict[str, Prepared] = field(default_factory=dict)

    def finished(self, policy: Policy, what: str) -> list[Candidate]:
        """``policy`` rounded, and fine-tuned if the recipe trains at all."""
        found = [self.rounded(policy, what)]
        return [*found, self.finetuned(policy, what)] if self.assembly.recipe.qat.candidates else found

    def rounded(self, policy: Policy, what: str) -> Candidate:
        """``policy`` without training, its weights rounded as the recipe's preset says for the chosen few."""
        start = time.perf_counter()
        return self._candidate(policy, self._prepared(policy, what).lower(policy), "ptq", start)

    def finetuned(self, policy: Policy, what: str) -> Candidate:
        """``policy`` fine-tuned from there; a fine-tune that was finished before is loaded."""
        from haqsearch.qat import FinetuneSettings, finetune, load_finetuned, save_finetuned

        a, qat = self.assembly, self.assembly.recipe.qat
        start = time.perf_counter()
        prepared = self._prepared(policy, what)
        graph, ranges = prepared.graph, prepared.ranges
        weights = {layer.layer: prepared.weight(layer.layer, policy[layer.layer].weight) for layer in graph.layers}
        file = self.folder / "qat" / f"{policy.digest}-{qat.steps}-{qat.batch}-{qat.learning_rate}.safetensors"
        if file.is_file():
            tuned = load_finetuned(file, graph, weights)
        else:
            self.say(f"fine-tuning {what}: {policy.digest}, {qat.steps} steps")
            settings = FinetuneSettings(qat.steps, qat.batch, qat.learning_rate, a.recipe.seed)
            tuned = finetune(
                graph, prepared.plan, policy, ranges, weights, a.splits, settings, lambda *_: self.tick()
            )  # fmt: skip
            save_finetuned(tuned, file)
        return self._candidate(policy, prepared.finetuned(tuned).lower(policy), "qat", start)

    def _prepared(self, policy: Policy, what: str) -> Prepared:
        a = self.assembly
        if "in_order" not in a.recipe.ptq.pipeline:
            return a.prepared
        if policy.digest not in self._rounded:
            self.say(f"rounding {what} in network order: {policy.digest}")
            self._rounded[policy.digest] = a.prepared.in_order(policy, a.splits.calibrate[0])
            self.tick()
        return self._rounded[policy.digest]

    def _candidate(self, policy: Policy, program: IntegerProgram, fidelity: str, start: float) -> Candidate:
        a = self.assembly
        scores = a.evaluator.score(program, "search")
        seconds = time.perf_counter() - start
        return Candidate(policy, program, a.evaluator.evaluation(policy, scores, fidelity, seconds, a.recipe.seed))
