"""Numbers with SI prefixes: the one place where big and small numbers become text."""

_PREFIXES = {
    12: "T",
    9: "G",
    6: "M",
    3: "k",
    0: "",
    -3: "m",
    -6: "µ",
    -9: "n",
    -12: "p",
}


def scale_of(value: float) -> tuple[float, str]:
    """The factor and SI prefix that leave `value` with one to three digits.

    scale_of(12345) is (1000.0, "k"). Zero has no prefix; beyond tera and pico the
    largest and smallest prefix are used.
    """
    if value == 0:
        return 1.0, ""
    for exponent, prefix in _PREFIXES.items():
        factor = 10.0**exponent
        # 999.6 rounds to 1000 at three digits, which belongs to the next prefix.
        if abs(value) / factor >= 0.9995:
            return factor, prefix
    return factor, prefix


def humanize(value: float, unit: str) -> str:
    """`value` to three digits with an SI prefix: 12345, "FLOP" -> "12.3 kFLOP".

    Prefixes are powers of 1000, bytes included (1 kB is 1000 bytes). Whole numbers
    below 1000 are exact and stay as they are: 64, "B" -> "64 B".
    """
    if abs(value) < 1000 and float(value).is_integer():
        return f"{value:.0f} {unit}"
    factor, prefix = scale_of(value)
    return f"{three_digits(value / factor)} {prefix}{unit}"


def three_digits(value: float) -> str:
    """`value` in fixed notation to three significant digits: 1.2 -> "1.20"."""
    text = f"{value:#.3g}"
    if "e" in text:  # at least 1000: fixed notation needs no more digits
        return f"{value:.0f}"
    return text.rstrip(".")
