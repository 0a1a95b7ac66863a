"""`matmul_few_rows` with every kernel."""

import pytest
import torch
import torch.nn.functional as F

from workbench.layers.fast_linear import LARGE, matmul_few_rows

WEIGHTS = {"small": (24, 40), "large": (768, 700)}


def random_inputs(dtype: torch.dtype, size: str, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    out, width = WEIGHTS[size]
    x = torch.randn(rows, 1, width, generator=generator).to(dtype)
    return x, torch.randn(out, width, generator=generator).to(dtype) / width**0.5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 16, 17, 32, 33])
def test_every_kernel_gives_the_product(dtype: torch.dtype, size: str, rows: int) -> None:
    x, weight = random_inputs(dtype, size, rows)
    assert (weight.numel() >= LARGE) == (size == "large")
    exact = (x.double().flatten(0, 1) @ weight.double().T).unsqueeze(1)
    # Half a unit in the last place of a result, which is below 8; float32 sums of 700 products add a few of their own.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps}[dtype]
    for layout in (x, x.transpose(0, 1), x.expand(rows, 2, -1)[:, 1:]):
        product = matmul_few_rows(layout, weight)
        assert product.dtype == dtype and product.is_contiguous() and product.shape == (*layout.shape[:-1], len(weight))
        assert (product.double() - exact.view(product.shape)).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_gradients_are_those_of_linear(dtype: torch.dtype, rows: int) -> None:
    gradients = []
    for act in (matmul_few_rows, F.linear):
        x, weight = (tensor.requires_grad_() for tensor in random_inputs(dtype, "large", rows))
        act(x, weight).square().sum().backward()
        gradients.append((x.grad, weight.grad))
    for mine, other in zip(*gradients, strict=True):
        # Both round the same sums, of numbers up to 10, in another order.
        assert torch.allclose(mine, other, rtol=0.02, atol=16 * torch.finfo(dtype).eps)


@torch.no_grad()
def test_an_empty_batch_and_one_position_of_many_keep_their_shapes() -> None:
    x, weight = random_inputs(torch.bfloat16, "small", 8)
    assert matmul_few_rows(x[:0], weight).shape == (0, 1, 24)
    assert matmul_few_rows(x[3, 0], weight).shape == (24,)
    assert torch.allclose(
        matmul_few_rows(x[3, 0], weight), F.linear(x[3, 0], weight), atol=0.04
    )  # two roundings near 4
