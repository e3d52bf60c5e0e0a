"""Whole programs on the native kernels: the codes of the reference, in the memory that was planned."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FLOAT, INTEGER, SMALL, inputs, random_policy, small

from haqsearch.kernels import get_backend
from haqsearch.kernels.arena import Lifetime, busiest, place
from haqsearch.runtime import run_codes
from haqsearch.spec import Choice, Policy

native = pytest.importorskip("haqsearch.runtime.native", reason="the native kernels are not built")
isas = get_backend("native").isas()


@pytest.mark.parametrize("name", SMALL)
def test_the_native_kernels_give_the_codes_of_the_reference(name):
    ready = small(name)
    for seed in range(2):
        program, x = ready.lower(random_policy(ready, seed)), inputs(name, 33, seed)
        assert torch.equal(run_codes(program, x, "native"), run_codes(program, x, "reference"))


@pytest.mark.parametrize("isa", isas)
def test_on_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("HAQSEARCH_ISA", isa)

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from(sorted(INTEGER)), st.integers(0, 10**6), st.integers(1, 40), st.floats(0.1, 30))
    def law(name, seed, batch, spread):
        ready = small(name)
        program, x = ready.lower(random_policy(ready, seed)), inputs(name, batch, seed) * spread
        assert torch.equal(run_codes(program, x, "native"), run_codes(program, x, "reference"))

    law()


@pytest.mark.parametrize("name", INTEGER)
def test_batches_chunks_and_threads_do_not_matter(name):
    ready = small(name)
    program, x = ready.lower(random_policy(ready, 3)), inputs(name, 41, 3)
    whole = run_codes(program, x, "native")
    assert torch.equal(torch.cat([run_codes(program, part, "native") for part in x.split(7)]), whole)
    (stage,) = native.compiled(program, len(x)).parts
    for threads in (1, 2, 3, 4):
        for chunk in (1, 5, 41, 100):
            assert torch.equal(stage.network.run([x], threads, chunk)[0], whole)
    assert run_codes(program, x[:0], "native").shape == (0, *whole.shape[1:])


@pytest.mark.parametrize("name", INTEGER)
def test_an_integer_network_runs_in_one_piece(name):
    ready = small(name)
    program = ready.lower(random_policy(ready, 4))
    assert [type(part) for part in native.compiled(program, 50).parts] == [native.Stage]


@pytest.mark.parametrize("name", FLOAT)
def test_a_float_region_lies_between_two_pieces(name):
    ready = small(name)
    parts = native.compiled(ready.lower(random_policy(ready, 4)), 50).parts
    assert {part.op for part in parts if not isinstance(part, native.Stage)} >= {"float"}


def test_a_layer_that_is_shared_is_packed_once():
    ready = small("shortcut")
    policy = Policy.uniform(ready.spec, Choice.parse("w8a8"))
    layers = [layer.name for layer in ready.spec.layers if layer.quantizable]
    first, second = (ready.lower(policy.replace(layers[-1], weight=Choice.parse(w).weight)) for w in ("w5a8", "w4a8"))

    def ops(program):
        (stage,) = native.compiled(program, 50).parts
        return [op for op, _, _, _ in stage.network.steps]

    shared = [a is b for a, b in zip(ops(first), ops(second), strict=True)]
    packed = [step.op in {"conv2d", "linear", "add"} for step in first.instructions if step.op != "quantize"]
    assert sum(s for s, p in zip(shared, packed, strict=True) if p) == sum(packed) - 1


def test_one_program_serves_several_callers_at_once():
    ready = small("shortcut")
    program = ready.lower(random_policy(ready, 8))
    xs = [inputs("shortcut", 3000, seed) for seed in range(8)]  # long enough to meet
    expected = [run_codes(program, x, "reference") for x in xs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: run_codes(program, x, "native"), xs * 3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 3, strict=True))


def test_a_program_is_let_go():
    ready = small("shortcut")
    program = ready.lower(random_policy(ready, 9))
    run_codes(program, inputs("shortcut", 2), "native")
    gone = weakref.ref(program)
    del program
    gc.collect()
    assert gone() is None


@st.composite
def lifetimes(draw):
    first = draw(st.integers(0, 9))
    return Lifetime(draw(st.integers(1, 99)), first, first + draw(st.integers(0, 4)))


@settings(deadline=None)
@given(st.lists(lifetimes(), max_size=14))
def test_buffers_alive_together_lie_apart(buffers):
    offsets, end = place(buffers)
    for i, a in enumerate(buffers):
        assert 0 <= offsets[i] <= end - a.size
        for j, b in enumerate(buffers[:i]):
            apart = offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]
            assert apart or not a.meets(b)
    assert busiest(buffers) <= end <= sum(b.size for b in buffers)
