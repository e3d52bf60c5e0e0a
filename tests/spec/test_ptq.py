from __future__ import annotations

import itertools

import pytest

from haqsearch.config import load_recipe
from haqsearch.errors import RecipeError
from haqsearch.spec.ptq import PTQ_PRESETS, PTQ_STEPS, STAGES, ptq_steps

RECIPE = 'model = "m"\ndata = "d"\nhardware = "h"\nbudget = ["bops <= 1 G"]\n'


def test_presets_are_pipelines_themselves():
    for name, steps in PTQ_PRESETS.items():
        assert ptq_steps(name) == ptq_steps("plain", steps) == steps


def test_every_list_of_steps_in_order_with_one_rounding_is_taken():
    """All lists that take at most one of each stage but graph; only bias_correct_norms is particular."""
    names = {stage: [n for n, step in PTQ_STEPS.items() if step.stage == stage] for stage in STAGES}
    for equalize, rounding, correction, policy in itertools.product(
        ([], ["equalize"]), names["rounding"], [None, *names["correction"]], ([], ["in_order"])
    ):
        steps = ["fold_bn", *equalize, rounding, *([correction] if correction else []), *policy]
        if correction == "bias_correct_norms" and PTQ_STEPS[rounding].wants:
            with pytest.raises(RecipeError, match=f"{rounding} takes calibration data; write bias_correct"):
                ptq_steps("plain", steps)
        else:
            assert ptq_steps("fast", steps) == tuple(steps)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["fold_bn", "equalise", "nearest"], "no step 'equalise'; did you mean 'equalize'?"),
        (["fold_bn", "adaroud"], "no step 'adaroud'; did you mean 'adaround'?"),
        (["xyz"], "no step 'xyz'; there are fold_bn, equalize"),
        (["fold_bn", "nearest", "equalize"], "not in the order of their stages"),
        (["fold_bn", "bias_correct", "nearest"], "not in the order of their stages"),
        (["nearest"], "begin with 'nearest'; write 'fold_bn' first"),
        (["equalize", "fold_bn", "nearest"], "begin with 'equalize'"),
        (["fold_bn"], "0 ways of rounding; name one of nearest"),
        (["fold_bn", "nearest", "adaround"], "2 ways of rounding"),
        (["fold_bn", "nearest", "nearest"], "'nearest' is there twice"),
        (["fold_bn", "nearest", "bias_correct", "bias_correct_norms"], "exclude each other"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_with_the_mend(steps, said, tmp_path):
    with pytest.raises(RecipeError) as caught:
        ptq_steps("plain", steps)
    assert said in str(caught.value)
    (tmp_path / "r.toml").write_text(f"{RECIPE}ptq.steps = {steps}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.toml")
    assert said in str(caught.value) and str(tmp_path / "r.toml") in str(caught.value)


def test_a_recipe_without_steps_keeps_the_digest_it_had(tmp_path):
    """Runs that began before there were steps go on."""
    (tmp_path / "r.toml").write_text(f'{RECIPE}agent = "ddpg"\nobjective = "kl"\n')  # the defaults of then
    plain = load_recipe(tmp_path / "r.toml")
    assert plain.ptq.pipeline == PTQ_PRESETS["plain"]
    assert plain.digest == "208612c52baa0a4d"
    (tmp_path / "s.toml").write_text(f'{RECIPE}ptq.steps = ["fold_bn", "nearest"]\n')
    assert load_recipe(tmp_path / "s.toml").ptq.pipeline == PTQ_PRESETS["plain"]


def test_a_slip_in_the_section_is_told(tmp_path):
    (tmp_path / "r.toml").write_text(f'{RECIPE}ptq.step = ["fold_bn", "nearest"]\n')
    with pytest.raises(RecipeError, match=r"unknown key 'ptq\.step'; did you mean 'steps'\?"):
        load_recipe(tmp_path / "r.toml")
