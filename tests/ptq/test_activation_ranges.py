from __future__ import annotations

import pytest
import torch
from networks import inputs as inputs_of
from networks import small
from torch import nn

from haqsearch.graph import trace
from haqsearch.graph.apply import fake_quantize
from haqsearch.graph.ranges import calibrate
from haqsearch.ptq import prepare
from haqsearch.ptq.activation_ranges import FACTORS, OutputErrorFactors
from haqsearch.spec import Format


def ready(model, inputs):
    graph = prepare(trace(model.eval(), inputs[:2], "net"))
    return graph, calibrate(graph, inputs.split(64))


@pytest.mark.parametrize("text", ["uint2", "uint3", "uint4"])
def test_the_factor_is_the_one_of_least_error_of_the_layer_that_reads(text):
    """By hand: one linear layer, every factor tried."""
    torch.manual_seed(0)
    inputs, model, format = torch.randn(300, 6).relu() ** 2, nn.Linear(6, 5), Format.parse(text)
    graph, ranges = ready(model, inputs)
    seen = inputs[:256]
    errors = [
        float(
            ((fake_quantize(seen, ranges.placed(graph.input.name, format, f)) - seen) @ model.weight.detach().T)
            .pow(2)
            .sum()
        )
        for f in FACTORS
    ]
    assert OutputErrorFactors(graph, ranges, inputs)(graph.input.name, format) == FACTORS[errors.index(min(errors))]


def test_a_channel_that_no_weight_meets_does_not_count():
    """The first channel is large and read with weight 0, the second small: its own range is chosen, as near as factors go."""
    torch.manual_seed(0)
    inputs = torch.rand(256, 2) * torch.tensor([4.0, 2.0])
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[0.0, 1.0]])
    graph, ranges = ready(model, inputs)
    format = Format("uint", 3)
    assert OutputErrorFactors(graph, ranges, inputs)(graph.input.name, format) == min(FACTORS)
    model.weight.data = torch.tensor([[1.0, 0.0]])
    graph, ranges = ready(model, inputs)
    assert OutputErrorFactors(graph, ranges, inputs)(graph.input.name, format) >= 1.0


def test_wide_formats_keep_the_range_of_least_squared_error():
    network = small("shortcut")
    factors = OutputErrorFactors(network.graph, network.ranges, torch.empty(0))
    for text in ("uint8", "int16", "float32"):
        assert all(factors(value, Format.parse(text)) == 1.0 for value in network.plan.owner)
    assert factors.found == {}


@pytest.mark.parametrize("name", ["shortcut", "max_pool", "avg_pool", "tie", "concat", "tokens", "sigmoid"])
def test_scales_chosen_stay_where_no_tie_is_met(name):
    """Whatever factor: scales of what is kept twice, or added, stay in the odd ratios of ``quant/ties.py``."""
    network = small(name)
    chosen = network.ranges.chosen_by(lambda value, format: 1.1 if format.width < 8 else 1.0)
    for value in network.plan.owner:
        for width in (2, 3, 4):
            format, stream = Format("uint", width), Format("uint", 8)
            assert chosen.params(value, format).scale > 0
            if "stream" in network.plan.slots[value] and network.graph[value].op != "input":
                ratio = chosen.params(value, format).scale / chosen.params(value, stream).scale * 128
                assert ratio == pytest.approx(round(ratio), rel=1e-6) and round(ratio) % 2 == 1


def test_learned_factors_multiply_chosen_ones():
    network = small("conv_bias")
    value, format = next(iter(network.plan.owner)), Format("uint", 4)
    chosen = network.ranges.chosen_by(lambda value, format: 1.25)
    learned = chosen.scaled({(value, format): 0.8})
    assert learned.params(value, format) == network.ranges.params(value, format)
    assert learned.factor(value, Format("uint", 3)) == 1.25


@pytest.mark.parametrize("name", ["shortcut", "concat", "avg_pool"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_asked_in_one_format_alone_has_the_factors_it_has_among_all(name, seed):
    """And a value asked in another format than was foreseen has the right one too."""
    network, inputs = small(name), inputs_of(name, 64, seed)
    generator = torch.Generator().manual_seed(seed)
    widths = [2 + int(torch.randint(3, (1,), generator=generator)) for _ in network.plan.owner]
    formats = {value: Format("uint", width) for value, width in zip(network.plan.owner, widths, strict=True)}
    every = OutputErrorFactors(network.graph, network.ranges, inputs)
    those = OutputErrorFactors(network.graph, network.ranges, inputs, formats=formats)
    for value, format in formats.items():
        assert those(value, format) == every(value, format)
        assert those.found.keys() == formats.items(), "of all at once, and of nothing else"
    for value, format in zip(formats, reversed(formats.values()), strict=True):
        assert those(value, format) == every(value, format)


def test_factors_are_kept_on_disk(tmp_path, monkeypatch):
    torch.manual_seed(0)
    inputs, model, format = torch.rand(64, 6), nn.Linear(6, 5), Format("uint", 3)
    graph, ranges = ready(model, inputs)
    first = OutputErrorFactors(graph, ranges, inputs, tmp_path / "kept")
    wanted = first(graph.input.name, format)
    again = OutputErrorFactors(graph, ranges, inputs, tmp_path / "kept")
    monkeypatch.setattr(again, "_choose", lambda formats: pytest.fail("found anew"))
    assert again(graph.input.name, format) == wanted
