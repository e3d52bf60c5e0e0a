from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "my.toml"],
        ["cost", "my.toml"],
        ["cost", "my.toml", "--policy", "uniform:w4a2", "--hardware", "bitfusion"],
        ["evaluate", "my.toml", "--policy", "uniform:w4a4"],
        ["sensitivity", "my.toml", "--pairs", "2"],
    ],
    ids=" ".join,
)
def test_for_people_and_for_programs(project, call, arguments):
    people = call(*arguments, cwd=project)
    assert (people.code, people.err) == (0, "")
    assert people.out.strip()
    assert max(map(len, people.out.splitlines())) <= 80, "wider than the terminal"
    programs = call(*arguments, "--json", cwd=project)
    assert (programs.code, programs.err) == (0, "")
    assert isinstance(json.loads(programs.out), dict)


def test_inspect_lists_layers_with_their_candidates(project, call):
    found = json.loads(call("inspect", "my.toml", "--json", cwd=project).out)
    assert [layer["name"] for layer in found["layers"]] == ["stem", "body", "head"]
    stem, _, head = found["layers"]
    assert stem["macs"] == 8 * 9 * 16 and stem["candidates"] == {
        "weight": "int2, int4, int8",
        "activation": "uint2, uint4, uint8",
    }
    assert head["candidates"] == {"weight": "int8", "activation": "uint8"}, "fixed in the recipe"
    assert found["policies"] == 3**4


def test_cost_adds_up_and_follows_the_device(project, call):
    prices = {}
    for device in ("bismo-edge", "bitfusion"):
        found = json.loads(
            call(
                "cost", "my.toml", "--policy", "uniform:w4a4", "--hardware", device, "--json", cwd=project
            ).out
        )  # fmt: skip
        assert found["hardware"]["name"] == device
        assert found["metrics"]["latency_s"] == pytest.approx(sum(layer["latency_s"] for layer in found["layers"]))
        assert {layer["layer"]: layer["choice"] for layer in found["layers"]}["head"] == "w8a8", "fixed in the recipe"
        assert 0 < found["metrics"]["latency_s"] <= found["int8_metrics"]["latency_s"]
        prices[device] = found["metrics"]
    assert prices["bismo-edge"]["latency_s"] != prices["bitfusion"]["latency_s"]
    assert prices["bismo-edge"]["size_bytes"] == prices["bitfusion"]["size_bytes"]


def test_cost_says_where_fewer_bits_buy_nothing(project, call):
    for device, every in (("ethos-u55-256", True), ("mpic", False)):
        found = json.loads(call("cost", "my.toml", "--hardware", device, "--json", cwd=project).out)
        assert found["buys_nothing_metric"] == "latency_s"
        assert all((layer["buys_nothing"] == ["weight", "activation", "both"]) == every for layer in found["layers"])
    people = call("cost", "my.toml", "--hardware", "ethos-u55-256", cwd=project).out
    assert "save less than 1 % of latency_s in 3 of 3" in " ".join(people.split())
    assert "layers: 3 extrapolated" in call("cost", "my.toml", "--hardware", "nvidia-t4", cwd=project).out


def test_a_device_without_sources_is_called_a_draft(project, call):
    from hwmodels.profile import PROFILES

    text = (PROFILES / "mpic.toml").read_text()
    before, _, after = text.partition("sources = [")
    (project / "draft.toml").write_text(before + after.partition("]\n")[2])
    assert "a draft: names no sources" in " ".join(
        call("cost", "my.toml", "--hardware", "draft.toml", cwd=project).out.split()
    )
    found = json.loads(call("cost", "my.toml", "--hardware", "draft.toml", "--json", cwd=project).out)
    assert found["hardware"]["draft"] and found["hardware"]["summary"].endswith("(draft: names no sources)")


def test_dominated_widths_leave_the_search(project, call):
    every = json.loads(call("inspect", "my.toml", "--json", "--set", 'hardware="ethos-u55-256"', cwd=project).out)
    settings = [
        "--set",
        'hardware="ethos-u55-256"',
        "--set",
        "prune_dominated=true",
        "--set",
        'budget=["latency_s <= 1 ms"]',
    ]
    pruned = json.loads(call("inspect", "my.toml", "--json", *settings, cwd=project).out)
    assert (every["policies"], pruned["policies"]) == (3**4, 1)


def test_evaluate_scores_a_policy_file_as_the_run_did(finished, call, tmp_path):
    """The policy of the run, before its fine-tuning; uniform:w8a8 is the run's int8_accuracy to the last digit."""
    summary = json.loads((finished.folder / "summary.json").read_text())
    result = call("evaluate", finished.recipe, "--policy", "uniform:w8a8", "--json", cwd=tmp_path)
    assert json.loads(result.out)["accuracy"] == summary["int8_accuracy"]
    result = call(
        "evaluate", finished.recipe, "--policy", finished.folder / "policy.json", "--json", cwd=tmp_path
    )  # fmt: skip
    found = json.loads(result.out)
    assert found["policy_digest"] == summary["policy_digest"]
    assert found["metrics"] == summary["metrics"]
    assert found["samples"] == 200 and found["accuracy"] == pytest.approx(summary["accuracy"], abs=0.1)


def test_evaluate_leaves_the_network_of_a_run_alone(finished, call, tmp_path):
    kept = (finished.folder / "float.safetensors").read_bytes()
    result = call("cost", finished.recipe, "--set", "train.epochs=1", "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    assert (finished.folder / "float.safetensors").read_bytes() == kept


def test_export_gives_the_file_of_the_run(finished, call, tmp_path):
    import onnx

    out = tmp_path / "again.onnx"
    result = call("export", finished.folder, "--format", "onnx", "--out", out, cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    once, again = onnx.load(finished.folder / "model.onnx"), onnx.load(out)
    assert again.graph.SerializeToString(deterministic=True) == once.graph.SerializeToString(deterministic=True)
    assert out.read_bytes() == (finished.folder / "model.onnx").read_bytes(), "and so do its provenance entries"


def test_results_is_a_table_that_goes_into_a_page(finished, call, tmp_path):
    result = call("results", finished.folder.parent, cwd=tmp_path)
    assert (result.code, result.err) == (0, "") and "digits_cnn on bismo-edge" in result.out
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    for _ in range(2):  # the second time changes nothing
        assert call("results", finished.folder.parent, "--write", page, cwd=tmp_path).code == 0
        text = page.read_text()
        assert text.startswith("before\n<!-- results:begin -->\n|") and text.endswith("<!-- results:end -->\nafter\n")
        assert text.count("digits_cnn") == 1 and "old" not in text
    page.write_text("no marks")
    result = call("results", finished.folder.parent, "--write", page, cwd=tmp_path)
    assert result.code == 2 and "page.md" in result.err and page.read_text() == "no marks"


def test_no_arguments_and_help_show_the_commands(project, call):
    for arguments in ([], ["--help"], ["run", "--help"]):
        result = call(*arguments, cwd=project)
        assert result.code == 0 and "haqsearch" in result.out
