"""Mutations of bytes: what files look like that are damaged, cut off, or written by somebody with other ideas."""

import random

TOKENS = (
    b"", b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"null", b"true", b"-1", b"0", b"1e999", b"NaN",
    b"[]", b"{}", b'""', b'"', b"\\ud800", b"\xed\xa0\x80", b"..", b"/", b"../../etc/passwd", b"\n", b"=", b"[[[[",
    b"]",    b"9" * 400, b"<script>", b"%s", b"-0.0", b"inf", b"18446744073709551616", b",", b":",
)  # fmt: skip


def mutate(content: bytes, generator: random.Random) -> bytes:
    """A few changes, each at a random place."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3, 8))):
        start = generator.randrange(len(data) + 1)
        end = min(len(data), start + generator.choice((0, 1, 1, 2, 4, 8, 32)))
        match generator.randrange(6):
            case 0:
                data[start:end] = generator.randbytes(end - start)
            case 1:
                data[start:end] = generator.choice(TOKENS)
            case 2:
                del data[start:end]
            case 3:
                data[start:start] = data[start:end] * generator.choice((1, 2, 50))
            case 4 if start < len(data):
                data[start] ^= 1 << generator.randrange(8)
            case _:
                data = data[: generator.randrange(len(data) + 1)]
    return bytes(data)
