"""Logits that are not finite: one error with the place where it begins; other rows of a batch are not touched."""

import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench.cli import main
from workbench.errors import NotFiniteError
from workbench.inference.not_finite import first_not_finite
from workbench.inference.scoring import score_counted, score_tokens
from workbench.model import Transformer

DEMO = Path(wb.__file__).parent / "assets" / "demo"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with larger w1 and w3: finite weights whose products are over float16's 65,504."""
    folder = tmp_path_factory.mktemp("overflowing")
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    (folder / "SHA256SUMS").unlink()
    weights = load_file(folder / "consolidated.00.safetensors")
    for name, weight in weights.items():
        if ".w1." in name or ".w3." in name:
            weights[name] = weight * 200
    save_file(weights, folder / "consolidated.00.safetensors")
    return folder


@pytest.fixture(scope="module")
def float16(overflowing: Path) -> Transformer:
    return wb.load_model(overflowing, device="cpu", dtype="float16")


@pytest.fixture
def spoilt() -> Transformer:
    """The demo in float32, in which token 77 alone gives NaN."""
    model = wb.load_model("demo", device="cpu", dtype="float32")
    with torch.no_grad():
        model.tok_embeddings.weight[77] = torch.nan
    return model


CALLS = {
    "greedy": lambda model: wb.generate(model, ["Hi", "Hello you"], max_new_tokens=4),
    "sampled": lambda model: wb.generate(model, ["Hi"], temperature=1.0),
    "top_k": lambda model: wb.generate(model, ["Hi"], temperature=1.0, top_k=5, top_p=0.9, min_p=0.1),
    "penalty": lambda model: wb.generate(model, ["Hi"], temperature=0.7, repetition_penalty=1.2),
    "streamed": lambda model: list(wb.stream(model, "Hi", temperature=1.0)),
    "captured": lambda model: list(wb.stream(model, "Hi", capture="hook_embed")),
    "scored": lambda model: wb.score(model, [([256, 72], [105]), ([5], [6, 7])]),
    "rolling": lambda model: wb.score_rolling(model, [[72, 105, 32]], prefix=256),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_overflow_is_one_error_that_names_dtype_place_and_remedy(float16: Transformer, call: str) -> None:
    with pytest.raises(NotFiniteError) as raised:
        CALLS[call](float16)
    assert (raised.value.hook, raised.value.layer) == ("blocks.0.mlp.hook_post", 0)
    text = str(raised.value)
    assert (
        len(text) < 300 and "not finite in float16" in text and "position 0" in text and "bfloat16 or float32" in text
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_wider_dtype_that_the_error_names_works(overflowing: Path, dtype: str) -> None:
    model = wb.load_model(overflowing, device="cpu", dtype=dtype)
    (generation,) = wb.generate(model, ["Hi"], max_new_tokens=3)
    assert all(map(math.isfinite, generation.logprobs))


@pytest.mark.parametrize("options", [[], ["--json"], ["--temperature", "1"], ["--top-k", "3", "--temperature", "1"]])
def test_the_command_line_prints_one_line(
    overflowing: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["generate", str(overflowing), "Hi", "--dtype", "float16", *options]) == 2
    printed = capsys.readouterr()
    assert "NaN" not in printed.out and printed.err.count("\n") == 1 and "not finite in float16" in printed.err


def test_the_json_output_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--temperature", "1e-40", "--seed", str(-(10**23)), "--min-p", "0.1", "--repetition-penalty", "1.3"]
    assert main(["generate", "demo", "Hi", "a b", "--max-new-tokens", "3", "--json", "--device", "cpu", *options]) == 0
    for line in capsys.readouterr().out.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_place_is_the_first_hook_in_the_order_of_the_run(spoilt: Transformer, value: float) -> None:
    with torch.no_grad():
        spoilt.tok_embeddings.weight[77] = value
    site, position = first_not_finite(spoilt, [1, 2, 77, 3]) or pytest.fail("nothing found")
    assert (site.name, site.layer, position) == ("hook_embed", None, 2)
    assert first_not_finite(spoilt, [1, 2, 3]) is None
    with pytest.raises(NotFiniteError, match=r"hook_embed \(outside the layers\), position 2. Check the weights"):
        wb.generate(spoilt, [[1, 2, 77, 3]])


def test_an_intervention_is_named_as_a_cause() -> None:
    model = wb.load_model("demo", device="cpu", dtype="bfloat16")
    with (
        model.intervene(wb.Add("blocks.1.hook_mlp_out", torch.full((model.config.dim,), math.inf))),
        pytest.raises(NotFiniteError, match=r"blocks.1.hook_mlp_out \(layer 1\).*Use float32, or change the interven"),
    ):
        wb.score(model, [([1, 2], [3])])


def test_a_logit_of_minus_infinity_is_a_token_that_is_not_chosen() -> None:
    model = wb.load_model("demo", device="cpu", dtype="float32")
    banned = wb.generate(model, [[1, 2, 3]], max_new_tokens=1)[0].tokens[0]
    ban = torch.zeros(model.config.vocab_size)
    ban[banned] = -math.inf
    with model.intervene(wb.Add("hook_logits", ban)):
        for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}):
            (generation,) = wb.generate(model, [[1, 2, 3]], max_new_tokens=5, stop_tokens=(), **settings)
            assert banned not in generation.tokens and all(map(math.isfinite, generation.logprobs))
        ((total, greedy),) = wb.score(model, [([1, 2, 3], [banned])])
        assert total == -math.inf and not greedy
        assert first_not_finite(model, [1, 2, 3]) is None


def test_one_infinite_logit_is_not_finite_though_another_token_is_scored() -> None:
    model = wb.load_model("demo", device="cpu", dtype="float32")
    high = torch.zeros(model.config.vocab_size)
    high[9] = math.inf
    with model.intervene(wb.Add("hook_logits", high)):
        ((total, greedy),) = wb.score(model, [([1, 2, 3], [4])], not_finite="keep")
        assert math.isnan(total) and not greedy
        with pytest.raises(NotFiniteError, match="hook_logits"):
            wb.generate(model, [[1, 2, 3]])


def test_other_rows_are_what_they_are_alone(spoilt: Transformer) -> None:
    """Packed requests share a row of the forward: the NaN of one reaches the others, so that they are repeated."""
    stem = list(range(20, 60))
    requests = [([*stem, i], [i + 1, i + 2]) for i in range(3)] + [([*stem, 77], [5, 6]), ([*stem, 4], [77, 6])]
    raw = score_counted(spoilt, requests)[0]
    assert sum(not scored.is_finite for scored in raw) > 2  # without this the test shows nothing
    scores = score_tokens(spoilt, requests, not_finite="keep")
    assert [scored.is_finite for scored in scores] == [True, True, True, False, False]
    clean = wb.load_model("demo", device="cpu", dtype="float32")
    for (total, greedy), expected in zip(wb.score(clean, requests[:3]), scores[:3], strict=True):
        assert expected.total == pytest.approx(total, abs=1e-4) and expected.is_greedy == greedy
    with pytest.raises(NotFiniteError, match="position 40"):
        wb.score(spoilt, requests)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}])
def test_other_prompts_of_a_batch_are_what_they_are_alone(spoilt: Transformer, settings: dict[str, float]) -> None:
    prompts = [[1, 2, 3], [4, 77], [5, 6, 7, 8, 9], [77], [10]]
    options = {"max_new_tokens": 8, "stop_tokens": (), **settings}
    together = wb.generate(spoilt, prompts, not_finite="keep", **options)
    assert [generation.finish_reason for generation in together[1::2]] == ["not_finite", "not_finite"]
    assert together[1].tokens == together[1].logprobs == () and together[1].text == ""
    clean = wb.load_model("demo", device="cpu", dtype="float32")
    for i in (0, 2, 4):
        assert 77 not in together[i].tokens
        (alone,) = wb.generate(clean, [prompts[i]], seed=i, **options)
        assert together[i].tokens == alone.tokens and together[i].finish_reason == "length"
    with pytest.raises(NotFiniteError, match="position 1"):
        wb.generate(spoilt, prompts, **options)


def test_padding_that_overflows_does_not_count(spoilt: Transformer) -> None:
    """Padding is token 0: where that is the spoilt one, a short prompt of a batch is repeated alone."""
    with torch.no_grad():
        spoilt.tok_embeddings.weight[0] = torch.nan
        spoilt.tok_embeddings.weight[77] = 0.0
    prompts = [[5, 6, 7, 8, 9], [4, 3], [7]]
    together = wb.generate(spoilt, prompts, max_new_tokens=4, stop_tokens=())
    alone = [wb.generate(spoilt, [p], max_new_tokens=4, stop_tokens=())[0].tokens for p in prompts]
    assert [generation.tokens for generation in together] == alone and all(map(len, alone))
    requests = [([5, 6, 7, 8, 9, 1, 2], [3]), ([4], [3])]
    totals = [wb.score(spoilt, [request])[0][0] for request in requests]
    assert [total for total, _ in wb.score(spoilt, requests)] == pytest.approx(totals, abs=1e-4)


def test_finite_logits_cost_no_second_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wb.load_model("demo", device="cpu", dtype="float32")
    runs: list[int] = []
    hidden = type(model).hidden
    monkeypatch.setattr(type(model), "hidden", lambda self, *a: runs.append(1) or hidden(self, *a))
    wb.generate(model, [[1, 2, 3]], max_new_tokens=4, stop_tokens=())
    assert len(runs) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wb.score(model, [([1, 2], [3])])
    assert len(runs) == 5
