"""Sizes as people read them."""


def size_text(size: int) -> str:
    """Returns a number of bytes with three digits.

    Example:
        >>> [size_text(n) for n in (0, 999, 12_345, 1_234_567, 14_500_000_000)]
        ['0 B', '999 B', '12.3 kB', '1.23 MB', '14.5 GB']
    """
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
