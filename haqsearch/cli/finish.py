"""What the chosen few policies get: rounding in network order, fine-tuning, and a score as integer programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haqsearch.cli.assemble import Assembly
from haqsearch.files import write_json_atomic
from haqsearch.spec import OBJECTIVES, Evaluation, Policy

if TYPE_CHECKING:
    from haqsearch.evaluate import Prepared
    from haqsearch.runtime import IntegerProgram

SHORT = 4  # a short fine-tune has the recipe's steps divided by this


@dataclass(frozen=True)
class Candidate:
    """A policy that may win: its integer program and its score on the search split.

    The evaluation's fidelity is how far it came: ``ptq`` rounded, ``qat:N`` fine-tuned for N steps, ``qat`` in full.
    """

    policy: Policy
    program: IntegerProgram
    evaluation: Evaluation

    def to_json(self, source: str, score: float) -> dict[str, Any]:
        """Its line in ``summary.json``; ``source`` is ``search`` or ``uniform``."""
        e = self.evaluation
        return {
            "policy_digest": self.policy.digest,
            "source": source,
            "fidelity": e.fidelity,
            "score": score,
            "accuracy": e.accuracy,
            "loss": e.loss,
            "kl": e.kl,
            "seconds": round(e.seconds, 3),
        }


@dataclass(frozen=True)
class Finisher:
    """Finishes policies of one run. ``tick`` is called at every training step; what is trained is kept in ``folder``."""

    assembly: Assembly
    folder: Path
    say: Callable[[str], None]
    tick: Callable[[], None]
    _rounded: dict[str, Prepared] = field(default_factory=dict)

    def score(self, candidate: Candidate) -> float:
        """What decides: the recipe's objective on the search split, large is good."""
        return OBJECTIVES[self.assembly.recipe.objective].score(candidate.evaluation)

    def climbed(self, policies: Sequence[Policy]) -> list[Candidate]:
        """Successive halving of ``policies``, best first: everything that was made of them on the way.

        All are rounded, and the best ``qat.candidates`` of them go on. If several do, each is fine-tuned for a quarter of the
        steps, and the best of these in full; a single one is trained in full at once. Without training (``qat.candidates = 0``)
        rounding is all. A short fine-tune has a schedule of its own, from which the full one could not go on: that starts
        afresh.

        Two by default, because rounding says less of training than a short training does. Ten policies of digits_cnn, the best
        of a search at 0.45 of int8's latency: Spearman's rho with the full fine-tune is 0.44 for the rounded, 0.72 for the short.
        """
        qat = self.assembly.recipe.qat
        names = {policy.digest: f"{number} of {len(policies)}" for number, policy in enumerate(policies, 1)}
        made = [self.rounded(policy, names[policy.digest]) for policy in policies]
        if not qat.candidates:
            return made
        ranked = sorted(made, key=self.score, reverse=True)  # stable: among equals the search's order holds
        left = ranked[: qat.candidates]
        if len(left) > 1:
            self.say(f"{len(left)} of {len(policies)} policies get a short fine-tune")
            steps = max(qat.steps // SHORT, 1)
            made += (left := [self.finetuned(c.policy, names[c.policy.digest], steps) for c in left])
        best = max(left, key=self.score).policy
        return [*made, self.finetuned(best, names[best.digest])]

    def finished(self, policy: Policy, what: str) -> list[Candidate]:
        """``policy`` rounded, and fine-tuned in full if the recipe trains at all."""
        found = [self.rounded(policy, what)]
        return [*found, self.finetuned(policy, what)] if self.assembly.recipe.qat.candidates else found

    def rounded(self, policy: Policy, what: str) -> Candidate:
        """``policy`` without training, its weights rounded as the recipe's preset says for the chosen few."""
        start = time.perf_counter()
        return self._candidate(policy, self._prepared(policy, what).lower(policy), "ptq", start)

    def finetuned(self, policy: Policy, what: str, steps: int | None = None) -> Candidate:
        """``policy`` fine-tuned from there, in full or for ``steps``; a fine-tune that was finished before is loaded."""
        from haqsearch.qat import FinetuneSettings, finetune, load_finetuned, save_finetuned

        a, qat = self.assembly, self.assembly.recipe.qat
        fidelity, steps = ("qat", qat.steps) if steps is None else (f"qat:{steps}", steps)
        prepared = self._prepared(policy, what)
        start = time.perf_counter()
        graph, ranges = prepared.graph, prepared.ranges
        weights = {layer.layer: prepared.weight(layer.layer, policy[layer.layer].weight) for layer in graph.layers}
        # The program it starts from is in the name: by another method, ranges and weights to start from are others.
        begun = prepared.lower(policy).digest
        file = self.folder / "qat" / f"{policy.digest}-{begun}-{steps}-{qat.batch}-{qat.learning_rate}.safetensors"
        if file.is_file():
            tuned = load_finetuned(file, graph, weights)
        else:
            self.say(f"fine-tuning {what}: {policy.digest}, {steps} steps")
            settings = FinetuneSettings(steps, qat.batch, qat.learning_rate, a.recipe.seed)
            tuned = finetune(
                graph, prepared.plan, policy, ranges, weights, a.splits, settings, lambda *_: self.tick()
            )  # fmt: skip
            self._note_seconds(file, time.perf_counter() - start)
            save_finetuned(tuned, file)
        return self._candidate(policy, prepared.finetuned(tuned).lower(policy), fidelity, start, self._seconds(file))

    def _prepared(self, policy: Policy, what: str) -> Prepared:
        a = self.assembly
        if "in_order" not in a.recipe.ptq.pipeline:
            return a.prepared
        if policy.digest not in self._rounded:
            self.say(f"rounding {what} in network order: {policy.digest}")
            self._rounded[policy.digest] = a.prepared.in_order(policy, a.splits.calibrate[0])
            self.tick()
        return self._rounded[policy.digest]

    def _candidate(
        self, policy: Policy, program: IntegerProgram, fidelity: str, start: float, seconds: float | None = None
    ) -> Candidate:
        """The program scored; it took the time since ``start``, or the ``seconds`` that are on record."""
        a = self.assembly
        scores = a.evaluator.score(program, "search")
        seconds = time.perf_counter() - start if seconds is None else seconds
        return Candidate(policy, program, a.evaluator.evaluation(policy, scores, fidelity, seconds, a.recipe.seed))

    # A restarted run loads what was trained before: how long that took is written down beside it.

    def _note_seconds(self, file: Path, seconds: float) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(file.parent / "seconds.json", {**self._on_record(file), file.stem: round(seconds, 3)})

    def _seconds(self, file: Path) -> float | None:
        return self._on_record(file).get(file.stem)

    def _on_record(self, file: Path) -> dict[str, float]:
        path = file.parent / "seconds.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
