"""Bring any policy inside the limits: HAQ's sweep, on any cost function; and take what the device gives for nothing.

HAQ (Wang et al., CVPR 2019; linear_quantize_env.py:173-193) walks from the last layer to the first, takes one step off
the activation, checks, one step off the weights, checks, and repeats until the budget is met. Two things differ here,
because a real device is not HAQ's strictly increasing table: a step that raises the violation is never taken, and one
that buys nothing (an activation bit under a size budget) only when no single step buys anything - as under a peak of
several buffers, where all of them have to shrink before the peak does. On a strictly increasing cost it is HAQ's sweep.
"""

from __future__ import annotations

from collections.abc import Sequence

from haqsearch.agents.problem import Problem
from haqsearch.errors import BudgetError
from haqsearch.spec import Policy


def repair(problem: Problem, policy: Policy, fallback: Policy | None = None) -> Policy:
    """A policy inside every limit, as near to ``policy`` as the sweep leaves it; ``policy`` itself if it is inside.

    Never raises the violation, stays in the space, and leaves what it returned alone when called again. Where costs are
    not monotone the sweep can end outside: then ``fallback`` is returned, which has to be feasible, or BudgetError
    raised.
    """
    swept = sweep(problem, policy)
    if problem.feasible(swept):
        return swept
    if fallback is None:
        raise BudgetError(
            f"no way down into the budget from this policy: the sweep ended {problem.violation(swept):.1%} over. "
            "Allow fewer bits, raise the limit, or give a policy that fits as the fallback"
        )
    return fallback


def sweep(problem: Problem, policy: Policy) -> Policy:
    """The sweep alone: the first policy met inside the limits, or where it got stuck."""
    space = problem.space
    excess = problem.violation(policy)
    indices = list(space.indices(policy))
    strict = True  # only steps that lower the violation
    while excess > 0:
        moved = False
        # Variables stand in network order, weight before activation: backwards is HAQ's order. A tie stands at its
        # first layer.
        for position in reversed(range(len(indices))):
            if indices[position] == 0:
                continue
            indices[position] -= 1
            stepped = problem.violation(space.policy(indices))
            if stepped < excess or (stepped == excess and not strict):
                excess, moved = stepped, True
                if excess == 0:
                    break
            else:
                indices[position] += 1
        if not moved and not strict:
            break
        strict = moved
    return space.policy(indices)


def descend(problem: Problem, policy: Policy, losses: Sequence[Sequence[float]]) -> Policy:
    """A way down that looks ahead: at every step the bits whose loss is least for what they take off the violation.

    ``losses`` are predicted, per variable of the space and candidate (``Sensitivity.losses``). A step lowers one variable to
    any narrower candidate; of all that lower the violation, the one with the least rise per unit is taken - of the last one
    needed, the cheapest that suffices. Like ``sweep`` it never raises the violation, and ends where no step lowers it; then
    ``sweep`` goes on from there.
    """
    space = problem.space
    indices = list(space.indices(policy))
    excess = problem.violation(policy)
    while excess > 0:
        best: tuple[float, float, int, int] | None = None
        for position, index in enumerate(indices):
            for narrower in range(index - 1, -1, -1):
                indices[position] = narrower
                left = problem.violation(space.policy(indices))
                if left < excess:
                    rise = losses[position][narrower] - losses[position][index]
                    # What is saved beyond the budget is worth nothing.
                    step = (max(rise, 0.0) / (excess - left), left, position, narrower)
                    best = step if best is None or step < best else best
            indices[position] = index
        if best is None:
            return sweep(problem, space.policy(indices))
        _, excess, position, narrower = best
        indices[position] = narrower
    return space.policy(indices)


def take_free_bits(problem: Problem, policy: Policy) -> Policy:
    """``policy`` with every width raised as far as that adds nothing to any cost that counts (``problem.counted``).

    Where activations bound a layer's latency, say, its weights may be wider for nothing. Goes once through the variables in
    network order, weight before activation, and takes the widest free candidate of each: the budget is kept if it was
    kept, no width falls, and calling it again changes nothing where costs do not fall with more bits.
    """
    space = problem.space
    indices = list(space.indices(policy))
    costs = problem.costing.costs(policy)
    for position, variable in enumerate(space.variables):
        for wider in range(len(variable.candidates) - 1, indices[position], -1):
            before, indices[position] = indices[position], wider
            raised = problem.costing.costs(space.policy(indices))
            if all(raised[metric] <= costs[metric] for metric in problem.counted):
                costs = raised
                break
            indices[position] = before
    return space.policy(indices)
