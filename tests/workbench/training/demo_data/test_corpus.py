"""The demo corpus: has lm-eval's prompts and correct answers, and is disjoint from the embedded suites."""

import importlib.util
import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from workbench.text.tokenizer import Tokenizer
from workbench.training.demo_data import functions, problems, quizzes, suites
from workbench.training.demo_data.corpus import Corpus, Mix, Packer, batch_rng, repeated
from workbench.training.demo_data.facts import BY_NAME, FACTS, RELATIONS
from workbench.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[4]
DEMO = ROOT / "workbench" / "assets" / "demo"
EVEN = {"quiz": 1.0, "statement": 1.0, "problem": 1.0, "equation": 1.0, "function": 1.0}


@cache
def suite(name: str) -> list[dict[str, Any]]:
    lines = (ROOT / "evals" / "assets" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@cache
def training_text() -> str:
    """Part of the training text of each stage of the recipe, drawn as in training."""
    recipe = Recipe.from_file(DEMO / "recipe.toml")
    texts = []
    for i, stage in enumerate(recipe.stages):
        documents = Corpus(stage.mix).documents(batch_rng(recipe.optimisation.seed, i))
        texts += [next(documents).text for _ in range(8000)]
    return "\n\n\n".join(texts)


def question_line(question: str) -> str:
    """A quiz's question as it is in the text."""
    return f"\n\n{question}\nA. "


def sentence(prompt: str) -> str:
    """A function's docstring without its argument's name."""
    argument = re.match(r"def \w+\((\w+)\)", prompt)
    assert argument
    return re.sub(rf"\b{argument[1]}\b", "_", prompt.split('"""')[1].split("\n")[0])


def lm_eval_template(name: str) -> jinja2.Template:
    """The `doc_to_text` of lm-eval's own task file."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec and spec.submodule_search_locations
    text = (Path(spec.submodule_search_locations[0]) / "tasks" / name).read_text()
    plain = re.sub(r"!function \S+", "null", text)
    return jinja2.Template(yaml.safe_load(plain)["doc_to_text"])


# --- disjoint ---------------------------------------------------------------------------------------------------


def test_no_quiz_of_the_suite_is_in_the_training_text() -> None:
    text = training_text()
    assert [item["question"] for item in suite("demo_mmlu") if question_line(item["question"]) in text] == []
    # The same search does find what training may say: most few-shot examples are in training wordings.
    assert sum(question_line(item["question"]) in text for item in suite("demo_mmlu_dev")) > 40


def test_no_problem_of_the_suite_is_in_the_training_text() -> None:
    text = training_text()
    assert [item["question"] for item in suite("demo_gsm8k") if item["question"] in text] == []
    # With the nouns taken out as well: the same story with the same numbers, about other things, is not there either.
    trained = {re.sub(r"[a-z]+", "", question) for question in re.findall(r"Question: (.*)\n", text)}
    assert len(trained) > 1000
    assert trained.isdisjoint(re.sub(r"[a-z]+", "", item["question"]) for item in suite("demo_gsm8k"))


def test_no_function_of_the_suite_is_in_the_training_text() -> None:
    prompts = re.findall(r'def \w+\(\w+\):\n    """.*', training_text())
    trained = {sentence(prompt) for prompt in prompts}
    assert len(trained) > 500
    sentences = [sentence(item["prompt"]) for item in suite("demo_humaneval")]
    assert len(set(sentences)) == len(sentences)
    assert trained.isdisjoint(sentences)


def test_held_out_parts_are_kept_by_construction() -> None:
    rng = random.Random(4)
    for _ in range(300):
        fact = rng.choice(FACTS)
        relation = BY_NAME[fact.relation]
        held_out_questions = [
            relation.questions[relation.held_out_wording(fact)].format(k=fact.key),
            relation.unseen.format(k=fact.key),
        ]
        assert quizzes.training_quiz(rng, fact).question not in held_out_questions
        assert [
            quizzes.held_out_quiz(rng, fact, unseen=unseen).question for unseen in (False, True)
        ] == held_out_questions
        assert not problems.drawn_from(rng, held_out=False).held_out
        assert not functions.drawn_from(rng, held_out=False).held_out


def test_the_committed_suites_are_what_the_generator_writes(tmp_path: Path) -> None:
    suites.write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (ROOT / "evals" / "assets" / path.name).read_bytes(), path.name


# --- right ------------------------------------------------------------------------------------------------------


def test_facts_are_one_to_a_key() -> None:
    for relation in RELATIONS:
        keys = [fact.key for fact in relation.facts]
        assert len(set(keys)) == len(keys), relation.name
        assert len(relation.answers) >= 4 and len(relation.questions) >= 3, relation.name
        questions = [question.format(k=key) for question in (*relation.questions, relation.unseen) for key in keys]
        assert len(set(questions)) == len(questions), relation.name
    assert {fact.frequency for fact in FACTS} == {1.0, 0.25, 0.05}


@pytest.mark.parametrize("name", ["demo_mmlu", "demo_mmlu_dev"])
def test_a_quiz_has_one_right_choice(name: str) -> None:
    answers: dict[str, set[str]] = {}
    for relation in RELATIONS:
        for fact in relation.facts:
            for question in (*relation.questions, relation.unseen):
                answers.setdefault(question.format(k=fact.key), set()).add(fact.answer)
    for item in suite(name):
        assert len(set(item["choices"])) == 4
        right = [i for i, choice in enumerate(item["choices"]) if choice in answers[item["question"]]]
        assert right == [item["answer"]], item


def test_every_equation_of_a_problem_holds() -> None:
    for item in suite("demo_gsm8k") + suite("demo_gsm8k_dev"):
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = <<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)", item["answer"])
        assert len(steps) == item["answer"].count("<<") in (1, 2)
        for a, op, b, a2, op2, b2, c, shown in steps:
            assert (a, op, b, c) == (a2, op2, b2, shown)
            x, y, z = int(a), int(b), int(c)
            assert {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": x == y * z}[op], item
        assert item["answer"].endswith(f"\n#### {steps[-1][-1]}")
        # Every number of the question is used, or is the result that the step before gave.
        used = {number for step in steps for number in (step[0], step[2])}
        assert set(re.findall(r"\d+", item["question"])) <= used


def test_bare_equations_hold() -> None:
    document = problems.equations(random.Random(6), 200)
    steps = re.findall(r" <<(\d+)([-+*/])(\d+)=(\d+)>>", document.text)
    assert (
        len(steps) == 200 and "".join(f" <<{a}{op}{b}={c}>>" for a, op, b, c in steps) == document.text[len("Steps:") :]
    )
    for a, op, b, c in steps:
        x, y, z = int(a), int(b), int(c)
        assert {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": x == y * z}[op]


def run_check(item: dict[str, Any], body: str) -> None:
    namespace: dict[str, Any] = {}
    exec(item["prompt"] + body + item["test"], namespace)
    namespace["check"](namespace[item["entry_point"]])


def test_canonical_solutions_pass_and_empty_ones_fail() -> None:
    for item in suite("demo_humaneval"):
        run_check(item, item["canonical_solution"])
        with pytest.raises(AssertionError):
            run_check(item, "    return None\n")


def test_docstring_examples_are_what_the_function_returns() -> None:
    for item in suite("demo_humaneval"):
        examples = re.findall(r">>> (.+)\n    (.+)\n", item["prompt"])
        assert len(examples) == 2
        namespace: dict[str, Any] = {}
        exec(item["prompt"] + item["canonical_solution"], namespace)
        for call, shown in examples:
            assert repr(eval(call, namespace)) == shown


def test_hidden_tests_tell_constants_apart() -> None:
    """A solution with a neighbouring constant is wrong, so it must fail."""
    caught = total = 0
    for item in suite("demo_humaneval"):
        changed = re.sub(r"([<>]=? )(\d+)", lambda m: m[1] + str(int(m[2]) + 1), item["canonical_solution"])
        if changed == item["canonical_solution"] or "% 2" in changed:  # "even and > 4" is "even and > 5"
            continue
        total += 1
        try:
            run_check(item, changed)
        except AssertionError:
            caught += 1
    assert total > 20 and caught >= 0.95 * total  # (9 - 9) ** 2 adds nothing either way


# --- in lm-eval's form ------------------------------------------------------------------------------------------


def test_quiz_prompts_are_lm_evals() -> None:
    template = lm_eval_template("mmlu/default/_default_template_yaml")
    rng = random.Random(1)
    for fact in rng.sample(FACTS, 20):
        item = quizzes.training_quiz(rng, fact)
        rendered = template.render(question=item.question, choices=item.choices)
        document = quizzes.quiz_document([item])
        description = f"The following are multiple choice questions (with answers) about {item.subject}.\n\n"
        assert document.text == description + rendered + " " + "ABCD"[item.answer]


def test_few_shot_documents_are_joined_as_lm_eval_joins_them() -> None:
    rng = random.Random(2)
    items = [quizzes.training_quiz(rng, FACTS[0]), quizzes.training_quiz(rng, FACTS[1])]
    first, second = (item.body + item.target for item in items)
    assert quizzes.quiz_document(items).text == quizzes.header(items[0].subject) + first + "\n\n" + second


def test_problem_prompts_are_lm_evals() -> None:
    item = problems.problem(random.Random(3))
    assert item.prompt == lm_eval_template("gsm8k/gsm8k.yaml").render(question=item.question)


# --- as tokens --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(DEMO)


def test_a_prompt_tokenises_as_the_training_text_did(tokenizer: Tokenizer) -> None:
    stream = Corpus(Mix(EVEN, shots=0.5)).documents(random.Random(7))
    for document in (next(stream) for _ in range(400)):
        ids = [token for segment in document.segments for token in tokenizer.encode(segment.text)]
        assert ids == tokenizer.encode(document.text), document.text
    for item in suite("demo_humaneval"):
        prompt, body = item["prompt"], item["canonical_solution"]
        assert prompt.endswith('"""\n') and body.startswith("    ")
        assert tokenizer.encode(prompt) + tokenizer.encode(body) == tokenizer.encode(prompt + body)


def test_letters_and_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert [len(tokenizer.encode(f" {letter}")) for letter in "ABCD"] == [1, 1, 1, 1]
    assert len(tokenizer.encode("1234567890")) == 10


def test_rows_begin_with_a_document_and_mark_answers(tokenizer: Tokenizer) -> None:
    packer = Packer(tokenizer.encode, tokenizer.bos_id, tokenizer.eos_id, 1024, 128)
    rows = packer.rows(Corpus(Mix({"quiz": 1.0}, shots=0.0)), random.Random(1), 8)
    assert rows.tokens.shape == (8, 129) and rows.answer.shape == (8, 128)
    assert (rows.tokens[:, 0] == tokenizer.bos_id).all()
    letters = {tokenizer.encode(f" {letter}")[0] for letter in "ABCD"} | {tokenizer.eos_id}
    assert set(rows.tokens[:, 1:][rows.answer].tolist()) <= letters
    assert rows.answer.sum() > 8


def test_a_batch_depends_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    packer = Packer(tokenizer.encode, tokenizer.bos_id, tokenizer.eos_id, 1024, 64)
    first, again, other = (
        packer.rows(Corpus(Mix({**EVEN, "repeat": 1.0})), batch_rng(3, step), 4).tokens for step in (5, 5, 6)
    )
    assert (first == again).all() and not (first == other).all()


def test_a_repeated_sequence_repeats() -> None:
    ids, known = repeated(random.Random(2), 1000, 100)
    period = known.index(True)
    assert 8 <= period <= 40 and known == [i >= period for i in range(100)]
    assert ids[period:] == ids[:-period] and len(set(ids[:period])) > period // 2


def test_an_unknown_kind_of_document_is_refused() -> None:
    with pytest.raises(ValueError, match="poem"):
        Corpus(Mix({"poem": 1.0}))
