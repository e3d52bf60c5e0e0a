"""Policies of other tools, warm starts, and weights with codebooks, as a user meets them."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from haqsearch.config import load_recipe
from haqsearch.errors import HaqError
from haqsearch.runtime import load_program

from .conftest import RECIPE, trials

KMEANS = 'weight_formats = ["kmeans2", "kmeans4", "ternary", "binary"]\nactivation_bits = [8]\n'


def recipe(project, *lines: str, without: str = "weight_bits"):
    kept = [line for line in RECIPE.splitlines() if not line.startswith(without)]
    (project / "my.toml").write_text("\n".join([*lines, *kept]) + "\n")


def same(text):
    return " ".join(text.split())


def test_another_tools_policy_scores_as_ours(project, call):
    (project / "strategy.txt").write_text("strategy = [[8, -1], [4, 4], [8, 8]]\n")
    (project / "mct.json").write_text('{"stem_bn": 8, "body": 4, "head": 8}')
    (project / "nncf.json").write_text(
        '{"bitwidth_per_scope": [[4, "Net/NNCFConv2d[body]/conv2d_0|WEIGHT"], [4, "Net/relu_0|OUTPUT"]]}'
    )
    layers = {"stem": ("int8", "uint8"), "body": ("int4", "uint4"), "head": ("int8", "uint8")}
    ours = {name: {"weight": w, "activation": a} for name, (w, a) in layers.items()}
    (project / "ours.json").write_text(json.dumps({"schema_version": 1, "layers": ours}))

    def scored(policy):
        result = call("evaluate", "my.toml", "--policy", policy, "--json", cwd=project)
        assert result.code == 0, result.err
        found = json.loads(result.out)
        return {key: found[key] for key in ("policy_digest", "accuracy", "kl", "metrics")}, result.err

    expected, _ = scored("ours.json")
    assert scored("haq:strategy.txt") == (expected, "")
    found, said = scored("nncf:nncf.json")
    assert found == expected and "weights of 8 bits, the default" in said
    assert scored("mct:mct.json")[0]["policy_digest"] != expected["policy_digest"]  # its inputs have 8 bits


def test_a_search_of_codebooks_from_a_strategy(project, call):
    recipe(project, KMEANS, 'warm_start = ["haq:strategy.txt"]', without=("weight_bits", "activation_bits", "budget"))
    (project / "strategy.txt").write_text("[2, 4, 8]\n")
    arguments = ["run", "my.toml", "--out", "out", "--set", 'budget=["size_bytes <= 0.65 * int8"]']
    done = call(*arguments, cwd=project)
    assert done.code == 0, done.err
    said = same(done.out + done.err)
    assert "leaves them in float" in said
    assert "1 of 3 layers moved to the nearest formats of the search space" in said  # the head, which is fixed
    rows = trials(project / "out")
    assert [row["source"] for row in rows].count("warm_start") == 1
    assert [row["source"] for row in rows].index("warm_start") == [row["source"] for row in rows].count("uniform")
    policy = json.loads((project / "out" / "policy.json").read_text())["layers"]
    assert policy["head"] == {"weight": "int8", "activation": "uint8"}
    assert policy["body"]["weight"] in {"kmeans2", "kmeans4", "ternary", "binary"}
    assert (project / "out" / "model.onnx").is_file()
    again = call("evaluate", "my.toml", "--policy", "out/policy.json", "--json", *arguments[4:], cwd=project)
    assert json.loads(again.out)["accuracy"] == json.loads((project / "out" / "summary.json").read_text())["accuracy"]
    # The same command goes on; another policy to start from is another search.
    assert call(*arguments, cwd=project).code == 0
    (project / "strategy.txt").write_text("[4, 2, 8]\n")
    other = call(*arguments, cwd=project)
    assert other.code == 2 and "another recipe" in same(other.err)


@pytest.mark.parametrize("agent", ["funnel", "ddpg"])
def test_a_search_of_formats_whose_blocks_share(project, call, agent):
    """The chosen policy's bytes are those of the program that the run wrote, and ONNX Runtime computes its codes."""
    from tests.export.test_onnx import check_equal

    formats = ["int4", "int4:channel", "vsq4", "int4:group=16", "mxfp4", "mx6", "ternary"]
    recipe(project, f"weight_formats = {formats}", f'agent = "{agent}"', without=("weight_bits", "agent", "budget"))
    arguments = ["my.toml", "--set", 'budget=["size_bytes <= 0.75 * int8"]']
    done = call("run", *arguments, "--out", "out", cwd=project)
    assert done.code == 0, done.err
    summary = json.loads((project / "out" / "summary.json").read_text())
    policy = json.loads((project / "out" / "policy.json").read_text())["layers"]
    assert policy["body"]["weight"] in formats and "int4:channel" not in policy["body"]["weight"]
    program = load_program(project / "out" / "model.safetensors")
    channels = sum(8 * len(program.constants[f"{step.name}.bias"]) for step in program.instructions if step.layer)
    assert program.weight_bytes + channels == summary["metrics"]["size_bytes"]
    x = torch.randn(50, *program.tensors[program.input].shape, generator=torch.Generator().manual_seed(0))
    check_equal(program, project / "out" / "model.onnx", x)
    asked = call("cost", *arguments, "--policy", "out/policy.json", "--json", cwd=project)
    assert json.loads(asked.out)["metrics"]["size_bytes"] == summary["metrics"]["size_bytes"]


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ('warm_start = ["haq:none.txt"]', ["haq:none.txt", "not readable"]),
        ('warm_start = ["none.json"]', ["none.json", "no such policy file", "nncf:FILE"]),
        ('warm_start = ["hak:my_net.py"]', ["'hak'", "did you mean 'haq'"]),
        ('warm_start = ["haq:short.txt"]', ["short.txt", "2 entries for 3", "none is left for head"]),
        ('weight_formats = ["kmeans9"]', ["kmeans9", "did you mean"]),
        ('weight_formats = ["uint4"]', ["uint4 is not for weights"]),
        ('weight_formats = ["float32"]', ["float32 is not for weights"]),
        ('weight_formats = ["int9:group=4"]', ["int9:group=4 is for tensors alone", "int2..int8"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(project, call, line, fragments):
    recipe(project, line, without="nothing")
    (project / "short.txt").write_text("[4, 4]")
    result = call("run", "my.toml", "--out", "out", cwd=project)
    assert result.code == 2
    for fragment in fragments:
        assert fragment in same(result.err)
    assert not (project / "out").exists() or not list((project / "out").glob("*.json"))


def test_recipes_of_before_have_the_digest_they_had(project):
    before = load_recipe(project / "my.toml")
    assert before.digest == load_recipe(project / "my.toml", ["warm_start=[]", "weight_formats=[]"]).digest
    for change in ('warm_start=["uniform:w4a4"]', 'weight_formats=["kmeans3"]'):
        assert load_recipe(project / "my.toml", [change]).digest != before.digest
    assert load_recipe(project / "my.toml", ["warm_start=uniform:w4a4"]).warm_start == ("uniform:w4a4",)
    with pytest.raises(HaqError, match="weight_formats"):
        load_recipe(project / "my.toml", ['weight_formats=["int9:tensor"]'])


def test_bench_learning_is_the_mean_of_what_was_proposed(call, tmp_path):
    from statistics import fmean

    from haqsearch.agents import build_agent
    from haqsearch.search.loop import run_search
    from haqsearch.search.pool import SerialPool
    from haqsearch.search.records import read_records
    from haqsearch.search.storage import open_study
    from haqsearch.testing.toy import AdditiveLoss, toy_problem

    problem, kept = toy_problem(), {}
    for seed in range(2):
        study = open_study(tmp_path / "runs" / "toy" / f"random-40-{seed}", "search")
        run_search(
            problem, build_agent("random", problem, seed), SerialPool(AdditiveLoss(problem.space.model)), study, 40
        )
        kept[seed] = [record.score for record in read_records(study) if record.source == "random"]
    assert call("bench", "learning", ".", "--window", "10", cwd=tmp_path).code == 0
    with (tmp_path / "learning.csv").open() as file:
        rows = list(csv.DictReader(file))
    for seed, scores in kept.items():
        mine = [row for row in rows if row["seed"] == str(seed)]
        assert [int(row["first"]) for row in mine[:-1]] == list(range(1, len(scores) - 9, 10))
        assert float(mine[0]["mean"]) == pytest.approx(fmean(scores[:10]))
        assert float(mine[-1]["mean"]) == pytest.approx(fmean(scores[-10:]))
        assert (int(mine[-1]["first"]), int(mine[-1]["last"])) == (len(scores) - 9, len(scores))
        assert float(mine[-1]["best"]) == max(scores[-10:])
    assert "| toy | random | 2 |" in (tmp_path / "learning.md").read_text()
    page = call("bench", "search", "--page-only", "--out", ".", cwd=tmp_path)
    assert page.code == 0, "the page of the searches leaves learning.csv alone"
    nothing = call("bench", "learning", "runs", cwd=tmp_path)
    assert nothing.code == 2 and "haqsearch bench search makes them" in same(nothing.err)
