from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from haqsearch.errors import PolicyError
from haqsearch.spec import Choice, Format, Policy

from .toys import FLOAT, NAMES, any_policies, choices, formats, network, policies


@given(st.builds(Choice, formats, formats))
def test_a_choice_survives_its_text(choice):
    assert Choice.parse(str(choice)) == choice


def test_choices_are_written_the_short_way():
    assert str(Choice(Format("int", 4), Format("uint", 8))) == "w4a8"
    assert Choice.parse(" w4a8 ") == Choice(Format("int", 4), Format("uint", 8))
    assert Choice.parse("float32") == FLOAT
    assert str(Choice.parse("int4/int16")) == "int4/int16"


@pytest.mark.parametrize("text", ["4a8", "w4", "a8w4", "", "w4/a8", "w1a8", "w4a17", "w4a0", "int4/", "w9999a8"])
def test_a_choice_that_cannot_be_read_is_a_policy_error(text):
    with pytest.raises(PolicyError, match=r"cannot read the widths|unknown number format"):
        Choice.parse(text)


@pytest.mark.parametrize("text", ["bfloat16", "int9:group=16", "uint4:group=16", "uint8:channel"])
def test_a_format_of_tensors_alone_is_refused_at_once(text):
    """Not only where it is read: a policy made by hand fails where it is made, not when a program is to be lowered."""
    for choice in (Choice(Format.of(text), Format("uint", 8)), Choice(Format("int", 8), Format.of(text))):
        with pytest.raises(PolicyError, match=f"layer 'stem' cannot have {text}, which is for tensors alone; programs"):
            Policy({"stem": choice})


@given(any_policies)
def test_a_policy_survives_json(policy):
    data = json.loads(json.dumps(policy.to_json(costs={"bops": 1.0})))
    again = Policy.from_json(data)
    assert again == policy
    assert list(again) == list(policy)
    assert again.digest == policy.digest == data["digest"]
    assert data["costs"] == {"bops": 1.0}


@given(policies(), st.randoms())
def test_the_order_of_layers_is_no_part_of_a_policy(policy, random):
    items = list(policy.items())
    random.shuffle(items)
    shuffled = Policy(dict(items))
    assert shuffled == policy
    assert hash(shuffled) == hash(policy)
    assert shuffled.digest == policy.digest


@given(policies(), st.sampled_from(NAMES), choices)
def test_the_digest_depends_on_every_layer(policy, name, choice):
    assume(policy[name] != choice)
    changed = policy.replace(name, choice.weight, choice.activation)
    assert changed != policy
    assert changed.digest != policy.digest
    assert changed.replace(name, policy[name].weight, policy[name].activation).digest == policy.digest


@given(policies(), st.sampled_from(NAMES))
def test_the_digest_depends_on_the_names_and_on_which_side_a_format_stands(policy, name):
    renamed = Policy({(f"{key}.x" if key == name else key): choice for key, choice in policy.items()})
    assert renamed.digest != policy.digest
    mirrored = Policy({key: Choice(c.activation, c.weight) for key, c in policy.items()})
    assert mirrored.digest != policy.digest


@given(policies())
def test_the_digest_depends_on_nothing_else(policy):
    assert Policy(dict(policy.items())).digest == policy.digest
    assert Policy.from_json(policy.to_json(accuracy=0.9, model="other")).digest == policy.digest
    assert len(policy.digest) == 16
    assert int(policy.digest, 16) >= 0


def test_the_digest_is_the_same_in_every_version():
    assert Policy({"a": Choice.parse("w4a8"), "b": FLOAT}).digest == "0273b5496b1bf25c"


@given(policies(), st.sampled_from(NAMES), choices)
def test_replace_changes_one_side_of_one_layer(policy, name, choice):
    before = dict(policy)
    weight_only = policy.replace(name, weight=choice.weight)
    assert weight_only[name] == Choice(choice.weight, policy[name].activation)
    assert all(weight_only[other] == policy[other] for other in NAMES if other != name)
    assert policy.replace(name, activation=choice.activation)[name] == Choice(policy[name].weight, choice.activation)
    assert dict(policy) == before


def test_replacing_an_unknown_layer_names_the_nearest():
    with pytest.raises(PolicyError, match=r"no layer 'left\.conf' in this policy; did you mean 'left\.conv'\?"):
        Policy.uniform(network(), Choice.parse("w8a8")).replace("left.conf", weight=Format("int", 4))


def test_a_policy_does_not_change_with_the_dict_it_came_from():
    source = {"a": FLOAT}
    policy = Policy(source)
    source["b"] = FLOAT
    assert list(policy) == ["a"]


@given(choices, st.none() | choices)
def test_a_uniform_policy_keeps_the_fixed_and_the_float_layers(choice, fixed):
    policy = Policy.uniform(network(), choice, {"stem": fixed} if fixed else None)
    assert policy["stem"] == (fixed or choice)
    assert policy["norm"] == FLOAT
    assert policy["head"] == policy["left.conv"] == policy["right.conv"] == choice


@given(policies(), st.randoms())
def test_check_gives_the_policy_in_network_order(policy, random):
    items = list(policy.items())
    random.shuffle(items)
    checked = Policy(dict(items)).check(network())
    assert checked == policy
    assert list(checked) == NAMES


@given(policies(), st.sampled_from(NAMES))
def test_check_names_the_missing_layer(policy, name):
    less = Policy({key: choice for key, choice in policy.items() if key != name})
    with pytest.raises(PolicyError) as caught:
        less.check(network(), "p.json")
    assert str(caught.value).startswith("p.json: ")
    assert f"layer {name!r} of toy is missing (1 in all)" in str(caught.value)


def test_check_names_the_unknown_layer_and_the_nearest():
    more = Policy({**Policy.uniform(network(), Choice.parse("w8a8")), "steam": FLOAT})
    with pytest.raises(PolicyError, match=r"toy has no layer 'steam'; did you mean 'stem'\?"):
        more.check(network())


@given(policies(), st.sampled_from(["left.conv", "right.conv"]), choices)
def test_check_refuses_a_broken_tie(policy, name, choice):
    assume(choice.activation != policy[name].activation)
    with pytest.raises(PolicyError, match=r"layers left\.conv, right\.conv read the same tensor 'stem\.out'"):
        policy.replace(name, activation=choice.activation).check(network())


@given(policies(), choices)
def test_check_refuses_bits_for_a_float_layer_and_says_why_it_is_one(policy, choice):
    with pytest.raises(PolicyError, match=r"'norm' stays in float32 \(layer_norm has no integer kernel\)"):
        policy.replace("norm", choice.weight, choice.activation).check(network())


@given(policies(), st.booleans())
def test_check_refuses_half_float_layers(policy, weight):
    half = policy.replace("head", **{"weight" if weight else "activation": FLOAT.weight})
    with pytest.raises(PolicyError, match="'head': weights and activation are both float32 or both integers"):
        half.check(network())


GOOD = Policy({"a": Choice.parse("w4a8")}).to_json()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, 'no "layers" object'),
        ([], 'no "layers" object'),
        ({"schema_version": 1}, 'no "layers" object'),
        ({**GOOD, "layers": []}, 'no "layers" object'),
        ({**GOOD, "schema_version": 2}, "schema_version is 2, this version reads 1"),
        ({"layers": {}}, "schema_version is None"),
        ({**GOOD, "layers": {"a": "w4a8"}}, "layer 'a' needs exactly the keys"),
        ({**GOOD, "layers": {"a": {"weight": "int4"}}}, "layer 'a' needs exactly the keys"),
        ({**GOOD, "layers": {"a": {"weight": "int4", "activation": "uint8", "x": 1}}}, "layer 'a' needs exactly"),
        (
            {**GOOD, "layers": {"a": {"weight": "imt4", "activation": "uint8"}}},
            "layer 'a': unknown number format 'imt4'",
        ),
        ({**GOOD, "layers": {"a": {"weight": 4, "activation": "uint8"}}}, "layer 'a': unknown number format 4"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(data, said):
    with pytest.raises(PolicyError) as caught:
        Policy.from_json(data, "p.json")
    assert str(caught.value).startswith("p.json: ")
    assert said in str(caught.value)
