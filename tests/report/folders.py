"""Run folders made to measure: a ResNet-20 search with 150 plausible trials, and what can go wrong with it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from haqsearch.spec import Budget, Choice, Format, LayerSpec, ModelSpec, Policy, SearchSpace, front, violation

BUDGET = ("latency_s <= 0.62 * int8", "energy_j <= 0.5 * int8", "size_bytes <= 140 kB")
PINNED = Choice.parse("w8a8")


def resnet20(names: dict[str, str] | None = None) -> ModelSpec:
    """The 20 layers of a CIFAR ResNet-20; ``names`` renames some."""
    names = names or {}
    layers = [_conv("conv1", 3, 16, 32, 32)]
    channels, size = 16, 32
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            out = size // 2 if stage > 1 and block == 0 else size
            layers.append(_conv(f"layer{stage}.{block}.conv1", channels, width, size, out))
            layers.append(_conv(f"layer{stage}.{block}.conv2", width, width, out, out))
            channels, size = width, out
    layers.append(LayerSpec("linear", "linear", (64,), (10, 64), (10,), macs=640))
    renamed = [LayerSpec(**{**vars(layer), "name": names.get(layer.name, layer.name)}) for layer in layers]
    return ModelSpec("resnet20", tuple(renamed), input_shape=(3, 32, 32))


def _conv(name: str, cin: int, cout: int, size: int, out: int) -> LayerSpec:
    macs = cout * cin * 9 * out * out
    return LayerSpec(name, "conv2d", (cin, size, size), (cout, cin, 3, 3), (cout, out, out), macs, kernel=(3, 3))


def layer_costs(layer: LayerSpec, choice: Choice) -> dict[str, float]:
    """A toy device: cycles by bit product, bandwidth by weight bytes."""
    w, a = choice.weight.bits, choice.activation.bits
    size = layer.weight_count * w / 8 + layer.out_channels * 8
    compute, memory = layer.macs * w * a / 64 / 40e9 + 4e-6, size / 6e9 + layer.in_elements * a / 8 / 6e9
    bops = layer.macs * w * a
    return {
        "latency_s": max(compute, memory),
        "energy_j": bops * 1.1e-14 + size * 2e-11,
        "size_bytes": size,
        "bops": bops,
    }


def costs(model: ModelSpec, policy: Policy) -> dict[str, float]:
    rows = [layer_costs(layer, policy[layer.name]) for layer in model]
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    peak = max((layer.in_elements * policy[layer.name].activation.bits / 8 + layer.out_elements) for layer in model)
    return {**total, "peak_activation_bytes": peak}


def quality(model: ModelSpec, policy: Policy, noise: float) -> dict[str, float]:
    """KL falls by a factor with every bit; accuracy follows it down to chance."""
    kl = 2e-4
    for i, layer in enumerate(model):
        w, a = policy[layer.name].weight.bits, policy[layer.name].activation.bits
        kl += (2.2 ** -(w - 1) * 0.06 + 2.2 ** -(a - 1) * 0.04) * (3.2 if i % 5 == 0 else 0.35)
    kl *= noise
    accuracy = round(10000 * max(0.1, 0.9312 - 0.11 * kl - 0.04 * max(0.0, kl - 0.6) ** 2)) / 10000
    return {"kl": kl, "loss": 0.2145 + 0.8 * kl, "accuracy": accuracy}


def write_run(
    folder: Path,
    budget: tuple[str, ...] = BUDGET,
    trials: int = 150,
    names: dict[str, str] | None = None,
    objective: str = "kl",
    traded: Sequence[str] = (),
    **summary: Any,
) -> Path:
    """A finished run folder under ``folder``; ``traded``: metrics that pareto.json is a front of, in place of all.

    Other keywords replace keys of summary.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    model = resnet20(names)
    pins = {model.layers[0].name: PINNED, model.layers[-1].name: PINNED}
    space = SearchSpace.build(model, range(2, 9), range(2, 9), fixed=pins)
    int8 = costs(model, Policy.uniform(model, PINNED))
    limits = tuple(Budget.parse(text).resolve(int8) for text in budget)
    rows: list[dict[str, Any]] = []
    policies: dict[str, Policy] = {}

    def evaluate(policy: Policy, source: str) -> None:
        policies[policy.digest] = policy
        values = costs(model, policy)
        over = violation(values, limits)
        seen = quality(model, policy, rng.uniform(0.92, 1.1))
        rows.append({
            "number": len(rows), "source": source, "policy_digest": policy.digest, "score": -seen["kl"], **seen,
            "feasible": over == 0, "violation": over, "seconds": rng.uniform(0.3, 0.6), **values,
            "policy": json.dumps({name: str(choice) for name, choice in policy.items()}), "proposal": "", "error": "",
        })  # fmt: skip

    for bits in range(2, 9):
        evaluate(Policy.uniform(model, Choice(Format("int", bits), Format("uint", bits)), pins), "uniform")
    best: Policy | None = None
    while len(rows) < trials:
        if best is None or rng.random() < 0.15:
            low = rng.randint(0, 4)
            policy = space.policy(
                [rng.randint(min(low, len(v.candidates) - 1), len(v.candidates) - 1) for v in space.variables]
            )
        else:
            picks = list(space.indices(best))
            for k in rng.sample(range(len(picks)), 6):
                picks[k] = max(0, min(len(space.variables[k].candidates) - 1, picks[k] + rng.choice((-1, 1))))
            policy = space.policy(picks)
        evaluate(policy, "agent")
        inside = [row for row in rows if row["feasible"]]
        best = policies[max(inside or rows, key=lambda r: (-r["violation"], r["score"]))["policy_digest"]]
    if trials > 20:  # one evaluation that failed
        rows[15] |= {"kl": None, "loss": None, "accuracy": None, "score": None, "error": "ModelError: too wide"}
    _write(folder, model, rows, policies, limits, int8, objective, list(traded or int8), summary)
    return folder


def _write(folder: Path, model: ModelSpec, rows: list[dict[str, Any]], policies: dict[str, Policy], limits: Any,
           int8: dict[str, float], objective: str, metrics: list[str], changes: dict[str, Any]) -> None:  # fmt: skip
    scored = [row for row in rows if row["kl"] is not None]
    inside = [row for row in scored if row["feasible"]]
    chosen = max(inside, key=lambda r: r["score"]) if inside else min(scored, key=lambda r: r["violation"])
    policy = policies[chosen["policy_digest"]]
    values = {key: chosen[key] for key in int8}
    _json(folder / "policy.json", policy.to_json(layer_costs=[
        {"layer": layer.name, "op": layer.op, "in_shape": layer.in_shape, "weight_shape": layer.weight_shape,
         "out_shape": layer.out_shape, "macs": layer.macs, "pinned": layer in (model.layers[0], model.layers[-1]),
         "bound": "compute" if layer.macs > 1e5 else "memory", **layer_costs(layer, policy[layer.name])}
        for layer in model
    ]))  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "trials.parquet")
    kept = front([(-row["score"], *(row[key] for key in metrics)) for row in scored])
    _json(folder / "pareto.json", {"schema_version": 1, "objective": objective, "metrics": metrics, "points": [
        {**{key: scored[i][key] for key in ("policy_digest", "score", "accuracy", "loss", "kl")},
         "point": number, "metrics": {key: scored[i][key] for key in int8}, "policy": json.loads(scored[i]["policy"])}
        for number, i in enumerate(sorted(kept, key=lambda i: -scored[i]["score"]), start=1)
    ]})  # fmt: skip
    _json(folder / "environment.json", {
        "haqsearch": "0.1.0", "python": "3.11.9", "torch": "2.11.0", "plotly": "7.1.0", "commit": "d544310a9",
        "platform": "Linux-6.8.0-x86_64-with-glibc2.36", "cpu": "AMD EPYC 9354, 16 threads",
        "started": "2026-08-14T09:12:44Z",
        "threads": {"torch": 16},
    })  # fmt: skip
    summary = {
        "schema_version": 1, "name": "resnet20-cifar10-edge", "model": "resnet20", "data": "cifar10",
        "hardware": {"name": "bitfusion-edge", "summary": "512 fused units at 500 MHz, 112 kB of SRAM", "batch": 1},
        "agent": "evolution", "objective": objective, "seed": 0, "float_accuracy": 0.9167, "accuracy": 0.9142,
        "int8_accuracy": 0.9164, "uniform": {"policy": "w5a6", "accuracy": 0.9087, "policy_digest": "0" * 16},
        "feasible": bool(inside), "metrics": values, "int8_metrics": int8,
        "budget": [{"metric": x.metric, "limit": x.value, "value": values[x.metric], "met": x.met(values),
                    "text": x.text}
                   for x in limits],
        "evaluations": len(rows), "feasible_evaluations": len(inside),
        "seconds": {"trace": 1.9, "calibrate": 14.2, "prepare": 48.6, "search": 71.3, "report": 6.0},
        "policy_digest": chosen["policy_digest"], "fidelity": "ptq",
        "splits": {"calibrate": 1024, "search": 2048, "report": 10000},
        "notes": ["linear: stays at 8 bits because the recipe pins it"],
    }  # fmt: skip
    _json(folder / "summary.json", summary | changes)


def _json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))
