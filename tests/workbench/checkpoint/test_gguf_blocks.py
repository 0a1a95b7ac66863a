"""Each type of GGUF block against one decoded element by element, from the format's definition in ggml.

The structures are those of ggml-common.h, the loops those of dequantize_row_* in ggml-quants.c.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.checkpoint.gguf import GgufBlocks

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

Block = bytes
Values = list[float]


def half(block: Block, at: int) -> float:
    value: float = struct.unpack_from("<e", block, at)[0]
    return value


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def nibbles(quants: Block) -> list[int]:
    """All low halves, then all high halves."""
    return [byte & 15 for byte in quants] + [byte >> 4 for byte in quants]


def q4_0(block: Block) -> Values:
    return [half(block, 0) * (q - 8) for q in nibbles(block[2:18])]


def q4_1(block: Block) -> Values:
    return [half(block, 0) * q + half(block, 2) for q in nibbles(block[4:20])]


def fifth_bit(bits: Block) -> list[int]:
    word = int.from_bytes(bits, "little")
    return [(word >> number & 1) << 4 for number in range(32)]


def q5_0(block: Block) -> Values:
    pairs = zip(nibbles(block[6:22]), fifth_bit(block[2:6]), strict=True)
    return [half(block, 0) * ((low | high) - 16) for low, high in pairs]


def q5_1(block: Block) -> Values:
    pairs = zip(nibbles(block[8:24]), fifth_bit(block[4:8]), strict=True)
    return [half(block, 0) * (low | high) + half(block, 2) for low, high in pairs]


def q8_0(block: Block) -> Values:
    return [half(block, 0) * signed(byte) for byte in block[2:34]]


def two_bits(quants: Block) -> Iterator[tuple[int, int, int]]:
    """Group of 16, position of the byte, and value, in the order of the values, for 64 bytes of 2-bit numbers."""
    group = 0
    for start in (0, 32):
        for shift in (0, 2, 4, 6):
            for part in (0, 16):
                for number in range(16):
                    at = start + part + number
                    yield group, at, quants[at] >> shift & 3
                group += 1


def q2_k(block: Block) -> Values:
    scales, d, minimum = block[:16], half(block, 80), half(block, 82)
    return [d * (scales[g] & 15) * q - minimum * (scales[g] >> 4) for g, _, q in two_bits(block[16:80])]


def q3_k(block: Block) -> Values:
    mask, packed, d = block[:32], block[96:108], half(block, 108)
    scales = [
        ((packed[i] & 15 if i < 8 else packed[i - 8] >> 4) | (packed[8 + i % 4] >> 2 * (i // 4) & 3) << 4) - 32
        for i in range(16)
    ]
    # One bit of the mask for each run of 32 values.
    return [d * scales[g] * (q - (0 if mask[at % 32] >> (g // 2) & 1 else 4)) for g, at, q in two_bits(block[32:96])]


def six_bits(packed: Block) -> list[tuple[int, int]]:
    """Eight scales and minima of six bits in twelve bytes."""
    low = [(packed[j] & 63, packed[j + 4] & 63) for j in range(4)]
    high = [
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4)
        for j in range(4, 8)
    ]
    return low + high


def q4_k(block: Block) -> Values:
    d, minimum, quants = half(block, 0), half(block, 2), block[16:144]
    values = []
    for run, (scale, offset) in enumerate(six_bits(block[4:16])):
        for byte in quants[run // 2 * 32 : run // 2 * 32 + 32]:
            values.append(d * scale * (byte >> 4 * (run % 2) & 15) - minimum * offset)
    return values


def q5_k(block: Block) -> Values:
    d, minimum, high, quants = half(block, 0), half(block, 2), block[16:48], block[48:176]
    values = []
    for run, (scale, offset) in enumerate(six_bits(block[4:16])):
        for number in range(32):
            low = quants[run // 2 * 32 + number] >> 4 * (run % 2) & 15
            values.append(d * scale * (low + 16 * (high[number] >> run & 1)) - minimum * offset)
    return values


def q6_k(block: Block) -> Values:
    low, high, scales, d = block[:128], block[128:192], block[192:208], half(block, 208)
    values = [0.0] * 256
    for side in (0, 1):
        for number in range(32):
            for run in range(4):
                byte = low[64 * side + number + 32 * (run % 2)]
                q = (byte >> 4 if run > 1 else byte & 15) | (high[32 * side + number] >> 2 * run & 3) << 4
                scale = signed(scales[8 * side + number // 16 + 2 * run])
                values[128 * side + 32 * run + number] = d * scale * (q - 32)
    return values


NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice the value


def iq4_nl(block: Block) -> Values:
    return [half(block, 0) * NON_LINEAR[q] for q in nibbles(block[2:18])]


def iq4_xs(block: Block) -> Values:
    d, high, low, quants = half(block, 0), int.from_bytes(block[2:4], "little"), block[4:8], block[8:136]
    values = []
    for run in range(8):
        scale = ((low[run // 2] >> 4 * (run % 2) & 15) | (high >> 2 * run & 3) << 4) - 32
        values += [d * scale * NON_LINEAR[q] for q in nibbles(quants[16 * run : 16 * run + 16])]
    return values


def trit(byte: int, number: int) -> int:
    """The ternary digit of a byte that holds five as a fixed-point fraction."""
    return ((byte * 3**number & 255) * 3 >> 8) - 1


def tq1_0(block: Block) -> Values:
    quants, rest, d = block[:48], block[48:52], half(block, 52)
    values = []
    for part in (quants[:32], quants[32:48]):
        values += [d * trit(byte, number) for number in range(5) for byte in part]
    return values + [d * trit(byte, number) for number in range(4) for byte in rest]


def tq2_0(block: Block) -> Values:
    d = half(block, 64)
    return [
        d * ((byte >> shift & 3) - 1) for part in (0, 32) for shift in (0, 2, 4, 6) for byte in block[part : part + 32]
    ]


def mxfp4(block: Block) -> Values:
    return [2.0 ** (block[0] - 128) * E2M1[q] for q in nibbles(block[1:17])]


# Type: values and bytes in a block, where the half-precision scales are, and the decoder.
TYPES: dict[str, tuple[int, int, tuple[int, ...], Callable[[Block], Values]]] = {
    "Q4_0": (32, 18, (0,), q4_0),
    "Q4_1": (32, 20, (0, 2), q4_1),
    "Q5_0": (32, 22, (0,), q5_0),
    "Q5_1": (32, 24, (0, 2), q5_1),
    "Q8_0": (32, 34, (0,), q8_0),
    "Q2_K": (256, 84, (80, 82), q2_k),
    "Q3_K": (256, 110, (108,), q3_k),
    "Q4_K": (256, 144, (0, 2), q4_k),
    "Q5_K": (256, 176, (0, 2), q5_k),
    "Q6_K": (256, 210, (208,), q6_k),
    "IQ4_NL": (32, 18, (0,), iq4_nl),
    "IQ4_XS": (256, 136, (0,), iq4_xs),
    "TQ1_0": (256, 54, (52,), tq1_0),
    "TQ2_0": (256, 66, (64,), tq2_0),
    "MXFP4": (32, 17, (), mxfp4),
}


def random_rows(kind: str, rows: int, columns: int, seed: int = 0, scale: float = 0.05) -> np.ndarray:
    """Rows of blocks of random bytes, with half-precision scales of about `scale`."""
    size, n_bytes, halves, _ = TYPES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows, columns // size, n_bytes), dtype=np.uint8)
    for at in halves:
        values = (scale * random.standard_normal((rows, columns // size, 1))).astype("<f2")
        blocks[..., at : at + 2] = values.view(np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = random.integers(118, 125, (rows, columns // size))
    return blocks.reshape(rows, -1)


def decoded(kind: str, rows: np.ndarray) -> torch.Tensor:
    _, n_bytes, _, decode = TYPES[kind]
    values = [
        [value for start in range(0, len(row), n_bytes) for value in decode(row[start : start + n_bytes].tobytes())]
        for row in rows
    ]
    return torch.tensor(values, dtype=torch.float64).float()


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_decode_as_the_format_says(tmp_path: Path, kind: str) -> None:
    size, n_bytes, _, _ = TYPES[kind]
    shape = (5, 3 * size)
    rows = random_rows(kind, *shape)
    file = tmp_path / "blocks"
    file.write_bytes(b"before" + rows.tobytes())
    number = gguf.GGMLQuantizationType[kind]
    tensor = GgufBlocks(torch.Size(shape), torch.bfloat16, file, 6, int(number), size, n_bytes)
    expected = decoded(kind, rows)
    assert expected.abs().max() > 0.01 and expected.unique().numel() > 2
    close = {"rtol": 1e-5, "atol": 1e-5 * expected.abs().max().item()}
    assert torch.allclose(tensor[(slice(0, 5), slice(0, shape[1]))], expected, **close)
    # A part that begins and ends inside blocks.
    part = (slice(1, 4), slice(size // 2 + 3, 2 * size + 1))
    assert torch.allclose(tensor[part], expected[part], **close)
    vector = GgufBlocks(torch.Size(shape[1:]), torch.bfloat16, file, 6, int(number), size, n_bytes)
    assert torch.allclose(vector[(slice(2, size + 2),)], expected[0, 2 : size + 2], **close)


def test_blocks_worked_by_hand() -> None:
    """Q4_0: scale 0.5, first byte 0x1F: 15 - 8 = 7 and 1 - 8 = -7. Q8_0: scale 2, bytes 1 and -1."""
    assert q4_0(struct.pack("<e", 0.5) + bytes([0x1F] + [0x88] * 15)) == [3.5, *[0.0] * 15, -3.5, *[0.0] * 15]
    assert q8_0(struct.pack("<e", 2.0) + bytes([1, 255] + [0] * 30))[:3] == [2.0, -2.0, 0.0]
