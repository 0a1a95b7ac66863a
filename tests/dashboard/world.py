"""A small checkpoint in Meta's layout, with results of two runs: random weights, a real tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch

from evals.results.runs import write
from workbench.checkpoint import load_model
from workbench.config import ModelConfig
from workbench.inference.scoring import score_tokens
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer
from workbench.training.demo_data.bpe import learn

TEXT = "The cat sat on the mat and the dog ran to the park. It was warm because the sun was out all day.\n" * 3

NASTY = "<script>alert(1)</script> `code` **b** $x^2$ &amp; <b>bold</b> 🙂 \u202eabc [a](http://example.com) :red[hot]"
"""What a careless page would run, render or reorder. Few of its characters are in the vocabulary, so the emoji falls
into tokens that are no UTF-8 by themselves."""


def write_checkpoint(folder: Path, *, layers: int = 4, heads: int = 8, max_seq_len: int = 2048) -> Path:
    """A float32 checkpoint with the same weights each time."""
    tokenizer = Tokenizer.from_ranks({token: rank for rank, token in enumerate(learn(TEXT, 320))})
    config = ModelConfig(
        dim=64,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=128,
        vocab_size=tokenizer.vocab_size,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        max_seq_len=max_seq_len,
        tied_output=False,
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data.copy_(1 + 0.1 * noise)
        else:
            # Larger queries and keys than at initialisation, so that heads differ and attention is not flat.
            sharp = 2.5 if name.endswith(("wq.weight", "wk.weight")) else 1.0
            parameter.data.copy_(sharp * noise * parameter.shape[-1] ** -0.5)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(config.to_meta()))
    (folder / "tokenizer.model").write_bytes(tokenizer.to_tiktoken())
    return folder


def write_results(folder: Path) -> Path:
    """Two runs in lm-eval's form, as the evaluation command writes them: a multiple choice and a generated answer."""
    for name, right in {"first": 2, "second": 5}.items():
        quiz = [_quiz(doc, correct=doc < right) for doc in range(6)]
        sums = [_sum(doc, correct=doc < right - 1) for doc in range(6)]
        shares = {"tiny_quiz": ("acc", right / 6), "tiny_sums": ("exact_match", (right - 1) / 6)}
        data = {
            "results": {
                task: {"alias": task, f"{metric},none": share, f"{metric}_stderr,none": 0.2, "sample_len": 6}
                for task, (metric, share) in shares.items()
            },
            "configs": {task: {"task": task} for task in shares},
            "n-shot": dict.fromkeys(shares, 0),
            "n-samples": {task: {"original": 6, "effective": 6} for task in shares},
            "model_name": "tiny",
            "date": 1_750_000_000,
            "workbench": {"dtype": "float32", "device": "cpu", "not_run": {"tiny_code": "there is no sandbox"}},
        }
        write(folder / name, data, {"tiny_quiz": quiz, "tiny_sums": sums})
    return folder


def write_answers(folder: Path, checkpoint: Path | str, *, quiz: str = "asked_quiz") -> Path:
    """A run of the checkpoint itself, whose stored log-probabilities its replay finds again: a quiz of four choices,
    written numbers (one right by its text, one wrong, one that no filter could read), and a program that failed."""
    model = load_model(checkpoint)
    questions = [_asked(model, doc) for doc in range(4)]
    responses = ["#### 1", "#### 7", "I do not know"]
    sums = [_written(model, doc, text, str(doc + 1)) for doc, text in enumerate(responses)]
    code = _written(model, 0, "return 1", "assert f() == 2")
    code |= {"filtered_resps": ["return 1"]}
    code |= {"execution": [{"verdict": "failed", "message": "AssertionError", "stderr": f"Traceback {NASTY}"}]}
    tasks = {quiz: ("acc", questions), "asked_sums": ("exact_match", sums), "asked_code": ("exact_match", [code])}
    assert model.source is not None
    data = {
        "results": {
            name: {"alias": name, f"{metric},none": sum(row[metric] for row in rows) / len(rows)}
            for name, (metric, rows) in tasks.items()
        },
        "configs": {name: {"task": name} for name in tasks},
        "n-samples": {name: {"original": len(rows), "effective": len(rows)} for name, (_, rows) in tasks.items()},
        "model_name": "tiny",
        "workbench": {
            "dtype": str(model.dtype).removeprefix("torch."),
            "checkpoint_sha256": model.source.checkpoint_sha256,
            "tokenizer_sha256": model.source.tokenizer_sha256,
        },
    }
    write(folder / "asked", data, {name: rows for name, (_, rows) in tasks.items()})
    return folder


def write_many(folder: Path, questions: int) -> Path:
    """A run of so many sums, of which every third was answered wrongly."""
    sums = [_sum(doc, correct=doc % 3 > 0) for doc in range(questions)]
    share = sum(row["exact_match"] for row in sums) / questions
    data = {
        "results": {"many_sums": {"alias": "many_sums", "exact_match,none": share}},
        "configs": {"many_sums": {"task": "many_sums"}},
        "n-samples": {"many_sums": {"original": questions, "effective": questions}},
        "model_name": "tiny",
    }
    write(folder / "many", data, {"many_sums": sums})
    return folder


def _asked(model: Transformer, doc: int) -> dict[str, Any]:
    assert model.tokenizer is not None
    prompt = f"Question {doc}: {NASTY}\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    letters = [" A", " B", " C", " D"]
    prompt_ids, choice_ids = model.tokenizer.encode(prompt, bos=True), [model.tokenizer.encode(c) for c in letters]
    logprobs = [scored.total for scored in score_tokens(model, [(prompt_ids, choice) for choice in choice_ids])]
    by_size = sorted(range(4), key=lambda i: -logprobs[i])
    gold = by_size[0 if doc == 0 else doc]  # the first is right, the others are wrong by more and more
    return {
        "doc_id": doc,
        "doc": {"question": NASTY},
        "target": gold,
        "arguments": {f"gen_args_{i}": {"arg_0": prompt, "arg_1": letter} for i, letter in enumerate(letters)},
        "resps": [[[x, False]] for x in logprobs],
        "filtered_resps": [[x, False] for x in logprobs],
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(doc == 0),
        "replay": {"prompt_ids": prompt_ids, "choice_ids": choice_ids},
    }


def _written(model: Transformer, doc: int, response: str, target: str) -> dict[str, Any]:
    assert model.tokenizer is not None
    prompt = f"What is {doc} + 1?"
    prompt_ids, ids = model.tokenizer.encode(prompt, bos=True), model.tokenizer.encode(response)
    scored = score_tokens(model, [(prompt_ids, ids)])[0]
    answer = response.removeprefix("#### ") if "#### " in response else "[invalid]"
    return {
        "doc_id": doc,
        "doc": {"question": prompt},
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": []}}},
        "resps": [[response]],
        "filtered_resps": [answer],
        "filter": "none",
        "metrics": ["exact_match"],
        "exact_match": float(answer == target),
        "replay": {
            "prompt_ids": prompt_ids, "generated_ids": [ids], "logprobs": [scored.logprobs.tolist()],
            "finish_reason": ["length"],
        },
    }  # fmt: skip


def _quiz(doc: int, *, correct: bool) -> dict[str, object]:
    logprobs = [-1.0, -2.0] if correct else [-2.0, -1.0]
    prompt = f"Question {doc}: {NASTY}\nAnswer:"
    return {
        "doc_id": doc,
        "doc": {"question": NASTY},
        "target": 0,
        "arguments": {f"gen_args_{i}": {"arg_0": prompt, "arg_1": choice} for i, choice in enumerate((" A", " B"))},
        "resps": [[[x, False]] for x in logprobs],
        "filtered_resps": [[x, False] for x in logprobs],
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(correct),
        "replay": {"prompt_ids": [306, 65, 66, 67, 65, 66], "choice_ids": [[68], [69]]},
    }


def _sum(doc: int, *, correct: bool) -> dict[str, Any]:
    response = f"It is <<{doc}+1={doc + 1}>>.\n#### {doc + 1 if correct else 0}"
    return {
        "doc_id": doc,
        "doc": {"question": "sum"},
        "target": str(doc + 1),
        "arguments": {"gen_args_0": {"arg_0": f"What is {doc} + 1?", "arg_1": {"until": ["\n\n"]}}},
        "resps": [[response]],
        "filtered_resps": [str(doc + 1 if correct else 0)],
        "filter": "none",
        "metrics": ["exact_match"],
        "exact_match": float(correct),
        "replay": {"prompt_ids": [65, 66, 67], "generated_ids": [[68, 69, 70, 71]], "finish_reason": ["stop"]},
    }
