"""A task of the user's own in lm-eval's YAML, with the code next to it."""

import re
from pathlib import Path
from typing import Any


def write_own_task(folder: Path, name: str, code: str = "", **changes: Any) -> Path:
    """Write `NAME.yaml` and `NAME_code.py`; the questions are in the folder's `questions.jsonl`, with q and a.

    changes: keys of the definition; a text `!function NAME_code.f` becomes the function.
    """
    import yaml

    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **changes,
    }
    text = re.sub(r"'(!function [\w.]+)'", r"\1", yaml.safe_dump(config))
    path = folder / f"{name}.yaml"
    path.write_text(text)
    (folder / f"{name}_code.py").write_text(code)
    return path
