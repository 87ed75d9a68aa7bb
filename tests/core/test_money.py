"""Money: whatever is written, it is read exactly or refused, at once, and no cent is lost."""

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.money import (
    UNITS_PER_MICRO_USD,
    UNITS_PER_USD,
    ceil_to_micro,
    format_units,
    format_usd,
    parse_usd,
    units_from_usd,
    usd_from_units,
)

UNITS = st.integers(-(10**24) + 1, 10**24 - 1)
AMOUNTS = st.integers(0, 10**24 - 1)


@given(UNITS)
def test_units_are_written_and_read_back_exactly(units: int) -> None:
    text = format_units(units)

    assert Fraction(text) == Fraction(units, UNITS_PER_USD)
    assert units_from_usd(Decimal(text)) == units
    assert usd_from_units(units) == Decimal(text)
    whole, _, decimals = text.removeprefix("-").partition(".")
    assert whole.isdigit()
    assert 2 <= len(decimals) <= 12
    assert len(decimals) == 2 or not decimals.endswith("0")


@given(AMOUNTS, st.integers(1, 6))
def test_no_context_of_the_caller_changes_an_amount(units: int, digits: int) -> None:
    with localcontext() as context:
        context.prec = digits
        amount = parse_usd(format_units(units))

        assert units_from_usd(amount) == units
        assert format_usd(amount) == format_units(units)


@given(st.integers(0, 10**30))
def test_rounding_up_adds_less_than_a_micro_dollar(units: int) -> None:
    rounded = ceil_to_micro(units)

    assert rounded % UNITS_PER_MICRO_USD == 0
    assert 0 <= rounded - units < UNITS_PER_MICRO_USD


NUMBERS = st.from_regex(r"[-+]?[0-9]{0,40}\.?[0-9]{0,40}([eE][-+]?[0-9]{1,12})?", fullmatch=True)


@given(st.one_of(NUMBERS, st.text(), st.decimals(), st.integers()))
def test_what_is_read_is_an_amount_and_all_else_a_value_error(given_amount: object) -> None:
    try:
        amount = parse_usd(given_amount)  # type: ignore[arg-type]
    except ValueError:
        return

    assert 0 <= amount < 10**12
    assert Fraction(format_usd(amount)) == Fraction(amount)
    assert parse_usd(format_usd(amount)) == amount


@pytest.mark.timeout(5)
@pytest.mark.parametrize("zero", ["0e999999999", "-0E+999999999", "0.0e-999999999", "0"])
def test_a_zero_of_any_size_is_zero_at_once(zero: str) -> None:
    assert format_usd(parse_usd(zero)) == "0.00"
    assert units_from_usd(Decimal(zero)) == 0


@pytest.mark.parametrize("float_", [0.1, 1.0, float("nan"), True, None, b"1", [1]])
def test_what_is_no_exact_number_is_refused(float_: object) -> None:
    with pytest.raises(ValueError, match="decimal string"):
        parse_usd(float_)  # type: ignore[arg-type]
