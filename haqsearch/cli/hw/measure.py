"""haqsearch hw measure: the integer kernels of this machine, timed layer by layer into a device of one's own."""

from __future__ import annotations

import csv
import io
import platform
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haqsearch.cli.options import AsJson

if TYPE_CHECKING:
    from haqsearch.evaluate.prepared import Prepared
    from haqsearch.spec import Policy
    from hwmodels.measure import Stopwatch
    from hwmodels.table import Row


@dataclass(frozen=True)
class Settings:
    """How to measure; ``text`` is what makes two measurements comparable."""

    backend: str
    isa: str
    processor: str
    threads: int
    batch: int
    statistic: str

    @property
    def text(self) -> str:
        kernels = f"{self.backend} kernels" + (f" ({self.isa})" if self.isa else "")
        runs = "the least of repeated runs" if self.statistic == "least" else "the median of repeated runs"
        return (
            f"{self.processor}, {kernels}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}: {runs}"
        )


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name as in recipes, or module:function.")],
    input_shape: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of one sample, as 3x32x32.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The device file; its table is written beside it.")
    ] = Path("host.toml"),
    bits: Annotated[
        str, typer.Option("--bits", metavar="B,B", help="Widths of weights and activations.")
    ] = "2,3,4,5,6,7,8",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per run.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the kernels.")] = 1,
    backend: Annotated[str, typer.Option("--backend", metavar="B", help="Kernels (default: the best there are).")] = "",
    statistic: Annotated[
        str, typer.Option("--statistic", help="median; or least, on a machine that others use.")
    ] = "median",
    policies: Annotated[
        int,
        typer.Option("--policies", min=0, help="Whole networks with mixed widths to time, and to compare sums with."),
    ] = 10,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Patience with one operation.")] = 0.3,
    json: AsJson = False,
) -> None:
    """Time every layer of a model at every pair of widths; what is in FILE's table already is not measured again.

    The weights are random: they do not change the time. Stop it at any moment; the same command goes on.
    """
    import torch

    from haqsearch.errors import HardwareError
    from hwmodels.measure import Stopwatch
    from hwmodels.timing import Patience

    if statistic not in ("median", "least"):
        raise HardwareError(f"--statistic {statistic}: write median or least")
    if out.suffix != ".toml":
        raise HardwareError(f"--out {out}: a device file ends in .toml")
    widths = _widths(bits)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        settings = _settings(backend, threads, batch, statistic)
        prepared = _prepared(model, _shape(input_shape))
        rows = _begin(out, settings, widths)
        watch = Stopwatch(settings.backend, batch, Patience(seconds=seconds, statistic=statistic))
        report = _layers(out, rows, prepared, watch, widths, statistic)
        networks = _networks(out, prepared, watch, widths, policies, statistic)
    finally:
        torch.set_num_threads(before)
    found = {"device": str(out), "rows": len(rows), "settings": settings.text, **report, "networks": networks}
    if json:
        from json import dumps

        print(dumps(found, indent=2))
        return
    _print(found)


def _widths(text: str) -> list[int]:
    from haqsearch.errors import HardwareError

    try:
        widths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        widths = []
    if not widths or not all(2 <= width <= 8 for width in widths):
        raise HardwareError(f"--bits {text}: write widths from 2 to 8, as 2,4,8")
    return widths


def _shape(text: str) -> tuple[int, ...]:
    from haqsearch.errors import HardwareError

    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise HardwareError(f"--input {text}: write the shape of one sample, as 3x32x32")
    return shape


def _settings(backend: str, threads: int, batch: int, statistic: str) -> Settings:
    from haqsearch.cli.outcome import environment
    from haqsearch.kernels import best_backend, get_backend

    name = backend or best_backend()
    kernels = get_backend(name)
    isas = kernels.isas() if hasattr(kernels, "isas") else []
    return Settings(
        name, (kernels.isa() or isas[0]) if isas else "", environment()["processor"], threads, batch, statistic
    )


def _begin(out: Path, settings: Settings, widths: list[int]) -> list[Row]:
    """Rows of the table of ``out`` that are there; the file is begun if it is not.

    Raises HardwareError if it is another device's, or was measured under other conditions.
    """
    from haqsearch.cli.outcome import environment
    from haqsearch.errors import HardwareError
    from haqsearch.files import write_text_atomic
    from hwmodels.measure import profile_text
    from hwmodels.table import read

    table = out.with_suffix(".csv")
    if out.is_file():
        said = _sources(out)
        if settings.text not in said:
            raise HardwareError(
                f"--out {out}: is another device, or was measured otherwise ({said[0] if said else 'it does not say how'}); "
                f"this is {settings.text}: give another name"
            )
    elif table.is_file():
        raise HardwareError(
            f"--out {out}: there is a {table.name} beside it that it would write over; give another name"
        )
    rows = list(read(table).rows) if table.is_file() else []
    widths = sorted(
        {*widths, *(bits for row in rows for bits in (row.choice.weight.width, row.choice.activation.width))}
    )
    now = environment()
    sources = [
        settings.text,
        f"haqsearch hw measure, {datetime.now(UTC):%Y-%m-%d}: haqsearch {now['haqsearch']} ({now['commit']}), torch "
        f"{now['torch']}, {platform.system()} {platform.machine()}",
    ]
    summary = f"This machine as measured: {settings.text}"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out, profile_text(out.stem, summary, sources, (widths, widths), settings.batch, table.name))
    return rows


def _sources(path: Path) -> list[str]:
    """What a device file says about where it is from; nothing if it cannot be read."""
    import tomllib

    try:
        said = tomllib.loads(path.read_text(encoding="utf-8")).get("sources")
    except (OSError, ValueError):
        return []
    return [str(line) for line in said] if isinstance(said, list) else []


def _prepared(model: str, shape: tuple[int, ...]) -> Prepared:
    """The network with random weights, calibrated on noise."""
    import torch

    from haqsearch.cli.assemble import Assembly
    from haqsearch.config import Recipe
    from haqsearch.data import Splits
    from haqsearch.errors import ModelError
    from haqsearch.evaluate import prepare_network

    recipe = Recipe(model=model, data="digits", hardware="bismo-edge", budget=("bops <= 1 T",))
    assembly = Assembly(recipe, Path(), ())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = assembly.build_model().eval()
        noise = (torch.randn(16, *shape), torch.zeros(16, dtype=torch.int64))
    try:
        with torch.no_grad():
            network(noise[0][:1])
    except RuntimeError as error:
        raise ModelError(f"{model} does not take samples of shape {shape}: {str(error).splitlines()[0]}") from None
    return prepare_network(network, Splits(noise, noise, noise, noise), assembly.model_name)


def _layers(
    out: Path, rows: list[Row], prepared: Prepared, watch: Stopwatch, widths: list[int], statistic: str
) -> dict[str, Any]:
    """Measure what ``rows`` lack, adding to them and to the table."""
    from haqsearch.files import write_text_atomic
    from haqsearch.spec import Choice, Format
    from hwmodels.measure import Report, measure
    from hwmodels.table import Row, Shape, to_csv
    from hwmodels.table import widths as table_widths

    spec, report = prepared.spec, Report()
    own = [row for row in rows if row.network == spec.name and row.batch == watch.batch]
    layers = len(spec.quantizable)
    count = Counter(table_widths(row.choice) for row in own)
    # A pair of widths is measured as a whole: one that was stopped in the middle begins again.
    rows[:] = [row for row in rows if row not in own or count[table_widths(row.choice)] == layers]
    pairs = [(w, a) for i, w in enumerate(widths) for a in (widths if i % 2 else widths[::-1])]
    left = [pair for pair in pairs if count[pair] != layers]
    programs = {pair: (lambda pair=pair: prepared.lower(_uniform(prepared, *pair))) for pair in left}
    added = 0
    for cells in measure(programs, spec, watch, report):
        for cell in cells:
            shape = Shape.of(spec[cell.layer])
            assert shape is not None
            choice = Choice(Format("int", cell.weight_bits), Format("uint", cell.activation_bits))
            latency = cell.median_s if statistic == "median" else cell.least_s
            rows.append(
                Row(
                    shape,
                    cell.batch,
                    choice,
                    latency,
                    network=spec.name,
                    layer=cell.layer,
                    latency_min_s=cell.least_s,
                    repeats=max(cell.repeats, 1),
                )
            )
        added += len(cells)
        write_text_atomic(out.with_suffix(".csv"), to_csv(rows))
        typer.echo(
            f"\r{spec.name}: {(len(pairs) - len(left)) * layers + added} of {len(pairs) * layers} cells",
            err=True,
            nl=False,
        )
    typer.echo("", err=True)
    return {
        "measured": added,
        "noisy": report.noisy,
        "sentinel_drift": report.drift,
        "pairs_again": report.again,
        "whole_over_sum": report.whole_over_sum,
        "not_timed": sorted(report.not_timed),
    }


def _uniform(prepared: Prepared, w: int, a: int) -> Policy:
    from haqsearch.spec import Choice, Format, Policy

    return Policy.uniform(prepared.spec, Choice(Format("int", w), Format("uint", a)))


def _networks(
    out: Path, prepared: Prepared, watch: Stopwatch, widths: list[int], count: int, statistic: str
) -> dict[str, Any] | None:
    """Time whole networks of mixed widths, and compare with the sums that the device predicts."""
    from haqsearch.files import write_text_atomic
    from hwmodels import Meter, load
    from hwmodels.timing import time_apart
    from hwmodels.validate import spearman

    if not count:
        return None
    meter = Meter(load(out), prepared.spec, watch.batch)
    measured, predicted = [], []
    lines = []
    mixed = list(_mixed(prepared, widths, count))
    timings = time_apart([watch.program(prepared.lower(policy)) for policy in mixed], watch.patience)
    for policy, timing in zip(mixed, timings, strict=True):
        measured.append(timing.median_s if statistic == "median" else timing.least_s)
        predicted.append(meter.costs(policy)["latency_s"])
        bits = [policy[layer.name] for layer in prepared.spec.quantizable]
        weights, activations = (
            " ".join(str(getattr(choice, role).width) for choice in bits) for role in ("weight", "activation")
        )
        lines.append(
            [prepared.spec.name, watch.batch, weights, activations, measured[-1], timing.least_s, timing.repeats]
        )
    path = out.with_name(f"{out.stem}_networks.csv")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = [line for line in csv.reader(io.StringIO(text)) if line and line[0] not in ("network", prepared.spec.name)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["network", "batch", "weight_bits", "activation_bits", "latency_s", "latency_min_s", "repeats"])
    writer.writerows([*kept, *lines])
    write_text_atomic(path, table.getvalue())
    errors = [p / m - 1 for p, m in zip(predicted, measured, strict=True)]
    return {
        "policies": count,
        "max_error": max(map(abs, errors)),
        "errors": errors,
        "rank_correlation": spearman(measured, predicted),
        "measured_s": measured,
        "predicted_s": predicted,
    }


def _mixed(prepared: Prepared, widths: list[int], count: int) -> Iterator[Policy]:
    """Random policies, the same ones every time; layers that have to share a format do.

    Each draws from a range of widths of its own, so that narrow and wide networks are among them as they are in a search.
    """
    from haqsearch.spec import SearchSpace

    choose = random.Random(0)
    space = SearchSpace.build(prepared.spec, widths, widths, {})
    for _ in range(count):
        ranges = {role: sorted(choose.choices(range(len(widths)), k=2)) for role in ("weight", "activation")}
        yield space.policy([choose.randint(*ranges[variable.role]) for variable in space.variables])


def _print(found: dict[str, Any]) -> None:
    typer.echo(f"{found['device']}: {found['settings']}")
    typer.echo(f"{found['measured']} cells measured, {found['rows']} in the table; {found['noisy']} stayed noisy")
    typer.echo(
        f"sentinel: drift at most {found['sentinel_drift']:.1%}; {found['pairs_again']} pairs of widths measured again"
    )
    if found["whole_over_sum"]:
        low, high = min(found["whole_over_sum"]), max(found["whole_over_sum"])
        typer.echo(
            f"whole runs over the sums of layers timed alone: {low:.2f} .. {high:.2f}; the layers are scaled by that"
        )
    if found["not_timed"]:
        typer.echo(f"not timed: {', '.join(found['not_timed'])}")
    if networks := found["networks"]:
        ranks = networks["rank_correlation"]
        typer.echo(
            f"{networks['policies']} mixed policies, sum of layers against the whole network: at most "
            f"{networks['max_error']:.1%} apart, rank correlation {'-' if ranks is None else f'{ranks:.3f}'}"
        )
