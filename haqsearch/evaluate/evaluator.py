"""Evaluator: a policy in, an Evaluation out. Every score is the integer program's."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from haqsearch.data import Splits
from haqsearch.errors import HaqError
from haqsearch.evaluate.metrics import Scores, float_logits, in_batches, score_logits
from haqsearch.evaluate.prepared import Prepared
from haqsearch.runtime import IntegerProgram, run_program
from haqsearch.spec import Costing, Evaluation, Limit, Policy, violation

IN_ORDER = "in_order"
"""Fidelity of a score with weights rounded in network order, quickly."""


class Evaluator:
    """Scores policies on the search split, and chosen programs on any split.

    ``costing`` prices policies and ``limits`` are the budget; both go into every Evaluation.
    """

    def __init__(self, prepared: Prepared, splits: Splits, costing: Costing, limits: tuple[Limit, ...]) -> None:
        self.prepared, self.splits, self.costing, self.limits = prepared, splits, costing, limits

    @cached_property
    def _references(self) -> dict[str, Tensor]:
        return {}

    def reference(self, split: str) -> Tensor:
        """Float logits (N, classes) on ``split`` (search or report), computed once."""
        if split not in self._references:
            self._references[split] = float_logits(self.prepared.graph, getattr(self.splits, split)[0])
        return self._references[split]

    def float_scores(self, split: str) -> Scores:
        """Scores of the float network itself; its kl is 0."""
        reference = self.reference(split)
        return score_logits(reference, getattr(self.splits, split)[1], reference)

    def score(self, program: IntegerProgram, split: str, part: tuple[int, int | None] = (0, None)) -> Scores:
        """Scores of a program on ``split``, or on samples ``part[0]`` to ``part[1] - 1`` of it (None: to the end)."""
        inputs = getattr(self.splits, split)[0][slice(*part)]
        return self.judged(in_batches(lambda x: run_program(program, x), inputs), split, part)

    def judged(self, logits: Tensor, split: str, part: tuple[int, int | None] = (0, None)) -> Scores:
        """Scores of a program's real outputs (N, classes) on the samples that ``score`` takes."""
        labels, reference = (x[slice(*part)] for x in (getattr(self.splits, split)[1], self.reference(split)))
        return score_logits(logits, labels, reference)

    def evaluate(self, policy: Policy, split: str = "search", part: tuple[int, int | None] = (0, None)) -> Evaluation:
        """Score ``policy`` by post-training quantization. What goes wrong is returned in ``error``, not raised."""
        return self._evaluated(policy, "ptq", lambda: self.score(self.prepared.lower(policy), split, part))

    def evaluate_in_order(self, policy: Policy) -> Evaluation:
        """The same with the weights rounded in network order, quickly: dearer, and nearer to what finishing makes of it."""

        def scores() -> Scores:
            rounded = self.prepared.in_order(policy, self.splits.calibrate[0], quick=True)
            return self.score(rounded.lower(policy), "search")

        return self._evaluated(policy, IN_ORDER, scores)

    def _evaluated(self, policy: Policy, fidelity: str, scores: Callable[[], Scores]) -> Evaluation:
        start = time.perf_counter()
        try:
            found = scores()
            return self.evaluation(policy, found, fidelity, time.perf_counter() - start)
        except (HaqError, RuntimeError) as error:
            return Evaluation.failed(f"{type(error).__name__}: {error}", time.perf_counter() - start)

    def evaluation(self, policy: Policy, scores: Scores, fidelity: str, seconds: float, seed: int = 0) -> Evaluation:
        """Scores and costs of ``policy`` as one Evaluation."""
        costs = self.costing.costs(policy)
        return Evaluation(
            scores.accuracy,
            scores.loss,
            scores.kl,
            scores.samples,
            seconds,
            fidelity,
            seed,
            costs,
            violation(costs, self.limits),
            logit_mse=scores.logit_mse,
        )
