"""Generation against Hugging Face's, against itself in batches; its sampling has a test of its own."""

import pytest
import torch

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import GenerationError
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
    ]
    for prompts, options, message in wrong:
        with pytest.raises(GenerationError, match=message):
            wb.generate(tiny_model, prompts, **options)
