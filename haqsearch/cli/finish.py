"""What the chosen few policies get: rounding in network order, fine-tuning, and a score as integer programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haqsearch.cli.assemble import Assembly
from haqsearch.cli.together import TOGETHER, sharing_threads
from haqsearch.files import write_json_atomic
from haqsearch.spec import OBJECTIVES, Evaluation, Policy

if TYPE_CHECKING:
    from haqsearch.evaluate import Prepared
    from haqsearch.ptq.sequential import FloatOutputs
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
class _Rounded:
    """A policy with its weights rounded in network order, and the seconds that took; ``balanced``: whether balanced channels
    were tried too.
    """

    prepared: Prepared
    seconds: float
    balanced: bool = False


@dataclass(frozen=True)
class Finisher:
    """Finishes policies of one run. ``tick`` is called now and then; what is trained is kept in ``folder``.

    ``at_once``  policies rounded at a time, >= 1, on torch's threads together; the results do not depend on it
    """

    assembly: Assembly
    folder: Path
    say: Callable[[str], None]
    tick: Callable[[], None]
    at_once: int = TOGETHER
    _rounded: dict[str, _Rounded] = field(default_factory=dict)

    def score(self, candidate: Candidate) -> float:
        """What decides: the recipe's objective on the search split, large is good."""
        return OBJECTIVES[self.assembly.recipe.objective].score(candidate.evaluation)

    def climbed(self, policies: Sequence[Policy], rounded_too: Policy | None = None) -> list[Candidate]:
        """Successive halving of ``policies``, best first: everything that was made of them on the way.

        ``rounded_too``: a policy that is to be ``finished`` afterwards, and is rounded along with them.

        All are rounded - in network order the better half of them once more, with balanced channels -, and the best
        ``qat.candidates`` of them go on. If several do, each is fine-tuned for a quarter of the steps, and the best of these in
        full; a single one is trained in full at once. Without training (``qat.candidates = 0``) rounding is all. A short
        fine-tune has a schedule of its own, from which the full one could not go on: that starts afresh.

        Two by default, because rounding says less of training than a short training does. Ten policies of digits_cnn, the best
        of a search at 0.45 of int8's latency: Spearman's rho with the full fine-tune is 0.44 for the rounded, 0.72 for the short.
        """
        qat = self.assembly.recipe.qat
        names = {policy.digest: f"{number} of {len(policies)}" for number, policy in enumerate(policies, 1)}
        others = [rounded_too] if rounded_too and rounded_too.digest not in names else []
        self._round([*policies, *others], {**{other.digest: "the one to compare with" for other in others}, **names})
        made = [self._without_training(policy) for policy in policies]
        better = [candidate.policy for candidate in self._ranked(made)[: (len(made) + 1) // 2]]
        if self._balance([*better, *others]):
            made = [self._without_training(policy) for policy in policies]
        if not qat.candidates:
            return made
        left = self._ranked(made)[: qat.candidates]
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
        self._round([policy], {policy.digest: what})
        self._balance([policy])
        return self._without_training(policy)

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

    def _ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=self.score, reverse=True)  # stable: among equals the search's order holds

    def _without_training(self, policy: Policy) -> Candidate:
        start = time.perf_counter()
        rounded = self._rounded.get(policy.digest)
        prepared, seconds = (rounded.prepared, rounded.seconds) if rounded else (self.assembly.prepared, 0.0)
        return self._candidate(policy, prepared.lower(policy), "ptq", start - seconds)

    def _prepared(self, policy: Policy, what: str) -> Prepared:
        self._round([policy], {policy.digest: what})
        rounded = self._rounded.get(policy.digest)
        return rounded.prepared if rounded else self.assembly.prepared

    def _round(self, policies: Sequence[Policy], names: Mapping[str, str]) -> None:
        """Round the weights of ``policies`` in network order, if the recipe's preset does and they are not yet."""
        a = self.assembly
        left = [p for p in policies if "in_order" in a.recipe.ptq.pipeline and p.digest not in self._rounded]
        if not left:
            return
        for policy in left:
            self.say(f"rounding {names[policy.digest]} in network order: {policy.digest}")
        wanted = self._float_outputs
        self._keep(left, lambda policy: a.prepared.rounded_in_order(policy, wanted), balanced=False)

    def _balance(self, policies: Sequence[Policy]) -> bool:
        """Try balanced channels on those of ``policies`` that are rounded in network order; whether there were any to try."""
        prepared, rounded = self.assembly.prepared, self._rounded
        left = [p for p in policies if p.digest in rounded and not rounded[p.digest].balanced]
        if not left:
            return False
        self.say(f"{len(left)} of them with balanced channels, where activations are narrow")
        wanted = self._float_outputs
        self._keep(left, lambda p: prepared.balanced_in_order(p, rounded[p.digest].prepared, wanted), balanced=True)
        vars(self).pop("_float_outputs")  # large, and all that are to be rounded are
        return True

    @cached_property
    def _float_outputs(self) -> FloatOutputs:
        """The same for all policies."""
        from haqsearch.ptq.sequential import FloatOutputs

        return FloatOutputs(self.assembly.prepared.graph, self.assembly.splits.calibrate[0])

    def _keep(self, policies: Sequence[Policy], make: Callable[[Policy], Prepared], balanced: bool) -> None:
        """Keep what ``make`` makes of each policy."""

        def timed(policy: Policy) -> tuple[Prepared, float]:
            start = time.perf_counter()
            return make(policy), time.perf_counter() - start

        for policy, (prepared, seconds) in zip(policies, self._each(timed, policies), strict=True):
            before = self._rounded.get(policy.digest)
            self._rounded[policy.digest] = _Rounded(prepared, seconds + (before.seconds if before else 0.0), balanced)
            self.tick()

    def _each(
        self, make: Callable[[Policy], tuple[Prepared, float]], policies: Sequence[Policy]
    ) -> Iterator[tuple[Prepared, float]]:
        """What ``make`` makes of each, ``at_once`` at a time: mostly products of matrices, which threads do side by side."""
        at_once = min(self.at_once, len(policies))
        if at_once < 2:
            yield from map(make, policies)
            return
        with sharing_threads(at_once), ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(make, policies)

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
