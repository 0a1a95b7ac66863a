"""Chat templates: the text against transformers', and what a hostile or broken template does."""

import time
from typing import Any

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.workbench.text.conversations import CALL, CONVERSATIONS, TEMPLATES, TOOLS
from workbench.errors import ChatError
from workbench.text import template_bounds
from workbench.text.chat_template import choose_template, render

USER = [{"role": "user", "content": "Hi"}]
SPECIALS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    """transformers' renderer; no word of its vocabulary is used."""
    return PreTrainedTokenizerFast(tokenizer_object=HFTokenizer(WordLevel({"a": 0}, unk_token="a")), **SPECIALS)


@pytest.mark.parametrize("option", [{"add_generation_prompt": True}, {}, {"continue_final_message": True}])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_is_transformers(
    reference: PreTrainedTokenizerFast, template: str, conversation: str, option: dict[str, bool]
) -> None:
    source, (messages, tools) = TEMPLATES[template], CONVERSATIONS[conversation]
    options: dict[str, Any] = {"tools": tools, **option}
    try:
        expected = reference.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    except ValueError:  # Llama 3.1's template quotes a tool's result, which therefore cannot be continued
        assert (template, conversation, option) == ("llama31", "tools", {"continue_final_message": True})
        with pytest.raises(ChatError, match="does not write the last message"):
            render(source, messages, special_tokens=SPECIALS, **options)
        return
    assert render(source, messages, special_tokens=SPECIALS, **options) == expected
    assert len(expected) > 20


@pytest.mark.parametrize(
    "source",
    [
        "  {% if true %}  \n x {%- if messages %}  y{% endif %}\n{% endif %}\n",  # white space around blocks
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }}{{ tools | tojson(sort_keys=true) }}",
        "{{ messages | tojson(separators=(',', ':'), ensure_ascii=true) }}",
        "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ loop.length }}{{ m.role }}"
        "{% if loop.last %}{% break %}{% endif %}{{ loop.nextitem.role }}{% else %}none{% endfor %}",
        "{% for m in messages recursive %}{{ m.role or '' }}{{ loop(m.parts or []) }}{% endfor %}",
        "{% macro f(x, y=2) %}[{{ x ~ y ~ nothing }}]{{ caller and caller() }}{% endmacro %}{{ f('<') }}{{ f(1, y=3) }}"
        "{% call f(4) %}inner{% endcall %}",
        "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ '%s and %05.1f%%' % ('a', 2) }}{{ '{:>4}|{x!r}'.format(7, x='q') }}{{ 'a' * 3 }}{{ 7 % 4 }}{{ 2 ** 10 }}",
        "{{ dict(a=1).items() | list }}{{ range(3) | map('string') | join('+') }}{{ [1, 2] + [3] }}{{ (1, 2) + (3,) }}",
        "{{ bos_token }}{{ eos_token }}{{ missing }}{{ missing is defined }}{{ documents }}{{ tools is none }}",
        "{{ messages[0].content.split(' ')[-1] | upper }}{{ messages[-1]['content'] | trim | length }}{{ none }}",
        "{{ messages[0].content is string }}{{ messages[0].a is defined }}{{ messages | map('length') | list }}",
        "{% set x %}{{ messages[0].role }}{% endset %}{{ x }}{{ x | length }}{% filter upper %}low{% endfilter %}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ messages[0].reasoning_content }}",
        "{{ 'a\nb' | indent(2) }}{{ 'abc' | replace('b', 'xx') }}{{ 'x'.center(5, '-') }}{{ 'a,b'.replace(',', ';') }}",
        "{% for i in range(99) %}{{ messages | map(attribute='role') | join(' a separator of some length ') }}"
        "{{ ', '.join(messages | map(attribute='role')) }}{% endfor %}",
        "{{ cycler('a', 'b').next() }}{{ joiner(', ')() }}{{ 1.0 }}{{ true }}{{ 3 / 2 }}{{ [1, 'a', none] }}",
    ],
)
def test_the_language_is_transformers(reference: PreTrainedTokenizerFast, source: str) -> None:
    messages: list[dict[str, Any]] = [
        {
            "role": "system",
            "content": "<a> & 'é' \U0001f600 ",
            "thinking": "hm",
            "parts": [{"role": "x", "none": None}],
        },
        {"role": "user", "content": "two\n", "name": None},
        {**CALL, "content": None},
    ]
    for tools in (None, TOOLS):
        expected = reference.apply_chat_template(messages, chat_template=source, tools=tools, tokenize=False)
        assert render(source, messages, tools=tools, special_tokens=SPECIALS) == expected


def test_documents_and_the_date_are_given(reference: PreTrainedTokenizerFast) -> None:
    source = "{{ documents[0].title }} {{ strftime_now('%Y-%m-%d') }}"
    documents = [{"title": "T", "text": "x"}]
    expected = reference.apply_chat_template(USER, chat_template=source, documents=documents, tokenize=False)
    assert render(source, USER, documents=documents) == expected == f"T {time.strftime('%Y-%m-%d')}"


def test_named_templates_are_chosen_as_transformers_does(reference: PreTrainedTokenizerFast) -> None:
    named = {"default": "d", "tool_use": "t", "rag": "r"}
    reference.chat_template = named  # type: ignore[assignment]
    for tools in (None, TOOLS):
        expected = reference.apply_chat_template(USER, tools=tools, tokenize=False)
        assert choose_template(named, tools=tools is not None) == expected
    assert choose_template(named, tools=True, name="rag") == "r"
    assert choose_template({"default": "d"}, tools=True) == choose_template({"only": "d"}, tools=True) == "d"
    with pytest.raises(ChatError, match="no chat template 'x'; it has default, rag, tool_use"):
        choose_template(named, tools=False, name="x")
    with pytest.raises(ChatError, match="no default: a, rag"):
        choose_template({"rag": "r", "a": "a"}, tools=True)


DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x | tojson }}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}" + "y" * 10_000 + "{% endfor %}",
        "{% set z %}{% for i in range(99999) %}" + "y" * 10_000 + "{% endfor %}{% endset %}",
        "{% macro m() %}" + "y" * 10_000 + "{% endmacro %}{% set z %}{% for i in range(99999) %}{{ m() }}{% endfor %}"
        "{% endset %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(70) }}",
        "{% for a in range(3000) recursive %}{{ loop(range(3000)) }}{% endfor %}",
        *(
            DOUBLED.replace("STEP", step)
            for step in (
                "ns.x ~ ns.x", "ns.x + ns.x", "'%s%s' % (ns.x, ns.x)", "'{}{}'.format(ns.x, ns.x)", "ns.x * 2",
                "[ns.x, ns.x] | join", "''.join([ns.x, ns.x])", "[ns.x, ns.x]", "ns.x.replace('a', ns.x)",
                "ns.x | replace('b', ns.x)", "{'a': ns.x, 'b': ns.x}", "[ns.x] + [ns.x]",
            )
        ),
        DOUBLED.replace("STEP", "[ns.x, ns.x]").replace("{{ ns.x | tojson }}", "{{ ns.x == [ns.x] }}"),
        DOUBLED.replace("STEP", "(ns.x, ns.x)").replace("{{ ns.x | tojson }}", "{{ ns.x in [ns.x, 1] }}"),
        DOUBLED.replace("STEP", "dict(a=ns.x, b=ns.x)"),
        "{% set x = 'a' * 9999999 %}{% for i in range(99999) %}{% if 'b' in x %}{% endif %}{% endfor %}",
        "{{ 'x' * 10**9 }}", "{{ 10**9 * 'x' }}", "{{ [0] * 10**9 }}", "{{ 9 ** (9 ** 9) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x'.center(10**9) }}", "{{ 'x'.zfill(10**9) }}", "{{ '%1000000000d' % 1 }}",
        "{{ '%(a)99999999d' % {'a': 1} }}",
        "{{ '%*d' % (1000000000, 1) }}", "{{ '{:1000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ '{0:{w}}'.format(1, w=1000000000) }}", "{{ lipsum(10**9) }}", "{{ messages | tojson(indent=10**9) }}",
        "{{ range(100000) | map('string') | join('x' * 100000) }}", "{{ 'a' | batch(10**9, 'x') | list }}",
        "{% include 'x' %}", "{% import 'x' as y %}", "{{ " + "(" * 3000 + ")" * 3000 + " }}", "x" * 1_000_001,
    ],
)  # fmt: skip
def test_a_template_cannot_run_for_ever_or_fill_the_memory(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "MAX_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(ChatError) as error:
        render(source, USER)
    assert time.monotonic() - started < 20 and len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_a_long_conversation_is_within_the_bounds() -> None:
    turns = [{"role": role, "content": "word " * 400} for _ in range(400) for role in ("user", "assistant")]
    text = render(TEMPLATES["llama31"], turns)
    assert len(text) > 800 * 2000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Only\n two roles!') }}", "refuses these messages: Only two roles!"),
        ("{{ raise_exception('x' * 5000) }}", "xxx …"),
        ("{% if %}", "not valid: line 1: Expected an expression"),
        ("\n\n{% for x in y %}", "not valid: line 3: "),
        ("{{ messages.a.b }}", "'list object' has no attribute 'a'"),
        ("{{ messages[0].content.nothing() }}", "no attribute 'nothing'"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ namespace(__class__=1) }}", "underscore"),
        ("{{ cycler(1).__init__.__globals__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ x | nofilter }}", "No filter named 'nofilter'"),
        ("{% generation %}", "not valid"),
    ],
)
def test_a_templates_own_errors_are_named(source: str, message: str) -> None:
    with pytest.raises(ChatError) as error:
        render(source, USER)
    assert message in str(error.value) and len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_messages_that_cannot_be_rendered_are_named() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    for messages, options, message in (
        ([], {}, "at least one message"),
        (["Hi"], {}, "must be a dict"),
        ([{"role": "user", "content": deep}], {}, "nested too deep"),
        ([{"role": "user", "content": object()}], {}, "found object"),
        (USER, {"tools": [print]}, "found builtin_function_or_method"),
        (USER, {"add_generation_prompt": True, "continue_final_message": True}, "choose one"),
        ([{"role": "assistant"}], {"continue_final_message": True}, "no content"),
        ([{"role": "user", "content": [{"type": "image"}]}], {"continue_final_message": True}, "no text"),
    ):
        with pytest.raises(ChatError, match=message):
            render("{{ messages[0].content }}", messages, **options)  # type: ignore[arg-type]


def test_parts_of_text_can_be_continued() -> None:
    source = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<end>{% endfor %}"
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}]}]
    assert render(source, parts, continue_final_message=True) == "one two "
