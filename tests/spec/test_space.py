from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.errors import PolicyError
from haqsearch.spec import Choice, Format, Policy, SearchSpace

from .toys import FLOAT, NAMES, network

bits = st.lists(st.integers(2, 8), min_size=1, max_size=4)
QUANTIZABLE = [spec.name for spec in network().quantizable]


def _device(weights, activations):
    return lambda layer, choice: choice.weight.width in weights and choice.activation.width in activations


def _candidates(space):
    return {v.name: [f.width for f in v.candidates] for v in space.variables}


@given(bits, bits, st.sets(st.integers(2, 8)), st.sets(st.integers(2, 8)))
def test_candidates_are_what_the_user_allows_and_the_device_supports(wanted_w, wanted_a, has_w, has_a):
    w, a = sorted(set(wanted_w) & has_w), sorted(set(wanted_a) & has_a)
    if not (w and a):
        with pytest.raises(PolicyError, match=r"chip supports none of the pairs asked for in layer 'stem'"):
            SearchSpace.build(network(), wanted_w, wanted_a, supports=_device(has_w, has_a), device="chip")
        return
    space = SearchSpace.build(network(), wanted_w, wanted_a, supports=_device(has_w, has_a), device="chip")
    for variable in space.variables:
        kind, widths = ("int", w) if variable.role == "weight" else ("uint", a)
        assert variable.candidates == tuple(Format(kind, width) for width in widths)
    assert space.size == len(w) ** 4 * len(a) ** 3
    lost = [f"int{b}" for b in sorted(set(wanted_w) - has_w)] + [f"uint{b}" for b in sorted(set(wanted_a) - has_a)]
    said = [line for line in space.removed if "which chip does not support" in line]
    assert said == ([f"{name}: {', '.join(lost)}, which chip does not support" for name in QUANTIZABLE] if lost else [])


def test_variables_are_in_network_order_weight_first_and_one_per_tie():
    space = SearchSpace.build(network(), (4, 8), (4, 8))
    assert [(v.name, v.layers) for v in space.variables] == [
        ("stem.weight", ("stem",)),
        ("stem.activation", ("stem",)),
        ("left.conv.weight", ("left.conv",)),
        ("left.conv.activation", ("left.conv", "right.conv")),
        ("right.conv.weight", ("right.conv",)),
        ("head.weight", ("head",)),
        ("head.activation", ("head",)),
    ]
    assert space.removed == ("norm: stays in float32 (layer_norm has no integer kernel)",)


SPACE = SearchSpace.build(
    network(),
    (2, 4, 8),
    (3, 5),
    {"head": Choice.parse("w8a8")},
    lambda layer, choice: layer.name != "right.conv" or choice.weight.width > 2,
    "chip",
)
indices = st.tuples(*(st.integers(0, len(v.candidates) - 1) for v in SPACE.variables))


@given(indices)
def test_indices_inverts_policy(chosen):
    policy = SPACE.policy(chosen)
    assert SPACE.indices(policy) == chosen
    assert SPACE.contains(policy)
    assert policy.check(SPACE.model) == policy
    assert list(policy) == NAMES


def test_size_counts_the_distinct_policies():
    every = {SPACE.policy(i).digest for i in itertools.product(*(range(len(v.candidates)) for v in SPACE.variables))}
    assert len(every) == SPACE.size == 3 * 2 * 3 * 2 * 2


@given(indices)
def test_what_the_space_does_not_hold_is_refused_by_name(chosen):
    policy = SPACE.policy(chosen)
    other = policy.replace("stem", weight=Format("int", 3))
    assert not SPACE.contains(other)
    with pytest.raises(PolicyError, match=r"stem\.weight: int3 is not in the search space \(int2, int4, int8\)"):
        SPACE.indices(other)
    assert not SPACE.contains(policy.replace("right.conv", activation=Format("uint", 8)))  # a broken tie
    assert not SPACE.contains(policy.replace("norm", Format("int", 4), Format("uint", 4)))
    assert not SPACE.contains(Policy({k: c for k, c in policy.items() if k != "stem"}))


def test_a_wrong_number_of_indices_is_refused():
    with pytest.raises(ValueError):
        SPACE.policy([0] * (len(SPACE.variables) - 1))


def test_a_pinned_layer_has_one_candidate_in_every_policy():
    assert _candidates(SPACE)["head.weight"] == [8]
    assert _candidates(SPACE)["head.activation"] == [8]
    assert _candidates(SPACE)["right.conv.weight"] == [4, 8]
    assert "right.conv: int2, which chip does not support" in SPACE.removed


def test_pinning_one_layer_of_a_tie_pins_the_shared_activation_and_says_so():
    space = SearchSpace.build(network(), (4, 8), (4, 8), {"right.conv": Choice.parse("w8a8")})
    assert _candidates(space)["left.conv.activation"] == [8]
    assert _candidates(space)["left.conv.weight"] == [4, 8]
    assert _candidates(space)["right.conv.weight"] == [8]
    lost = "left.conv: uint4 activations, because it shares its input with left.conv, right.conv"
    assert lost in space.removed


def test_a_tie_without_a_common_candidate_is_an_error():
    with pytest.raises(PolicyError, match=r"layers left\.conv, right\.conv share one activation format, but have no"):
        SearchSpace.build(network(), (4, 8), (4, 8), {"left.conv": Choice.parse("w8a6")})


def test_an_unknown_fixed_layer_gets_the_nearest_name():
    with pytest.raises(PolicyError, match=r"fixed: toy has no layer 'hed'; did you mean 'head'\?"):
        SearchSpace.build(network(), (4,), (4,), {"hed": Choice.parse("w8a8")})
    with pytest.raises(PolicyError, match=r"fixed: toy has no layer 'zzz'$"):
        SearchSpace.build(network(), (4,), (4,), {"zzz": Choice.parse("w8a8")})


def test_a_fixed_choice_the_device_refuses_is_an_error():
    with pytest.raises(PolicyError, match="fixed: chip does not support w8a8 for layer 'head'"):
        SearchSpace.build(network(), (4,), (4,), {"head": Choice.parse("w8a8")}, _device({4}, {4}), "chip")


def test_half_a_layer_cannot_be_fixed_in_float():
    with pytest.raises(PolicyError, match="'head': weights and activation are both float32 or both integers"):
        SearchSpace.build(network(), (4,), (4,), {"head": Choice.parse("int8/float32")})


def test_a_device_that_supports_only_some_pairs_names_them():
    with pytest.raises(PolicyError, match=r"chip supports only the pairs w4a4, w8a8 in layer 'stem'"):
        SearchSpace.build(network(), (4, 8), (4, 8), supports=lambda _, c: str(c) in {"w4a4", "w8a8"}, device="chip")
    diagonal = SearchSpace.build(network(), (4, 8), (8,), supports=lambda _, c: str(c) in {"w4a4", "w8a8"})
    assert _candidates(diagonal)["stem.weight"] == [8]  # w4a8 is not among the pairs, so 4 is no candidate


@pytest.mark.parametrize(("weights", "activations"), [((1, 4), (4,)), ((4,), (0,)), ((17,), (4,)), ((4,), (17,))])
def test_widths_that_are_no_format_are_refused(weights, activations):
    with pytest.raises(PolicyError, match="unknown number format"):
        SearchSpace.build(network(), weights, activations)


@given(bits, bits)
def test_uniform_is_every_pair_once_and_inside_the_space(weights, activations):
    space = SearchSpace.build(network(), weights, activations, {"head": Choice.parse("w8a8")})
    found = space.uniform()
    assert len(found) == len(set(found)) == len(set(weights)) * len(set(activations))
    for policy in found:
        assert space.contains(policy)
        assert policy["head"] == Choice.parse("w8a8")
        assert policy["norm"] == FLOAT
        assert policy["stem"] == policy["left.conv"] == policy["right.conv"]


def test_uniform_leaves_out_what_one_layer_cannot_take():
    # The chip takes no int2 in right.conv; head is pinned and does not count.
    assert {str(p["stem"]) for p in SPACE.uniform()} == {"w4a3", "w4a5", "w8a3", "w8a5"}
    assert all(str(p["head"]) == "w8a8" for p in SPACE.uniform())


def test_a_space_of_pinned_layers_has_its_one_policy():
    space = SearchSpace.build(network(), (4,), (6,))
    assert space.size == 1
    assert space.uniform() == [space.policy([0] * len(space.variables))]
