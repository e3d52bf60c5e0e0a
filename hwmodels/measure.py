"""Times the integer kernels of this machine, layer by layer, for a table that is laid over an analytic model.

A layer is what its weights need, and the operations without weights that follow it (an add, a pool, a rescaling); the first
layer also has what a call costs: the input quantized, the output handed over. An operation is timed in a program that holds
it many times over, less the program that holds it once: what is left is the operation alone, warm, without any call. In the
network it is not so warm; so the layers at one pair of widths are scaled together until they add up to a whole run at it.

Time on a machine that others use is noisy. The two programs alternate; runs go on until they agree, or the patience is at
an end, and a cell that stayed noisy is counted. A sentinel, the first program, is timed again after every pair of widths:
where it has drifted - another clock, a busy neighbour - those cells are timed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from haqsearch.spec import ModelSpec
from hwmodels.timing import Patience, Timing, time_call, time_calls

if TYPE_CHECKING:
    from haqsearch.runtime import Instruction, IntegerProgram

_CELL_S = 5e-4  # of the many copies of an operation; short, so that a run fits into one slice of a busy processor
_MOST_COPIES = 256
_DRIFT = 0.10  # of the sentinel, that cells are believed at
_TRIES = 3  # at a pair of widths during which the sentinel drifted


@dataclass(frozen=True)
class Cell:
    """A layer at a width pair, for ``batch`` samples. ``quiet``: the runs of every operation settled."""

    layer: str
    weight_bits: int
    activation_bits: int
    batch: int
    median_s: float
    least_s: float
    repeats: int
    quiet: bool


@dataclass
class Report:
    """What happened while cells were measured: how many were noisy, how far the sentinel drifted at worst, how many pairs of
    widths had to be measured again, a whole run over the sum of its layers timed alone, and operations not timed."""

    noisy: int = 0
    drift: float = 0.0
    again: int = 0
    whole_over_sum: list[float] = field(default_factory=list)
    not_timed: set[str] = field(default_factory=set)


class Stopwatch:
    """Times operations of programs on ``backend``, batches of ``batch``; the same operation once for all programs."""

    def __init__(self, backend: str, batch: int = 1, patience: Patience | None = None) -> None:
        self.backend, self.batch, self.patience = backend, batch, patience or Patience()
        self._known: dict[Any, Timing] = {}
        self.not_timed: set[str] = set()

    def program(self, program: IntegerProgram) -> Callable[[], object]:
        """One run of ``program`` on random inputs."""
        import torch

        from haqsearch.runtime import run_codes

        shape = program.tensors[program.input].shape or ()
        x = torch.randn((self.batch, *shape), generator=torch.Generator().manual_seed(0))
        return lambda: run_codes(program, x, self.backend)

    def call(self, program: IntegerProgram) -> Timing:
        """What a call costs that does nothing but quantize the input and hand it over."""
        key = ("call", program.tensors[program.input].shape)
        if key not in self._known:
            first = next(step for step in program.instructions if step.op == "quantize")
            alone = replace(program, instructions=(first,), output=first.outputs[0])
            self._known[key] = time_call(self.program(alone), self.patience)
        return self._known[key]

    def operation(self, program: IntegerProgram, step: Instruction) -> Timing:
        """Seconds of the instruction ``step`` alone; zero, and a note, of one whose inputs have different shapes."""
        key = _alike(program, step)
        if key not in self._known:
            shapes = {program.tensors[name].shape for name in step.inputs}
            if len(shapes) > 1 or step.op in ("quantize", "dequantize", "float"):
                self.not_timed.add(step.op)
                self._known[key] = Timing(0.0, 0.0, True, 0)
            else:
                self._known[key] = self._difference(program, step)
        return self._known[key]

    def forget(self, keys: Sequence[Any]) -> None:
        """Time these operations anew when they are next asked for."""
        for key in keys:
            self._known.pop(key, None)

    @property
    def keys(self) -> set[Any]:
        """Operations that have been timed."""
        return set(self._known)

    def _difference(self, program: IntegerProgram, step: Instruction) -> Timing:
        once = self.program(repeated(program, step, 1))
        few = 9
        rough = time_calls([once, self.program(repeated(program, step, few))], Patience(3, 3))
        one_s = max((min(rough[1]) - min(rough[0])) / (few - 1), 1e-7)
        copies = int(min(max(_CELL_S / one_s, 3), _MOST_COPIES))
        taken = time_calls([once, self.program(repeated(program, step, 1 + copies))], self.patience)
        middle, least = ((f(taken[1]) - f(taken[0])) / copies for f in (median, min))
        return Timing(max(middle, 1e-9), max(least, 1e-9), self.patience.settled(taken), len(taken[1]))


def repeated(program: IntegerProgram, step: Instruction, times: int) -> IntegerProgram:
    """A program that quantizes its input into every input of ``step`` and then runs ``step`` so many ``times``."""
    from haqsearch.runtime import Instruction, IntegerProgram, TensorInfo
    from haqsearch.spec import FLOAT32

    source = "input:float32"
    tensors = {source: TensorInfo(source, program.tensors[step.inputs[0]].shape, FLOAT32)}
    constants = {key: value for key, value in program.constants.items() if key.startswith(f"{step.name}.")}
    instructions = []
    for name in dict.fromkeys(step.inputs):
        tensors[name] = program.tensors[name]
        instructions.append(Instruction("quantize", f"quantize {name}", (source,), (name,)))
    for i in range(times):
        names = {name: f"{name}#{i}" for name in step.outputs}
        for name, copy in names.items():
            tensors[copy] = replace(program.tensors[name], name=copy)
            for kind in ("multiplier", "shift", "offset"):
                if f"{name}.{kind}" in program.constants:
                    constants[f"{copy}.{kind}"] = program.constants[f"{name}.{kind}"]
        instructions.append(replace(step, outputs=tuple(names.values())))
    output = f"{step.outputs[-1]}#{times - 1}"
    return IntegerProgram(f"{step.name} x {times}", tuple(instructions), tensors, constants, source, output)


def by_layer(program: IntegerProgram) -> dict[str, list[Instruction]]:
    """Every layer's instructions: its own, and those without weights behind it (those before the first layer: its)."""
    found: dict[str, list[Instruction]] = {}
    waiting: list[Instruction] = []
    layer = ""
    for step in program.instructions:
        layer = step.layer or layer
        if not layer:
            waiting.append(step)
            continue
        found.setdefault(layer, []).append(step)
    if found:
        first = next(iter(found))
        found[first] = [*waiting, *found[first]]
    return found


def measure(
    programs: Mapping[tuple[int, int], Callable[[], IntegerProgram]],
    model: ModelSpec,
    watch: Stopwatch,
    report: Report | None = None,
) -> Iterator[list[Cell]]:
    """Time every layer of ``model`` at every width pair of ``programs``; the cells of one pair at a time.

    ``programs`` gives the network's integer program at one pair of widths everywhere.
    """
    report = report if report is not None else Report()
    names = [layer.name for layer in model.quantizable]
    sentinel: Callable[[], object] | None = None
    reference = 0.0
    for pair, make in programs.items():
        program = make()
        steps = by_layer(program)
        if sentinel is None:
            sentinel = watch.program(program)
            reference = time_call(sentinel, watch.patience).least_s
        for attempt in range(_TRIES):
            known = watch.keys
            cells = [_cell(watch, program, steps, name, pair) for name in names]
            whole = time_call(watch.program(program), watch.patience)
            drift = time_call(sentinel, watch.patience).least_s / reference - 1
            if drift < -_DRIFT:
                reference *= 1 + drift  # the machine has become quieter than it was at the start
            if abs(drift) <= _DRIFT or attempt == _TRIES - 1:
                break
            report.again += 1
            watch.forget(list(watch.keys - known))
        report.drift = max(report.drift, abs(drift))
        report.noisy += sum(not cell.quiet for cell in cells)
        report.not_timed |= watch.not_timed
        report.whole_over_sum.append(whole.least_s / sum(cell.least_s for cell in cells))
        yield _adding_up(cells, whole)


def _adding_up(cells: Sequence[Cell], whole: Timing) -> list[Cell]:
    """``cells`` scaled together so that they add up to the ``whole`` network."""
    middle = whole.median_s / sum(cell.median_s for cell in cells)
    least = whole.least_s / sum(cell.least_s for cell in cells)
    return [replace(cell, median_s=cell.median_s * middle, least_s=cell.least_s * least) for cell in cells]


def _cell(
    watch: Stopwatch, program: IntegerProgram, steps: Mapping[str, list[Instruction]], name: str, pair: tuple[int, int]
) -> Cell:
    first = next(iter(steps)) == name
    timings = [watch.operation(program, step) for step in steps[name] if step.op not in ("quantize", "dequantize")]
    timings += [watch.call(program)] if first else []
    quiet = all(timing.settled for timing in timings)
    return Cell(
        name,
        *pair,
        watch.batch,
        sum(t.median_s for t in timings),
        sum(t.least_s for t in timings),
        min((t.repeats for t in timings if t.repeats), default=0),
        quiet,
    )


def _alike(program: IntegerProgram, step: Instruction) -> Any:
    """What operations have in common that take the same time: kind, attributes, shapes, formats and ranges of codes."""
    infos = [program.tensors[name] for name in (*step.inputs, *step.outputs)]
    weight = program.constants.get(f"{step.name}.weight")
    attributes = {key: str(value) for key, value in step.attributes.items() if key not in ("bound", "multipliers")}
    return (
        step.op,
        tuple(sorted(attributes.items())),
        tuple((info.shape, str(info.format)) for info in infos),
        tuple(weight.shape) if weight is not None else (),
        str(step.weight_format),
    )


def profile_text(
    name: str, summary: str, sources: Sequence[str], bits: Sequence[Sequence[int]], batch: int, table: str
) -> str:
    """A profile (TOML) to lay the measured ``table`` over: every pair of ``bits`` at one rate, and a fixed time a layer.

    How fast the machine is the table says; these numbers only carry it from shape to shape.
    """
    from json import dumps  # a TOML string is a JSON string

    weights, activations = bits
    rates = [
        f"    {{ weight_bits = {w}, activation_bits = {a}, macs_per_cycle = 64 }},"
        for w in weights
        for a in activations
    ]
    return "\n".join(
        [
            "# Measured: haqsearch hw measure wrote this file and the table; run it again on your own machine.",
            "schema = 1",
            f"name = {dumps(name)}",
            f"summary = {dumps(summary)}",
            "sources = [",
            *[f"    {dumps(source)}," for source in sources],
            "]",
            "# The table scales them: they only say how layers of other shapes differ.",
            'assumed = ["clock.frequency_hz", "compute.rates", "overhead.per_layer_s"]',
            f"default_batch = {batch}",
            "",
            "[clock]",
            "frequency_hz = 3e9",
            "",
            "[precision]",
            f"weight_bits = {list(weights)}",
            f"activation_bits = {list(activations)}",
            'unsupported = "error"',
            "",
            "[compute]",
            'kind = "rates"',
            "rates = [",
            *rates,
            "    { weight_bits = 32, activation_bits = 32, macs_per_cycle = 16 },",
            "]",
            "",
            "[overhead]",
            "per_layer_s = 1e-6",
            "",
            "[table]",
            f"file = {dumps(table)}",
            "",
        ]
    )
