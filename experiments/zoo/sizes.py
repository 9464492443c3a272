"""Sizes and counts as people read them."""


def counted(count: int, noun: str) -> str:
    """Returns how many there are.

    Example:
        >>> counted(1, "model"), counted(2, "model")
        ('1 model', '2 models')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size_text(size: int | None) -> str:
    """Returns a number of bytes with three digits; None: unknown.

    Example:
        >>> [size_text(n) for n in (0, 999, 12_345, 1_234_567, 14_500_000_000)]
        ['0 B', '999 B', '12.3 kB', '1.23 MB', '14.5 GB']
    """
    if size is None:
        return "unknown"
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
