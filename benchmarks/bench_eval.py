"""MMLU scored and GSM8K answered, against lm-eval's own Hugging Face backend: python -m benchmarks.bench_eval

Real questions under lm-eval's prompts (5 shots, and 8 chains of thought), Llama 3's tokenizer, one model with random
weights and 128,256 tokens behind both. HFLM gets the batch size that suits it best. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

import workbench as wb
from benchmarks import generation
from benchmarks.timing import interleaved, machine
from evals.models.workbench_lm import WorkbenchLM
from evals.tasks import registry
from evals.tasks.code_metrics import CodeGrader
from workbench.checkpoint import load_model
from workbench.inference.scoring import Counted, score_counted
from workbench.text.tokenizer import Tokenizer

SHAPE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4,
    "intermediate_size": 2048, "vocab_size": 128_256, "max_position_embeddings": 4096,
}  # fmt: skip
GPU_SHAPE = {**SHAPE, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
             "intermediate_size": 8192}  # fmt: skip
BATCH_SIZES = (1, 2, 4, 8)
GPU_BATCH_SIZES = (8, 32, 128)
GENERATION_BATCH_SIZES = (8, 16, 32)
PEAKED = 4.0  # what the layers' weights are multiplied by, so that a text is more than one token again and again

Request = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Compared:
    """Results of one dtype: seconds of each round by backend, and how much the answers differ."""

    ours: list[float]
    theirs: list[float]
    ratio: tuple[float, float, float]
    batch_size: int
    counted: Counted
    their_tokens: int
    largest_difference: float
    changed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of mmlu/ and tokenizers/")
    parser.add_argument("--subjects", nargs="+", default=["high_school_biology", "astronomy"])
    parser.add_argument("--questions", type=int, default=24, help="of each subject")
    parser.add_argument("--answers", type=int, default=32, help="questions of GSM8K")
    parser.add_argument("--halves", nargs="+", choices=("scoring", "generation"), default=["scoring", "generation"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="of HFLM; the fastest is used")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    shape = GPU_SHAPE if options.device.startswith("cuda") else SHAPE
    print(f"Shape: {shape}, output tied; random weights, the same for both.\n\nMachine: {machine(options.device)}\n")
    for half in options.halves:
        (_scoring if half == "scoring" else _generation)(shape, options)


def _scoring(shape: dict[str, int], options: argparse.Namespace) -> None:
    sizes = options.batch_sizes or (GPU_BATCH_SIZES if options.device.startswith("cuda") else BATCH_SIZES)
    print("| type | questions | HFLM batch | ours, questions/s (quartiles) | HFLM, questions/s (quartiles) "
          "| ours / HFLM (median, quartiles) | tokens ours | of the least possible | tokens HFLM "
          "| largest difference, nats | answers changed |\n|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for dtype in options.dtypes:
        reference, model = _pair(shape, getattr(torch, dtype), options.device)
        model.tokenizer = _tokenizer(options.data)
        requests = questions(model, options.data, options.subjects, options.questions)
        compared = compare(reference, model, requests, sizes, options.rounds)
        _row(dtype, len(requests) // 4, compared)
    print()


def _generation(shape: dict[str, int], options: argparse.Namespace) -> None:
    sizes = options.batch_sizes or GENERATION_BATCH_SIZES
    print("| type | questions | tokens an answer (least, mean, most) | HFLM batch | ours, questions/s (quartiles) "
          "| HFLM, questions/s (quartiles) | ours / HFLM (median, quartiles) | tokens ours | of the least possible "
          "| tokens HFLM | forwards ours, HFLM | texts equal |")  # fmt: skip
    print(12 * "|---" + "|")
    for dtype in options.dtypes:
        reference, model = _pair(shape, getattr(torch, dtype), options.device, peaked=PEAKED)
        model.tokenizer = _tokenizer(options.data)
        answered = generation.compare(reference, model, options.data, options.answers, sizes, options.rounds)
        _answers_row(dtype, answered)


def _tokenizer(data: Path) -> Tokenizer:
    return Tokenizer.from_file(data / "tokenizers" / "llama3" / "tokenizer.model")


def questions(model: wb.Transformer, data: Path, subjects: list[str], limit: int) -> list[Request]:
    """Four requests a question, with lm-eval's prompts and our token ids (which equal its own: see tests/evals)."""
    lm = WorkbenchLM(model, progress=False)
    loaded = registry.load(tuple(f"mmlu_{subject}" for subject in subjects), root=data, grader=CodeGrader())
    requests: list[Request] = []
    for task in loaded.tasks.values():
        task.set_config("num_fewshot", 5)
        task.set_fewshot_seed(1234)
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        requests += [lm._encode_pair(*instance.args) for instance in task.instances]
    return requests


def compare(
    reference: LlamaForCausalLM, model: wb.Transformer, requests: list[Request], batch_sizes: Sequence[int],
    rounds: int,
) -> Compared:  # fmt: skip
    hflm = HFLM(pretrained=reference, tokenizer=_no_words(), batch_size=1)
    encoded = [(("", ""), context, continuation) for context, continuation in requests]
    device = str(model.device)

    def theirs(size: int, some: list[Any] = encoded) -> list[tuple[float, bool]]:
        hflm.batch_size_per_gpu = size
        return hflm._loglikelihood_tokens(some, disable_tqdm=True)

    # The best size is chosen on a part: the first questions, one batch of the largest size.
    few = encoded[: 4 * max(batch_sizes)]
    theirs(max(batch_sizes), few)
    trial = interleaved({str(n): lambda n=n: theirs(n, few) for n in batch_sizes}, rounds=1, device=device, warm_up=0)
    best = int(min(trial.seconds, key=trial.seconds.__getitem__))

    tokens = [0]
    count = reference.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True
    )
    expected = theirs(best)
    count.remove()
    scored, counted = score_counted(model, requests)
    runs = {"ours": lambda: wb.score(model, requests), "HFLM": lambda: theirs(best)}
    timing = interleaved(runs, rounds=rounds, device=device, warm_up=0)  # both have just run
    values = torch.tensor([score.total for score in scored]), torch.tensor([value for value, _ in expected])
    changed = values[0].view(-1, 4).argmax(-1) != values[1].view(-1, 4).argmax(-1)
    return Compared(
        ours=timing.rounds["ours"],
        theirs=timing.rounds["HFLM"],
        ratio=timing.ratio("HFLM", "ours"),
        batch_size=best,
        counted=counted,
        their_tokens=sum(tokens),
        largest_difference=float((values[0] - values[1]).abs().max()),
        changed=int(changed.sum()),
    )


def _no_words() -> PreTrainedTokenizerFast:
    """A tokenizer for a constructor that needs one; it never gets text."""
    words = FastTokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<eos>")


def _pair(
    shape: dict[str, int], dtype: torch.dtype, device: str, *, peaked: float = 1.0
) -> tuple[LlamaForCausalLM, wb.Transformer]:
    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True, attn_implementation="sdpa")
    reference = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for weight in reference.model.layers.parameters():
            weight *= peaked if weight.dim() == 2 else 1.0
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        model = load_model(Path(folder), device=device)
    return reference.to(device), model


def _rate(n: int, seconds: list[float]) -> str:
    low, middle, high = torch.quantile(n / torch.tensor(seconds), torch.tensor([0.25, 0.5, 0.75])).tolist()
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _row(name: str, n: int, compared: Compared) -> None:
    middle, low, high = compared.ratio
    print(f"| {name} | {n} | {compared.batch_size} | {_rate(n, compared.ours)} | {_rate(n, compared.theirs)} "
          f"| {middle:.1f} ({low:.1f} to {high:.1f}) | {compared.counted.computed:,} "
          f"| {compared.counted.fraction:.3f} | {compared.their_tokens:,} "
          f"| {compared.largest_difference:.1e} | {compared.changed} |", flush=True)  # fmt: skip


def _answers_row(name: str, answered: generation.Answered) -> None:
    n, lengths, ours, theirs = len(answered.lengths), answered.lengths, answered.ours, answered.theirs
    middle, low, high = answered.timing.ratio("HFLM", "ours")
    print(f"| {name} | {n} | {min(lengths)}, {sum(lengths) / n:.0f}, {max(lengths)} | {answered.batch_size} "
          f"| {_rate(n, answered.timing.rounds['ours'])} | {_rate(n, answered.timing.rounds['HFLM'])} "
          f"| {middle:.1f} ({low:.1f} to {high:.1f}) | {sum(ours):,} | {sum(ours) / answered.minimum:.3f} "
          f"| {sum(theirs):,} | {len(ours)}, {len(theirs)} | {answered.equal} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
