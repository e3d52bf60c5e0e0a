"""haqsearch bench calibrate: the ranges of every value by every observer at once, against plain float forward passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from haqsearch.calibrate import Collector
    from haqsearch.cli.bench.machine import Request
    from haqsearch.graph import Graph

_BATCH = 64
_FORMAT = "uint8"


def calibrate(request: Request) -> dict[str, Any]:
    """Seconds and memory of one calibration with every observer, against the forward pass of the same images alone.

    Every quantized value is observed by all observers but cross-entropy, which is for logits and sees the output. A calibration
    is the pass that collects and every observer's uint8 range of every value. It alternates with forward passes, so that a
    busy machine slows both; ``ratio`` is of the two in one turn. Memory: the peak of the process over what it held
    with the network and the images loaded (Linux; null elsewhere), and the bytes of what is collected.
    """
    from time import perf_counter

    import numpy as np
    import torch

    from haqsearch.graph import trace
    from haqsearch.ptq import prepare

    assembly, repeats = request.assembly(), request.repeats
    images = assembly.splits.calibrate[0]
    graph = prepare(trace(assembly.network, images[:2], assembly.model_name))
    seconds: dict[str, list[float]] = {"forward": [], "collect": [], "ranges": []}
    with torch.no_grad():
        peak_bytes = _peak_over(lambda: _ranges(_collected(graph, images)))
        for _ in range(repeats):
            start = perf_counter()
            _forward(graph, images)
            middle = perf_counter()
            collectors = _collected(graph, images)
            collected = perf_counter()
            _ranges(collectors)
            seconds["forward"].append(middle - start)
            seconds["collect"].append(collected - middle)
            seconds["ranges"].append(perf_counter() - collected)
    ratios = (np.array(seconds["collect"]) + seconds["ranges"]) / seconds["forward"]
    quarter, median, three_quarters = (round(float(v), 3) for v in np.quantile(ratios, [0.25, 0.5, 0.75]))
    state_bytes = sum(collector.nbytes for collector in collectors.values())
    medians = {f"{name}_s": round(float(np.median(values)), 4) for name, values in seconds.items()}
    names = sorted({name for collector in collectors.values() for name in collector.observers})
    text = [
        f"{assembly.model_name}: {len(images)} images, {len(collectors)} values, {len(names)} observers, batches of {_BATCH}",
        f"forward {medians['forward_s']:.3f} s, collecting {medians['collect_s']:.3f} s, ranges {medians['ranges_s']:.3f} s",
        f"calibration / forward pass: {median:.2f} (quartiles {quarter:.2f}, {three_quarters:.2f}; {repeats} times)",
        f"collected: {state_bytes / 1e6:.1f} MB; peak above the loaded network: {_megabytes(peak_bytes)}",
    ]
    return {
        "images": len(images),
        "values": len(collectors),
        "observers": names,
        "batch": _BATCH,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "ratio": {"median": median, "quartiles": [quarter, three_quarters]},
        **medians,
        "state_bytes": state_bytes,
        "peak_bytes": peak_bytes,
        "text": text,
    }


def _forward(graph: Graph, images: Tensor) -> None:
    from haqsearch.graph.execute import run_float

    for batch in images.split(_BATCH):
        run_float(graph, batch)


def _collected(graph: Graph, images: Tensor) -> dict[str, Collector]:
    """Every quantized value's collector, filled from ``images`` in one pass."""
    from haqsearch.calibrate import OBSERVERS, collect
    from haqsearch.graph.execute import run_float
    from haqsearch.graph.ir import MOVES, Node
    from haqsearch.graph.plan import make_plan

    plan = make_plan(graph)
    output = graph.source(graph.output).name
    collectors = {
        n.name: collect([key for key in OBSERVERS if key != "cross_entropy" or n.name == output], n.name)
        for n in graph.nodes
        if n.op not in MOVES and set(plan.slots[n.name]) - {"float"}
    }

    def observe(node: Node, value: Tensor) -> None:
        if node.name in collectors:
            collectors[node.name].update(value)

    for batch in images.split(_BATCH):
        run_float(graph, batch, observe)
    return collectors


def _ranges(collectors: dict[str, Collector]) -> None:
    from haqsearch.spec import Format

    format = Format.parse(_FORMAT)
    for collector in collectors.values():
        for observer in collector.observers:
            collector.params(format, observer)


def _peak_over(work: Callable[[], None]) -> int | None:
    """Bytes that ``work`` had the process hold at most, above what it held before; None where Linux does not say."""
    import gc

    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = _status("VmRSS")
        work()
        return max(_status("VmHWM") - before, 0)
    except OSError:
        work()
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _megabytes(size: int | None) -> str:
    return "not measured on this system" if size is None else f"{size / 1e6:.0f} MB"
