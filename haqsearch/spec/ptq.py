"""Post-training quantization as an ordered list of named steps.

| stage      | what its steps make                                                                                   |
|------------|-------------------------------------------------------------------------------------------------------|
| graph      | the float network as it is quantized; its function stays                                              |
| ranges     | scales of activations; without a step those of least squared error                                    |
| rounding   | integer weights of a layer in a format; one of them                                                   |
| correction | what is added to a layer's bias to make up for the rounding                                           |
| policy     | integer weights of all layers under one policy, for the few that are chosen                           |

A step says what statistics it ``wants``; one pass over the calibration inputs collects those of all steps, and the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from haqsearch.errors import RecipeError


@dataclass(frozen=True)
class PtqStep:
    """A step: its ``stage``, the statistics it ``wants`` ('' for none), and what it is in a few words."""

    stage: str
    wants: str
    summary: str


STAGES = ("graph", "ranges", "rounding", "correction", "policy")
PTQ_STEPS: Mapping[str, PtqStep] = {
    "fold_bn": PtqStep("graph", "", "batch norms folded into the layers before them, activations fused"),
    "equalize": PtqStep("graph", "", "channels rescaled across layers, so that one weight scale serves a layer"),
    "output_ranges": PtqStep("ranges", "inputs", "of least error in the layers that read them; below 8 bits"),
    "nearest": PtqStep("rounding", "", "every weight to its nearest code"),
    "stochastic": PtqStep("rounding", "", "up or down at random, right on average; the seed is fixed"),
    "reconstruct": PtqStep("rounding", "covariance", "least error of the layer's output, by coordinate descent"),
    "adaround": PtqStep("rounding", "covariance", "least error of the layer's output, rounding learned by gradient"),
    "bias_correct": PtqStep("correction", "mean", "the mean of each layer's output kept, over calibration data"),
    "bias_correct_norms": PtqStep("correction", "norms", "the same from the batch norms' statistics, without data"),
    "in_order": PtqStep(
        "policy", "inputs", "reconstruction in network order, on the quantized inputs; channels balanced where it helps"
    ),
}
PTQ_PRESETS: Mapping[str, tuple[str, ...]] = {
    "plain": ("fold_bn", "nearest"),
    "fast": ("fold_bn", "output_ranges", "reconstruct", "bias_correct"),
    "accurate": ("fold_bn", "output_ranges", "reconstruct", "bias_correct", "in_order"),
}
"""Names for lists of steps. None equalizes: weights have a scale by channel unless a policy says ``int8:tensor``."""


def ptq_steps(preset: str, steps: Sequence[str] = ()) -> tuple[str, ...]:
    """The steps that a preset stands for; or ``steps`` where they are given, checked.

    Raises RecipeError for an unknown or repeated step, stages out of order, or a list that leaves no integer weights.
    """
    if not steps:
        return PTQ_PRESETS[preset]
    for name in steps:
        if name not in PTQ_STEPS:
            near = get_close_matches(name, PTQ_STEPS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PTQ_STEPS)}"
            raise RecipeError(f"ptq.steps: no step {name!r}; {hint}")
    if len(set(steps)) < len(steps):
        raise RecipeError(
            f"ptq.steps: {next(n for n in steps if list(steps).count(n) > 1)!r} is there twice; once is enough"
        )
    stages = [STAGES.index(PTQ_STEPS[name].stage) for name in steps]
    if stages != sorted(stages):
        order = "; ".join(f"{stage}: {', '.join(_of(stage))}" for stage in STAGES)
        raise RecipeError(f"ptq.steps: {', '.join(steps)} are not in the order of their stages ({order})")
    if steps[0] != "fold_bn":
        raise RecipeError(
            f"ptq.steps begin with {steps[0]!r}; write 'fold_bn' first: integer programs have no batch norms"
        )
    rounding = [name for name in steps if name in _of("rounding")]
    if len(rounding) != 1:
        raise RecipeError(f"ptq.steps: {len(rounding)} ways of rounding; name one of {', '.join(_of('rounding'))}")
    if sum(name in _of("correction") for name in steps) > 1:
        raise RecipeError("ptq.steps: bias_correct and bias_correct_norms exclude each other; with data take the first")
    if PTQ_STEPS[rounding[0]].wants and "bias_correct_norms" in steps:
        raise RecipeError(f"ptq.steps: {rounding[0]} takes calibration data; write bias_correct for bias_correct_norms")
    return tuple(steps)


def _of(stage: str) -> list[str]:
    return [name for name, step in PTQ_STEPS.items() if step.stage == stage]
