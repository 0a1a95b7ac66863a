"""Sampling of the next token: greedy, or drawn from what repetition penalty, temperature, top_k, top_p and min_p leave.

A draw is the argmax of logits / temperature plus Gumbel noise, which has exactly the distribution of the softmax. The
noise is a function of seed, step and token id alone, so a draw does not depend on the device, the batch or the other
sequences, and a small change of the logits rarely changes it.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from workbench.errors import GenerationError

SAMPLER = 2  # increase this when the same seed and logits would give another token; stored sampled answers depend on it
NEAR = 256  # most likely tokens to try first: sorting the whole vocabulary is far slower and rarely needed
CLOSE = 4  # most tokens whose noisy logits float32 cannot tell apart


@dataclass(frozen=True)
class Sampling:
    """Sampling settings, applied in the order of transformers: penalty, temperature, top_k, top_p, min_p.

    Temperature 0 is greedy. Each of the last three looks at the distribution that is left by those before it: top_k
    keeps the k most likely tokens, top_p the smallest set of the most likely ones whose mass reaches p, min_p the
    tokens that are at least min_p times as likely as the most likely one. 0, 1 and 0 keep all. Tokens that are equally
    likely at the end of the set are kept together. repetition_penalty divides the positive logits of tokens that occur
    in the sequence and multiplies their negative ones; it acts on greedy decoding too.
    Source: the logits processors of transformers; arXiv 1805.04833 (top_k), 1904.09751 (top_p), 2407.01082 (min_p),
            1909.05858 (repetition penalty).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), int if field.name == "top_k" else (int, float)
            if not isinstance(value, kind) or isinstance(value, bool):
                what = "a whole number" if kind is int else "a number"
                raise GenerationError(f"{field.name} must be {what}; found {value!r:.80}.")
        allowed = {
            "temperature": (0 <= self.temperature < 1e300, "at least 0 and below 1e300"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a finite number above 0"),
        }
        for name, (fits, what) in allowed.items():
            if not fits:
                raise GenerationError(f"{name} must be {what}; found {getattr(self, name)}.")

    @property
    def truncates(self) -> bool:
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0

    def penalised(self, logits: Tensor, sequences: Sequence[Collection[int]]) -> Tensor:
        """The logits after the repetition penalty for the ids of each sequence. Shapes: logits [batch, vocab]"""
        if self.repetition_penalty == 1:
            return logits
        seen = [sorted(set(ids)) for ids in sequences]
        rows = torch.tensor([row for row, ids in enumerate(seen) for _ in ids], device=logits.device)
        columns = torch.tensor([token for ids in seen for token in ids], device=logits.device)
        values = logits[rows, columns]
        values = torch.where(values < 0, values * self.repetition_penalty, values / self.repetition_penalty)
        return logits.index_put((rows, columns), values)

    def choose(self, logits: Tensor, keys: Tensor) -> Tensor:
        """One token per sequence; `keys` are those of `noise_key`, and not read at temperature 0.

        Shapes: logits [batch, vocab] float32, after the penalty; keys [batch, 2] int32 -> [batch] int64
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        if not self.truncates:
            ids = torch.arange(logits.shape[1], device=logits.device)
            # Float32 finds the few that can win, float64 decides: the rounding of a logarithm must not.
            relative = logits - logits.amax(-1, keepdim=True)
            noisy = gumbel(keys, ids, torch.float32).mul_(self.temperature).add_(relative)
            likely = noisy.topk(min(CLOSE, logits.shape[1])).indices
            index = self._noisy(relative.gather(-1, likely), keys, likely).argmax(-1, keepdim=True)
            return likely.gather(-1, index).squeeze(-1)
        chosen, certain = self._choose_among_likely(logits, keys, min(logits.shape[1], NEAR + self.top_k))
        undecided = (~certain).nonzero().squeeze(-1)
        if len(undecided):
            chosen[undecided] = self._choose_among_likely(logits[undecided], keys[undecided], logits.shape[1])[0]
        return chosen

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that `choose` draws from: 0 for excluded tokens, all on one token at temperature 0.

        Shapes: logits [batch, vocab], after the penalty -> [batch, vocab] float64
        """
        if self.temperature == 0:
            return torch.zeros_like(logits, dtype=torch.float64).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        values, order = logits.sort(-1, descending=True)
        scores = self._scores(values, values[:, :1]).masked_fill(~self._kept(values, logits), -torch.inf)
        return torch.zeros_like(scores).scatter(-1, order, scores.softmax(-1))

    def _choose_among_likely(self, logits: Tensor, keys: Tensor, near: int) -> tuple[Tensor, Tensor]:
        """The choice among the `near` most likely tokens, and whether it is the choice among all.

        Shapes: logits [batch, vocab], keys [batch, 2] -> [batch] int64, [batch] bool
        """
        values, ids = logits.topk(near)
        kept = self._kept(values, logits)
        noisy = self._noisy(values - values[:, :1], keys, ids)
        index = noisy.masked_fill_(~kept, -torch.inf).argmax(-1, keepdim=True)
        # If the last of these tokens is kept, others may be kept too.
        return ids.gather(-1, index).squeeze(-1), ~kept[:, -1] | (near == logits.shape[1])

    def _noisy(self, relative: Tensor, keys: Tensor, ids: Tensor) -> Tensor:
        """Logits relative to the highest, plus noise times temperature: ordered as logits / temperature plus noise.

        Shapes: relative [batch, n], keys [batch, 2], ids [batch, n] -> [batch, n] float64
        """
        return gumbel(keys, ids).mul_(self.temperature).add_(relative)

    def _scores(self, values: Tensor, top: Tensor) -> Tensor:
        """Logits at this temperature, relative to the highest. Float64 and the difference first: no temperature gives
        NaN. Shapes: values [batch, n], top [batch, 1] -> [batch, n] float64"""
        return (values.double() - top.double()).div_(self.temperature)

    def _kept(self, values: Tensor, logits: Tensor) -> Tensor:
        """Which of the most likely tokens are left by top_k, top_p and min_p.

        Shapes: values [batch, n], the highest logits in descending order; logits [batch, vocab] -> [batch, n] bool
        """
        kept = values > -torch.inf
        if self.top_k:
            kept &= values >= values[:, min(self.top_k, values.shape[1]) - 1, None]
        weights = self._scores(values, values[:, :1]).exp_()
        if self.top_p < 1:
            left = weights * kept
            # Float32 for the whole vocabulary: its sum is right to 1e-7, and the decision is between the likely tokens.
            everything = left if self.top_k else ((logits - values[:, :1]) * min(1 / self.temperature, 1e38)).exp_()
            cumulative = left.cumsum(-1)
            before = torch.cat((torch.zeros_like(cumulative[:, :1]), cumulative[:, :-1]), -1)
            count = (before < self.top_p * everything.sum(-1, keepdim=True)).sum(-1, keepdim=True)
            kept &= values >= values.gather(-1, (count - 1).clamp_min_(0))
        if self.min_p:
            kept &= weights >= self.min_p
        return kept


def noise_key(seed: int, step: int) -> tuple[int, int]:
    """The key of the noise of one step of a sequence: 64 bits of a hash, as two int32. `seed` is any integer."""
    digest = hashlib.blake2b(f"{seed:x} {step:x}".encode(), digest_size=8).digest()
    first, second = struct.unpack("<2i", digest)
    return first, second


def gumbel(keys: Tensor, ids: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gumbel noise of these token ids: a hash of id and key as a uniform number v, and of that -log(-log(1 - v)).

    The hash is made of int32 products, which wrap in the same way on every device: v is the same bit for bit.
    Shapes: keys [batch, 2] int32, ids [n] or [batch, n] int64 -> [batch, n]
    Source: the finaliser of MurmurHash3 (Appleby), once for each half of the key.
    """
    bits = ids.int() + keys[:, :1]
    spare = torch.empty_like(bits)
    _mix(_mix(bits, spare).bitwise_xor_(keys[:, 1:]), spare)
    # 31 bits from 0: float32 too resolves the small v that make the large noise. In float64 v is never 0 or 1.
    uniform = bits.bitwise_and_((1 << 31) - 1).to(dtype).add_(0.5).mul_(2.0**-31)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix(bits: Tensor, spare: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser, in place: every bit of the result depends on every bit of the input."""
    for shift, factor in ((16, -0x7A143595), (13, -0x3D4D51CB), (16, 1)):
        torch.bitwise_right_shift(bits, shift, out=spare)
        bits.bitwise_xor_(spare.bitwise_and_((1 << (32 - shift)) - 1))  # the mask: no copies of the sign
        if factor != 1:
            bits.mul_(factor)
    return bits
