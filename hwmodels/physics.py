"""Whether a device's numbers can be those of a machine: units, powers, and what fewer bits do. Warnings, not errors."""

from __future__ import annotations

from collections.abc import Iterator

from haqsearch.spec import Choice, Format, LayerSpec
from hwmodels.base import HardwareModel
from hwmodels.roofline import DESCRIBED, roofs

# Quantity -> (least, largest) of any machine we know of, in base units, and the mistake that leads outside.
_PLAUSIBLE = {
    "clock.frequency_hz": (1e5, 1e10, "is it in Hz?"),
    "bandwidth to outer memory in bytes/s": (1e4, 1e14, "is it bytes per second, or bits per cycle?"),
    "peak in MAC/s": (1e4, 1e16, "are the rates per cycle, or per second?"),
    "energy of a MAC in joule": (1e-16, 1e-7, "are the energies in picojoule?"),
    "power in watt": (1e-6, 2e3, "are the energies in picojoule and the rates right?"),
}


def warnings(device: HardwareModel) -> list[str]:
    """What looks wrong about ``device``, one line each; an empty list if nothing does."""
    return list(dict.fromkeys([*_sources(device), *_magnitudes(device), *_fewer_bits(device)]))


def _sources(device: HardwareModel) -> Iterator[str]:
    if device.draft:
        yield "sources: none: this is a draft, and every output says so; name a data sheet, a paper or a measurement"
    if isinstance(device, DESCRIBED):
        for key in device.profile.assumed:
            yield f"assumed: {key} has no source; costs that depend on it are guesses"


def _magnitudes(device: HardwareModel) -> Iterator[str]:
    if not isinstance(device, DESCRIBED):
        return
    yield from _outside("clock.frequency_hz", device.profile.clock.frequency_hz)
    if device.bandwidth_bytes_per_s:
        yield from _outside("bandwidth to outer memory in bytes/s", device.bandwidth_bytes_per_s)
    for roof in roofs(device):
        pair = f" at w{roof.weight_bits}a{roof.activation_bits}"
        yield from _outside("peak in MAC/s", roof.peak_macs_per_s, pair)
    for layer, choice in _probes(device):
        cost = device.cost(layer, choice, device.default_batch).values
        if "energy_j" in cost:
            macs = layer.macs * device.default_batch
            yield from _outside("energy of a MAC in joule", cost["energy_j"] / macs, f" of a {layer.name}")
            yield from _outside("power in watt", cost["energy_j"] / cost["latency_s"], f" in a {layer.name}")


def _outside(what: str, value: float, where: str = "") -> Iterator[str]:
    least, largest, mistake = _PLAUSIBLE[what]
    if not least <= value <= largest:
        yield f"{what} is {value:.3g}{where}: no machine we know is outside {least:g} .. {largest:g}; {mistake}"


def _fewer_bits(device: HardwareModel) -> Iterator[str]:
    """Steps to the next narrower width that make a layer slower or costlier, by metric: the largest, and how many."""
    steps: dict[str, list[tuple[float, str]]] = {metric: [] for metric in device.metrics}
    for layer, choice in _probes(device):
        wide = device.cost(layer, choice, device.default_batch).values
        for narrower in _one_step_down(device, layer, choice):
            narrow = device.cost(layer, narrower, device.default_batch).values
            for metric, found in steps.items():
                found.append((narrow[metric] / wide[metric] - 1, f"a {layer.name}, {choice} to {narrower}"))
    for metric, found in steps.items():
        rising = [step for step in found if step[0] > 0.02]
        if rising:
            rise, where = max(rising)
            yield (
                f"{metric} rises with fewer bits in {len(rising)} of {len(found)} steps, most by {rise:.0%} ({where}): "
                "right for machines that unpack, otherwise a rate is mistaken"
            )


def _one_step_down(device: HardwareModel, layer: LayerSpec, choice: Choice) -> Iterator[Choice]:
    """The next narrower native width of the weights, and of the activations."""
    if not isinstance(device, DESCRIBED):
        return
    w, a = choice.weight.width, choice.activation.width
    for narrower in ([(n, a) for n in range(w - 1, 0, -1)], [(w, n) for n in range(a - 1, 0, -1)]):
        native = [pair for pair in narrower if pair in device.native_pairs and device.supports(layer, _choice(*pair))]
        if native:
            yield _choice(*native[0])


def _probes(device: HardwareModel) -> Iterator[tuple[LayerSpec, Choice]]:
    """A layer of each kind at every native pair."""
    pairs = device.native_pairs if isinstance(device, DESCRIBED) else [(8, 8)]
    for layer in LAYERS:
        for w, a in pairs:
            if device.supports(layer, _choice(w, a)):
                yield layer, _choice(w, a)


def _choice(w: int, a: int) -> Choice:
    return Choice(Format("int", w), Format("uint", a))


def _square(name: str, c: int, n: int, k: int, out: int, groups: int = 1) -> LayerSpec:
    op = "depthwise_conv2d" if groups > 1 else "conv2d"
    macs = n * (c // groups) * k * k * out * out
    shapes = ((c, out, out), (n, c // groups, k, k), (n, out, out))
    return LayerSpec(name, op, *shapes, macs, groups, kernel=(k, k), inputs=("previous",))


LAYERS = (
    _square("3 x 3 convolution", 64, 64, 3, 56),
    _square("pointwise convolution", 256, 256, 1, 14),
    _square("depthwise convolution", 256, 256, 3, 14, 256),
    LayerSpec("linear layer", "linear", (1024,), (1024, 1024), (1024,), 2**20, inputs=("previous",)),
)
