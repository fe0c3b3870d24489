"""Kubernetes quantities by their value: 1, 1000m and "1" are the same amount."""

from decimal import Decimal, InvalidOperation

_MEBIBYTE = 2**20
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse_quantity(text: str | float) -> Decimal:
    """Return the value of a quantity in its base unit. Raises ValueError for what is none."""
    written = str(text).strip()
    try:
        if written[-2:] in _BINARY:
            return Decimal(written[:-2]) * Decimal(1024) ** _BINARY[written[-2:]]
        if written[-1:] in _DECIMAL and not written[-1:].isdigit():
            return Decimal(written[:-1]).scaleb(_DECIMAL[written[-1:]])
        return Decimal(written)  # A plain number, or one with an exponent such as 1e3.
    except InvalidOperation:
        raise ValueError(f"{written!r} is no quantity") from None


def mebibytes(size_bytes: int) -> str:
    """Return a size as a quantity, rounded up to whole MiB."""
    return f"{max(-(-size_bytes // _MEBIBYTE), 1)}Mi"
