"""The tables of the page, as HTML. Every cell goes through ``cell``, which escapes its text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from haqsearch.report.records import Bits, Layer, Run, mean_widths
from haqsearch.report.units import (
    MISSING,
    TIMES,
    axis_scale,
    compact,
    count,
    decimal,
    describe,
    duration,
    exact,
    finite,
    human,
    percent,
    title,
)

PARETO_ROWS = 40
_LAYER_METRICS = ("latency_s", "energy_j", "size_bytes")
_OPS = {"conv2d": "conv", "depthwise_conv2d": "depthwise", "linear": "linear"}


def cell(text: Any, hint: str = "", kind: str = "", tag: str = "td", style: str = "") -> str:
    """One table cell; ``hint`` is shown on hover."""
    attributes = "".join(
        f' {name}="{escape(value)}"' for name, value in (("class", kind), ("title", hint), ("style", style)) if value
    )
    return f"<{tag}{attributes}>{escape(str(text))}</{tag}>"


def table(head: Sequence[str], rows: Sequence[str], kind: str, foot: str = "") -> str:
    """A table in a box of its own that scrolls sideways, so that the page never does."""
    footer = f"<tfoot><tr>{foot}</tr></tfoot>" if foot else ""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{escape(kind)}"><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{body}</tbody>{footer}</table></div>"
    )


def _meter(share: float, kind: str = "") -> str:
    """A bar filled to ``share``, at most to its end."""
    return f'<span class="meter {kind}"><span style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></span></span>'


def budget(run: Run) -> str:
    """Each limit with the value reached, how much of the limit that is, and both relative to all layers at 8/8."""
    if not run.budget:
        return '<p class="quiet">This run had no budget: every policy counts as feasible.</p>'
    int8 = run.mapping("int8_metrics")
    rows = []
    for line in run.budget:
        metric = str(line.get("metric"))
        limit, value = finite(line.get("limit")), finite(line.get("value"))
        met = bool(line.get("met"))
        used = value / limit if value is not None and limit else None
        base = finite(int8.get(metric))
        meter = ""
        if used is not None:
            meter = _meter(used, "ok" if met else "bad")
        verdict = '<span class="verdict ok">✓ yes</span>' if met else '<span class="verdict bad">✗ no</span>'
        rows.append(
            f'<th title="{escape(describe(metric))}">{escape(title(metric))}'
            f"<small>{escape(str(line.get('text') or ''))}</small></th>"
            + cell(human(metric, limit), exact(metric, limit), "num")
            + cell(human(metric, value), exact(metric, value), "num strong")
            + f'<td class="num extra" title="value / limit = {escape(MISSING if used is None else repr(used))}">'
            f"{escape(percent(used, 1))}{meter}</td>"
            + cell(
                MISSING if value is None or not base else f"{value / base:.2f}{TIMES}",
                f"all layers at 8/8: {exact(metric, base)}",
                "num",
            )
            + f"<td>{verdict}</td>"
        )
    head = [cell("Metric", tag="th")]
    head += [cell(text, kind="num", tag="th") for text in ("Limit", "Value")]
    head += [cell("Of limit", kind="num extra", tag="th"), cell("vs int8", kind="num", tag="th")]
    head.append(cell("Met", tag="th"))
    return table(head, rows, "budget")


def summary(run: Run) -> str:
    """What was searched, with what, and how long each stage took."""
    hardware = run.mapping("hardware")
    s = run.summary
    failed = sum(bool(t.error) for t in run.trials)
    evaluated = f"{count(run.number('evaluations'))}, {count(run.number('feasible_evaluations'))} within the budget"
    evaluated += f", {count(pruned)} pruned" if (pruned := run.number("pruned_evaluations")) else ""
    refined = finite(run.mapping("refined").get("evaluations"))
    evaluated += f"; {count(refined)} more rounded in network order" if refined else ""
    aim = f"{'maximises' if run.objective.sign > 0 else 'minimises'} {run.objective.title}"
    lines: list[tuple[str, str, str]] = [
        ("Model", str(s.get("model") or MISSING), ""),
        ("Data", str(s.get("data") or MISSING), ""),
        ("Hardware", str(hardware.get("name") or MISSING), str(hardware.get("summary") or "")),
        ("Batch", str(hardware.get("batch") or MISSING), ""),
        ("Agent", str(s.get("agent") or MISSING), aim),
        ("Seed", str(s.get("seed", MISSING)), ""),
        ("Evaluations", evaluated + (f", {count(failed)} failed" if failed else ""), ""),
        ("Fidelity", str(s.get("fidelity") or MISSING).upper(), _fidelity(s.get("fidelity"))),
        ("Policy", str(s.get("policy_digest") or "none"), _policy_widths(run)),
    ]
    return '<dl class="facts">' + "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}{f'<small>{escape(note)}</small>' if note else ''}</dd>"
        for name, value, note in lines
    ) + "</dl>"  # fmt: skip


def _fidelity(fidelity: Any) -> str:
    stage = str(fidelity).partition(":")[0]
    return {"ptq": "weights rounded after training", "qat": "fine-tuned with the policy applied"}.get(stage, "")


def _policy_widths(run: Run) -> str:
    quantized = [layer for layer in run.layers if not layer.weight.is_float]
    if not quantized:
        return ""
    pairs = tuple(f"{layer.weight.text}/{layer.activation.text}" for layer in quantized)
    return f"{mean_widths(pairs)} over {len(quantized)} layers"


def ladder(run: Run) -> str:
    """The rungs of the search: policies scored and pruned on each, its time, and how well it predicted the next."""
    rungs = run.mapping("ladder").get("rungs")
    rows = []
    for rung in (r for r in rungs if isinstance(r, dict)) if isinstance(rungs, list) else ():
        top = rung.get("samples") is None
        rho = finite(rung.get("correlation"))
        said = MISSING if rho is None else decimal(rho, 2)
        rows.append(
            cell("all" if top else count(rung.get("samples")), tag="th")
            + cell(count(rung.get("scored")), kind="num")
            + cell(MISSING if top else count(rung.get("pruned")), kind="num")
            + cell(duration(finite(rung.get("seconds")) or 0.0), kind="num")
            + cell(said + ("" if rung.get("kept", True) else ", dropped"), kind="num")
        )
    hint = "Spearman, with the next rung, over the policies that went all the way first"
    head = [cell("Samples", tag="th")]
    head += [cell(text, kind="num", tag="th") for text in ("Policies", "Pruned", "Time")]
    return table([*head, cell("Rank correlation", hint, "num", "th")], rows, "ladder") if rows else ""


def stages(seconds: Mapping[str, Any]) -> str:
    """Wall time by stage, with a bar of each stage's share."""
    known = {str(name): value for name, raw in seconds.items() if (value := finite(raw)) is not None}
    whole = sum(value for name, value in known.items() if name != "total") or 1.0
    rows = []
    for name, value in known.items():
        bar = "" if name == "total" else _meter(value / whole)
        label = cell(name.replace("_", " "), tag="th")
        rows.append(f'{label}<td class="wide">{bar}</td>{cell(duration(value), f"{value!r} s", "num")}')
    if known and "total" not in known:
        rows.append(f"{cell('sum', tag='th')}<td></td>{cell(duration(whole), f'{whole!r} s', 'num strong')}")
    return table([], rows, "stages") if rows else '<p class="quiet">No wall times were recorded.</p>'


def layers(run: Run) -> str:
    """Every layer of the chosen policy in network order; the bar in a cost cell is its share of that column."""
    metrics = [m for m in _LAYER_METRICS if any(m in layer.costs for layer in run.layers)]
    scales = {m: axis_scale(m, [layer.costs.get(m) for layer in run.layers]) for m in metrics}
    largest = {m: max(layer.costs.get(m, 0.0) for layer in run.layers) for m in metrics}
    sums = {m: sum(layer.costs.get(m, 0.0) for layer in run.layers) for m in metrics}
    head = [
        cell("Layer", tag="th", kind="sticky"),
        cell("W", "bits of a weight", "num", "th"),
        cell("A", "bits of an input activation", "num", "th"),
        cell("Op", tag="th"),
        cell("Input → output", tag="th"),
        cell("Weight shape", tag="th", kind="spare"),
        cell("Weights", "number of weights", "num", "th"),
        cell("MACs", "of one sample", "num", "th"),
    ]
    head += [cell(f"{title(m)} ({scales[m][1]})", describe(m), "num", "th") for m in metrics]
    head.append(cell("Bound by", "what limits the layer; ⊘: fewer bits of these would save less than 1 %", tag="th"))
    rows = [_layer_row(layer, scales, sums, largest) for layer in run.layers]
    weights = sum(layer.weight_count or 0.0 for layer in run.layers)
    macs = sum(layer.macs or 0.0 for layer in run.layers)
    foot = (
        cell("Sum of layers", tag="th", kind="sticky")
        + "<td></td><td></td><td></td><td></td>"
        + '<td class="spare"></td>'
        + cell(compact(weights), count(weights), "num")
        + cell(compact(macs), count(macs), "num")
        + "".join(cell(decimal(sums[m] / scales[m][0]), exact(m, sums[m]), "num") for m in metrics)
        + "<td></td>"
    )
    return table(head, rows, "layers", foot)


def _layer_row(
    layer: Layer,
    scales: Mapping[str, tuple[float, str]],
    sums: Mapping[str, float],
    largest: Mapping[str, float],
) -> str:
    pin = ' <span class="pin" title="pinned: not searched">pinned</span>' if layer.pinned else ""
    row = f'<th class="sticky" title="{escape(layer.name)}"><span class="name">{escape(layer.name)}</span>{pin}</th>'
    row += _chip(layer.weight, "w") + _chip(layer.activation, "a")
    row += cell(_OPS.get(layer.op, layer.op or MISSING), layer.op)
    row += cell(f"{_shape(layer.in_shape)} → {_shape(layer.out_shape)}", kind="shape")
    row += cell(_shape(layer.weight_shape), "weight shape", "shape spare")
    row += cell(compact(layer.weight_count), count(layer.weight_count), "num")
    row += cell(compact(layer.macs), count(layer.macs), "num")
    for metric in scales:
        value = layer.costs.get(metric)
        share = value / sums[metric] if value is not None and sums[metric] > 0 else 0.0
        hint = f"{exact(metric, value)}, {percent(share, 1)} of the column"
        style = f"--share:{100 * (value or 0.0) / largest[metric]:.1f}%" if share > 0 else ""
        row += cell(decimal(None if value is None else value / scales[metric][0]), hint, "num share", style=style)
    if layer.buys_nothing:
        spared = f"fewer {' or '.join(layer.buys_nothing)} bits buy nothing here: less than 1 %"
        short = "/".join(operand[:1] for operand in layer.buys_nothing)  # w, a: the table is wide as it is
        return row + cell(f"{layer.bound or MISSING} ⊘ {short}", spared, kind="bound")
    return row + cell(layer.bound or MISSING, kind="bound")


def _chip(bits: Bits, role: str) -> str:
    text = "f32" if bits.is_float else MISSING if bits.width is None else f"{bits.width:g}"
    return f'<td class="num"><span class="chip {role}" title="{escape(bits.text)}">{escape(text)}</span></td>'


def _shape(shape: tuple[int, ...]) -> str:
    return TIMES.join(map(str, shape)) if shape else MISSING


def pareto(run: Run) -> str:
    """The policies no other beats in the objective and every metric at once, best score first."""
    if not run.pareto:
        return '<p class="quiet">The Pareto set is empty: no policy was evaluated without an error.</p>'
    chosen = run.summary.get("policy_digest")
    metrics = [m for m in run.metrics if any(m in p.metrics for p in run.pareto)]
    points = sorted(run.pareto, key=lambda p: (p.score is None, -(p.score or 0.0)))
    rows = []
    for point in points[:PARETO_ROWS]:
        mark = ' <span class="pin star">★ chosen</span>' if chosen and point.digest == chosen else ""
        rows.append(
            f'<th class="sticky"><code>{escape(point.digest)}</code>{mark}</th>'
            + cell(point.number, "point of pareto.json", "num")
            + cell(point.widths.removeprefix("mean "), "mean weight and activation bits")
            + cell(percent(point.accuracy), repr(point.accuracy), "num")
            + cell(decimal(point.kl), repr(point.kl), "num")
            + "".join(cell(human(m, point.metrics.get(m)), exact(m, point.metrics.get(m)), "num") for m in metrics)
        )
    head = [cell("Policy", tag="th", kind="sticky"), cell("Point", tag="th"), cell("Mean bits", tag="th")]
    head += [
        cell("Accuracy", "search split", "num", "th"),
        cell("KL", "from the float model, search split, nats", "num", "th"),
    ]
    head += [cell(title(m), describe(m), "num", "th") for m in metrics]
    more = len(points) - PARETO_ROWS
    rest = f'<p class="quiet">{more} more in pareto.json.</p>' if more > 0 else ""
    return table(head, rows, "pareto") + rest


def provenance(run: Run) -> str:
    """Which split, or which model of the device, each number comes from."""
    splits = run.mapping("splits")
    n = {name: f"{count(finite(splits.get(name)))} samples" for name in ("calibrate", "search", "report")}
    device = str(run.mapping("hardware").get("name") or "the device")
    rows = [
        ("Accuracies in the headline", f"report split, {n['report']} the search never saw; also float, int8, uniform"),
        (
            "Accuracy, loss and KL of evaluated policies",
            f"search split, {n['search']}; the agent chose by these, so they flatter",
        ),
        ("Ranges of tensors, rounding of weights", f"calibrate split, {n['calibrate']}"),
        (
            "Latency, energy, size and the other costs",
            f"the cost model of {device}: predicted, not measured in this run",
        ),
        ("vs int8", "the same cost model, every layer at 8-bit weights and activations"),
        ("Wall times", "measured on the machine below"),
    ]
    lines = "".join(f"<dt>{escape(term)}</dt><dd>{escape(source)}</dd>" for term, source in rows)
    return f'<dl class="facts wide-terms">{lines}</dl>'


def environment(run: Run) -> str:
    """Versions, commit and machine as the run wrote them."""
    if not run.environment:
        return '<p class="quiet">environment.json is empty.</p>'
    rows = [
        f"<dt>{escape(str(key))}</dt><dd>{escape(value if isinstance(value, str) else json.dumps(value))}</dd>"
        for key, value in run.environment.items()
    ]
    return f'<dl class="facts mono">{"".join(rows)}</dl>'
