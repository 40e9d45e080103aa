"""Human units read and write without loss."""

import pytest

from puzzle.units import Quantity, Relative, parse, show


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72 GiB", Quantity(72 * 2**30, "B")),
        ("72GiB", Quantity(72 * 2**30, "B")),
        ("1.5 GB", Quantity(1.5e9, "B")),
        ("5500 tok/s", Quantity(5500, "tok/s")),
        ("5_500 tok/s", Quantity(5500, "tok/s")),
        ("20 ms", Quantity(0.02, "s")),
        ("2.5e2 us", Quantity(250e-6, "s")),
        ("6.5 B params", Quantity(6.5e9, "params")),
        ("0.5x", Relative(0.5)),
        (".5 x", Relative(0.5)),
        ("40 %", Relative(0.4)),
    ],
)
def test_what_people_write(text, value):
    assert parse(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "72", "72 GIB", "-1 GiB", "1 2 GiB", "5 tokens", "1e"])
def test_what_does_not_read(text):
    with pytest.raises(ValueError, match=r"is not a number|has no known unit"):
        parse(text)


@pytest.mark.parametrize("unit", ["B", "s", "tok/s", "params"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, 123456789.0, 3e12, 72 * 2**30, 0.02, 7e-7])
def test_text_of_a_quantity_parses_to_the_same_value(unit, value):
    assert parse(str(Quantity(value, unit))) == Quantity(value, unit)
    assert parse(str(Relative(value))) == Relative(value)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1082134784, "B", "1.0 GiB"),
        (12, "B", "12 B"),
        (0, "B", "0 B"),
        (1.5, "s", "1.5 s"),
        (0.0119, "s", "11.9 ms"),
        (4.2e6, "params", "4.2 M params"),
        (1247617.9, "tok/s", "1.25 M tok/s"),
    ],
)
def test_show(value, unit, text):
    assert show(value, unit) == text
