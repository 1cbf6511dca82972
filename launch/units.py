"""Numbers with their units, for the terminal."""


def in_bytes(n: float) -> str:
    """A number of bytes with its unit, such as `85.82 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.2f} {unit}"
        n /= 1000
    raise AssertionError("unreachable")
