"""haqsearch bench agreement: whether the search's program, the reference and the exported model compute the same.

No time is measured. The native kernels, which score policies in a search, are held against the reference, code by code; the
exported ONNX models, output by output: of QuantizeLinear pairs, in ONNX Runtime without graph optimizations, and of integers
alone, with all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from haqsearch.cli.bench.machine import Request
    from haqsearch.runtime import IntegerProgram

_POLICIES = ("w8a8", "w4a4", "w3a5", "mixed")
_BATCH = 50


def agreement(request: Request) -> dict[str, Any]:
    """For each policy: images and outputs compared, how many outputs differ, by how many steps of the 16-bit output at most."""
    from tempfile import TemporaryDirectory

    from haqsearch.cli.bench.evaluate import mixed_or_uniform
    from haqsearch.cli.outcome import environment

    assembly = request.assembly()
    x = assembly.splits.report[0][: request.images]
    rows = []
    with TemporaryDirectory() as folder:
        for name in _POLICIES:
            if request.only in name:
                program = assembly.prepared.lower(mixed_or_uniform(assembly.prepared, name))
                rows.append({"network": assembly.model_name, "policy": name, **_compared(program, x, folder)})
    text = [
        f"{r['network']:14s} {r['policy']:6s} {r['images']} images, {r['outputs']} outputs: native {r['native_differ']} differ; "
        f"ONNX Runtime {r['onnx_differ']} differ, by {r['onnx_steps']} steps at most, {r['onnx_argmax_differ']} argmaxes; "
        f"of integers alone {r['onnx_integer_differ']} differ"
        for r in rows
    ]
    if request.folder is not None:
        text.append(_write(request.folder, assembly.model_name, rows, environment()))
    return {"rows": rows, "environment": environment(), "text": text}


def _compared(program: IntegerProgram, x: Tensor, folder: str) -> dict[str, int]:
    import torch

    from haqsearch.runtime import run_codes

    ours, native = (
        torch.cat([run_codes(program, part, backend) for part in x.split(_BATCH)]).long()
        for backend in ("reference", "native")
    )
    pairs = _onnx_runtime(program, x, folder, "onnx", optimized=False)
    integer = _onnx_runtime(program, x, folder, "onnx-integer", optimized=True)
    steps = (pairs - ours).abs()
    return {
        "images": len(x),
        "outputs": ours.numel(),
        "native_differ": int((native != ours).sum()),
        "onnx_differ": int((steps > 0).sum()),
        "onnx_steps": int(steps.max()),
        "onnx_argmax_differ": int((pairs.argmax(-1) != ours.argmax(-1)).sum()),
        "onnx_integer_differ": int((integer != ours).sum()),
    }


def _onnx_runtime(program: IntegerProgram, x: Tensor, folder: str, format: str, optimized: bool) -> Tensor:
    """Output codes of the exported file, as ONNX Runtime computes them."""
    from pathlib import Path

    import torch

    from haqsearch.errors import ExportError
    from haqsearch.export import exporter, file_name

    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError("haqsearch bench agreement runs the exported model: pip install onnxruntime") from error
    path = Path(folder) / file_name(format)
    exporter(format)(program, path, {})
    level, options = onnxruntime.GraphOptimizationLevel, onnxruntime.SessionOptions()
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"input": part.numpy()})[0] for part in x.split(_BATCH)]
    real, info = torch.cat([torch.from_numpy(part) for part in parts]), program.output_info
    return torch.round(real.double() / info.scale).long() + info.zero_point


def _write(folder: Path, model: str, rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    from haqsearch.cli.bench.summary import write_summary
    from haqsearch.files import write_json_atomic

    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / f"agreement-{model}.json", {"rows": rows, "environment": machine})
    write_summary(folder)
    return f"written: {folder / f'agreement-{model}.json'}"
