"""Generation against Hugging Face's, against itself in batches; its sampling has a test of its own."""

import pytest
import torch

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import CaptureBudgetError, GenerationError, NotFiniteError, WorkbenchError
from workbench.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def pair():
    reference = hugging_face(heads=4, kv_heads=2, vocab_size=512)
    return reference, ours(reference)


@pytest.fixture
def speaking(pair):
    """The model with a tokenizer of single bytes: ids 0 to 255 are bytes, 256 to 511 special tokens."""
    _, model = pair
    model.tokenizer = Tokenizer.from_ranks({bytes([i]): i for i in range(256)})
    yield model
    model.tokenizer = None


PROMPTS = [[5, 9, 3, 7, 1, 100, 20], [8, 2], [4], [50, 60, 70, 80]]


def test_greedy_equals_hugging_face(pair) -> None:
    reference, model = pair
    for prompt, mine in zip(PROMPTS, wb.generate(model, PROMPTS, max_new_tokens=20), strict=True):
        theirs = reference.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert list(mine.tokens) == theirs[0, len(prompt) :].tolist()
        assert mine.finish_reason == "length" and mine.text is None


def test_log_probabilities_are_the_model_s(pair) -> None:
    _, model = pair
    (generation,) = wb.generate(model, [PROMPTS[0]], max_new_tokens=8, temperature=1.5, seed=3)
    with torch.no_grad():
        logprobs = model(torch.tensor([[*generation.prompt, *generation.tokens]])).log_softmax(-1)[0]
    expected = [logprobs[len(generation.prompt) - 1 + i, token] for i, token in enumerate(generation.tokens)]
    assert torch.allclose(torch.tensor(generation.logprobs), torch.stack(expected), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_prompt_of_a_batch_is_what_it_is_alone(pair, temperature) -> None:
    _, model = pair
    options = {"max_new_tokens": 16, "temperature": temperature, "stop_tokens": range(0, 512, 9)}
    together = wb.generate(model, PROMPTS, seed=7, **options)
    assert len({len(generation.tokens) for generation in together}) > 1  # sequences end at different times
    for i, prompt in enumerate(PROMPTS):
        (alone,) = wb.generate(model, [prompt], seed=7 + i, **options)
        assert alone.tokens == together[i].tokens and alone.finish_reason == together[i].finish_reason
        assert alone.logprobs == pytest.approx(together[i].logprobs, abs=1e-4)
    assert [m.tokens for m in wb.generate(model, PROMPTS, seed=7, batch_size=2, **options)] == [
        m.tokens for m in together
    ]


def test_seeds_repeat_and_differ(pair) -> None:
    _, model = pair

    def sample(seed: int) -> tuple[int, ...]:
        return wb.generate(model, [PROMPTS[0]], temperature=1.0, seed=seed, max_new_tokens=12)[0].tokens

    assert sample(1) == sample(1) != sample(2)


def test_each_prompt_uses_its_own_seed(pair) -> None:
    _, model = pair
    options = {"temperature": 1.0, "max_new_tokens": 12}
    seeds = [90, 4, 90, 31]
    together = wb.generate(model, [PROMPTS[0]] * 4, seeds=seeds, batch_size=3, **options)
    assert together[0].tokens == together[2].tokens != together[1].tokens
    for seed, generation in zip(seeds, together, strict=True):
        assert wb.generate(model, [PROMPTS[0]], seed=seed, **options)[0].tokens == generation.tokens


def test_stop_strings_are_cut_and_streamed_text_is_the_whole_text(speaking) -> None:
    free = wb.generate(speaking, ["ab"], max_new_tokens=40, temperature=1.0, seed=3, stop_tokens=())[0]
    shown = bytes(t for t in free.tokens if t < 256)
    assert len(shown) > 10
    printable = next(i for i in range(3, len(shown) - 1) if shown[i] < 128 and shown[i + 1] < 128)
    stop = shown[printable : printable + 2].decode()
    options = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3, "stop": [stop, "never this"], "stop_tokens": ()}
    (generation,) = wb.generate(speaking, ["ab"], **options)
    assert generation.finish_reason == "stop" and stop not in generation.text
    assert generation.tokens == free.tokens[: len(generation.tokens)] and len(generation.tokens) < 40
    pieces = list(wb.stream(speaking, "ab", **options))
    assert "".join(p.text for p in pieces) == generation.text
    assert tuple(p.token for p in pieces) == generation.tokens
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1) and pieces[-1].finish_reason == "stop"


def test_stop_tokens_end_a_sequence_and_leave_no_text(speaking) -> None:
    first = wb.generate(speaking, ["ab"], max_new_tokens=1)[0].tokens[0]
    (generation,) = wb.generate(speaking, ["ab"], max_new_tokens=5, stop_tokens=[first])
    assert generation.tokens == (first,) and generation.text == "" and generation.finish_reason == "stop"


def test_the_context_ends_a_sequence(tiny_model) -> None:
    (generation,) = wb.generate(tiny_model, [[1] * 125], max_new_tokens=50)
    assert len(generation.tokens) == 3 and generation.finish_reason == "context"


def test_captures_of_each_step_come_from_the_same_forward(tiny_model, monkeypatch) -> None:
    runs = []
    hidden = type(tiny_model).hidden
    monkeypatch.setattr(type(tiny_model), "hidden", lambda self, *a: runs.append(1) or hidden(self, *a))
    name = "blocks.1.attn.hook_pattern"
    pieces = list(wb.stream(tiny_model, [5, 9, 3], max_new_tokens=4, capture=name))
    assert len(runs) == 4
    ids = [5, 9, 3, *(p.token for p in pieces)]
    with torch.no_grad():
        _, whole = tiny_model.run_with_capture(torch.tensor([ids]), name)
    assert pieces[0].capture[name].shape == (1, 4, 3, 3)
    for step, piece in enumerate(pieces[1:], start=3):
        assert torch.allclose(piece.capture[name][:, :, 0], whole[name][:, :, step, : step + 1], atol=1e-5)


CAPTURED = [
    "blocks.*.attn.hook_pattern",
    "blocks.1.hook_resid_mid",
    "blocks.2.attn.hook_attn_scores",
    "ln_final.hook_scale",
]


def assert_steps_equal_a_whole_run(model, generation: wb.Generation, captures) -> None:
    ids = torch.tensor([[*generation.prompt, *generation.tokens]])
    n = len(generation.prompt)
    assert len(captures) == len(generation.tokens)
    _, whole = model.run_with_capture(ids, CAPTURED)
    for step, capture in enumerate(captures):
        at = slice(0, n) if step == 0 else slice(n + step - 1, n + step)
        assert capture.start == at.start and capture.tokens.tolist() == ids[:, at].tolist()
        assert capture.names == whole.names
        for name in capture.names:
            by_key = name.endswith(("pattern", "scores"))
            expected = whole[name][:, :, at, : at.stop] if by_key else whole[name][:, at]
            assert torch.allclose(capture[name], expected, atol=1e-5), (step, name)


def test_every_prompt_of_a_batch_has_the_captures_of_its_own_run(pair) -> None:
    _, model = pair
    options = {"max_new_tokens": 8, "stop_tokens": range(0, 512, 9), "temperature": 1.0, "seed": 7}
    plain = wb.generate(model, PROMPTS, **options)
    captured = wb.generate(model, PROMPTS, capture=CAPTURED, **options)
    assert len({len(generation.tokens) for generation in captured}) > 1
    assert all(generation.captures == () for generation in plain)
    for generation, other in zip(captured, plain, strict=True):
        assert (generation.tokens, generation.finish_reason) == (other.tokens, other.finish_reason)
        assert generation.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert_steps_equal_a_whole_run(model, generation, generation.captures)


def test_captures_of_a_generation_whose_logits_are_not_finite(tiny_model) -> None:
    with torch.no_grad():
        tiny_model.output.weight[7] = torch.nan
    (generation,) = wb.generate(tiny_model, [[1, 2]], capture="hook_embed", not_finite="keep")
    assert (generation.finish_reason, generation.tokens, generation.captures) == ("not_finite", (), ())
    with pytest.raises(NotFiniteError):
        wb.generate(tiny_model, [[1, 2]], capture="hook_embed")


def test_captures_of_a_generation_under_an_intervention(pair) -> None:
    _, model = pair
    with model.intervene(wb.Scale("blocks.1.attn.hook_pattern", 0.5), wb.Ablate("L0H1")):
        (generation,) = wb.generate(model, [PROMPTS[0]], max_new_tokens=4, capture=CAPTURED)
        assert_steps_equal_a_whole_run(model, generation, generation.captures)
    assert generation.captures[0].provenance["interventions"]


def test_kept_captures_of_a_stream_take_linear_memory(pair) -> None:
    """Distinct memory held by all captures, in bytes: the keys of all steps are one copy."""
    _, model = pair
    held = {}
    for steps in (20, 40, 80):
        pieces = list(wb.stream(model, PROMPTS[0], max_new_tokens=steps, capture="blocks.*.attn.hook_pattern"))
        storages = {}
        for piece in pieces:
            for inputs in piece.capture.inputs.values():
                for tensor in (inputs.q, inputs.k):
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
        held[steps] = sum(storages.values())
    config = model.config
    per_token = config.n_layers * (config.n_heads + config.n_kv_heads) * config.head_dim * 4
    assert held[80] - held[40] == 40 * per_token and held[40] - held[20] == 20 * per_token
    generation = wb.generate(model, [PROMPTS[0]], max_new_tokens=80)[0]
    _, whole = model.run_with_capture(torch.tensor([[*generation.prompt, *generation.tokens]]), CAPTURED)
    for step, piece in enumerate(pieces[1:], start=len(PROMPTS[0])):
        name = "blocks.1.attn.hook_pattern"
        assert torch.allclose(piece.capture[name], whole[name][:, :, step : step + 1, : step + 1], atol=1e-5)


def test_the_budget_of_a_generation_is_asked_before_its_first_step(tiny_model, monkeypatch) -> None:
    name = "blocks.*.attn.hook_pattern"
    per_token = 3 * (4 + 2) * 8 * 4
    exact = per_token * (3 + 10 - 1 + 2 + 10 - 1)
    (first, second) = wb.generate(tiny_model, [[5, 9, 3], [1, 2]], max_new_tokens=10, capture=name, budget=exact)
    assert len(first.captures) == len(second.captures) == 10
    monkeypatch.setattr(type(tiny_model), "hidden", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(CaptureBudgetError, match="hook_pattern"):
        wb.generate(tiny_model, [[5, 9, 3], [1, 2]], max_new_tokens=10, capture=name, budget=exact - 1)
    with pytest.raises(CaptureBudgetError, match="hook_pattern"):
        wb.stream(tiny_model, [5, 9, 3], max_new_tokens=10, capture=name, budget=per_token * 12 - 1)
    monkeypatch.setattr("workbench.hooks.capture_run.free_memory", lambda _: 1000)
    with pytest.raises(CaptureBudgetError, match="500 B"):
        wb.stream(tiny_model, [5, 9, 3], capture=name)


def test_interventions_act_on_generation(pair) -> None:
    _, model = pair
    plain = wb.generate(model, [PROMPTS[0]], max_new_tokens=10)[0].tokens
    with model.intervene(wb.Scale("blocks.*.hook_attn_out", 0.0)):
        assert wb.generate(model, [PROMPTS[0]], max_new_tokens=10)[0].tokens != plain


def test_prompts_and_settings_that_cannot_be_used_are_errors(tiny_model) -> None:
    wrong = [
        (["text"], {}, "no tokenizer"),
        ([[]], {}, "no tokens"),
        ([[1] * 128], {}, "leaves no room in the context of 128"),
        ([[1]], {"max_new_tokens": 0}, "at least 1"),
        ([[1]], {"temperature": -1.0}, "temperature must be at least 0"),
        ([[1]], {"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ([[1]], {"stop": "x"}, "list of strings"),
        ("x", {}, "must be a list"),
        ([[1], [2]], {"seeds": [5]}, "2 prompts need as many seeds, found 1"),
        ([[1]], {"stop": None}, "list of strings"),
        ([[1]], {"stop": [1]}, "list of strings"),
        ([[1]], {"stop_tokens": 5}, "stop_tokens must be a list of token ids"),
        ([[1]], {"stop_tokens": ["a"]}, "stop_tokens must be a whole number"),
        ([1, 2], {}, "a prompt must be a list of token ids or a text; found 1"),
        ([[1, 96]], {}, "token id 96 of a prompt is outside the vocabulary of 96"),
        ([[1, -1]], {}, "a prompt must be a whole number of at least 0; found -1"),
        ([[1, 2.5]], {}, "a prompt must be a whole number"),
        (None, {}, "must be a list"),
        ([[1]], {"seeds": 3}, "seeds must be a list"),
        ([[1]], {"not_finite": "ignore"}, "not_finite must be 'raise' or 'keep'"),
    ]
    for prompts, options, message in wrong:
        with pytest.raises(GenerationError, match=message):
            wb.generate(tiny_model, prompts, **options)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None, float("nan"), 10**400 * -1])
@pytest.mark.parametrize("name", ["batch_size", "max_new_tokens"])
def test_a_count_is_a_whole_number_of_at_least_one(tiny_model, name, value) -> None:
    with pytest.raises(GenerationError, match=f"{name} must be a whole number of at least 1; found"):
        wb.generate(tiny_model, [[1]], **{name: value})
    if name == "max_new_tokens":
        with pytest.raises(GenerationError, match=name):
            wb.stream(tiny_model, [1], **{name: value})


@pytest.mark.parametrize("value", [1.5, "8", None, True])
def test_seeds_are_whole_numbers(tiny_model, value) -> None:
    for call in (
        lambda: wb.generate(tiny_model, [[1]], seed=value),
        lambda: wb.generate(tiny_model, [[1], [2]], seeds=[1, value]),
        lambda: wb.stream(tiny_model, [1], seed=value),
    ):
        with pytest.raises(GenerationError, match="seed must be a whole number"):
            call()


@pytest.mark.parametrize("options", [{"batch_tokens": 0}, {"batch_tokens": -1}, {"batch_tokens": 1.5}])
def test_the_counts_of_scores_are_whole_numbers(tiny_model, options) -> None:
    with pytest.raises(WorkbenchError, match="batch_tokens must be a whole number of at least 1"):
        wb.score(tiny_model, [([1], [2])], **options)
    with pytest.raises(WorkbenchError, match="batch_tokens"):
        wb.score_rolling(tiny_model, [[1, 2]], prefix=0, **options)
    with pytest.raises(WorkbenchError, match="stride must be"):
        wb.score_rolling(tiny_model, [[1, 2]], prefix=0, stride=1.5)
    with pytest.raises(WorkbenchError, match="not_finite"):
        wb.score(tiny_model, [([1], [2])], not_finite="ignore")


@pytest.mark.parametrize(
    "request_",
    [
        ([1], [-1]),
        ([1], [96]),
        ([-1], [1]),
        ([96], [1]),
        ([1.5], [2]),
        ([1], [True]),
        ("a", "b"),
        ([[1]], [2]),
        (1, [2]),
    ],
)
def test_what_is_not_a_token_id_has_no_score(tiny_model, request_) -> None:
    with pytest.raises(WorkbenchError, match="token id"):
        wb.score(tiny_model, [([1, 2], [3]), request_])


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-46, 1e-45, 1e-40, 1e-38, 1e-30])
@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 3, "top_p": 0.5}])
def test_a_tiny_temperature_is_greedy(pair, temperature, options) -> None:
    _, model = pair
    greedy = wb.generate(model, PROMPTS, max_new_tokens=6)
    tiny = wb.generate(model, PROMPTS, max_new_tokens=6, temperature=temperature, **options)
    assert [g.tokens for g in tiny] == [g.tokens for g in greedy]
