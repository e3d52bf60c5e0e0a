"""What a device can reach: multiply-accumulates per second by width pair, and the intensity at which its memory keeps up."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10
from typing import Any

from hwmodels.base import HardwareModel
from hwmodels.overlay import Measured
from hwmodels.schema import ProfiledDevice

DESCRIBED = (ProfiledDevice, Measured)
"""Devices made from a profile: they know their widths, peaks and bandwidth."""


@dataclass(frozen=True)
class Roof:
    """A native width pair: its peak, and the ridge point, the MACs per byte of outer memory from which the peak is reached
    (None where the profile has no bandwidth)."""

    weight_bits: int
    activation_bits: int
    peak_macs_per_s: float
    ridge_macs_per_byte: float | None


def roofs(device: HardwareModel) -> list[Roof]:
    """One for each native width pair, from few bits to many; none of a device that is not a profile."""
    if not isinstance(device, DESCRIBED):
        return []
    bandwidth = device.bandwidth_bytes_per_s
    found = []
    for w, a in device.native_pairs:
        peak = device.peak_macs_per_s(w, a)
        found.append(Roof(w, a, peak, peak / bandwidth if bandwidth else None))
    return found


def picture(device: HardwareModel, width: int = 72, height: int = 14) -> list[str]:
    """The roofline as text: MAC/s over MAC/byte, both logarithmic; peaks are marked at the right with their widths.

    Empty where the device has no bandwidth.
    """
    found = [roof for roof in roofs(device) if roof.ridge_macs_per_byte]
    if not found or not isinstance(device, DESCRIBED) or not device.bandwidth_bytes_per_s:
        return []
    peaks: dict[float, list[str]] = {}
    for roof in found:
        peaks.setdefault(roof.peak_macs_per_s, []).append(f"w{roof.weight_bits}a{roof.activation_bits}")
    bandwidth, top, bottom = device.bandwidth_bytes_per_s, max(peaks), min(peaks) / 10
    left, right = log10(bottom / bandwidth), log10(top / bandwidth) + 0.7
    low, high = log10(bottom), log10(top)
    plot = width - 22

    def row(macs_per_s: float) -> int:
        return round((high - log10(macs_per_s)) / max(high - low, 1e-9) * (height - 1))

    canvas = [[" "] * plot for _ in range(height)]
    for column in range(plot):
        intensity = 10 ** (left + (right - left) * column / (plot - 1))
        for peak in peaks:
            reached = min(peak, intensity * bandwidth)
            if reached >= bottom * 0.999:
                canvas[row(reached)][column] = "/" if reached < peak else "-"
    labels: dict[int, list[str]] = {}
    for peak, names in peaks.items():
        labels.setdefault(row(peak), []).extend(names)
    lines = []
    for i, cells in enumerate(canvas):
        names = labels.get(i, [])
        lines.append(f"{'|' + ''.join(cells)} {_shortened(names)}".rstrip())
    axis = f"{10**left:.2g}".ljust(plot - 8) + f"{10**right:.2g}".rjust(8)
    return [f"MAC/s, from {bottom:.2g} to {top:.2g}", *lines, "+" + "-" * plot, " " + axis + " MAC/byte"]


def _shortened(names: list[str]) -> str:
    return " ".join(names) if len(names) <= 3 else f"{names[0]} .. {names[-1]}"


def as_json(device: HardwareModel) -> dict[str, Any]:
    """Roofs as plain data."""
    bandwidth = device.bandwidth_bytes_per_s if isinstance(device, DESCRIBED) else None
    return {"bandwidth_bytes_per_s": bandwidth, "roofs": [vars(roof) for roof in roofs(device)]}
