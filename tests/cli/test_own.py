"""A user's own network, data, device and agent need no change to our code: they lie beside the recipe."""

from __future__ import annotations

import json

MY_AGENT = """
from haqsearch.agents import Agent


class Widest(Agent):
    def propose(self, study, trial):
        return self.problem.space.policy([len(v.candidates) - 1 for v in self.problem.space.variables])
"""


def test_model_weights_data_device_and_agent_beside_the_recipe(project, call, tmp_path_factory):
    (project / "my_agent.py").write_text(MY_AGENT)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    result = call(
        "run", project / "my.toml", "--out", "out", "--set", "hardware=board.toml", "--set", "agent=my_agent:Widest",
        "--set", "max_evaluations=8", cwd=elsewhere,
    )  # fmt: skip
    assert result.code == 0, result.err
    summary = json.loads((elsewhere / "out" / "summary.json").read_text())
    assert summary["hardware"]["name"] == "board" and summary["model"] == "my_net"
    assert summary["evaluations"] == 8 and summary["feasible"]
    assert "my_agent:Widest" in (elsewhere / "out" / "recipe.toml").read_text()


def test_a_layer_without_integer_kernel_stays_in_float_and_says_so(project, call):
    source = (project / "my_net.py").read_text()
    source = source.replace("self.body =", "self.up = nn.ConvTranspose2d(8, 8, 2, 2)\n        self.body =")
    source = source.replace("torch.relu(self.stem(x))", "torch.relu(self.up(torch.relu(self.stem(x))))")
    (project / "my_net.py").write_text(source)
    settings = ["--set", "weights=", "--set", "train.epochs=2", "--set", "budget=size_bytes <= 0.9 * int8"]
    result = call("run", "my.toml", *settings, "--out", "out", cwd=project)
    assert result.code == 0, result.err
    assert "up: stays in float32" in result.out
    summary = json.loads((project / "out" / "summary.json").read_text())
    assert any("up: stays in float32" in note for note in summary["notes"])
    policy = json.loads((project / "out" / "policy.json").read_text())
    assert policy["layers"]["up"] == {"weight": "float32", "activation": "float32"}
    found = json.loads(call("cost", "my.toml", *settings, "--json", cwd=project).out)
    layer = next(layer for layer in found["layers"] if layer["layer"] == "up")
    assert set(layer["choice"].split("/")) == {"float32"}
    assert layer["size_bytes"] >= 4 * 8 * 8 * 2 * 2 and layer["bops"] > 0 and layer["bops"] % (32 * 32) == 0
    assert layer["latency_s"] > 0 and found["metrics"]["latency_s"] > layer["latency_s"]
    for command in ("inspect", "evaluate"):
        result = call(command, "my.toml", *settings, cwd=project)
        assert result.code == 0, result.err
        assert "float32" in result.out
