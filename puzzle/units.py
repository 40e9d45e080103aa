"""Human units at the border, SI inside: `72 GiB`, `5500 tok/s`, `20 ms`, `0.5x`, `40 %`.

>>> parse("72 GiB")
Quantity(value=77309411328.0, unit='B')
>>> str(parse("20 ms")), parse("40 %")
('20 ms', Relative(factor=0.4))
>>> show(77309411328, "B"), show(0.0000213, "s"), show(12345.6, "tok/s")
('72.0 GiB', '21.3 us', '12,346 tok/s')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# SI unit -> the units people write for it, largest first
_SCALES: dict[str, dict[str, float]] = {
    "B": {
        "TiB": 2.0**40,
        "GiB": 2.0**30,
        "MiB": 2.0**20,
        "KiB": 2.0**10,
        "TB": 1e12,
        "GB": 1e9,
        "MB": 1e6,
        "KB": 1e3,
        "B": 1.0,
    },
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "tok/s": {"M tok/s": 1e6, "tok/s": 1.0},
    "params": {"B params": 1e9, "M params": 1e6, "K params": 1e3, "params": 1.0},
}
_UNITS = {written: (si, scale) for si, row in _SCALES.items() for written, scale in row.items()}
_NUMBER_THEN_UNIT = re.compile(r"\s*(\d[\d_]*\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(.*?)\s*", re.I)


@dataclass(frozen=True)
class Quantity:
    """An absolute amount: `value` in the SI unit `unit` (B, s, tok/s or params)."""

    value: float
    unit: str

    def __str__(self) -> str:
        """The shortest text that parses to the same value."""
        for written, scale in _SCALES[self.unit].items():
            text = f"{self.value / scale:g} {written}"
            if self.value >= scale and parse(text) == self:
                return text
        return f"{self.value!r} {self.unit}"


@dataclass(frozen=True)
class Relative:
    """An amount as a multiple of the parent's own."""

    factor: float

    def __str__(self) -> str:
        return f"{self.factor!r}x"


def parse(text: str) -> Quantity | Relative:
    """Read a number with its unit; ValueError says what is wrong and which units exist."""
    match = _NUMBER_THEN_UNIT.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a number with a unit, like 72 GiB, 20 ms or 0.5x")
    number, unit = float(match[1]), " ".join(match[2].split())
    if unit == "x":
        return Relative(number)
    if unit == "%":
        return Relative(number / 100)
    if unit not in _UNITS:
        raise ValueError(f"{text!r} has no known unit; the units are {', '.join(_UNITS)}, x and %")
    si, scale = _UNITS[unit]
    return Quantity(number * scale, si)


def show(value: float, unit: str) -> str:
    """Write an SI amount for people, three digits or so, in the unit that suits its size."""
    if unit == "tok/s":
        return f"{value / 1e6:.2f} M tok/s" if value >= 1e6 else f"{value:,.0f} tok/s"
    scales = {name: scale for name, scale in _SCALES[unit].items() if name not in _DECIMAL_BYTES}
    for written, scale in scales.items():
        if abs(value) >= scale:
            return f"{value / scale:.{0 if scale == 1 and unit != 's' else 1}f} {written}"
    return f"{value / scale:.3g} {written}"


_DECIMAL_BYTES = {"TB", "GB", "MB", "KB"}
