"""Figures that others published, side by side with what the devices predict for them.

The figures are facts with their source, in ``published/*.csv``; ``SETS`` has one function for each set. Some were
used to fit the device that they are compared with: ``FITTED`` says which, and a small error there only says that the form
of the model fits.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from haqsearch.spec import Choice, Format, LayerSpec, ModelSpec, Policy
from hwmodels import networks
from hwmodels.base import HardwareModel
from hwmodels.meter import Meter
from hwmodels.overlay import Measured, leave_one_out
from hwmodels.profile import load

FOLDER = Path(__file__).with_name("published")


@dataclass(frozen=True)
class Row:
    """One published figure: ``case`` of ``device`` in base units of ``metric``, and what the device model predicts."""

    set: str
    device: str
    case: str
    metric: str
    published: float
    predicted: float
    source: str

    @property
    def error(self) -> float:
        """Relative: predicted / published - 1."""
        return self.predicted / self.published - 1


def read(name: str) -> list[dict[str, str]]:
    """Rows of ``published/NAME.csv``."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def _device(name: str) -> Any:
    return load(name)


def _choice(w: int, a: int) -> Choice:
    return Choice(Format("int", w), Format("uint", a))


def _costs(device: HardwareModel, model: ModelSpec, w: int, a: int, pinned: tuple[str, ...] = ()) -> dict[str, float]:
    fixed = dict.fromkeys(pinned, _choice(8, 8))
    return Meter(device, model).costs(Policy.uniform(model, _choice(w, a), fixed))


def haq_paper() -> list[Row]:
    """HAQ's latencies of MobileNetV1 and V2 at 4, 5, 6, 8 bits on its edge and cloud accelerators."""
    built = {"mobilenet_v1": networks.mobilenet_v1(), "mobilenet_v2": networks.mobilenet_v2()}
    found = []
    for row in read("haq_paper"):
        w, a = int(row["weight_bits"]), int(row["activation_bits"])
        predicted = _costs(_device(row["device"]), built[row["network"]], w, a)["latency_s"]
        case, source = f"{row['network']} w{w}a{a}", "Wang et al. 2019 (1811.08886), uniform policies"
        published = float(row["latency_ms"]) / 1e3
        found.append(Row("haq_paper", row["device"], case, "latency_s", published, predicted, source))
    return found


def haq_paper_bitfusion() -> list[Row]:
    """HAQ's latencies of MobileNetV1 on BitFusion, first and last layer at 8 bits."""
    model, device, found = networks.mobilenet_v1(), _device("bitfusion"), []
    for row in read("haq_paper_bitfusion"):
        w, a = int(row["weight_bits"]), int(row["activation_bits"])
        predicted = _costs(device, model, w, a, ("conv0", "fc"))["latency_s"]
        published, source = float(row["latency_ms"]) / 1e3, "Wang et al. 2019 (1811.08886), BitFusion"
        case = f"mobilenet_v1 w{w}a{a}"
        found.append(Row("haq_paper_bitfusion", "bitfusion", case, "latency_s", published, predicted, source))
    return found


def _stm32h7(name: str, depthwise: bool) -> list[Row]:
    model, device, found = networks.mobilenet_v1(0.25, 160), _device("cortex-m7"), []
    for row in read("stm32h7_mobilenet_v1"):
        layer = model[row["layer"]]
        if (layer.op == "depthwise_conv2d") == depthwise:
            predicted = device.cost(layer, _choice(8, 8), 1).values["latency_s"]
            published, case = int(row["cycles"]) / 400e6, f"mobilenet_v1 0.25/160 {layer.name}"
            source = "EEESlab/mobilenet_v1_stm32_cmsis_nn:docs/imgs/profiling_160_0_25.png"
            found.append(Row(name, "cortex-m7", case, "latency_s", published, predicted, source))
    return found


def stm32h7_convolutions() -> list[Row]:
    """Measured layers of MobileNetV1 on an STM32H743: convolutions and the classifier."""
    return _stm32h7("stm32h7_convolutions", depthwise=False)


def stm32h7_depthwise() -> list[Row]:
    """Measured layers of MobileNetV1 on an STM32H743: depthwise convolutions."""
    return _stm32h7("stm32h7_depthwise", depthwise=True)


def _hawq(row: Any) -> tuple[str, str]:
    return (
        f"{row.network} {row.layer} {row.choice}",
        f"Zhen-Dong/HAWQ:ILP.ipynb (hwmodels/tables/nvidia-t4.csv:{row.line})",
    )


def t4() -> list[Row]:
    """HAWQ-V3's measured layers of ResNet-18 and ResNet-50 on a T4: rows of the table that the device has."""
    device: Measured = _device("nvidia-t4")
    bound = {model.name: device.bind(model) for model in (networks.resnet18(), networks.resnet50())}
    found = []
    for row in device.table_rows.rows:
        model = {"resnet18": networks.resnet18, "resnet50": networks.resnet50}[row.network]()
        predicted = bound[row.network].cost(model[row.layer], row.choice, row.batch).values["latency_s"]
        found.append(Row("t4", "nvidia-t4", _hawq(row)[0], "latency_s", row.latency_s, predicted, _hawq(row)[1]))
    return found


def t4_leave_one_out() -> list[Row]:
    """The same layers, each predicted from the others (without every row of its shape at its widths)."""
    return [
        Row("t4_leave_one_out", "nvidia-t4", *_hawq(out.row)[:1], "latency_s", out.row.latency_s, out.predicted_s,
            _hawq(out.row)[1])
        for out in leave_one_out(_device("nvidia-t4"))
    ]  # fmt: skip


def mlperf_tiny() -> list[Row]:
    """MLPerf Tiny on the one board that a device describes: latency and energy of its maker's submissions."""
    device, found = _device("stm32h7a3"), []
    for row in read("mlperf_tiny_stm32h7a3"):
        costs = _costs(device, networks.MLPERF_TINY[row["task"]](), 8, 8)
        source = f"mlcommons/tiny_results_{row['round']}: STMicroelectronics NUCLEO_H7A3ZI_Q"
        case = f"{row['round']} {row['task']}"
        for metric, value in (
            ("latency_s", float(row["latency_ms"]) / 1e3),
            ("energy_j", float(row["energy_uj"]) / 1e6),
        ):
            found.append(Row("mlperf_tiny", "stm32h7a3", case, metric, value, costs[metric], source))
    return found


def edge_tpu() -> list[Row]:
    """Google's latencies of whole networks on an Edge TPU; ResNet-50 on 299 x 299 pixels."""
    built = (networks.mobilenet_v1(), networks.mobilenet_v2(), networks.resnet50(299), networks.vgg16())
    models, found = {model.name: model for model in built}, []
    for row in read("edge_tpu"):
        predicted = _costs(_device("edge-tpu"), models[row["network"]], 8, 8)["latency_s"]
        published, source = float(row["latency_ms"]) / 1e3, "coral.ai/docs/edgetpu/benchmarks"
        found.append(Row("edge_tpu", "edge-tpu", row["network"], "latency_s", published, predicted, source))
    return found


def ort_matmul() -> list[Row]:
    """ONNX Runtime's products of 4 and 8-bit weights on AVX-512 VNNI."""
    device, found = _device("x86-avx512-vnni"), []
    for row in read("ort_matmul_nbits"):
        rows, c, n, w = (int(row[key]) for key in ("rows", "in_channels", "out_channels", "weight_bits"))
        layer = LayerSpec("product", "linear", (rows, c), (n, c), (rows, n), rows * c * n, inputs=("previous",))
        predicted = device.cost(layer, _choice(w, 8), 1).values["latency_s"]
        case, source = f"{rows} x {c} x {n} w{w}", "microsoft/onnxruntime:commit 7801c513 (#24491)"
        published = float(row["latency_us"]) / 1e6
        found.append(Row("ort_matmul", "x86-avx512-vnni", case, "latency_s", published, predicted, source))
    return found


def peaks() -> list[Row]:
    """Published peak rates, in multiply-accumulates per second."""
    found = []
    for row in read("peaks"):
        device, w, a = _device(row["device"]), int(row["weight_bits"]), int(row["activation_bits"])
        clock = device.profile.clock.frequency_hz
        unit = {"macs_per_cycle": clock, "tera_ops_per_s": 1e12 / 2, "giga_macs_per_s": 1e9}[row["quantity"]]
        published, predicted = float(row["value"]) * unit, device.peak_macs_per_s(w, a)
        found.append(Row("peaks", row["device"], f"w{w}a{a}", "macs_per_s", published, predicted, row["source"]))
    return found


def speedups() -> list[Row]:
    """Published ratios of cycles between two devices, here on 64 filters of 3 x 3 over 32 channels of 16 x 16 pixels."""
    layer, found = networks.conv("filters", 32, 64, 3, 16), []
    for row in read("speedups"):
        choice = _choice(int(row["weight_bits"]), int(row["activation_bits"]))
        cycles = {}
        for name in (row["device"], row["baseline"]):
            device = _device(name)
            cycles[name] = device.cost(layer, choice, 1).seconds["compute"] * device.profile.clock.frequency_hz
        predicted = cycles[row["baseline"]] / cycles[row["device"]]
        case, published = f"{choice} against {row['baseline']}", float(row["cycles_ratio"])
        found.append(Row("speedups", row["device"], case, "cycles_ratio", published, predicted, row["source"]))
    return found


SETS: dict[str, Callable[[], list[Row]]] = {
    function.__name__: function
    for function in (
        haq_paper, haq_paper_bitfusion, stm32h7_convolutions, stm32h7_depthwise, t4, t4_leave_one_out, mlperf_tiny,
        edge_tpu, ort_matmul, peaks, speedups,
    )
}  # fmt: skip

# Sets whose figures the device's numbers were fitted to, wholly or in part, and how.
FITTED: dict[str, str] = {
    "haq_paper": "bismo-edge: word size, port split and depthwise packing; bismo-cloud: not",
    "stm32h7_convolutions": "all coefficients of cortex-m7",
    "stm32h7_depthwise": "all coefficients of cortex-m7",
    "t4": "the rows are the device's own table",
    "mlperf_tiny": "the three rates of stm32h7a3, to the latencies",
    "edge_tpu": "efficiency and per_layer_s, to the two MobileNets",
    "ort_matmul": "rates, to the products of matrices; two bandwidths, to the six products with vectors",
    "peaks": "gap8: efficiency",
    "speedups": "xpulpnn: its 4 and 2-bit rates",
}
