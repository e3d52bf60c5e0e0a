"""A small network with everything a policy has to respect, and the Hypothesis strategies over it."""

from __future__ import annotations

from hypothesis import strategies as st

from haqsearch.spec import FLOAT32, Choice, Format, LayerSpec, ModelSpec, Policy

INTS = [Format("int", width) for width in range(2, 17)]
UINTS = [Format("uint", width) for width in range(1, 17)]


def layer(name: str, **more) -> LayerSpec:
    defaults = {
        "op": "conv2d",
        "in_shape": (4, 8, 8),
        "weight_shape": (4, 4, 3, 3),
        "out_shape": (4, 8, 8),
        "macs": 9216,
    }
    return LayerSpec(name, **{**defaults, **more})


def network() -> ModelSpec:
    """stem, then two branches that read the same tensor, then a layer that stays in float, then the head."""
    return ModelSpec(
        "toy",
        (
            layer("stem"),
            layer("left.conv", activation_tie="stem.out"),
            layer("right.conv", activation_tie="stem.out"),
            layer("norm", quantizable=False, reason="layer_norm has no integer kernel"),
            layer("head", op="linear", in_shape=(4,), weight_shape=(10, 4), out_shape=(10,), macs=40),
        ),
    )


NAMES = [spec.name for spec in network()]
FLOAT = Choice(FLOAT32, FLOAT32)

formats = st.sampled_from([*INTS, *UINTS, FLOAT32])
weights = st.sampled_from(INTS[:7])
activations = st.sampled_from(UINTS[:8])
choices = st.builds(Choice, weights, activations)
any_policies = st.dictionaries(st.text(min_size=1), st.builds(Choice, formats, formats), max_size=6).map(Policy)


@st.composite
def policies(draw) -> Policy:
    """Policies of ``network()`` that pass every check."""
    shared = draw(activations)
    return Policy(
        {
            "stem": draw(choices),
            "left.conv": Choice(draw(weights), shared),
            "right.conv": Choice(draw(weights), shared),
            "norm": FLOAT,
            "head": draw(choices),
        }
    )
