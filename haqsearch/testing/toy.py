"""A small and real search problem: a network of shapes, its costs, and an evaluator that takes no time.

A pinned first and last layer, a shared activation, prices in bytes and bit operations, and a loss that adds up over the
layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import optuna
from optuna.study import Study

from haqsearch.agents import Problem
from haqsearch.spec import OBJECTIVES, Choice, Evaluation, LayerSpec, Limit, ModelSpec, Policy, SearchSpace, Sensitivity


@dataclass(frozen=True)
class ShapeCosts:
    """Bytes of packed weights and bit operations, from shapes alone: additive, and never less for more bits."""

    model: ModelSpec
    metrics: tuple[str, ...] = ("size_bytes", "bops")

    @property
    def additive(self) -> tuple[str, ...]:
        return self.metrics

    def layer_values(self, layer: str, choice: Choice) -> dict[str, float]:
        shape = self.model[layer]
        size = ceil(shape.weight_count * choice.weight.bits / 8)
        return {"size_bytes": float(size), "bops": shape.macs * choice.weight.bits * choice.activation.bits}

    def costs(self, policy: Policy) -> dict[str, float]:
        layers = [self.layer_values(layer.name, policy[layer.name]) for layer in self.model]
        return {metric: sum(values[metric] for values in layers) for metric in self.metrics}


@dataclass(frozen=True)
class AdditiveLoss:
    """An evaluator: every layer adds sensitivity times noise power, 4^-bits as of a uniform quantizer.

    Sensitivities are log-normal, drawn once per ``seed``; accuracy falls linearly with the loss.
    """

    model: ModelSpec
    seed: int = 0

    def __call__(self, policy: Policy) -> Evaluation:
        draws = np.random.default_rng(self.seed).lognormal(0.0, 1.5, size=(len(self.model), 2))
        loss = 0.01 + sum(
            weight * 4.0 ** -policy[layer.name].weight.bits + activation * 4.0 ** -policy[layer.name].activation.bits
            for layer, (weight, activation) in zip(self.model, draws.tolist(), strict=True)
        )
        return Evaluation(
            accuracy=max(0.0, 0.95 - loss / 10), loss=loss, kl=loss, samples=100, seconds=0.001, logit_mse=loss
        )


def toy_model(layers: int) -> ModelSpec:
    """A chain of ``layers`` >= 4: convolutions, one of them depthwise, two reading one tensor, and a classifier."""
    specs = []
    for i in range(layers - 1):
        width, depthwise = 8 * (1 + i // 3), i == 2
        specs.append(
            LayerSpec(
                name=f"block.{i}",
                op="depthwise_conv2d" if depthwise else "conv2d",
                in_shape=(width, 8, 8),
                weight_shape=(width, 1 if depthwise else width, 3, 3),
                out_shape=(width, 8, 8),
                macs=64 * 9 * width * (1 if depthwise else width),
                groups=width if depthwise else 1,
                kernel=(3, 3),
                activation_tie="shared" if i in (1, 2) else "",
            )
        )
    return ModelSpec("toy", (*specs, LayerSpec("head", "linear", (64,), (10, 64), (10,), macs=640)))


def toy_problem(
    layers: int = 6,
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    share: float = 0.55,
    objective: str = "loss",
    tradeoff: Sequence[str] = (),
) -> Problem:
    """First and last layer pinned at 8/8, the others free in ``bits``; both costs at most ``share`` of all 8/8's.

    ``tradeoff``: of size_bytes and bops those to be made small together with the objective.
    """
    model = toy_model(layers)
    eight = Choice.parse("w8a8")
    fixed = {"block.0": eight, "head": eight}
    costing = ShapeCosts(model)
    full = costing.costs(Policy.uniform(model, eight))
    limits = tuple(Limit(name, share * full[name], f"{name} <= {share} * int8") for name in costing.metrics)
    space = SearchSpace.build(model, bits, bits, fixed)
    return Problem(
        space,
        costing,
        limits,
        OBJECTIVES[objective],
        tradeoff=tuple(tradeoff),
        measure=lambda: sensitivity_of(space, AdditiveLoss(model)),
    )


def sensitivity_of(space: SearchSpace, evaluate: Callable[[Policy], Evaluation]) -> Sensitivity:
    """What every candidate alone adds to the loss of the widest policy."""
    widest = [len(variable.candidates) - 1 for variable in space.variables]

    def loss(indices: Sequence[int]) -> float:
        return evaluate(space.policy(indices)).loss or 0.0

    base = loss(widest)
    rise, formats = {}, {}
    for place, variable in enumerate(space.variables):
        alone = ([*widest[:place], index, *widest[place + 1 :]] for index in range(len(variable.candidates)))
        rise[variable.name] = tuple(loss(indices) - base for indices in alone)
        formats[variable.name] = tuple(map(str, variable.candidates))
    return Sensitivity("loss", base, rise, formats)


def new_study(problem: Problem | None = None) -> Study:
    """An empty study in memory; of ``problem``'s directions, if that is a trade-off."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=problem.directions if problem else ("maximize",))
