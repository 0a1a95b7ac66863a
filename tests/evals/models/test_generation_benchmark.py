"""The benchmark of generation: answers end where they are to end, in both programs, and its count is a count."""

from pathlib import Path

import pytest
import torch

from workbench.text.tokenizer import Tokenizer

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from benchmarks import bench_eval, generation  # noqa: E402 - they need both

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": 128_256, "max_position_embeddings": 1536,
}  # fmt: skip


def test_a_reference_solution_reads_like_the_examples() -> None:
    solution = "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total is 2+1=<<2+1=3>>3 bolts\n#### 3"
    expected = " It takes 2/2=1 bolt of white fiber So the total is 2+1=3 bolts The answer is 3."
    assert generation.chain_of_thought(solution) == expected


@pytest.mark.slow
def test_both_answer_alike_and_end_where_they_are_to_end(shared_data: Path) -> None:
    reference, model = bench_eval._pair(SHAPE, torch.float32, "cpu", peaked=bench_eval.PEAKED)
    model.tokenizer = Tokenizer.from_file(shared_data / "tokenizers" / "llama3" / "tokenizer.model")
    comparison = generation.compare(reference, model, shared_data, 3, (1, 2), rounds=2)  # it asserts every length
    first = [
        " Janet sells 16 - 3 - 4 = 9 duck eggs a day. She makes 9 * 2 = $18 every day at the farmer’s market. "
        "The answer is 18.",
        " It takes 2/2=1 bolt of white fiber So the total amount of fabric is 2+1=3 bolts of fabric The answer is 3.",
    ]
    assert comparison.lengths[:2] == [len(model.tokenizer.encode(text)) + 1 for text in first]  # and the end token
    assert comparison.equal == 3
    lm = generation.WorkbenchLM(model, progress=False)
    prompts = generation.questions(lm, shared_data, 3).lengths
    distinct = {ids[:end] for ids in prompts for end in range(1, len(ids) + 1)}
    assert comparison.minimum == len(distinct) + sum(n - 1 for n in comparison.lengths)
    assert comparison.minimum <= sum(comparison.ours) < 1.2 * comparison.minimum
    # HFLM computes every prompt whole, and each batch until its longest answer has ended.
    assert sum(comparison.theirs) >= sum(map(len, prompts)) + sum(n - 1 for n in comparison.lengths)
    assert all(len(seconds) == 2 for seconds in comparison.timing.rounds.values())
