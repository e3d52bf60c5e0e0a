"""haqsearch ptq-table: what the presets of post-training quantization reach at some widths, as a file and a Markdown table."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haqsearch.cli.options import DataRoot, Overrides, RecipePath, assemble, results_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from haqsearch.cli.assemble import Assembly
    from haqsearch.evaluate import Prepared
    from haqsearch.spec import Choice, Format, Policy

SCHEMA_VERSION = 1
_PRESETS = "plain,fast,accurate"
_WIDTHS = "w8a8,w4a8,w8a4,w4a4,w3a8,w3a3,w2a8"
_EDGES = "w8a8"


def command(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of NAME.json and README.md.")] = Path(
        "results/ptq"
    ),
    presets: Annotated[
        str, typer.Option("--presets", help="Presets, or steps joined by +, with commas between them.")
    ] = _PRESETS,
    widths: Annotated[str, typer.Option("--widths", help="Widths, with commas between them.")] = _WIDTHS,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what is there already.")] = False,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Accuracy by preset and width on the report split, first and last layer at 8 bits; a killed one goes on."""
    from haqsearch.files import write_text_atomic
    from haqsearch.spec import Choice

    asked = [name.strip() for name in presets.split(",")]
    for name in asked:
        steps_of(name)
    pairs = [str(Choice.parse(text)) for text in widths.split(",")]
    assembly = assemble(recipe, set_, data_root, results_folder(recipe))
    out.mkdir(parents=True, exist_ok=True)
    measured = Table(assembly, out / f"{recipe.stem}.json", again)
    for preset in asked:
        measured.measure(preset, pairs)
    write_text_atomic(out / "README.md", page(out))
    print(markdown(measured.content))


def steps_of(name: str) -> tuple[str, ...]:
    """The steps of a preset, or those written ``fold_bn+nearest``. Raises RecipeError if it is neither."""
    from haqsearch.errors import RecipeError
    from haqsearch.spec.ptq import PTQ_PRESETS, ptq_steps

    if name in PTQ_PRESETS:
        return PTQ_PRESETS[name]
    if "+" not in name:
        raise RecipeError(f"--presets: no preset {name!r}; there are {', '.join(PTQ_PRESETS)}, or steps joined by +")
    return ptq_steps("plain", name.split("+"))


@dataclass
class Table:
    """The table in ``file``: every cell is written as soon as it is measured, and measured only where it is missing.

    Cells of another recipe, network or method, and all if ``again``, are left out from the start.
    """

    assembly: Assembly
    file: Path
    again: bool = False

    def __post_init__(self) -> None:
        from haqsearch.cli.outcome import environment
        from haqsearch.evaluate import float_logits, score_logits
        from haqsearch.graph import trace
        from haqsearch.ptq import activation_ranges, balance, prepare, reconstruct, sequential

        a = self.assembly
        recipe = a.recipe.model_copy(update={"ptq": type(a.recipe.ptq)()})
        graph = prepare(trace(a.network, a.splits.calibrate[0][:2], a.model_name))
        self.layers = [node.layer for node in graph.layers]
        methods = [module.VERSION for module in (activation_ranges, balance, reconstruct, sequential)]
        key = hashlib.sha256(f"{recipe.digest} {graph.digest} {methods}".encode()).hexdigest()[:16]
        self.environment = environment()
        self.content = self._found(key)
        inputs, labels = a.splits.report
        self.reference: Tensor = float_logits(graph, inputs)
        self.content |= {
            "schema_version": SCHEMA_VERSION,
            "key": key,
            "recipe": self.file.stem,
            "model": a.model_name,
            "data": a.recipe.data,
            "splits": {name: len(getattr(a.splits, name)[0]) for name in ("calibrate", "search", "report")},
            "fixed": dict.fromkeys((self.layers[0], self.layers[-1]), _EDGES),
            "float_accuracy": score_logits(self.reference, labels, self.reference).accuracy,
            "environment": self.environment,
        }

    def _found(self, key: str) -> dict[str, Any]:
        if self.again or not self.file.is_file():
            return {"presets": {}}
        content = read(self.file)
        return content if content.get("key") == key else {"presets": {}}

    def measure(self, preset: str, pairs: list[str]) -> None:
        """Fill the row of ``preset`` at the widths ``pairs``."""
        from haqsearch.evaluate import prepare_network
        from haqsearch.spec import Choice

        steps = steps_of(preset)
        row = self.content["presets"].setdefault(preset, {"steps": list(steps), "cells": {}})
        if not (missing := [pair for pair in pairs if pair not in row["cells"]]):
            return
        a = self.assembly
        with _Stopwatch() as watch:
            prepared = prepare_network(a.network, a.splits, a.model_name, steps)
        row["prepare"] = {"calibrate": watch.figures}
        by_policy = "in_order" in steps
        formats = sorted({Choice.parse(text).weight for text in (*missing, _EDGES)})
        for format in () if by_policy else formats:
            row["prepare"][str(format)] = self._round(prepared, format)
        for pair in missing:
            policy = self._policy(prepared, pair)
            print(f"{preset} {pair}", flush=True)
            row["cells"][pair] = self._cell(prepared, policy, by_policy)
            self._write()

    def _policy(self, prepared: Prepared, pair: str) -> Policy:
        from haqsearch.spec import Choice, Policy

        choice = Choice.parse(pair)
        eight = (
            choice.weight.width == choice.activation.width == 8
        )  # they may be of another kind, as int8:tensor/uint8 is
        edges = {layer: choice if eight else Choice.parse(text) for layer, text in self.content["fixed"].items()}
        return Policy.uniform(prepared.spec, choice, edges).check(prepared.spec)

    def _round(self, prepared: Prepared, format: Format) -> dict[str, float]:
        """Make the weights of every layer in ``format``; what that takes."""
        with _Stopwatch() as watch:
            for layer in self.layers:
                prepared.weight(layer, format)
        return watch.figures

    def _cell(self, prepared: Prepared, policy: Policy, by_policy: bool) -> dict[str, Any]:
        from haqsearch.evaluate import score_logits
        from haqsearch.evaluate.metrics import in_batches
        from haqsearch.runtime import run_program

        with _Stopwatch() as watch:
            ready = prepared.in_order(policy, self.assembly.splits.calibrate[0]) if by_policy else prepared
            program = ready.lower(policy)
        inputs, labels = self.assembly.splits.report
        start = time.perf_counter()
        scores = score_logits(in_batches(lambda x: run_program(program, x), inputs), labels, self.reference)
        return {
            "accuracy": scores.accuracy,
            "kl": scores.kl,
            "loss": scores.loss,
            "policy": watch.figures,
            "score_s": round(time.perf_counter() - start, 2),
            "policy_digest": policy.digest,
            "commit": self.environment["commit"],
        }

    def _write(self) -> None:
        from haqsearch.files import write_json_atomic

        write_json_atomic(self.file, self.content)


class _Stopwatch:
    """Wall-clock and processor seconds of a block: on a busy machine the second says more."""

    def __enter__(self) -> _Stopwatch:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, processor = self._start
        self.figures = {
            "wall_s": round(time.perf_counter() - wall, 2),
            "processor_s": round(time.process_time() - processor, 2),
        }


def read(file: Path) -> dict[str, Any]:
    """Content of a table's file. Raises DataError if it is not one."""
    from haqsearch.errors import DataError

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION or not isinstance(content["presets"], dict):
            raise ValueError(f"schema_version is {content['schema_version']!r}, this version reads {SCHEMA_VERSION}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: not a table of haqsearch ptq-table ({error}); delete it, or give --again") from None
    return content


def page(folder: Path) -> str:
    """README.md of ``folder``: every table in it."""
    parts = ["# Post-training quantization, without training", ""]
    for file in sorted(folder.glob("*.json")):
        parts += [markdown(read(file)), ""]
    return "\n".join(parts)


def markdown(content: dict[str, Any]) -> str:
    """A model's tables: accuracy on the report split by preset and width, and by weight format, and what it took."""
    from haqsearch.spec import Choice

    pairs = list(dict.fromkeys(pair for row in content["presets"].values() for pair in row["cells"]))
    choices = {pair: Choice.parse(pair) for pair in pairs}
    integers = {pair: choice for pair, choice in choices.items() if not choice.weight.is_decoded}
    activations = {choice.activation for pair, choice in choices.items() if pair not in integers}
    parts = [f"## {content['model']} on {content['data']}", ""]
    if not all(choice.activation in activations for choice in integers.values()):
        parts += [*_by_width(content, integers), ""]
    for activation in sorted(activations):
        parts += [*_by_format(content, {p: c for p, c in choices.items() if c.activation == activation}), ""]
    return "\n".join([*parts, _legend(content), "", _origin(content)])


def _by_width(content: dict[str, Any], choices: dict[str, Choice]) -> list[str]:
    """A row for each preset, a column for each of ``choices``."""
    from haqsearch.spec import Choice

    rows = [
        f"| | {' | '.join(pair.upper() for pair in choices)} | preparing, once | a policy |",
        "|---" * (len(choices) + 3) + "|",
    ]
    formats = {"calibrate", str(Choice.parse(_EDGES).weight), *(str(choice.weight) for choice in choices.values())}
    for preset, row in content["presets"].items():
        if own := [pair for pair in choices if pair in row["cells"]]:
            once = _seconds(_total([part for name, part in row["prepare"].items() if name in formats]))
            each = max((row["cells"][pair]["policy"] for pair in own), key=lambda s: s["wall_s"])
            rows.append(f"| `{preset}` | {' | '.join(_cells(row, choices))} | {once} | {_seconds(each)} |")
    return rows


def _by_format(content: dict[str, Any], choices: dict[str, Choice]) -> list[str]:
    """A row for each weight format of ``choices``, narrowest first; a column for each preset that has one of them."""
    presets = {
        preset: row
        for preset, row in content["presets"].items()
        if any(pair in row["cells"] and choice.weight.is_decoded for pair, choice in choices.items())
    }
    activation = next(iter(choices.values())).activation
    columns = [f"`{preset}` | preparing" for preset in presets]
    rows = [
        f"By weight format, activations {activation}. Bits as stored, with what blocks share; scales of channels aside:",
        "",
        f"| weights | bits | {' | '.join(columns)} |",
        "|---" * (2 * len(columns) + 2) + "|",
    ]
    for pair, choice in sorted(choices.items(), key=lambda item: (item[1].weight.bits, item[1])):
        figures = [f"{_cells(row, [pair])[0]} | {_once(row, choice)}" for row in presets.values()]
        rows.append(f"| `{choice.weight}` | {choice.weight.bits:g} | {' | '.join(figures)} |")
    return rows


def _cells(row: dict[str, Any], pairs: Iterable[str]) -> list[str]:
    return [f"{row['cells'][pair]['accuracy']:.2%}" if pair in row["cells"] else "" for pair in pairs]


def _once(row: dict[str, Any], choice: Choice) -> str:
    part = row["prepare"].get(str(choice.weight))
    return _seconds(part) if part else ""


def _legend(content: dict[str, Any]) -> str:
    splits, edges = content["splits"], " and ".join(content["fixed"])
    return (
        f"Float: {content['float_accuracy']:.2%}. Top-1 of the integer program on the {splits['report']:,} images of the "
        f"report split; {edges} at 8 bits, all other layers at the widths above; {splits['calibrate']:,} calibration images "
        "of the calibrate split, no labels. "
        f"One standard error of an accuracy is {_error(content):.2%}. Seconds: wall clock (processor); the longest policy."
    )


def _origin(content: dict[str, Any]) -> str:
    where = content["environment"]
    presets = content["presets"]
    pairs = list(dict.fromkeys(pair for row in presets.values() for pair in row["cells"]))
    asked = {"--presets": (list(presets), _PRESETS), "--widths": (pairs, _WIDTHS)}
    options = [f" {key} {','.join(found)}" for key, (found, usual) in asked.items() if {*found} != {*usual.split(",")}]
    commits = sorted({cell["commit"] for row in presets.values() for cell in row["cells"].values()})
    return (
        f"Made by `haqsearch ptq-table searches/{content['recipe']}.toml{''.join(options)}`, commit {', '.join(commits)}: "
        f"{where['processor']}, {where['cores']} cores, torch {where['torch']}, Python {where['python']}."
    )


def _total(parts: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(part[key] for part in parts) for key in ("wall_s", "processor_s")}


def _seconds(figures: dict[str, float]) -> str:
    return f"{figures['wall_s']:.0f} s ({figures['processor_s']:.0f} s)"


def _error(content: dict[str, Any]) -> float:
    p = content["float_accuracy"]
    return float((p * (1 - p) / content["splits"]["report"]) ** 0.5)
