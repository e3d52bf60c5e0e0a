"""The ten defects of HAQ's published code (github.com/mit-han-lab/haq), and for each a test that it is not here.

Where a room's own tests show it, ``ELSEWHERE`` says which; the others stand below, named after the defect.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from networks import random_policy

from haqsearch.agents import build_agent
from haqsearch.config import load_recipe
from haqsearch.errors import PolicyError
from haqsearch.evaluate import Evaluator
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.spec import Choice, LayerSpec, ModelSpec, Policy, SearchSpace
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem
from hwmodels import Meter, load

ROOT = Path(__file__).parents[2]

ELSEWHERE = {
    # 3, 4, 5, 6: of the agent
    3: "agents.test_ddpg:test_pinned_layers_are_never_moved",
    4: "agents.test_ddpg:test_an_episode_starts_the_same_whatever_the_last_one_was",
    5: "agents.test_ddpg:test_the_flag_means_one_thing",
    6: "agents.test_ddpg:test_updates_run_on_todays_numpy_and_torch",
    # 8: seven and eight bits of k-means are quantized as all others, in training too
    8: "quant.test_codebooks:test_seven_and_eight_bits_are_really_quantized",
    # 9: killed and resumed
    9: "search.test_kill:test_a_killed_search_ends_as_an_uninterrupted_one",
    # 10: more validation images asked for than there are
    10: "data.test_dataset:test_splits_that_do_not_fit_are_refused_with_both_numbers",
}


@pytest.mark.parametrize("defect", ELSEWHERE)
def test_what_is_tested_elsewhere_is_there(defect):
    module, _, name = ELSEWHERE[defect].partition(":")
    source = (ROOT / "tests" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert name in {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}


# 1. linear_quantize_env.py:117: the accuracy is the best of training; no held-out data is ever looked at.


class _Free:
    metrics = ()

    def costs(self, policy):
        return {}


def test_1_a_score_depends_on_the_search_split_alone(digits):
    ready, splits = digits
    policy = random_policy(ready, 3, 3)

    def score(**parts):
        found = Evaluator(ready, replace(splits, **parts), _Free(), ()).evaluate(policy)
        assert found.ok
        return found.accuracy, found.loss, found.kl, found.samples

    asked = score()
    assert asked[3] == len(splits.search[0])
    for name in ("train", "calibrate", "report"):
        inputs, labels = getattr(splits, name)
        assert score(**{name: (torch.zeros_like(inputs), labels.roll(1))}) == asked, f"it looked at {name}"
    inputs, labels = splits.search
    assert score(search=(inputs, labels.roll(1))) != asked


def test_1_no_sample_is_in_two_splits(digits):
    _, splits = digits
    seen = [{row.numpy().tobytes() for row in getattr(splits, name)[0]} for name in ("train", "search", "report")]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


# 2. linear_quantize_env.py:199, 228: the first layer's activation of -1 "bits" takes the table's 7-bit column.


def _network() -> ModelSpec:
    def conv(name: str, channels: int, *inputs: str) -> LayerSpec:
        shape = (channels, 16, 16)
        return LayerSpec(name, "conv2d", shape, (16, channels, 3, 3), (16, 16, 16), 256 * 144 * channels,
                         kernel=(3, 3), inputs=inputs)  # fmt: skip

    return ModelSpec("n", (conv("first", 3), conv("second", 16, "first"), conv("last", 16, "second")))


@pytest.mark.parametrize("name", ["bismo-edge", "bismo-cloud", "bitfusion"])
def test_2_the_first_layer_costs_what_its_own_width_costs(name):
    model, device = _network(), load(name)
    fixed = {"first": Choice.parse("w8a8")}
    space = SearchSpace.build(model, [2, 4, 8], [2, 4, 8], fixed, device.supports, device.name)
    meter = Meter(device, model)
    for policy in (space.policy([0] * len(space.variables)), *space.uniform()):
        (_, first), *_ = meter.layer_costs(policy)
        assert str(policy["first"]) == "w8a8"
        alone = meter.device.cost(model["first"], Choice.parse("w8a8"), meter.batch).values
        assert {metric: first.values[metric] for metric in alone} == alone
    if name.startswith("bismo"):  # where 7 bits cost less than 8
        seven = meter.device.cost(model["first"], Choice.parse("w8a7"), meter.batch).values
        assert seven["latency_s"] < alone["latency_s"]


@pytest.mark.parametrize("text", ["w8a-1", "int8/uint-1", "int8/-1", "w-1a8"])
def test_2_there_is_no_sentinel_to_write(text):
    with pytest.raises(PolicyError):
        Choice.parse(text)


# 3. :180-190: first and last layer are pinned inside the loop that cuts bits, so not in a policy that is inside the budget.


@pytest.mark.parametrize("agent", ["ddpg", "random", "tpe"])
def test_3_pinned_layers_stay_pinned_where_nothing_has_to_be_cut(agent):
    problem = toy_problem(share=1.0)
    study = new_study()
    evaluator = AdditiveLoss(problem.space.model)
    run_search(problem, build_agent(agent, problem, 0, 15), SerialPool(evaluator), study, 15)
    records = [record for record in read_records(study) if record.source == agent]
    assert records
    for record in records:
        assert problem.feasible(record.proposal)  # not a bit over the budget
        assert {str(record.policy[layer]) for layer in ("block.0", "head")} == {"w8a8"}


# 7. rl_quantize.py:195: type=bool, so that --finetune_flag False is True.


@pytest.mark.parametrize(("text", "value"), [("false", False), ("False", False), ("true", True), ("True", True)])
@pytest.mark.parametrize("key", ["qat.baseline", "prune_dominated"])
def test_7_a_flag_said_to_be_false_is_false(key, text, value):
    recipe = load_recipe(ROOT / "searches" / "digits-bismo-edge.toml", [f"{key}={text}"])
    section, _, name = key.rpartition(".")
    assert getattr(getattr(recipe, section) if section else recipe, name) is value


def test_7_no_option_of_a_command_takes_a_word_for_a_truth():
    import typer

    from haqsearch.cli import build_app

    def parameters(command):
        yield from command.params
        for inner in getattr(command, "commands", {}).values():
            yield from parameters(inner)

    found = list(parameters(typer.main.get_command(build_app())))
    flags = []
    for parameter in found:
        if parameter.bare_type() == "bool":
            assert parameter.is_flag, f"{parameter.name}: a flag is there or not; it takes no word"
            flags.append(parameter.name)
    assert "json" in flags


# 9. No resume; scipy is imported and not required; CUDA is asserted; the policy is pasted by hand into finetune.py.


def test_9_what_is_imported_is_required():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    required = {re.match(r"[\w-]+", text)[0].lower() for text in project["dependencies"]}
    optional = {"triton", "onnxruntime"}  # not imported but on a GPU, and by a bench that says how to get it
    distributions = packages_distributions()
    for path in [p for room in ("haqsearch", "hwmodels") for p in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in names} - {*sys.stdlib_module_names, "haqsearch", "hwmodels"}:
                known = {name.lower() for name in distributions.get(top, [top])}
                assert known & (required | optional), f"{path.relative_to(ROOT)} imports {top}, which is not required"


def test_9_the_agent_needs_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    problem, study = toy_problem(), new_study()
    evaluator = AdditiveLoss(problem.space.model)
    summary = run_search(problem, build_agent("ddpg", problem, 0, 12), SerialPool(evaluator), study, 12)
    assert summary.complete == 12


def test_9_the_policy_found_is_a_file_that_is_read_back(tmp_path):
    from haqsearch.files import write_json_atomic

    policy = Policy.uniform(_network(), Choice.parse("kmeans3/uint8"))
    write_json_atomic(tmp_path / "policy.json", policy.to_json())
    import json

    assert Policy.from_json(json.loads((tmp_path / "policy.json").read_text())) == policy


# 10. README says 0.6 of the latency, the script that it names searches 0.556.


def test_10_the_readmes_results_are_those_of_the_folders():
    from haqsearch.cli.results import table

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = text.partition("<!-- results:begin -->")[2].partition("<!-- results:end -->")[0].strip()
    assert said == table(ROOT / "results").strip()


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "searches").glob("*.toml")))
def test_10_a_result_is_that_of_its_recipe(name):
    """Budget, agent and numbers of the run are the recipe's that lies in searches/ today."""
    kept = ROOT / "results" / name / "recipe.toml"
    if not kept.is_file():
        pytest.skip("not run yet")
    assert load_recipe(kept).digest == load_recipe(ROOT / "searches" / f"{name}.toml").digest


def test_10_haqs_recipes_say_the_budget_that_they_search():
    for path in (ROOT / "searches").glob("haq-*.toml"):
        head, recipe = path.read_text(encoding="utf-8").partition("model ")[0], load_recipe(path)
        (budget,) = recipe.budgets
        if budget.metric == "latency_s":
            assert f"{budget.limit} of the" in head.replace("\n# ", " ")
        else:
            assert "a tenth of the float32 size" in head.replace("\n# ", " ") and budget.limit == 0.4  # of int8


def test_the_list_is_whole():
    here = {int(match) for match in re.findall(r"^def test_(\d+)_", Path(__file__).read_text(), re.MULTILINE)}
    assert here | ELSEWHERE.keys() == set(range(1, 11))
    assert import_module("haqsearch.agents.ddpg").DDPG
