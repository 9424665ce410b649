# SPDX-License-Identifier: Apache-2.0
"""Damages bytes, for the tests that read damaged files; imports nothing."""

NUMBERS = (0, 1, 2, 4, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def damaged(rng, data: bytes, other: bytes) -> bytes:
    """Returns the data with one to four places changed, cut, doubled, or taken from `other`."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 30))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            data[at:at] = rng.randbytes(size)
        elif kind == 3:
            del data[at:at + size]
        elif kind == 4:
            data[at:at] = data[at:at + size * 4]
        elif kind == 5:
            start = rng.randrange(len(other))
            data[at:] = other[start:]
        elif rng.random() < 0.3:
            del data[at:]
        else:
            data[at:at + size] = rng.choice(NUMBERS).to_bytes(8, 'little')[:size]
    return bytes(data)
