"""A non-finite value is found at any index and in any dtype, and no finite value is taken for one."""

import pytest
import torch

from workbench.checkpoint.assemble import first_not_finite, is_finite

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern(dtype: torch.dtype) -> None:
    """All 65,536 bit patterns of the small dtypes, the same high bits of the large ones, compared with torch."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    high = torch.arange(-(2**15), 2**15).to(integer)
    patterns = high << (8 * dtype.itemsize - 16)
    for low in (0, 1) if dtype.itemsize > 2 else (0,):
        values = (patterns + low).view(dtype)
        finite = values.isfinite()
        assert is_finite(values[finite].clone())
        for value in values[~finite][::7]:
            assert not is_finite(torch.stack([torch.zeros((), dtype=dtype), value]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1_500_001, 2_999_999])
def test_any_place(dtype: torch.dtype, value: float, place: int) -> None:
    tensor = torch.full((3_000, 1_000), -1.0, dtype=dtype)
    assert is_finite(tensor) and is_finite(tensor.T)
    tensor.view(-1)[place] = value
    assert not is_finite(tensor) and not is_finite(tensor.T)


def test_the_first_of_several() -> None:
    tensors = [torch.ones(5), torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])]
    assert first_not_finite(tensors) == 1
    assert first_not_finite(tensors[:1]) is None
    assert first_not_finite([]) is None


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    tensors = [torch.ones(5, device="cuda"), torch.tensor([1.0, float("nan")], device="cuda")]
    assert first_not_finite(tensors) == 1
    assert first_not_finite(tensors[:1]) is None
