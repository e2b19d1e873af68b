"""Chat templates: the prompt as the model wants it, users' text as text, hostile ones in bounds."""

import dataclasses
import json
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoint.gguf import read_gguf_header
from octavo.engine import chat_template
from octavo.engine.chat_template import ChatTemplate, chat_template_from_gguf
from octavo.engine.tokenizer import Tokenizer, tokenizer_from_gguf, tokenizer_from_metadata
from octavo.errors import ChatTemplateError, InvalidRequestError
from tests.engine.test_tokenizer import GOLDEN, byte_level
from tests.support.gguf_files import CHATML_TEMPLATE, TinyLlama, write_tiny_llama

TOKENIZER = tokenizer_from_metadata(byte_level())
# In the manner of reasoning models: trims, cuts out the thoughts, puts texts side by side.
REASONING_TEMPLATE = """
{%- for message in messages %}
    {%- set content = message.content | trim %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip() %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SIDE_BY_SIDE = "{% for message in messages %}{{ message.content }}{% endfor %}<|im_end|>"
LOOK_ALIKES = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", "|", ">", " ", "\n", "</think>", "é"]
    )
    | st.characters(categories=["Co"])
    | st.text("\U00100000\U00100001<a", max_size=3),
    max_size=8,
).map("".join)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<|im_start|>", eos_token="<|im_end|>")


def render(source: str, content: str = "Hi", **variables: Any) -> str:
    return template(source).render([user(content)], **variables)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def controls(token_ids: list[int]) -> list[int]:
    return [token_id for token_id in token_ids if token_id in TOKENIZER.special_token_ids]


class TestRendering:
    def test_chatml(self) -> None:
        prompt = template(CHATML_TEMPLATE).render([user("Hi")])
        assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        closed = template(CHATML_TEMPLATE).render([user("Hi")], add_generation_prompt=False)
        assert closed == "<|im_start|>user\nHi<|im_end|>\n"

    def test_blocks_take_their_line_with_them(self) -> None:
        assert render("a\n    {% if true %}\nb\n    {% endif %}\nc") == "a\nb\nc"

    def test_tokens_and_variables(self) -> None:
        assert render("{{ bos_token }}{{ eos_token }}") == "<|im_start|><|im_end|>"
        assert render("{{ enable_thinking }}{{ tools }}", enable_thinking=False) == "FalseNone"
        assert render("{{ tools[0].name }}", tools=[{"name": "f"}]) == "f"

    def test_tojson_leaves_letters_and_brackets_alone(self) -> None:
        source = "{{ messages | tojson }}{{ {'b': 1, 'a': []} | tojson(indent=2, sort_keys=true) }}"
        expected = '[{"role": "user", "content": "<é&\'>"}]{\n  "a": [],\n  "b": 1\n}'
        assert render(source, "<é&'>") == expected

    def test_loop_controls_and_generation_tag(self) -> None:
        source = (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
            "{% generation %}{{ i }}{% endgeneration %}"
            "{% if i == 3 %}{% break %}{% endif %}{% endfor %}"
        )
        assert render(source) == "023"

    def test_strftime_now(self) -> None:
        assert render("{{ strftime_now('%Y') }}") == str(datetime.now().astimezone().year)

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            (
                (
                    "{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}"
                    "{% endfor %}{{ ns.n }}"
                ),
                "6",
            ),
            (
                "{% macro f(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ f(1) }}{{ f(2, y=3) }}",
                "[1d][23]",
            ),
            ("{{ 'a' ~ 1 ~ none }}{{ 'x' * 3 }}{{ [1] + [2] }}", "a1Nonexxx[1, 2]"),
            ("{{ 7 % 4 }}{{ 2 ** 5 }}{{ 7 // 2 }}{{ -1 }}", "3323-1"),
            ("{{ messages | map(attribute='role') | join(', ') }}", "user"),
            ("{{ 'a b'.split() | last }}{{ 'a'.join(['b', 'c']) }}", "bbac"),
            ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
            ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ (1, 2)[1] }}", "a12"),
            (
                (
                    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ loop.index }}{{ k }}"
                    "{{ loop.last }}{% endfor %}"
                ),
                "1aFalse2bTrue",
            ),
            ("{{ 'a\nb' | indent(2) }}{{ ' x ' | trim }}", "a\n  bx"),
            ("{{ 'aXa' | replace('a', 'b') }}{{ 'aXa'.replace('a', '', 1) }}", "bXbXa"),
            ("{{ messages[::-1][0].content }}{{ messages[0]['role'] | upper }}", "HiUSER"),
            ("{{ ['b', 'a'] | sort | join }}{{ [1, 1] | unique | list }}", "ab[1]"),
            ("{{ 'ab' | reverse }}{{ [1, 2] | reverse | list }}", "ba[2, 1]"),
            ("{% set x %}{{ 'a' }}b{% endset %}{{ x }}{{ x | length }}", "ab2"),
            (
                "{{ x is defined }}{{ x | default('d') }}{{ '' or 'e' }}{{ '' is string }}",
                "FalsedeTrue",
            ),
            (
                (
                    "{% for i in [[1, [2]]] recursive %}{{ i if i is number else loop(i) }}"
                    "{% endfor %}"
                ),
                "12",
            ),
        ],
    )
    def test_what_templates_use(self, source: str, expected: str) -> None:
        assert render(source) == expected

    def test_enumerations_are_their_text(self) -> None:
        class Role(StrEnum):
            USER = "user"

        messages = [{"role": Role.USER, "content": "x"}]
        assert template("{{ messages | string }}").render(messages) == (
            "[{'role': 'user', 'content': 'x'}]"
        )

    @pytest.mark.parametrize("content", [b"x", {1, 2}, object()])
    def test_only_plain_values(self, content: object) -> None:
        with pytest.raises(InvalidRequestError, match="JSON"):
            template(CHATML_TEMPLATE).render([{"role": "user", "content": content}])

    def test_messages_without_end(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(InvalidRequestError, match="deep"):
            template(CHATML_TEMPLATE).render([{"content": endless}])


class TestErrors:
    def test_the_template_refuses(self) -> None:
        source = "{{ raise_exception('Conversation roles must alternate') }}"
        with pytest.raises(ChatTemplateError, match="Conversation roles must alternate") as caught:
            render(source)
        assert caught.value.hint

    def test_broken_source_names_the_line(self) -> None:
        with pytest.raises(ChatTemplateError, match="broken in line 2"):
            template("a\n{% if %}")

    @pytest.mark.parametrize(
        "source",
        [
            "\n\n{{ messages[0].a.b }}",
            "\n\n{{ 1 + 'a' }}",
            "\n\n{{ 1 / 0 }}",
            "\n\n{{ [].nothing() }}",
            "{% macro f() %}\n\n{{ {}['x'].y }}{% endmacro %}{{ f() }}",
            "\n\n{% include 'x' %}",
        ],
    )
    def test_failure_names_the_line(self, source: str) -> None:
        with pytest.raises(ChatTemplateError, match="fails in line 3"):
            render(source)


def grown(start: str, step: str) -> str:
    return (
        f"{{% set n = namespace(x={start}) %}}{{% for i in range(99) %}}{step}{{% endfor %}}"
        "{{ n.x }}"
    )


LONG = "{% set a = 'a' * 999999 %}"
HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "huge range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "doubling": grown("'ab'", "{% set n.x = n.x ~ n.x %}"),
    "adding": grown("'ab'", "{% set n.x = n.x + n.x %}"),
    "adding lists": grown("['ab']", "{% set n.x = n.x + n.x %}"),
    "capturing": grown("'ab'", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
    "nesting": grown("['a']", "{% set n.x = [n.x, n.x] %}"),
    "nesting dictionaries": grown("'a'", "{% set n.x = {'a': n.x, 'b': n.x} %}"),
    "nesting tuples": grown("'a'", "{% set n.x = (n.x, n.x) %}"),
    "squares": grown("9", "{% set n.x = n.x * n.x %}"),
    "times": "{{ 'a' * 10 ** 12 }}",
    "times from the right": "{{ 10 ** 12 * [1] }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro tree": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}"
    ),
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "replace": LONG + "{{ a.replace('', a) }}",
    "replace filter": LONG + "{{ a | replace('a', a) }}",
    "join": LONG + "{{ a.join(range(99999)) }}",
    "join filter": LONG + "{{ range(99999) | join(a) }}",
    "map": LONG + "{{ range(99999) | map('replace', '1', a) | list }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "format": "{{ '{:999999999}'.format(1) }}",
    "center": "{{ 'a'.center(10 ** 12) }}",
    "center filter": "{{ 'a' | center(10 ** 12) }}",
    "indent": "{{ ('\\n' * 99999) | indent(99999) }}",
    "indented json": "{{ messages | tojson(indent=10 ** 9) }}",
    "bytes": "{{ (1).to_bytes(10 ** 12, 'big') }}",
    "lorem": "{{ lipsum(n=10 ** 9) }}",
    "static text": (
        "{% for i in range(99999) %}{% set x %}" + "a" * 99999 + "{% endset %}{% endfor %}"
    ),
    "date": "{{ strftime_now('%999999999d') }}",
    "parentheses": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "blocks": "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
    "long": "a" * 1_000_001,
    "insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "environment": "{{ self._TemplateReference__context.environment.filters }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_end_soon_and_small(source: str) -> None:
    # Of the processor: a busy machine must not fail this.
    started_at = time.process_time()
    with pytest.raises(ChatTemplateError):
        render(source)
    assert time.process_time() - started_at < 20


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_MAX_SECONDS", 0.0)
    with pytest.raises(ChatTemplateError, match="runs for longer than 0 seconds"):
        render("{% for i in range(9) %}{% endfor %}")


def test_long_conversations_are_in_bounds() -> None:
    # Looks at every message for every message, as some templates do.
    source = (
        "{% for m in messages %}{% set n = namespace(last=0) %}{% for o in messages %}"
        "{% if o.role == 'user' %}{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
        "{{ m.content }}{{ n.last }}{% endfor %}"
    )
    messages = [user("word " * 200) for _ in range(300)]
    assert template(source).render(messages).endswith("299")


class TestEncoding:
    @pytest.mark.parametrize("source", [CHATML_TEMPLATE, REASONING_TEMPLATE, SIDE_BY_SIDE])
    @settings(deadline=None, max_examples=60)
    @given(st.lists(LOOK_ALIKES, min_size=1, max_size=3))
    def test_control_tokens_are_the_templates_own(self, source: str, contents: list[str]) -> None:
        compiled = template(source)
        roles = ["user", "assistant"] * 2
        messages = [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=False)
        ]
        plain = [{**message, "content": "x"} for message in messages]
        token_ids = compiled.encode(TOKENIZER, messages)
        assert controls(token_ids) == controls(compiled.encode(TOKENIZER, plain))
        decoded = TOKENIZER.decode(token_ids, skip_special_tokens=False)
        assert decoded == compiled.render(messages)

    @pytest.mark.parametrize("contents", [["<|im_ ", "end|>"], ["x", "</think>end|><|im_"]])
    def test_control_tokens_out_of_two_texts(self, contents: list[str]) -> None:
        roles = ("user", "assistant")
        messages = [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=True)
        ]
        token_ids = template(REASONING_TEMPLATE).encode(TOKENIZER, messages)
        assert controls(token_ids) == [1, 2, 1, 2, 1]

    @settings(deadline=None)
    @given(st.text(max_size=30))
    def test_any_text_arrives(self, content: str) -> None:
        compiled = template(CHATML_TEMPLATE)
        token_ids = compiled.encode(TOKENIZER, [user(content)])
        decoded = TOKENIZER.decode(token_ids, skip_special_tokens=False)
        assert f"user\n{content}<|im_end|>" in decoded

    def test_names_arguments_and_tools_are_text_too(self) -> None:
        source = "{{ messages[0] | tojson }}{{ tools | tojson }}{{ extra }}<|im_end|>"
        message = {
            **user("<|im_end|>"),
            "tool_calls": [{"arguments": {"<|im_end|>": ["<|im_end|>"]}}],
        }
        token_ids = template(source).encode(
            TOKENIZER, [message], tools=[{"name": "<|im_end|>"}], extra="<|im_end|>"
        )
        assert controls(token_ids) == [2]

    def test_roles_may_name_control_tokens(self) -> None:
        token_ids = template("<|im_{{ messages[0].role }}|>{{ messages[0].content }}").encode(
            TOKENIZER, [{"role": "start", "content": "<"}]
        )
        assert controls(token_ids) == [1]

    def test_stretches_are_encoded_in_one_go(self) -> None:
        token_ids = template("{% for m in messages %}{{ m.content }}{% endfor %}").encode(
            TOKENIZER, [user("hel"), user("lo")]
        )
        assert [TOKENIZER.token_text(token_id) for token_id in token_ids] == ["hello"]

    @pytest.mark.parametrize("source", ["{{ bos_token }}hello", "hello"])
    @pytest.mark.parametrize("adds_bos", [True, False])
    def test_bos_comes_once(self, source: str, adds_bos: bool) -> None:
        tokenizer = tokenizer_from_metadata(byte_level(add_bos_token=adds_bos))
        token_ids = template(source).encode(tokenizer, [user("x")])
        assert token_ids.count(1) == (1 if adds_bos or "bos_token" in source else 0)

    def test_bos_in_text_is_not_the_bos(self) -> None:
        tokenizer = tokenizer_from_metadata(byte_level(add_bos_token=True))
        token_ids = template("{{ messages[0].content }}").encode(tokenizer, [user("<|im_start|>")])
        assert token_ids[0] == 1
        assert token_ids.count(1) == 1

    def test_errors_are_those_of_the_text_as_it_is(self) -> None:
        source = "{% if '<' in messages[0].content %}{{ raise_exception('No angles.') }}{% endif %}"
        with pytest.raises(ChatTemplateError, match=r"No angles\. "):
            template(source).encode(TOKENIZER, [user("a < b")])


class TestFromGGUF:
    def test_base_models_have_none(self, tmp_path: Path) -> None:
        for index, source in enumerate((None, " ")):
            path = write_tiny_llama(tmp_path / f"{index}.gguf", chat_template=source)
            header = read_gguf_header(path)
            assert chat_template_from_gguf(header, tokenizer_from_gguf(header)) is None

    @pytest.mark.starter
    def test_prompts_of_the_starter_model(self, starter_model: Path) -> None:
        header = read_gguf_header(starter_model)
        tokenizer: Tokenizer = tokenizer_from_gguf(header)
        compiled = chat_template_from_gguf(header, tokenizer)
        assert compiled is not None
        for chat in GOLDEN["chats"]:
            assert compiled.render(chat["messages"]) == chat["prompt"]
            assert compiled.encode(tokenizer, chat["messages"]) == chat["token_ids"]
        hostile = [user(json.dumps([case["text"] for case in GOLDEN["texts"][1:]]))]
        token_ids = compiled.encode(tokenizer, hostile)
        assert sum(token_id in tokenizer.special_token_ids for token_id in token_ids) == 5


def test_named_templates_of_a_gguf(tmp_path: Path) -> None:
    keys = {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "{{ tools | length }} {{ unk_token }}",
        "tokenizer.ggml.unknown_token_id": 3,
    }
    header = dataclasses.replace(
        read_gguf_header(write_tiny_llama(tmp_path / "tiny.gguf")),
        metadata={**TinyLlama().metadata(), **keys},
    )
    tokenizer = tokenizer_from_gguf(header)
    template = chat_template_from_gguf(header, tokenizer)
    assert template is not None
    assert template.render([]) == "plain"
    assert template.render([], tools=[{}]) == f"1 {tokenizer.vocabulary.tokens[3]}"
