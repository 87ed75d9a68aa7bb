"""Money without floats: USD as Decimal outside, as an integer of 10^-12 dollar inside sums.

The unit and the rounding rules are the contract's (section 2): everything is summed in units,
and what is reserved, charged or compared with a quote is rounded up to the micro-dollar.
"""

from decimal import Decimal, InvalidOperation

UNITS_PER_USD = 10**12
"""One unit is 10^-12 dollar, so that a token at 10^-6 dollar per million tokens is one unit."""

UNITS_PER_MICRO_USD = 10**6

_MIN_DECIMALS = 2
_MAX_DECIMALS = 12
_MAX_USD = Decimal(10) ** 12


def parse_usd(value: str | int | Decimal) -> Decimal:
    """Read an amount in USD exactly.

    Raises:
        ValueError: Not a finite decimal number, negative, a trillion or more, or finer than
            10^-12 dollar. Floats are refused: they have already lost the cents.

    Example:
        >>> parse_usd("25.00")
        Decimal('25.00')
    """
    if isinstance(value, bool | float) or not isinstance(value, str | int | Decimal):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON gives anything
        raise ValueError(f"{value!r} is not an amount: write it as a decimal string")  # noqa: TRY004 - pydantic turns only ValueError into a field's problem
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not an amount in USD") from None
    if not amount.is_finite() or amount < 0 or amount >= _MAX_USD:
        raise ValueError(f"{value!r} is not an amount between 0 and 10^12 USD")
    if not amount:
        # Zero may have any exponent, and 10 to its power would fill the memory.
        return Decimal("0.00")
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and -exponent > _MAX_DECIMALS:
        raise ValueError(f"{value!r} is finer than 10^-12 USD")
    return amount


def units_from_usd(amount: Decimal) -> int:
    """Turn USD into units of 10^-12 dollar, exactly.

    Raises:
        ValueError: The amount is finer than a unit.

    Example:
        >>> units_from_usd(Decimal("0.000001"))
        1000000
    """
    sign, digits, exponent = amount.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{amount} is not an amount")  # noqa: TRY004 - a NaN is a wrong value, not a wrong type
    shift = exponent + _MAX_DECIMALS
    whole = int("".join(map(str, digits)))
    if not whole:
        return 0
    if shift >= 0:
        units = whole * 10**shift
    else:
        units, rest = divmod(whole, 10**-shift)
        if rest:
            raise ValueError(f"{amount} is finer than 10^-12 USD")
    return -units if sign else units


def usd_from_units(units: int) -> Decimal:
    """Turn units into USD, exactly, with 2 to 12 decimals.

    Example:
        >>> usd_from_units(1_059_000_000)
        Decimal('0.001059')
    """
    return Decimal(format_units(units))


def format_units(units: int) -> str:
    """Write units as the wire's decimal string: 2 to 12 decimals, never an exponent.

    Example:
        >>> format_units(25 * UNITS_PER_USD), format_units(1)
        ('25.00', '0.000000000001')
    """
    sign = "-" if units < 0 else ""
    whole, fraction = divmod(abs(units), UNITS_PER_USD)
    decimals = f"{fraction:0{_MAX_DECIMALS}d}".rstrip("0").ljust(_MIN_DECIMALS, "0")
    return f"{sign}{whole}.{decimals}"


def format_usd(amount: Decimal) -> str:
    """Write USD as the wire's decimal string: 2 to 12 decimals, never an exponent.

    Example:
        >>> format_usd(Decimal("1E+2")), format_usd(Decimal("0.5"))
        ('100.00', '0.50')
    """
    return format_units(units_from_usd(amount))


def ceil_to_micro(units: int) -> int:
    """Round units up to a whole micro-dollar, still in units.

    Example:
        >>> ceil_to_micro(1_000_001)
        2000000
    """
    return -(-units // UNITS_PER_MICRO_USD) * UNITS_PER_MICRO_USD
