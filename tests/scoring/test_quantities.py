"""Numbers with units: read exactly, compared exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sandlot.scoring.quantities import read_quantity, same_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("588", 588),
        ("588.", 588),
        ("005", 5),
        ("-5", -5),
        ("−5", -5),
        ("５８８", 588),
        ("**588**", 588),
        ("1,234", 1234),
        ("1{,}234", 1234),
        (r"1\,234", 1234),
        ("12,345,678.5", Fraction("12345678.5")),
        (".5", Fraction(1, 2)),
        ("2.5e3", 2500),
        ("1e-3", Fraction(1, 1000)),
        ("2.5 x 10^3", 2500),
        ("2.5×10³", 2500),
        (r"2.5 \times 10^{3}", 2500),
        ("2.5*10**3", 2500),
        (r"10^{-3}", Fraction(1, 1000)),
        ("1/2", Fraction(1, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\dfrac12", Fraction(1, 2)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        (r"0.\overline{3}", Fraction(1, 3)),
        ("0.1(6)", Fraction(1, 6)),
        ("$2.50", Fraction(5, 2)),
        (r"\$2.50", Fraction(5, 2)),
        (r"$588$", 588),
        (r"\text{588}", 588),
        (r"\approx 588", 588),
        ("three", 3),
        ("forty-two", 42),
        ("three hundred and five", 305),
        ("two thousand", 2000),
    ],
)
def test_a_number_is_read_in_the_forms_that_people_write(text: str, number: Fraction) -> None:
    quantity = read_quantity(text)
    assert quantity is not None
    assert quantity.number == number


@pytest.mark.parametrize(
    "text",
    ["", "x", "Paris", "3 4", "4 or 5", "the 5", "2x+1", "2x", "3 m g", "5!", "2^3", "1/2x", "0,5",
     "3 is the answer", "two thirds", "1,2,3", "12 and 5", "5 not", "9" * 500, "1e999999999"],
)  # fmt: skip
def test_what_is_no_quantity_is_none(text: str) -> None:
    assert read_quantity(text) is None


def agree(one: str, other: str, rel_tol: float = 0.0) -> bool:
    first, second = read_quantity(one), read_quantity(other)
    assert first is not None
    assert second is not None
    return same_quantity(first, second, rel_tol=rel_tol)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 m/s", r"5\,\mathrm{m/s}"),
        (r"18\,\mathrm{km/h}", "5 m/s"),
        ("5 m s^{-1}", "5 m/s"),
        ("5 metres per second", "5 m/s"),
        ("2500 mL", "2.5 L"),
        ("1 kWh", "3.6 MJ"),
        ("5 kg m^2 s^-2", "5 J"),
        ("1 h", "60 min"),
        ("10 µm", "10 μm"),
        (r"5890.0\,\text{\AA}", "589 nm"),
        ("$5", "5 dollars"),
        ("50 cents", "$0.50"),
        ("50%", "0.5"),
        ("50%", "50"),
        ("50 percent", r"50\%"),
        ("12 dogs", "12 dog"),
        ("588 square units", "588"),
        (r"588 \text{ cm}^2", "588"),
        ("60^\\circ", "60"),
        ("4.0", "4"),
        ("-0", "0"),
    ],
)
def test_equal_quantities_agree_both_ways(one: str, other: str) -> None:
    assert agree(one, other)
    assert agree(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 km/s", "5 m/s"),
        ("100 km", "100 miles"),
        ("12 dogs", "12 cats"),
        ("-4", "4"),
        ("0.333", "1/3"),
        ("0.3333333333", "1/3"),
        ("1.234", "1234"),
        ("9.81", "9.8"),
        ("50%", "5"),
        ("5%", "0.5"),
        ("$5", "5 euros"),
    ],
)
def test_different_quantities_do_not(one: str, other: str) -> None:
    assert not agree(one, other)


def test_a_tolerance_is_relative_to_the_truth() -> None:
    assert agree("9.81", "9.8", rel_tol=0.01)
    assert not agree("9.99", "9.8", rel_tol=0.01)
