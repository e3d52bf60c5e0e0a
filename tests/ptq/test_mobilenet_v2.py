"""Where equalization is at home: MobileNetV2 with one weight scale a layer [Nagel et al. 2019, tables 1, 5], on photographs."""

from __future__ import annotations

import pytest
import torch

from haqsearch.data import DataSet, split
from haqsearch.evaluate import float_logits, prepare_network, score_logits
from haqsearch.evaluate.metrics import in_batches
from haqsearch.runtime import run_program
from haqsearch.spec import Choice, Policy
from tests.models.test_zoo import public


@pytest.mark.data
@pytest.mark.slow
def test_one_scale_a_layer_loses_little_after_equalization_and_bias_correction(data_root):
    network, data = public("mobilenet_v2", "mobilenetv2_imagenet.safetensors", "imagenet_compat500", data_root)
    splits = split(DataSet("photographs", data.inputs, data.labels), calibrate=40, search=1, report=160, seed=0)
    x, labels = splits.report
    kl, reference = {}, torch.zeros(0)
    for steps in (("nearest",), ("equalize", "nearest"), ("equalize", "nearest", "bias_correct")):
        ready = prepare_network(network, splits, "mobilenet_v2", ("fold_bn", *steps))
        logits = in_batches(lambda v, graph=ready.graph: float_logits(graph, v), x, 20)
        reference = logits if steps == ("nearest",) else reference
        torch.testing.assert_close(logits, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))
        program = ready.lower(Policy.uniform(ready.spec, Choice.parse("int8:tensor/uint8")))
        found = score_logits(in_batches(lambda v, p=program: run_program(p, v), x, 20), labels, reference)
        kl[steps] = found.kl
    plain, equal, both = kl.values()
    assert both < equal < 0.6 * plain, kl
    assert found.accuracy >= score_logits(reference, labels, reference).accuracy - 0.03
