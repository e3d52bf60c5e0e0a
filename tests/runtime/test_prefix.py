"""Programs that share their beginnings give what they give alone, and do share them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import INTEGER, SMALL, inputs, random_policy, small

from haqsearch.kernels import best_backend
from haqsearch.runtime import run_codes, run_program
from haqsearch.runtime.interpret import run_part
from haqsearch.runtime.prefix import SharedPrefix
from haqsearch.spec import Choice, Policy

BACKENDS = sorted({"reference", best_backend("cpu")})


def narrowed(ready, seed):
    """The base policy, each layer of it narrowed in turn from the last to the first, and policies that have little in common."""
    base = Policy.uniform(ready.spec, Choice.parse("w8a8"))
    layers = [layer.name for layer in ready.spec.quantizable]
    alone = [
        Policy({name: Choice.parse(text) if name == chosen else base[name] for name in base})
        for chosen in reversed(layers)
        for text in ("w3a8",)
    ]
    return [base, *alone, random_policy(ready, seed), *alone[::-1]]


@pytest.mark.parametrize("name", SMALL)
def test_every_program_gives_what_it_gives_alone(name):
    ready = small(name)
    batches = [inputs(name, 9, 0), inputs(name, 4, 1)]
    first, *others = [ready.lower(policy) for policy in narrowed(ready, 5)]
    for largest in (2**29, 0):
        shared = SharedPrefix(first, batches, largest)
        for program in (first, *others):
            alone = torch.cat([run_program(program, x) for x in batches])
            assert torch.equal(shared.run(program), alone)
            assert largest or all(set(values) <= {first.input} for values in shared._values), "nothing is kept"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SMALL)
def test_parts_of_a_program_one_after_the_other_are_the_program(name, backend):
    ready = small(name)
    program, x = ready.lower(random_policy(ready, 2)), inputs(name, 5, 2)
    whole = run_codes(program, x, backend)
    for cut in range(1, len(program.instructions)):
        left = run_part(program, {program.input: x}, 0, cut, backend)
        rest = program.instructions[cut:]
        assert set(left) == {n for s in rest for n in s.inputs} - {n for s in rest for n in s.outputs}
        assert torch.equal(run_part(program, left, cut, None, backend)[program.output], whole)


@pytest.mark.parametrize("name", INTEGER)
def test_all_before_the_narrowed_layer_is_shared(name):
    ready = small(name)
    base, *others = [ready.lower(policy) for policy in narrowed(ready, 0)]
    shared = SharedPrefix(base, [inputs(name, 2, 0)])
    place = {step.layer: i for i, step in reversed(list(enumerate(base.instructions))) if step.layer}
    for layer, program in zip(reversed([layer.name for layer in ready.spec.quantizable]), others, strict=False):
        shared.run(program)
        assert shared.length == place[layer]


def test_programs_of_other_weights_share_nothing():
    ready = small("shortcut")
    program = ready.lower(random_policy(ready, 1))
    other = replace(ready, memo=type(ready.memo)()).lower(random_policy(ready, 1))
    shared = SharedPrefix(program, [inputs("shortcut", 3, 0)])
    shared.run(program)
    assert shared.length == len(program.instructions) - 1
    shared.run(other)
    assert shared.length == 0, "equal, but not known to be"
