"""The CRC-32 of bytes whose parts were read apart, in any order, by anyone.

A CRC is linear: that of A followed by B is that of A, moved along by the length of B, plus (exclusive or) that of B. So the
CRC of a whole is the sum of what each part gives, once it has been moved along by the bytes that come after it.
"""

from __future__ import annotations

POLYNOMIAL = 0xEDB88320
"""Of CRC-32 as zlib, zip and Ethernet have it, the bit of x³¹ lowest."""


def moved_along(crc: int, following: int) -> int:
    """What a part with this CRC-32 gives to that of the whole, `following` bytes before its end: crc · x^(8 · following)."""
    power, step = 1 << 31, 1 << 23  # x⁰, x⁸
    while following:
        if following & 1:
            power = _product(power, step)
        step = _product(step, step)
        following >>= 1
    return _product(power, crc)


def _product(a: int, b: int) -> int:
    """a · b modulo the polynomial, the coefficient of x⁰ in the highest bit."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (POLYNOMIAL if b & 1 else 0)
    return product
