"""Published size and origin of each benchmark's dataset.

Data only: reads no files.
"""

from __future__ import annotations

from dataclasses import dataclass

_MMLU = """
abstract_algebra:100 anatomy:135 astronomy:152 business_ethics:100 clinical_knowledge:265 college_biology:144
college_chemistry:100 college_computer_science:100 college_mathematics:100 college_medicine:173
college_physics:102 computer_security:100 conceptual_physics:235 econometrics:114 electrical_engineering:145
elementary_mathematics:378 formal_logic:126 global_facts:100 high_school_biology:310 high_school_chemistry:203
high_school_computer_science:100 high_school_european_history:165 high_school_geography:198
high_school_government_and_politics:193 high_school_macroeconomics:390 high_school_mathematics:270
high_school_microeconomics:238 high_school_physics:151 high_school_psychology:545 high_school_statistics:216
high_school_us_history:204 high_school_world_history:237 human_aging:223 human_sexuality:131
international_law:121 jurisprudence:108 logical_fallacies:163 machine_learning:112 management:103 marketing:234
medical_genetics:100 miscellaneous:783 moral_disputes:346 moral_scenarios:895 nutrition:306 philosophy:311
prehistory:324 professional_accounting:282 professional_law:1534 professional_medicine:272
professional_psychology:612 public_relations:110 security_studies:245 sociology:201 us_foreign_policy:100
virology:166 world_religions:171
"""

MMLU_TEST = {subject: int(n) for subject, _, n in (pair.partition(":") for pair in _MMLU.split())}
"""MMLU's 57 subjects with their number of test questions; `dev` has 5 examples each."""

MMLU_DEV = 5


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's name, its rows in each split, its licence, its authors and where its files are published."""

    title: str
    rows: dict[str, int]
    licence: str
    origin: str


BENCHMARKS = {
    "mmlu": Benchmark(
        "MMLU",
        {"test": sum(MMLU_TEST.values()), "dev": MMLU_DEV * len(MMLU_TEST)},
        "MIT, Copyright (c) 2020 Dan Hendrycks",
        "Hendrycks et al. 2020 (2009.03300); github.com/hendrycks/test; cais/mmlu on the Hugging Face hub",
    ),
    "gsm8k": Benchmark(
        "GSM8K",
        {"test": 1_319, "train": 7_473},
        "MIT, Copyright (c) 2021 OpenAI",
        "Cobbe et al. 2021 (2110.14168); github.com/openai/grade-school-math; openai/gsm8k on the Hugging Face hub",
    ),
    "humaneval": Benchmark(
        "HumanEval",
        {"test": 164},
        "MIT, Copyright (c) OpenAI",
        "Chen et al. 2021 (2107.03374); github.com/openai/human-eval; openai/openai_humaneval on the Hugging Face hub",
    ),
}


def files(benchmark: str) -> dict[str, tuple[str, int]]:
    """Every file of a benchmark in a data folder, by path: its split, and its rows when complete."""
    if benchmark == "mmlu":
        return {
            f"mmlu/{split}/{subject}_{split}.csv": (split, MMLU_DEV if split == "dev" else n)
            for split in ("test", "dev")
            for subject, n in MMLU_TEST.items()
        }
    rows = BENCHMARKS[benchmark].rows
    if benchmark == "gsm8k":
        return {f"gsm8k/{split}.jsonl": (split, n) for split, n in rows.items()}
    return {"humaneval/HumanEval.jsonl.gz": ("test", rows["test"])}
