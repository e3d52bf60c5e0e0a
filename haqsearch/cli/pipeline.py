"""What ``haqsearch run`` does, stage by stage. Every stage can be killed and is taken up where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haqsearch.cli.assemble import Assembly
from haqsearch.cli.deliver import write_program
from haqsearch.cli.finish import Candidate, Finisher
from haqsearch.cli.names import RECIPE_FILE
from haqsearch.cli.outcome import environment, provenance, summarize, summarize_uniform
from haqsearch.cli.policies import about_warm_starts
from haqsearch.cli.together import TOGETHER, sharing_threads
from haqsearch.config import AFTERTHOUGHTS, flat, load_recipe, to_toml
from haqsearch.errors import SearchError
from haqsearch.files import write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from haqsearch.search.ladder import Ladder
    from haqsearch.search.loop import Event, Summary
    from haqsearch.search.pool import Pool
    from haqsearch.search.records import Record


class Clock:
    """Seconds spent in each stage, added up over restarts in ``seconds.json``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "seconds.json"
        self.seconds: dict[str, float] = {}
        if self.path.is_file():
            self.seconds = json.loads(self.path.read_text(encoding="utf-8"))

    @contextmanager
    def stage(self, name: str, start: float | None = None) -> Iterator[None]:
        """Time the block as ``name``; it began at ``start`` (``time.perf_counter``), if that is given."""
        self.written = time.perf_counter()
        self.name, self.before, self.start = name, self.seconds.get(name, 0.0), start or self.written
        yield
        self._write()

    def tick(self, every: float = 1.0) -> None:
        """Write down the time of the stage under way, once a second; a killed process loses only what came after."""
        if time.perf_counter() - self.written >= every:
            self._write()

    @property
    def spent(self) -> float:
        """Seconds of the stage under way, those before a restart included."""
        return self.before + time.perf_counter() - self.start

    def _write(self) -> None:
        self.written = time.perf_counter()
        self.seconds[self.name] = round(self.before + self.written - self.start, 3)
        write_json_atomic(self.path, self.seconds)


@dataclass
class Run:
    """One run in its folder. ``on_event`` hears of evaluations, ``say`` of stages."""

    assembly: Assembly
    folder: Path
    workers: int
    say: Callable[[str], None]
    on_event: Callable[[Event], None] = lambda event: None
    began: float = field(init=False, default_factory=time.perf_counter)
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(self.folder)

    def __call__(self) -> dict[str, Any]:
        """Do everything; the summary that is also in ``summary.json``."""
        self._threads()
        self._same_recipe()
        with self.clock.stage("prepare", self.began):
            self._prepare()
        if self._rounds_slowly:
            with self.clock.stage("round_weights"):
                self.assembly.round_weights(self.say)
        if self.assembly.agent.needs_sensitivity:
            with self.clock.stage("sensitivity"):
                self._sensitivity()
        with self.clock.stage("search"):
            records, summary = self._search()
        self.say(f"search ended: {summary.why}")
        second: list[Record] = []
        if self.assembly.recipe.ptq.refine:
            with self.clock.stage("refine"):
                second = self._refine(records)
        finished = self._finish(records, second)
        with self.clock.stage("report"):
            return self._report(records, second, summary, *finished)

    @property
    def _rounds_slowly(self) -> bool:
        return {"reconstruct", "adaround"} & set(self.assembly.recipe.ptq.pipeline) != set()

    # -- stages ---------------------------------------------------------------------------------------------------

    def _threads(self) -> None:
        import torch

        if "OMP_NUM_THREADS" not in os.environ:  # the user's own number is left alone
            torch.set_num_threads(os.cpu_count() or 1)

    def _same_recipe(self) -> None:
        """Raise SearchError if another recipe has begun a run here: its study, and its trained network, are not to be mixed."""
        file = self.folder / RECIPE_FILE
        if not file.is_file():
            return
        begun, now = load_recipe(file), self.assembly.recipe
        if begun.digest != now.digest:
            there, here = flat(begun), flat(now)
            differ = [f"{key} was {there.get(key)}, is {here.get(key)}" for key in {**there, **here}
                      if there.get(key) != here.get(key) and key.partition(".")[0] not in AFTERTHOUGHTS]  # fmt: skip
            raise SearchError(
                f"{self.folder} holds a search of another recipe ({'; '.join(differ)}): choose another folder with --out, "
                "or delete this one to start over"
            )

    def _prepare(self) -> None:
        """Model, data, trace, calibration, device, budget: what can be wrong is found here, before anything is searched."""
        from haqsearch.search.storage import open_study

        a, recipe = self.assembly, self.assembly.recipe
        sizes = ", ".join(f"{len(getattr(a.splits, name)[0])} {name}" for name in ("train", "search", "report"))
        self.say(f"{recipe.data}: {sizes} samples")
        if not recipe.weights and not a.has_kept_network():
            self.say(f"{a.model_name}: training the float network")
        spec = a.prepared.spec
        macs = sum(layer.macs for layer in spec)
        self.say(f"{a.model_name}: {len(spec)} layers, {macs / 1e6:.2f} M MACs, {a.space.size:.2e} policies")
        if a.device.draft:
            self.say(f"{a.device.name}: {a.device.summary}")
        for sentence in a.space.removed:
            self.say(f"  removed from the search space: {sentence}")
        a.check_prepared()
        for sentence in about_warm_starts(a):
            self.say(sentence)
        # In a database studies are told apart by their folders' names; a folder holds one, and may be renamed.
        where, name = (recipe.storage, self.folder.name) if recipe.storage else (self.folder, "search")
        self.digest = "-".join([recipe.digest, a.weights_digest, a.device.digest, *(p.digest for p in a.warm_starts)])
        self.study = open_study(where, name, self.digest, a.problem.directions)
        write_text_atomic(self.folder / RECIPE_FILE, to_toml(recipe))

    def _sensitivity(self) -> None:
        """What each width of each layer does to the score alone: measured once, kept variable by variable."""
        a = self.assembly
        count = sum(len(v.candidates) - 1 for v in a.space.variables) + 1
        calculated = a.sensitivities.calculated(a.sensitivity_measure)
        how = f"calculated by {calculated.measure.name}" if calculated else f"{count} evaluations"
        self.say(f"measuring the sensitivity of {len(a.space.variables)} variables: {how}, once")
        _ = a.problem.sensitivity
        self.clock.tick()

    def _search(self) -> tuple[list[Record], Summary]:
        from haqsearch.search.loop import run_search
        from haqsearch.search.records import best_of, read_records, write_best, write_pareto, write_trials

        a, recipe = self.assembly, self.assembly.recipe
        pool = self._pool()
        best_file, origin = self.folder / "best.json", provenance(a)

        def on_event(event: Event) -> None:
            self.clock.tick()
            if event.best is event.record:
                write_best(best_file, event.record, **origin)
            self.on_event(event)

        if known := best_of(read_records(self.study)):  # a killed process may have told it, but not have written it
            write_best(best_file, known, **origin)
        try:
            summary = run_search(
                a.problem,
                a.agent,
                pool,
                self.study,
                recipe.max_evaluations,
                on_event,
                max_seconds=recipe.max_seconds - self.clock.spent,
                patience=recipe.patience,
                ladder=self._ladder,
                say=self.say,
            )
        finally:
            pool.close()
        records = read_records(self.study)
        write_trials(self.folder / "trials.parquet", records)
        volume = summary.front.to_json() if summary.front else None
        write_pareto(self.folder / "pareto.json", records, a.problem.objective, a.problem.counted, volume)
        return records, summary

    def _pool(self, in_order: bool = False) -> Pool:
        """Who evaluates; ``in_order``: with weights rounded in network order."""
        from haqsearch.search.pool import SerialPool, ThreadPool

        a = self.assembly
        if not self.workers:
            return ThreadPool(a.evaluator.evaluate_in_order, TOGETHER) if in_order else SerialPool(a.evaluator.evaluate)
        from haqsearch.search.ray_pool import RayPool

        threads = max((os.cpu_count() or 1) // self.workers, 1)
        config = {**a.to_config(threads), "in_order": in_order}
        return RayPool("haqsearch.cli.assemble:worker_evaluator", config, self.workers, threads)

    def _refine(self, records: list[Record]) -> list[Record]:
        """The second search, from the best policies of the first, every policy rounded in network order."""
        from haqsearch.search.loop import run_search
        from haqsearch.search.records import read_records, write_trials
        from haqsearch.search.refine import refined
        from haqsearch.search.storage import open_study

        a, recipe = self.assembly, self.assembly.recipe
        problem, name = refined(a.problem, records)
        where = recipe.storage or self.folder
        study = open_study(where, f"{self.folder.name}-{name}" if recipe.storage else name, self.digest)
        self.say(f"refining: {recipe.ptq.refine} policies rounded in network order, from the best of the search on")

        def on_event(event: Event) -> None:
            self.clock.tick()
            self.on_event(event)

        pool = self._pool(in_order=True)
        try:
            with sharing_threads(pool.capacity):
                run_search(problem, a.agent_for(problem, recipe.ptq.refine), pool, study, recipe.ptq.refine, on_event)
        finally:
            pool.close()
        found = read_records(study)
        write_trials(self.folder / "refined.parquet", found)
        return found

    @property
    def _ladder(self) -> Ladder:
        from haqsearch.search.ladder import Ladder

        return Ladder(**self.assembly.recipe.ladder.model_dump())

    def _finish(
        self, records: list[Record], second: list[Record]
    ) -> tuple[list[Candidate], list[Candidate], Record | None]:
        """What was made of the best policies - of the second search if there was one -, what of the best uniform one, and that
        one's record.

        The uniform policy gets every rung that the winner gets, whatever it scores, and may win: it is what the search is
        compared with.
        """
        from haqsearch.search.records import best_of
        from haqsearch.search.refine import leading

        recipe = self.assembly.recipe
        rounded_anew = "in_order" in recipe.ptq.pipeline
        count = max(recipe.qat.candidates, recipe.ptq.finalists if rounded_anew else 1)
        chosen = [r.policy for r in leading(second or records)[:count]]
        baseline = best_of([r for r in records if r.source == "uniform"])
        compared = baseline is not None and recipe.qat.baseline
        with self.clock.stage("finish"):
            found = self._finisher.climbed(chosen, baseline.policy if baseline and compared else None)
        if baseline is None or not compared:
            return found, [], baseline
        with self.clock.stage("finish_baseline"):
            return found, self._finisher.finished(baseline.policy, "the uniform baseline"), baseline

    @cached_property
    def _finisher(self) -> Finisher:
        return Finisher(self.assembly, self.folder, self.say, self.clock.tick, self.workers or TOGETHER)

    def _report(
        self,
        records: list[Record],
        second: list[Record],
        search: Summary,
        candidates: list[Candidate],
        uniform: list[Candidate],
        baseline: Record | None,
    ) -> dict[str, Any]:
        """Choose the winner on the search split, score it on the report split, write everything down."""
        from haqsearch.report import write_report

        a, score = self.assembly, self._finisher.score
        best = max([*candidates, *uniform], key=score)
        self.say("scoring the winner on the report split")
        scores = a.evaluator.score(best.program, "report")
        summary = summarize(a, self.folder.name, records, best, scores)
        summary["ended"] = {"by": search.ended, "why": search.why}
        if second:
            summary["refined"] = {"evaluations": sum(r.evaluation.ok for r in second)}
        summary["ladder"] = self._ladder.summary(self.study) if a.recipe.ladder.rungs else None
        if baseline:
            summary["uniform"] = summarize_uniform(a, baseline, max(uniform, key=score, default=None))
        origin = [*[("search", c) for c in candidates], *[("uniform", c) for c in uniform]]
        summary["finish"] = [candidate.to_json(source, score(candidate)) for source, candidate in origin]
        if search.front is not None:
            summary["tradeoff"] = {"metrics": list(a.problem.tradeoff), **search.front.to_json()}
            if not a.limits:
                summary["notes"].append("no budget: the chosen policy is the best in the objective, whatever it costs")
        notes = write_program(a, best, self.folder)
        for note in notes:
            self.say(note)
        write_json_atomic(self.folder / "environment.json", environment())
        self.clock.tick(0.0)
        summary["seconds"] = dict(self.clock.seconds)
        summary["notes"] += notes
        write_json_atomic(self.folder / "summary.json", summary)
        write_report(self.folder)
        return summary
