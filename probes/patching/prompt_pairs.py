"""Prompt pairs: clean prompts, corrupted prompts, and a target in which they differ. Does not run models."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.patching.ablation import Target
from workbench.errors import DataError


@dataclass(frozen=True)
class LogitDifference:
    """The logit of one token minus that of another at one position: a target that needs no other logits.

    `answer` and `wrong` are a token id for all prompts, or one for each prompt.
    Shapes: the target's logits [prompt, pos, vocab], tokens [prompt, pos] -> [prompt]
    Units:  logits.
    Raises: DataError, when called, for a position or tokens that the prompts or the model do not have.
    """

    answer: int | Sequence[int]
    wrong: int | Sequence[int]
    position: int = -1

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return self.at(logits[:, self.place(logits.shape[1])])

    def place(self, n_positions: int) -> int:
        """The position, counted from 0. Raises: DataError if prompts of this length do not have it."""
        if not -n_positions <= self.position < n_positions:
            raise DataError(f"the prompts have positions 0 to {n_positions - 1}; there is no position {self.position}.")
        return self.position % n_positions

    def at(self, logits: Tensor) -> Tensor:
        """The target from the position's logits alone.

        Shapes: logits [prompt, vocab] -> [prompt]
        Raises: DataError for tokens outside the vocabulary, or if their number is not the number of prompts.
        """
        return self._of(self.answer, logits) - self._of(self.wrong, logits)

    def _of(self, token: int | Sequence[int], logits: Tensor) -> Tensor:
        n_prompts, vocab_size = logits.shape
        ids = [token] * n_prompts if isinstance(token, int) else list(token)
        if len(ids) != n_prompts:
            raise DataError(f"{len(ids)} token ids for {n_prompts} prompts; give one for all, or one for each.")
        if beyond := [i for i in ids if not 0 <= i < vocab_size]:
            raise DataError(f"token id {beyond[0]} is outside the vocabulary of {vocab_size} tokens.")
        return logits.gather(-1, torch.tensor(ids, device=logits.device).unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Pair:
    """Clean prompts, corrupted prompts, and a target that differs between them.

    The target is called with the tokens of the prompts that are patched, in their order.
    Shapes: clean, corrupted [prompt, pos] int64
    Raises: DataError for prompts of unequal shape, or that do not differ.
    """

    clean: Tensor
    corrupted: Tensor
    target: Target

    def __post_init__(self) -> None:
        for side in (self.clean, self.corrupted):
            if not isinstance(side, Tensor) or side.dtype not in (torch.int64, torch.int32):
                raise DataError(
                    "clean and corrupted prompts must be tensors of token ids, int64 [prompt, pos]; found "
                    f"{side.dtype if isinstance(side, Tensor) else type(side).__name__}."
                )
        shapes = tuple(self.clean.shape), tuple(self.corrupted.shape)
        if shapes[0] != shapes[1] or len(shapes[0]) != 2:
            raise DataError(
                f"clean and corrupted prompts must be token ids [prompt, pos] of the same shape; found {shapes[0]} and "
                f"{shapes[1]}. Change the words so that both have the same number of tokens."
            )
        if not self.clean.numel():
            raise DataError(f"the prompts are empty, shape {shapes[0]}; give at least one prompt of one token.")
        if torch.equal(self.clean.cpu().long(), self.corrupted.cpu().long()):
            raise DataError("clean and corrupted prompts are the same tokens; there is nothing to patch.")

    @property
    def first(self) -> int:
        """First position at which a clean prompt differs from its corrupted one; patches before it have no effect."""
        return int((self.clean.cpu() != self.corrupted.cpu()).any(0).nonzero()[0])
