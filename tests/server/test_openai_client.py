"""The official client against the endpoint, a real host and a tiny model."""

import asyncio
import math
import threading
from typing import Any

import openai
import pytest

from octavo.server.board import RequestState
from tests.server.conftest import Served, wait_until

HELLO = [{"role": "user", "content": "hello world"}]
GREEDY = {"temperature": 0.0, "max_tokens": 8}
ENDLESS = {"ignore_eos": True}


def ask(client: Any, **options: Any) -> Any:
    """Untyped: the client's overloads cannot be told from keyword dictionaries."""
    values = {"model": "tiny", "messages": HELLO, "extra_body": ENDLESS, **GREEDY, **options}
    return client.chat.completions.create(**values)


def complete(client: Any, **options: Any) -> Any:
    values = {"model": "tiny", "prompt": "the world", "extra_body": ENDLESS, **GREEDY, **options}
    return client.completions.create(**values)


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "octavo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat(client: openai.OpenAI, served: Served) -> None:
    first = ask(client)
    assert first.object == "chat.completion"
    assert first.model == "tiny"
    choice = first.choices[0]
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert first.usage.completion_tokens == 8
    assert first.usage.prompt_tokens == served.host.count_tokens(HELLO)
    assert first.usage.total_tokens == first.usage.prompt_tokens + 8
    again = ask(client)
    assert again.choices[0].message.content == choice.message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_streamed_chat_is_the_same_answer(client: openai.OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8


async def test_async_clients_batch_together(
    async_client: openai.AsyncOpenAI, client: openai.OpenAI
) -> None:
    alone = ask(client).choices[0].message.content

    async def streamed() -> str:
        stream = await ask(async_client, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    answers = await asyncio.gather(*(streamed() for _ in range(8)), ask(async_client))
    assert set(answers[:-1]) == {alone}
    assert answers[-1].choices[0].message.content == alone


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_with_seeds(client: openai.OpenAI, stream: bool) -> None:
    options = {"n": 3, "seed": 7, "temperature": 1.5, "stream": stream}

    def texts() -> list[str]:
        answer = ask(client, **options)
        if not stream:
            return [choice.message.content for choice in answer.choices]
        found = ["", "", ""]
        for chunk in answer:
            for choice in chunk.choices:
                found[choice.index] += choice.delta.content or ""
        return found

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first


def test_chat_logprobs(client: openai.OpenAI) -> None:
    entries = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(entries) == 8
    for entry in entries:
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert len(entry.top_logprobs) == 3
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token
        assert math.exp(entry.logprob) <= 1
    chunks = list(ask(client, logprobs=True, top_logprobs=3, stream=True))
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs(client: openai.OpenAI, stream: bool) -> None:
    answer = complete(client, logprobs=2, stream=stream)
    choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    tokens = [token for one in choices for token in one.logprobs.tokens]
    offsets = [offset for one in choices for offset in one.logprobs.text_offset]
    assert len(tokens) == 8
    assert any(token.startswith("bytes:\\x") for token in tokens)
    texts = ["\ufffd" if token.startswith("bytes:") else token for token in tokens]
    assert offsets == [len("".join(texts[:i])) for i in range(8)]
    assert all(len(top) == 2 for one in choices for top in one.logprobs.top_logprobs)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_an_echoed_prompt_comes_first(
    client: openai.OpenAI, served: Served, stream: bool, as_tokens: bool
) -> None:
    tokenizer = served.host.tokenizer
    token_ids = tokenizer.encode("the world", add_bos=tokenizer.adds_bos)
    prompt = token_ids if as_tokens else "the world"
    begin = tokenizer.decode(token_ids, skip_special_tokens=False) if as_tokens else "the world"
    plain = complete(client, prompt=prompt).choices[0].text
    answer = complete(client, prompt=prompt, echo=True, logprobs=2, stream=stream)
    choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == begin + plain
    first = choices[0].logprobs
    assert first.token_logprobs[0] is first.top_logprobs[0] is None
    assert all(value <= 0 for value in first.token_logprobs[1:])
    offsets = [offset for one in choices for offset in one.logprobs.text_offset]
    assert len(offsets) == len(token_ids) + 8
    assert offsets == sorted(offsets)
    assert offsets[len(token_ids)] in (len(begin), len(begin) + tokenizer.strips_leading_space)


@pytest.mark.parametrize("stream", [False, True])
def test_each_choice_echoes_its_prompt(client: openai.OpenAI, stream: bool) -> None:
    answer = complete(client, prompt=["hello", "the world"], echo=True, n=2, stream=stream)
    texts = ["", "", "", ""]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert [text.startswith("hello") for text in texts] == [True, True, False, False]
    assert [text.startswith("the world") for text in texts] == [False, False, True, True]
    with pytest.raises(openai.BadRequestError, match="answered once") as caught:
        complete(client, echo=True, logprobs=1, n=2)
    assert caught.value.param == "n"


def test_masks_dry_and_xtc_arrive(client: openai.OpenAI, served: Served) -> None:
    letter_a, letter_b = (served.host.tokenizer.encode(f"\n{text}")[-1] for text in "AB")

    def text(**extra: Any) -> str:
        options = {key: extra.pop(key) for key in ("logit_bias", "temperature") if key in extra}
        choices = complete(client, extra_body=ENDLESS | extra, **options).choices
        return str(choices[0].text)

    both = [letter_a, letter_b]
    assert set(text(allowed_token_ids=both)) <= {"A", "B"}
    assert set(text(allowed_token_ids=both, bad_words=["A"])) == {"B"}
    loop = {str(letter_a): 100}
    assert text(logit_bias=loop) == "AAAAAAAA"
    assert text(logit_bias=loop, dry_multiplier=100.0, dry_allowed_length=1) != "AAAAAAAA"
    pair = {str(letter_a): 100, str(letter_b): 98}
    xtc = {"xtc_probability": 1.0, "xtc_threshold": 0.001}
    assert "A" in text(logit_bias=pair, temperature=2.0, seed=1)
    assert text(logit_bias=pair, temperature=2.0, seed=1, **xtc) == "BBBBBBBB"


def test_stop(client: openai.OpenAI) -> None:
    text = complete(client, max_tokens=20).choices[0].text
    stop = text[5:7]
    choice = complete(client, max_tokens=20, stop=stop).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.text == text[: text.index(stop)]
    assert choice.stop_reason == stop
    streamed = list(complete(client, max_tokens=20, stop=[stop], stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text


def test_prompts_of_every_form(client: openai.OpenAI, served: Served) -> None:
    tokenizer = served.host.tokenizer
    token_ids = tokenizer.encode("the world", add_bos=tokenizer.adds_bos, parse_special=True)
    text = complete(client).choices[0].text
    assert complete(client, prompt=token_ids).choices[0].text == text
    several = complete(client, prompt=["hello", "the world"], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[2].text == several.choices[3].text == text
    assert several.usage.completion_tokens == 32
    assert complete(client, prompt=[[1, 2], token_ids]).choices[1].text == text
    assert complete(client, max_tokens=None).usage.completion_tokens == 16


def test_message_parts_and_the_developer_role(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "hello world"}]
    plain = [{"role": "system", "content": "the"}, *HELLO]
    rich = [{"role": "developer", "content": "the"}, {"role": "user", "content": parts}]
    texts = [ask(client, messages=one).choices[0].message.content for one in (plain, rich)]
    assert texts[0] == texts[1]


def test_vllm_parameters_and_ignored_fields(client: openai.OpenAI) -> None:
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, **ENDLESS}
    answer = ask(client, temperature=1.0, extra_body=extra, user="me", metadata={"a": "b"})
    assert answer.usage.completion_tokens == 8
    biased = ask(client, logit_bias={"65": 100}, max_completion_tokens=4, max_tokens=None)
    assert len(set(biased.choices[0].message.content)) == 1
    stopping = {"stop_token_ids": [65], **ENDLESS}
    assert ask(client, logit_bias={"65": 100}, extra_body=stopping).choices[0].stop_reason == 65


@pytest.mark.parametrize("stream", [False, True])
def test_an_oversize_prompt_is_refused_with_counts(
    client: openai.OpenAI, served: Served, stream: bool
) -> None:
    messages = [{"role": "user", "content": "hello " * 500}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=messages, stream=stream)
    error = caught.value
    assert error.code == "context_length_exceeded"
    assert isinstance(error.body, dict)
    assert error.body["prompt_tokens"] == served.host.count_tokens(messages)
    assert error.body["limit_tokens"] == 255
    assert str(error.body["prompt_tokens"]) in error.message


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"temperature": -1.0}, "temperature", "at least 0"),
        ({"n": 0}, "n", "1 to 64"),
        ({"n": "two"}, "n", "integer"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages", "assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "no content"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs", "0 to 20"),
        ({"extra_body": {"dry_base": 0.5}}, "dry_base", "at least 1 and at most 10"),
        ({"extra_body": {"xtc_threshold": 0.0}}, "xtc_threshold", "above 0"),
        ({"extra_body": {"xtc_probability": 1.5}}, "xtc_probability", "is 1.5"),
        ({"extra_body": {"bad_words": [""]}}, "bad_words", "not empty"),
        ({"extra_body": {"allowed_token_ids": []}}, "allowed_token_ids", "is empty"),
        ({"extra_body": {"allowed_token_ids": [99999]}}, "allowed_token_ids", "token ids go from"),
        ({"logit_bias": {"66": 1}, "extra_body": {"allowed_token_ids": [65]}}, "logit_bias", "66"),
        ({"max_completion_tokens": 3}, "max_completion_tokens", "different"),
        ({"extra_body": {"mirostat": 2}}, "mirostat", "no field"),
        ({"extra_body": {"priority": -5}}, "priority", "no field"),
        ({"response_format": {"type": "json_object"}}, "response_format", "yet"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "token ids go from"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "only text",
        ),
    ],
)
def test_bad_requests_name_the_field(
    client: openai.OpenAI, options: dict[str, object], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert caught.value.param == param
    assert words in caught.value.message
    assert caught.value.type == "invalid_request_error"


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    for name, words in (("other", "not loaded"), ("gpt-9", "no model"), ("../tiny", "no model")):
        with pytest.raises(openai.NotFoundError, match=words) as caught:
            ask(client, model=name)
        assert caught.value.code == "model_not_found"
        assert "'tiny'" in caught.value.message
    assert ask(client, model="Tiny Llama").model == "tiny"


def test_cancel_tells_the_client(client: openai.OpenAI, served: Served) -> None:
    board = served.server.board
    stream = ask(client, stream=True, max_tokens=200)
    next(stream)
    wait_until(lambda: bool(board.live()) and board.live()[0].state is RequestState.RUNNING)
    record = board.live()[0]
    assert (record.model, record.route) == ("tiny", "/v1/chat/completions")
    assert record.client.startswith("127.0.0.1:")
    assert record.prompt_tokens == served.host.count_tokens(HELLO)
    assert board.cancel(record.request_id)
    with pytest.raises(openai.APIError, match="cancelled in Octavo"):
        list(stream)
    wait_until(lambda: not board.live())
    assert board.recent()[0].state is RequestState.CANCELLED
    assert not board.cancel(record.request_id)


def test_cancel_of_an_answer_that_is_not_streamed(client: openai.OpenAI, served: Served) -> None:
    board = served.server.board
    caught: list[openai.APIStatusError] = []

    def wait_for_answer() -> None:
        try:
            ask(client, max_tokens=200)
        except openai.APIStatusError as error:
            caught.append(error)

    thread = threading.Thread(target=wait_for_answer)
    thread.start()
    wait_until(lambda: bool(board.live()))
    board.cancel(board.live()[0].request_id)
    thread.join(30)
    assert caught[0].status_code == 499
    assert caught[0].code == "request_cancelled"
