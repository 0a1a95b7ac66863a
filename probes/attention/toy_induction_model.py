"""Toy induction model: a small Llama with a hand-set induction circuit, to test probes of heads.

In a trained model, if a probe finds no head, either the probe failed or the head does not exist. Here the heads are
known: L0H2 attends to the previous token and writes it to the stream, L1H1 attends to the token after the current
token's last occurrence and copies it, L0H0 attends to copies of the current token. All other weights are small noise.
Source: the circuit is that of Elhage et al. 2021 and arXiv 2209.11895.
"""

import torch
from torch import Tensor

from workbench.config import ModelConfig
from workbench.layers.rope import frequencies
from workbench.model import Transformer

PREVIOUS, INDUCTION, DUPLICATE = (0, 2), (1, 1), (0, 0)
"""The three heads that do something, as (layer, head)."""

_VOCAB, _HEAD = 32, 128
_CONFIG = ModelConfig(
    dim=3 * _VOCAB + 2,  # the token, the one before it, the copied one, a constant; and one to spare: an even width
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=_HEAD,
    ffn_dim=64,
    vocab_size=_VOCAB,
    norm_eps=1e-5,
    rope_theta=1e6,
    rope_scaling=None,
    max_seq_len=128,
    tied_output=False,
)


@torch.no_grad()
def induction_model(*, noise: float = 0.02, seed: int = 0) -> Transformer:
    """The hand-set model: 32 tokens, two layers of four heads, no tokenizer, float32, on the CPU.

    Units:  noise is the standard deviation of every weight that is not part of the circuit.
    Exact:  with noise 0 only the circuit's heads have an effect.
    """
    model = Transformer(_CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        fill = torch.ones_like(parameter) if parameter.ndim == 1 else noise * torch.randn(
            parameter.shape, generator=generator
        )  # fmt: skip
        parameter.copy_(fill)
        assert "norm" in name or parameter.ndim == 2
    token, before, copied = (slice(part * _VOCAB, (part + 1) * _VOCAB) for part in range(3))
    constant, code = 3 * _VOCAB, torch.eye(_VOCAB)

    model.tok_embeddings.weight[:, token] = code
    model.tok_embeddings.weight[:, constant] = 1
    first, second = (block.attention for block in model.layers)
    fast, slow = torch.arange(_HEAD // 2), torch.arange(_HEAD // 2, _HEAD, 2)  # rows of a head; slow ones hardly rotate

    # L0H2: constant query and key, the query rotated back by one position, so the score peaks one token back.
    angles = frequencies(_HEAD, _CONFIG.rope_theta)[: _HEAD // 4]
    turned = torch.view_as_real(torch.polar(torch.ones_like(angles), -angles)).flatten()  # [head_dim / 2]
    _rows(first.wq.weight, 2)[fast, constant] = 6 * turned
    _rows(first.wk.weight, 1)[fast[::2], constant] = 1.0
    _rows(first.wv.weight, 1)[:_VOCAB, token] = code
    first.wo.weight.view(_CONFIG.dim, 4, _HEAD)[before, 2, :_VOCAB] = 0.15 * code

    # L0H0: the query and the key are the current token's code.
    _rows(first.wq.weight, 0)[slow, token] = 5 * code
    _rows(first.wk.weight, 0)[slow, token] = code

    # L1H1: the query is the current token's code, the key is the code of the token before it; copies the key's token.
    _rows(second.wq.weight, 1)[slow, token] = 6 * code
    _rows(second.wk.weight, 0)[slow, before] = code
    _rows(second.wv.weight, 0)[:_VOCAB, token] = code
    second.wo.weight.view(_CONFIG.dim, 4, _HEAD)[copied, 1, :_VOCAB] = 0.2 * code
    model.output.weight[:, copied] = 2 * code
    return model.eval()


def _rows(weight: Tensor, head: int) -> Tensor:
    """One head's rows of wq, wk or wv. Shapes: [n * head_dim, dim] -> [head_dim, dim], a view"""
    return weight.view(-1, _HEAD, weight.shape[1])[head]
