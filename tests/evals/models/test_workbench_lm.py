"""Log-likelihoods through lm-eval's interface: what it makes of a text, and in which order it answers."""

import pytest

import workbench as wb

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval.api.instance import Instance

from evals.models.workbench_lm import WorkbenchLM


def test_an_empty_context_is_the_begin_token_and_the_order_is_kept(speaking_model) -> None:
    texts = [("The sky is", " blue"), ("", "ab"), ("The sky is", " red"), ("The", " sky is blue"), ("", "ab")]
    lm = WorkbenchLM(speaking_model, progress=False)
    results = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)], True)
    tokenizer = speaking_model.tokenizer
    for (total, greedy), (context, continuation) in zip(results, texts, strict=True):
        ids = tokenizer.encode(context, bos=True), tokenizer.encode(continuation, bos=False)
        ((alone, alone_greedy),) = wb.score(speaking_model, [ids])
        assert (total, greedy) == (pytest.approx(alone, abs=1e-4), alone_greedy)
    assert results[1] == results[4] != results[0]


def test_a_long_text_rolls_as_lm_eval_s_windows(speaking_model) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    text = "A long text goes on and on. " * 50
    ids = speaking_model.tokenizer.encode(text, bos=False)
    begin, size = speaking_model.tokenizer.bos_id, speaking_model.config.max_seq_len
    windows = [make_disjoint_window(window) for window in get_rolling_token_windows(ids, begin, size, 1)]
    assert len(windows) == 3
    expected = sum(wb.score(speaking_model, [window])[0][0] for window in windows)
    lm = WorkbenchLM(speaking_model, progress=False)
    (got,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], True)
    assert got == pytest.approx(expected, abs=0.01)  # thousands of nats in float32
