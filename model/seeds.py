"""Any integer is a seed: of one that has more than 64 bits the last 64 count. No torch."""


def int64(seed: int) -> int:
    """The same number modulo 2^64, from -2^63 to 2^63 - 1, as torch's integers and generators take it."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
