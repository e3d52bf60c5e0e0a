"""README.md of a folder of bench results: made from the files there, each time one is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import geometric_mean, median

_HEAD = """# What the integer kernels cost

Written by `haqsearch bench kernels --out DIR` and `haqsearch bench evaluate RECIPE --out DIR` from the CSV files beside it.
A ratio is the baseline's time over ours, both measured in turns in one process: the median, and in the CSV its quartiles.
`--isa avx2` keeps our kernels and torch's engines alike to AVX2, `--isa avx512` to AVX-512 with VNNI, without AMX.
"""

_KERNELS = """
## What bounds the layers

Torch's engines have int8 weights and uint8 activations whatever the policy. Without VNNI instructions they add pairs of
products in int16, which saturates on codes of full range; ours are exact at every width. The last column is how much of the
largest multiply-add rate of the instruction set (listed above each table: one core, in registers) the layers reach, in the
median. What is missing there goes to broadcasting activations and loading weights (small numbers of channels), to the
epilogue (64-bit multiplication and shift for every output; fewer instructions where sums fit int16), and in depthwise and
first layers to short sums: nine or 27 products an output leave the epilogue and the loads to bound them. Where one side has
7 bits, torch's engines without VNNI take three instructions for 32 products, two of them multiplications, of which a core
starts two a cycle: "int8 pairs" in those lists is their limit. Ours add the sums of two such steps in int16, which fit if
they start where their whole range does: six instructions for 64 products, three of them multiplications. Strided layers of
8 and of 7 bits alike are computed with 81 products of int16 where 144 are asked for (Winograd, tiles of four by four
outputs), or with 25 for 36 where such tiles do not fill the image: "int16" times 1.78 or 1.44 is their limit. Of their
time, loops of multiplications take six tenths with 16 channels and eight with 128; the rest goes to transforming codes and
sums, and to starting and ending those loops. With VNNI one instruction does 64 products of any width up to 8 bits: fewer
bits are no faster there, until tables or bit counts are. AMX multiplies 16 outputs of 16 channels each, by up to 64 bytes
in 16 cycles, however many of these there are: what bounds its layers is everything else, which is loading rows of bytes
that cross a cache line (six times as dear as those that do not; with 64 channels none do), taking the sums out of the
tiles, and the epilogue, which is that of AVX-512 and with 16 channels takes longer than the products. A linear layer of one
row is bound by reading its weights at 8 bits: see `gbyte_per_s` in the CSV and the reading rate, which is the machine's of the
day and moves these ratios more than anything else: torch reads 16 MB where 3 bits are 6. With fewer bits it is bound by
instructions, at four a cycle: for 128 products AVX2 takes about 14 at 4 bits and 16 at 3 (multiplications; eight codes lie
in three bytes), and in tables about 12 at 2 bits and 6 at 1 (of these two look-ups and two additions a plane, the rest takes
nibbles apart and widens sums). On a busy machine the rows of two threads tell who got the second core, more than anything
else: compare the quartiles in the CSV, and the rows of one thread.
"""


def write_summary(folder: Path) -> None:
    """Write ``folder``/README.md. Raises OSError if it cannot be written."""
    from haqsearch.files import write_text_atomic

    parts, layers = [_HEAD], sorted(folder.glob("kernels-*.csv"))
    parts += [_KERNELS] if layers else []
    for path in layers:
        parts += _kernels(path)
    for path in sorted(folder.glob("evaluate-*.csv")):
        parts += _evaluate(path)
    parts += _agreement(sorted(folder.glob("agreement-*.json")))
    write_text_atomic(folder / "README.md", "\n".join(parts).rstrip() + "\n")


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _heading(path: Path, what: str, rows: list[dict[str, str]]) -> str:
    first = rows[0]
    machine = f"{first['processor']}, {first['isa']}, torch {first['torch']}, commit {first['commit']}"
    return f"\n## {what}: {machine} (`{path.name}`)\n"


def _kernels(path: Path) -> list[str]:
    rows = _read(path)
    if not rows:
        return []
    side = path.with_suffix(".json")
    peaks = json.loads(side.read_text(encoding="utf-8"))["peaks"] if side.is_file() else {}
    top = max((value for name, value in peaks.items() if "GMAC" in name), default=float("nan"))
    groups: dict[tuple[str, str, int], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["case"].partition(":")[0], row["policy"], int(row["threads"])), []).append(row)
    lines = [_heading(path, "Layers", rows), *(f"- {name}: {value}" for name, value in peaks.items())]
    lines += [
        "",
        "| layers | policy | threads | ratio to torch int8 (geometric mean) | least | most | share of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for (group, policy, threads), part in groups.items():
        ratios = [float(row["ratio"]) for row in part]
        share = median(float(row["gmac_per_s"]) / (top * threads) for row in part)
        lines.append(
            f"| {group} ({len(part)}) | {policy} | {threads} | {geometric_mean(ratios):.2f} | {min(ratios):.2f} "
            f"| {max(ratios):.2f} | {share:.0%} |"
        )
    return lines


def _evaluate(path: Path) -> list[str]:
    rows = _read(path)
    if not rows:
        return []
    lines = [_heading(path, "Networks", rows), "| network | policy | against | threads | ratio | quartiles | ours |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio, q1, q3 = (float(row[key]) for key in ("ratio", "q1", "q3"))
        lines.append(
            f"| {row['case']} | {row['policy']} | {row['baseline']} | {row['threads']} | {ratio:.2f} "
            f"| {q1:.2f} .. {q3:.2f} | {1e3 * float(row['ours_s']):.2f} ms |"
        )
    return lines


def _agreement(paths: list[Path]) -> list[str]:
    if not paths:
        return []
    lines = [
        "\n## Agreement (`agreement-*.json`, written by `haqsearch bench agreement RECIPE --out DIR`)\n",
        "Outputs, in 16 bits, on images of the report split, against the reference: of the native kernels; of the exported model",
        "(format `onnx`) in ONNX Runtime without graph optimizations, which computes in float32; and of the model of integers",
        "alone (`onnx-integer`) in ONNX Runtime with all optimizations.\n",
        "| network | policy | images | outputs | native: differ | onnx: differ | by steps | argmaxes that differ "
        "| onnx-integer: differ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = (
        "network",
        "policy",
        "images",
        "outputs",
        "native_differ",
        "onnx_differ",
        "onnx_steps",
        "onnx_argmax_differ",
        "onnx_integer_differ",
    )
    for path in paths:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            lines.append("| " + " | ".join(str(row.get(key, "")) for key in keys) + " |")
    return lines
