"""What ``haqsearch run`` does, stage by stage. Every stage can be killed and is taken up where it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import haqsearch
from haqsearch.cli.assemble import RECIPE_FILE, Assembly
from haqsearch.config import AFTERTHOUGHTS, flat, load_recipe, to_toml
from haqsearch.errors import SearchError
from haqsearch.files import write_json_atomic, write_text_atomic
from haqsearch.spec import OBJECTIVES, Choice, Evaluation, Policy

if TYPE_CHECKING:
    from haqsearch.evaluate.metrics import Scores
    from haqsearch.runtime import IntegerProgram
    from haqsearch.search.loop import Event, Summary
    from haqsearch.search.records import Record

SCHEMA_VERSION = 1


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

    def _write(self) -> None:
        self.written = time.perf_counter()
        self.seconds[self.name] = round(self.before + self.written - self.start, 3)
        write_json_atomic(self.path, self.seconds)


@dataclass(frozen=True)
class Candidate:
    """A policy that may win: its integer program and its score on the search split."""

    policy: Policy
    program: IntegerProgram
    evaluation: Evaluation


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
        from haqsearch.search.records import best_of

        self._threads()
        self._same_recipe()
        with self.clock.stage("prepare", self.began):
            self._prepare()
        with self.clock.stage("round_weights"):
            self._round_weights()
        with self.clock.stage("search"):
            records, summary = self._search()
        if summary.exhausted:
            self.say(f"search ended early: {summary.exhausted}")
        winners = self._feasible(records)
        qat = self.assembly.recipe.qat
        with self.clock.stage("qat"):
            candidates = self._finetune(winners[: qat.candidates])
        baseline = best_of([r for r in records if r.source == "uniform"])
        tuned_baseline: list[Candidate] = []
        if baseline and qat.candidates and qat.baseline:
            with self.clock.stage("qat_baseline"):
                tuned_baseline = self._finetune([baseline])
        with self.clock.stage("report"):
            return self._finish(records, winners, candidates, baseline, tuned_baseline)

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
        for sentence in a.space.removed:
            self.say(f"  removed from the search space: {sentence}")
        a.check_prepared()
        # In a database studies are told apart by their folders' names; a folder holds one, and may be renamed.
        where, name = (recipe.storage, self.folder.name) if recipe.storage else (self.folder, "search")
        self.study = open_study(where, name, f"{recipe.digest}-{a.weights_digest}-{a.device.digest}")
        write_text_atomic(self.folder / RECIPE_FILE, to_toml(recipe))

    def _round_weights(self) -> None:
        """Integer weights of every layer in every format of the search space, where making them takes time."""
        from haqsearch.evaluate import WeightBank

        bank = self.assembly.prepared.weight
        if isinstance(bank, WeightBank):
            variables = [v for v in self.assembly.space.variables if v.role == "weight"]
            bank.prepare(((v.layers[0], format) for v in variables for format in v.candidates), self.say)

    def _search(self) -> tuple[list[Record], Summary]:
        from haqsearch.search.loop import run_search
        from haqsearch.search.pool import Pool, SerialPool
        from haqsearch.search.records import read_records, write_pareto, write_trials

        a, recipe = self.assembly, self.assembly.recipe
        pool: Pool
        if self.workers:
            from haqsearch.search.ray_pool import RayPool

            threads = max((os.cpu_count() or 1) // self.workers, 1)
            pool = RayPool("haqsearch.cli.assemble:worker_evaluator", a.to_config(threads), self.workers, threads)
        else:
            pool = SerialPool(a.evaluator.evaluate)

        def on_event(event: Event) -> None:
            self.clock.tick()
            self.on_event(event)

        try:
            summary = run_search(a.problem, a.agent, pool, self.study, recipe.max_evaluations, on_event)
        finally:
            pool.close()
        records = read_records(self.study)
        write_trials(self.folder / "trials.parquet", records)
        metrics = list(dict.fromkeys(limit.metric for limit in a.limits))
        write_pareto(self.folder / "pareto.json", records, a.problem.objective, metrics)
        return records, summary

    def _feasible(self, records: list[Record]) -> list[Record]:
        """Feasible records, best score first."""
        found = sorted((r for r in records if r.feasible), key=lambda r: (-(r.score or 0.0), r.number))
        if not found:
            raise SearchError("no evaluated policy is inside the budget; look at trials.parquet for what was tried")
        return found

    def _finetune(self, chosen: list[Record]) -> list[Candidate]:
        """Fine-tune the chosen policies; a finished one is kept in ``qat/`` and not trained again."""
        from haqsearch.qat import FinetuneSettings, finetune, load_finetuned, save_finetuned
        from haqsearch.quant import QWeight

        a, qat = self.assembly, self.assembly.recipe.qat
        settings = FinetuneSettings(qat.steps, qat.batch, qat.learning_rate, a.recipe.seed)
        trained = []
        for number, record in enumerate(chosen, 1):
            policy, prepared = record.policy, a.prepared
            file = self.folder / "qat" / f"{policy.digest}-{qat.steps}-{qat.batch}-{qat.learning_rate}.safetensors"
            weights: dict[str, QWeight] = {
                node.layer: prepared.weight(node.layer, policy[node.layer].weight) for node in prepared.graph.layers
            }
            start = time.perf_counter()
            if file.is_file():
                tuned = load_finetuned(file, prepared.graph, weights)
            else:
                what = "the uniform baseline" if record.source == "uniform" else f"{number} of {len(chosen)}"
                self.say(f"fine-tuning {what}: {policy.digest}, {qat.steps} steps")
                ranges, splits = prepared.ranges, a.splits
                tuned = finetune(
                    prepared.graph,
                    prepared.plan,
                    policy,
                    ranges,
                    weights,
                    splits,
                    settings,
                    lambda *_: self.clock.tick(),
                )
                save_finetuned(tuned, file)
            program = prepared.finetuned(tuned).lower(policy)
            scores = a.evaluator.score(program, "search")
            seconds = time.perf_counter() - start
            evaluation = a.evaluator.evaluation(policy, scores, "qat", seconds, settings.seed)
            trained.append(Candidate(policy, program, evaluation))
        return trained

    # -- outcome --------------------------------------------------------------------------------------------------

    def _finish(
        self,
        records: list[Record],
        winners: list[Record],
        trained: list[Candidate],
        baseline: Record | None,
        tuned_baseline: list[Candidate],
    ) -> dict[str, Any]:
        from haqsearch.export import exporter
        from haqsearch.report import write_report
        from haqsearch.runtime import save_program

        a = self.assembly
        objective = OBJECTIVES[a.recipe.objective]
        first = winners[0]
        untrained = Candidate(first.policy, a.prepared.lower(first.policy), first.evaluation)
        best = max([untrained, *trained, *tuned_baseline], key=lambda c: objective.score(c.evaluation))
        self.say("scoring the winner on the report split")
        scores = a.evaluator.score(best.program, "report")
        summary = self._summary(records, best, scores)
        if baseline:
            summary["uniform"] = self._uniform(baseline, tuned_baseline)
        provenance = {"haqsearch.policy_digest": best.policy.digest, "haqsearch.version": haqsearch.__version__}
        save_program(best.program, self.folder / "model.safetensors", provenance)
        write_json_atomic(self.folder / "policy.json", self._policy_json(best))
        notes = []
        try:
            exporter("onnx")(best.program, self.folder / "model.onnx", provenance)
        except haqsearch.HaqError as error:  # a float region; everything else is still worth having
            notes.append(f"no model.onnx: {error}")
            self.say(notes[-1])
        write_json_atomic(self.folder / "environment.json", environment())
        self.clock.tick(0.0)
        summary["seconds"] = dict(self.clock.seconds)
        summary["notes"] += notes
        write_json_atomic(self.folder / "summary.json", summary)
        write_report(self.folder)
        return summary

    def _summary(self, records: list[Record], best: Candidate, scores: Scores) -> dict[str, Any]:
        a, recipe = self.assembly, self.assembly.recipe
        costs = a.meter.costs(best.policy)
        splits = a.splits
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.folder.name,
            "model": a.model_name,
            "data": recipe.data,
            "hardware": {"name": a.device.name, "summary": a.device.summary, "batch": a.device.default_batch},
            "agent": recipe.agent,
            "objective": recipe.objective,
            "seed": recipe.seed,
            "float_accuracy": a.evaluator.float_scores("report").accuracy,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "kl": scores.kl,
            "int8_accuracy": self._int8_accuracy(),
            "uniform": None,
            "feasible": all(limit.met(costs) for limit in a.limits),
            "metrics": costs,
            "int8_metrics": a.meter.int8(),
            "budget": [
                {
                    "metric": limit.metric,
                    "limit": limit.value,
                    "value": costs[limit.metric],
                    "met": limit.met(costs),
                    "text": limit.text,
                }
                for limit in a.limits
            ],
            "evaluations": sum(r.score is not None for r in records),
            "feasible_evaluations": sum(r.feasible for r in records),
            "seconds": {},
            "policy_digest": best.policy.digest,
            "fidelity": best.evaluation.fidelity,
            "splits": {name: len(getattr(splits, name)[0]) for name in ("calibrate", "search", "report")},
            "notes": list(a.space.removed),
        }

    def _int8_accuracy(self) -> float | None:
        """Report accuracy of all layers at 8/8, where the device and the kernels allow it."""
        a = self.assembly
        int8 = Policy.uniform(a.prepared.spec, Choice.parse("w8a8"))
        return a.evaluator.score(a.prepared.lower(int8), "report").accuracy

    def _uniform(self, best: Record, tuned: list[Candidate]) -> dict[str, Any]:
        """The baseline: the best single width pair inside the budget, chosen on the search split, reported like the winner."""
        a = self.assembly
        free = [v for v in a.space.variables if len(v.candidates) > 1]
        scores = a.evaluator.score(a.prepared.lower(best.policy), "report")
        return {
            "policy": str(best.policy[free[0].layers[0]]) if free else "fixed",
            "accuracy": scores.accuracy,
            "finetuned_accuracy": a.evaluator.score(tuned[0].program, "report").accuracy if tuned else None,
            "kl": scores.kl,
            "metrics": dict(best.evaluation.metrics),
        }

    def _policy_json(self, best: Candidate) -> dict[str, Any]:
        a = self.assembly
        pinned = {
            layer for v in a.space.variables if v.role == "weight" and len(v.candidates) == 1 for layer in v.layers
        }
        layer_costs = [
            {
                "layer": layer.name,
                "op": layer.op,
                "in_shape": layer.in_shape,
                "weight_shape": layer.weight_shape,
                "out_shape": layer.out_shape,
                "macs": layer.macs,
                "pinned": layer.name in pinned or not layer.quantizable,
                "bound": cost.bound,
                **cost.values,
            }
            for layer, cost in a.meter.layer_costs(best.policy)
        ]
        return best.policy.to_json(
            model=a.model_name,
            model_digest=a.prepared.spec.digest,
            weights_digest=a.weights_digest,
            hardware={"name": a.device.name, "digest": a.device.digest, "batch": a.device.default_batch},
            fidelity=best.evaluation.fidelity,
            costs=a.meter.costs(best.policy),
            layer_costs=layer_costs,
        )


def environment() -> dict[str, Any]:
    """Versions, machine and commit: what a figure needs beside it to be believed."""
    packages = {}
    for name in ("torch", "numpy", "optuna", "ray", "onnx", "scikit-learn"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "haqsearch": haqsearch.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
