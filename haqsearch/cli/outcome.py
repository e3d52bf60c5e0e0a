"""What a run writes down about its outcome, as plain JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import haqsearch
from haqsearch.cli.assemble import Assembly
from haqsearch.cli.finish import Candidate
from haqsearch.spec import Choice, Policy

if TYPE_CHECKING:
    from haqsearch.evaluate.metrics import Scores
    from haqsearch.search.records import Record

SCHEMA_VERSION = 1


def summarize(a: Assembly, name: str, records: list[Record], best: Candidate, scores: Scores) -> dict[str, Any]:
    """``summary.json`` but for the baseline and the times: accuracies in [0, 1] on the report split, metrics in base units."""
    recipe = a.recipe
    costs = a.meter.costs(best.policy)
    splits = a.splits
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
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
        "int8_accuracy": _int8_accuracy(a),
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
        "evaluations": sum(r.evaluation.ok for r in records),
        "pruned_evaluations": sum(r.pruned for r in records),
        "feasible_evaluations": sum(r.feasible for r in records),
        "seconds": {},
        "policy_digest": best.policy.digest,
        "fidelity": best.evaluation.fidelity,
        "splits": {name: len(getattr(splits, name)[0]) for name in ("calibrate", "search", "report")},
        "notes": [*a.space.removed, *_doubts(a, best.policy)],
    }


def _doubts(a: Assembly, policy: Policy) -> list[str]:
    """What there is to say against the costs of ``policy``."""
    costs = [cost for _, cost in a.meter.layer_costs(policy)]
    guessed = sum(cost.source.startswith("extrapolated") for cost in costs)
    draft = [f"{a.device.name} is a draft: it names no sources for its numbers"] if a.device.draft else []
    beyond = (
        f"{guessed} of {len(costs)} layers are unlike any that was measured on {a.device.name}: latency extrapolated"
    )
    return [*draft, *([beyond] if guessed else [])]


def _int8_accuracy(a: Assembly) -> float:
    """Report accuracy of all layers at 8/8, untrained."""
    int8 = Policy.uniform(a.prepared.spec, Choice.parse("w8a8"))
    return a.evaluator.score(a.prepared.lower(int8), "report").accuracy


def summarize_uniform(a: Assembly, best: Record, finished: Candidate | None) -> dict[str, Any]:
    """The baseline: the best single width pair inside the budget, chosen on the search split, reported like the winner."""
    free = [v for v in a.space.variables if len(v.candidates) > 1]
    scores = a.evaluator.score(a.prepared.lower(best.policy), "report")
    return {
        "policy": str(best.policy[free[0].layers[0]]) if free else "fixed",
        "accuracy": scores.accuracy,
        "finished_accuracy": a.evaluator.score(finished.program, "report").accuracy if finished else None,
        "kl": scores.kl,
        "metrics": dict(best.evaluation.metrics),
    }


def provenance(a: Assembly) -> dict[str, Any]:
    """What every policy file says beside its policy: for which weights and device it was found."""
    return {
        "model": a.model_name,
        "model_digest": a.prepared.spec.digest,
        "weights_digest": a.weights_digest,
        "hardware": {"name": a.device.name, "digest": a.device.digest, "batch": a.device.default_batch},
    }


def policy_json(a: Assembly, best: Candidate) -> dict[str, Any]:
    """``policy.json``: formats by layer, what they cost, and for which weights and device they were found."""
    from hwmodels.savings import idle

    _, idle_roles = idle(a.meter, best.policy)
    pinned = {layer for v in a.space.variables if v.role == "weight" and len(v.candidates) == 1 for layer in v.layers}
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
            "source": cost.source,
            "buys_nothing": list(idle_roles[layer.name]),
            **cost.values,
        }
        for layer, cost in a.meter.layer_costs(best.policy)
    ]
    return best.policy.to_json(
        **provenance(a),
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
    return {
        "haqsearch": haqsearch.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _commit() -> str:
    """Commit of the code that ran, with ``-dirty`` if the code (not a result, say) differs from it; ``unknown`` outside git."""
    package = Path(haqsearch.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--", str(package), str(package.parent / "hwmodels"))
    return (commit + ("-dirty" if changed else "")) if commit else "unknown"


def _processor() -> str:
    """Its name, and on x86 its family and model: clouds call processors of several generations by one name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":")[::2] for line in info.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
        said = {key.strip(): value.strip() for key, value in lines}
        if name := said.get("model name"):
            return f"{name} (family {said['cpu family']}, model {said['model']})" if "cpu family" in said else name
    return platform.processor() or platform.machine()
