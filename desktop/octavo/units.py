"""Numbers as people read them: bytes, tokens, seconds."""

BYTES = "bytes"


def format_bytes(num_bytes: float) -> str:
    """Binary units with three figures: `98.4 MB` is written `93.8 MiB`, as memory is counted."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_amount(done: int, total: int | None, unit: str = BYTES) -> str:
    """`12.0 MiB of 93.8 MiB`, `3 of 11 kernels`; what is done alone without a total.

    Args:
        unit: `BYTES`, or the plural of what is counted.
    """
    if unit == BYTES:
        whole = "" if total is None else f" of {format_bytes(total)}"
        return f"{format_bytes(done)}{whole}"
    whole = "" if total is None else f" of {total:,}"
    return f"{done:,}{whole} {unit}"


def format_count(value: float) -> str:
    """`135M`, `1.2B`: parameters of a model."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}{unit}"
    return f"{value:.0f}"


def format_seconds(seconds: float) -> str:
    """`0.34 s`, `12 s`, `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
