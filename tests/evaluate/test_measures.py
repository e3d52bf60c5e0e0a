"""Sensitivities that are calculated: against exact Hessians and input statistics, and how their tables are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import nn

from haqsearch.errors import ModelError, SearchError
from haqsearch.evaluate import Evaluator
from haqsearch.evaluate.measures import MEASURES, measure_called
from haqsearch.evaluate.measures.base import Calculated, Measure
from haqsearch.evaluate.measures.hessian import hessian_traces
from haqsearch.evaluate.sensitivity import Sensitivities
from haqsearch.graph import trace
from haqsearch.graph.plan import make_plan
from haqsearch.ptq.fold import prepare
from haqsearch.ptq.reconstruct import input_statistics
from haqsearch.spec import SearchSpace
from haqsearch.testing.toy import ShapeCosts


class Residual(nn.Module):
    """A value that a layer and a residual add read; ``tap`` is added to the layer's copy of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, 2, 1)
        self.body = nn.Conv2d(3, 3, 3, 1, 1)
        self.head = nn.Linear(3, 4)

    def forward(self, x, tap=0.0):
        a = torch.relu(self.stem(x))
        return self.head(torch.relu(self.body(a + tap) + a).mean((2, 3)))


@pytest.fixture(scope="module")
def space(digits):
    return SearchSpace.build(digits[0].spec, (2, 3, 4, 8), (2, 4, 8))


def test_traces_are_those_of_the_exact_hessians():
    """The rows of a Hadamard matrix in place of random signs make Hutchinson's mean the expectation itself."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x, labels = Residual(), torch.randn(2, 1, 6, 6), torch.tensor([1, 3])
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.7)
    graph = prepare(trace(model, x, "tiny"))
    rows = torch.tensor(hadamard(8), dtype=torch.float32).reshape(8, 2, 4)
    found = hessian_traces(graph, make_plan(graph), x, [lambda classes, row=row: row for row in rows])

    for node in graph.layers:
        key = f"{node.layer}.weight"
        weight = model.get_parameter(key).detach()

        def loss(w, key=key):
            return F.cross_entropy(torch.func.functional_call(model, {key: w}, (x,)), labels)

        exact = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1).trace()
        assert found[node.weight] == pytest.approx(float(exact), rel=1e-4)

    value = graph.source(next(n for n in graph.layers if n.layer == "body").inputs[0]).name
    exact = 0.0
    for image, label in zip(x, labels, strict=True):

        def loss_of(tap, image=image, label=label):
            return F.cross_entropy(model(image[None], tap), label[None])

        tap = torch.zeros(1, 3, 3, 3)
        exact += float(torch.autograd.functional.hessian(loss_of, tap).reshape(27, 27).trace()) / 2
    assert found[value] == pytest.approx(exact, rel=1e-4)


def test_random_signs_come_near_the_exact_trace(digits):
    prepared, splits = digits
    inputs = splits.calibrate[0][:4]
    rows = torch.tensor(hadamard(64), dtype=torch.float32)[:, :40].reshape(64, 4, 10)
    exact = hessian_traces(prepared.graph, prepared.plan, inputs, [lambda classes, row=row: row for row in rows])
    generator = torch.Generator().manual_seed(0)
    draws = [lambda classes: torch.randint(0, 2, (4, classes), generator=generator) * 2.0 - 1] * 60
    near = hessian_traces(prepared.graph, prepared.plan, inputs, draws)
    assert near.keys() == exact.keys() and min(near.values()) > 0
    assert all(near[key] == pytest.approx(exact[key], rel=0.5) for key in exact)


def test_output_mse_is_what_the_input_statistics_say(digits, space):
    prepared, splits = digits
    table = Calculated(measure_called("output_mse"), prepared, splits, space).table()
    statistics = input_statistics(prepared.graph, [splits.calibrate[0]])
    base = 0.0
    for node in prepared.graph.layers:
        known, errors = statistics[node.layer], []
        for format in next(v for v in space.variables if v.name == f"{node.layer}.weight").candidates:
            weight = prepared.graph.parameters[node.weight]
            groups, size, _ = known.covariance.shape
            change = (prepared.weight(node.layer, format).dequantize() - weight).double().reshape(groups, -1, size)
            moments = known.covariance + known.mean[:, :, None] * known.mean[:, None, :]
            errors.append(float(((change @ moments) * change).sum(2).mean()))
        base += errors[-1]
        rises = [error - errors[-1] for error in errors]
        assert table.rise[f"{node.layer}.weight"] == pytest.approx(rises, rel=1e-3, abs=1e-9)
    assert table.base > base > 0


@pytest.mark.parametrize("name", MEASURES)
def test_the_laws_of_a_table(digits, space, name):
    """No error at all is below 0, none at the widest, and more bits never hurt."""
    table = Calculated(measure_called(name), *digits, space).table().check(space)
    assert table.measure == name and table.base >= 0
    for rises in table.rise.values():
        assert rises[-1] == 0 and rises[0] > 0
        assert all(narrow > wide for narrow, wide in pairwise(rises))
    uniform = [table.predict(space, space.policy([i] * len(space.variables))) for i in range(3)]
    assert uniform == sorted(uniform, reverse=True)


@pytest.mark.parametrize("name", MEASURES)
def test_a_killed_one_goes_on_and_finds_the_same_bit_for_bit(digits, space, name, tmp_path):
    measure = measure_called(name)
    undisturbed = Calculated(measure, *digits, space).table()
    kept = Calculated(measure, *digits, space, tmp_path)

    def killed(done, whole):
        if 2 * done >= whole:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.table(killed)
    assert kept.kept() is None and json.loads(kept.file.read_text())["samples"] < len(kept.inputs)
    steps: list[int] = []
    assert kept.table(lambda done, whole: steps.append(done)) == undisturbed
    assert steps[0] > kept.measure.largest_batch and steps[-1] == len(kept.inputs)
    assert Calculated(measure, *digits, space, tmp_path).table(lambda *step: steps.append(0)) == undisturbed
    assert 0 not in steps, "calculated once"
    assert kept.kept() == undisturbed


def test_a_table_is_valid_for_its_own_digest_only(digits, space, tmp_path):
    prepared, splits = digits
    measure = measure_called("hessian")

    class Later(measure):
        version = measure.version + 1

    key = prepared.graph.layers[0].weight
    moved = {**prepared.graph.parameters, key: prepared.graph.parameters[key] * 1.01}
    other = replace(prepared, graph=prepared.graph.replace(prepared.graph.nodes, moved))
    inputs, labels = splits.calibrate
    files = [
        Calculated(measure, prepared, splits, space, tmp_path).file,
        Calculated(Later, prepared, splits, space, tmp_path).file,
        Calculated(measure_called("output_mse"), prepared, splits, space, tmp_path).file,
        Calculated(measure, other, splits, space, tmp_path).file,
        Calculated(measure, prepared, replace(splits, calibrate=(inputs[1:], labels[1:])), space, tmp_path).file,
        Calculated(measure, prepared, splits, SearchSpace.build(prepared.spec, (2, 8), (4, 8)), tmp_path).file,
    ]
    assert len(set(files)) == len(files)
    assert Calculated(measure, prepared, splits, space, tmp_path).file == files[0]


def test_sensitivities_are_by_objectives_and_by_measures(digits, space, tmp_path):
    tables = Sensitivities(Evaluator(*digits, ShapeCosts(digits[0].spec), ()), space, tmp_path)
    assert tables.kept("output_mse") is None
    table = tables.table("output_mse")
    assert tables.kept("output_mse") == table == tables.table(measure_called("output_mse"))
    assert not tables.file.exists(), "no policy was evaluated"


class Hopeless(Measure):
    name = "hopeless"

    def figures(self, number, inputs, labels):
        return {variable.name: [float("nan")] for variable in self.space.variables}

    def errors(self, variable, means):
        return list(means) * len(variable.candidates)


def test_what_cannot_be_calculated_is_said(digits, space):
    with pytest.raises(SearchError, match=r"hopeless: \S+weight has \[nan"):
        Calculated(Hopeless, *digits, space).table()

    class NoLogits(nn.Module):
        def __init__(self):
            super().__init__()
            self.only = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.only(x)

    x = torch.randn(2, 1, 6, 6)
    graph = prepare(trace(NoLogits(), x, "mapper"))
    with pytest.raises(ModelError, match=r"gives \(2, 4, 4\) per sample; logits"):
        hessian_traces(graph, make_plan(graph), x, [])
