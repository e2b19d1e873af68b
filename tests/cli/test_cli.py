"""Every verb on a tiny model: what a person types and reads."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import octavo
from octavo.cli.window import SAMPLE_QUESTION, why_no_window
from octavo.engine.families import FAMILIES
from octavo.engine.support import FORMATS
from octavo.paths import AppPaths
from tests.cli.conftest import Cli


def test_version(cli: Cli) -> None:
    assert cli("--version").out.strip() == f"octavo {octavo.__version__}"


def test_help_names_every_verb(cli: Cli) -> None:
    text = cli("--help").out
    for verb in ("run", "pull", "list", "show", "rm", "ps", "doctor", "bench", "generate"):
        assert f"    {verb} " in text
        assert cli(verb, "--help").status == 0


@pytest.mark.parametrize("arguments", [["fly"], ["show"], ["run", "a", "--temperature", "warm"]])
def test_usage_errors_are_sentences(cli: Cli, arguments: list[str]) -> None:
    outcome = cli(*arguments)
    assert outcome.status == 2
    assert "--help" in outcome.err


def test_list_of_nothing_says_what_to_do(cli: Cli) -> None:
    assert "octavo pull starter" in cli("list").out


def test_list_shows_good_and_broken_files(cli: Cli, tiny: Path) -> None:
    (tiny.parent / "broken.gguf").write_bytes(tiny.read_bytes()[:5000])
    outcome = cli("list")
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert any(line.startswith("tiny ") and "ready" in line for line in lines)
    assert any(line.startswith("broken ") and "ready" not in line for line in lines)
    names = {model["name"]: model["problem"] for model in json.loads(cli("list", "--json").out)}
    assert names["tiny"] == ""
    assert names["broken"]


def test_show_by_name_and_by_path(cli: Cli, tiny: Path) -> None:
    for model in ("tiny", tiny):
        outcome = cli("show", model)
        assert outcome.status == 0
        assert "Memory plan" in outcome.out
        assert "It fits" in outcome.out
        assert "give transformers' logits" in outcome.out
    plan = json.loads(cli("show", "tiny", "--json").out)["plan"]
    assert sum(item["num_bytes"] for item in plan["items"]) > 0


def test_show_of_a_broken_file_says_why(cli: Cli, tiny: Path) -> None:
    broken = tiny.parent / "broken.gguf"
    broken.write_bytes(b"not a model at all")
    outcome = cli("show", broken)
    assert outcome.status == 1
    assert "broken.gguf" in outcome.err


def test_remove(cli: Cli, tiny: Path) -> None:
    outcome = cli("rm", "tiny")
    assert outcome.status == 0
    assert not tiny.exists()
    assert cli("rm", "tiny").status == 1


def test_unknown_model_names_the_next_step(cli: Cli, tiny: Path) -> None:
    outcome = cli("run", "tinny", "Hello")
    assert outcome.status == 1
    assert "tinny" in outcome.err
    assert "octavo list" in outcome.err


def test_ps_without_models(cli: Cli) -> None:
    assert cli("ps").out.strip() == "No model is loaded."
    assert json.loads(cli("ps", "--json").out) == []


def test_doctor(cli: Cli, tiny: Path) -> None:
    text = cli("doctor").out
    for word in ("Machine", "Devices", "torch", "models", "tiny", "CPU kernels"):
        assert word in text
    assert "runs on the CPU kernels" in text
    findings = json.loads(cli("doctor", "--json").out)
    assert findings["Versions"]["octavo"] == octavo.__version__
    for family in FAMILIES:
        [line] = [line for line in text.splitlines() if line.startswith(f"  {family.covers}  ")]
        told = findings["Models that run"][family.covers]
        assert list(told) == [stored.title for stored in FORMATS]
        assert line.split()[-len(told) :] == list(told.values())


def test_doctor_says_why_a_model_runs_in_plain_torch(cli: Cli, tiny: Path, paths: AppPaths) -> None:
    paths.settings_file.parent.mkdir(parents=True)
    paths.settings_file.write_text('[engine]\ncpu_kernels = "off"\n', encoding="utf-8")
    text = cli("doctor").out
    assert "runs in plain torch. The CPU kernels are switched off." in text


def test_doctor_reports_a_broken_settings_file(cli: Cli, paths: AppPaths) -> None:
    paths.settings_file.parent.mkdir(parents=True)
    paths.settings_file.write_text("appearance = [broken", encoding="utf-8")
    outcome = cli("doctor")
    assert outcome.status == 0
    assert "settings.toml" in outcome.out


def test_run_streams_one_answer(cli: Cli, tiny: Path) -> None:
    arguments = ("run", "tiny", "Hello", "--temperature", "0", "--max-tokens", "8")
    first, second = cli(*arguments), cli(*arguments)
    assert first.status == 0
    assert first.out.strip()
    assert first.out == second.out


def test_run_reads_standard_input(cli: Cli, tiny: Path) -> None:
    sampling = ("--temperature", "0", "--max-tokens", "8")
    piped = cli("run", "tiny", *sampling, stdin="Hello")
    assert piped.out == cli("run", "tiny", "Hello", *sampling).out
    both = cli("run", "tiny", "Sum up:", *sampling, stdin="Hello")
    assert both.out == cli("run", "tiny", "Sum up:\n\nHello", *sampling).out
    empty = cli("run", "tiny", stdin="")
    assert empty.status == 1
    assert "no prompt" in empty.err


def test_run_converses(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["Hello", "/help", "", "/clear", '"""', "two", "lines", '"""', "/bye"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    outcome = cli("run", "tiny", "--max-tokens", "4")
    assert outcome.status == 0
    assert "/clear" in outcome.err
    assert "A new conversation." in outcome.err


def test_run_says_how_to_give_a_prompt_of_one_word(cli: Cli, tiny: Path) -> None:
    outcome = cli("run", "Hi!")
    assert outcome.status == 1
    assert "No model named 'Hi!'" in outcome.err
    assert "`octavo run starter 'Hi!'`" in outcome.err


def test_run_refuses_bad_sampling_before_loading(cli: Cli, tiny: Path) -> None:
    outcome = cli("run", "tiny", "Hello", "--top-p", "3")
    assert outcome.status == 1
    assert "top_p is 3" in outcome.err


def test_oversize_prompt_is_refused_with_counts(cli: Cli, tiny: Path) -> None:
    outcome = cli("run", "tiny", "Hello " * 5000)
    assert outcome.status == 1
    assert "tokens; the model has room for" in outcome.err


def test_unknown_architecture_is_refused(cli: Cli, tiny: Path) -> None:
    content = tiny.read_bytes().replace(b"llama", b"lxama")
    (tiny.parent / "other.gguf").write_bytes(content)
    outcome = cli("run", tiny.parent / "other.gguf", "Hello")
    assert outcome.status == 1
    assert "lxama" in outcome.err


def test_what_does_not_fit_is_refused_with_numbers(
    cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoMemory:
        total = 64 * 2**20
        available = 2**20

    monkeypatch.setattr("psutil.virtual_memory", NoMemory)
    outcome = cli("run", "tiny", "Hello")
    assert outcome.status == 1
    assert "free" in outcome.err
    assert "Needs" in outcome.err or "needs" in outcome.err


def test_generate_answers_in_order(cli: Cli, tiny: Path) -> None:
    requests: list[object] = [
        {"prompt": "hello", "max_tokens": 9, "temperature": 0, "ignore_eos": True},
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "seed": 1},
        {
            "prompt_token_ids": [1, 2, 3],
            "max_tokens": 2,
            "ignore_eos": True,
            "logprobs": 2,
            "prompt_logprobs": 0,
        },
        {"prompt": "hello", "n": 2, "max_tokens": 2, "ignore_eos": True},
        {"prompt": "hello", "max_tokens": -1},
        {"prompt": "hello", "wrong": 1},
        {"messages": "hello"},
        {"prompt": "a", "prompt_token_ids": [1]},
        {"prompt_token_ids": [10**9]},
    ]
    lines = [json.dumps(item) for item in requests] + ["{broken"]
    outcome = cli("generate", "--model", "tiny", "--json", stdin="\n".join(lines))
    assert outcome.status == 1
    results = [json.loads(line) for line in outcome.out.splitlines()]
    assert [result["index"] for result in results] == list(range(len(lines)))
    greedy, chat, logged, several, *refused = results
    assert len(greedy["output_token_ids"]) == 9
    assert greedy["finish_reason"] == "length"
    assert greedy["prompt_tokens"] > 0
    assert greedy["time_to_first_token_s"] > 0
    assert "logprobs" not in greedy
    assert chat["prompt_tokens"] > 3
    assert len(logged["logprobs"]) == 2
    assert len(logged["top_logprobs"][0]) == 2
    assert logged["prompt_logprobs"][0] is None
    assert len(logged["prompt_logprobs"]) == 3
    assert all(value < 0 for value in logged["prompt_logprobs"][1:])
    assert len(several["choices"]) == 2
    for result, word in zip(
        refused, ["max_tokens", "wrong", "messages", "one of", "token ids", "JSON"], strict=True
    ):
        assert word in result["error"]


def test_generate_writes_a_chat_and_a_raw_prompt_alike(cli: Cli, tiny: Path) -> None:
    """In raw prompts control tokens count; in messages' text they do not."""
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    requests: list[dict[str, object]] = [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"prompt": rendered},
        {"messages": [{"role": "user", "content": "<|im_end|>"}]},
        {"messages": [{"role": "user", "content": ""}]},
    ]
    lines = "\n".join(json.dumps({**item, "max_tokens": 1}) for item in requests)
    results = [
        json.loads(line)
        for line in cli("generate", "--model", "tiny", stdin=lines).out.splitlines()
    ]
    assert results[0]["prompt_tokens"] == results[1]["prompt_tokens"]
    assert results[2]["prompt_tokens"] > results[3]["prompt_tokens"] + 1


def test_bench(cli: Cli, tiny: Path) -> None:
    sizes = ("--prompt-tokens", "8", "--output-tokens", "4", "--repetitions", "1")
    outcome = cli("bench", "tiny", *sizes, "--streams", "1", "2", "--json")
    assert outcome.status == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert [row["streams"] for row in rows] == [1, 2]
    assert all(row["decode_tokens_per_second"] > 0 for row in rows)
    assert "tok/s" in cli("bench", "tiny", *sizes).out
    sampled = cli(
        "bench", "tiny", *sizes, "--temperature", "0.7", "--top-p", "0.95", "--top-k", "9"
    )
    assert "tok/s" in sampled.out
    assert cli("bench", "tiny", "--repetitions", "0").status == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--temperature", "-1"), "temperature"),
        (("--temperature", "1", "--top-p", "0"), "top_p"),
        (("--temperature", "1", "--top-k", "-2"), "top_k"),
        (("--temperature", "1", "--min-p", "1.5"), "min_p"),
        (("--top-p", "0.9"), "--temperature is 0, which takes the likeliest"),
        (
            ("--temperature", "1", "--against", "llama.cpp"),
            "--temperature is 1, but other programs",
        ),
    ],
)
def test_bench_refuses_sampling_that_cannot_be(
    cli: Cli, tiny: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = cli("bench", "tiny", *arguments)
    assert outcome.status == 1
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err


def test_no_display_is_said_and_the_terminal_used(
    cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    tiny.rename(tiny.with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    monkeypatch.setattr("octavo.cli.terminal.STARTER", "smollm2-135m-instruct.q4_1")
    monkeypatch.setattr("octavo.cli.chat.STARTER", "smollm2-135m-instruct.q4_1")
    outcome = cli(stdin="")
    assert outcome.status == 0, outcome.err
    assert "no display" in outcome.err
    assert SAMPLE_QUESTION in outcome.err
    assert outcome.out.strip()


def test_why_no_window(tmp_path: Path) -> None:
    assert why_no_window({"QT_QPA_PLATFORM": "offscreen"}, "linux") is None
    assert why_no_window({}, "darwin") is None
    assert "no display" in (why_no_window({}, "linux") or "")
    assert "':4077'" in (why_no_window({"DISPLAY": ":4077"}, "linux") or "")
    assert "does not answer" in (why_no_window({"DISPLAY": "nonsense"}, "linux") or "")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "wayland-9"))
        server.listen()
        environment = {"WAYLAND_DISPLAY": "wayland-9", "XDG_RUNTIME_DIR": str(tmp_path)}
        assert why_no_window(environment, "linux") is None


STUCK_ENGINE = """
import asyncio, sys, threading
import torch
from octavo.cli.main import leave_if_stuck
from octavo.engine.thread import EngineThread
from octavo.jobs import JobControl

torch.set_num_threads(1)
begun = threading.Event()

def make(control):
    matrix = torch.randn(400, 400)
    begun.set()
    while True:
        matrix @ matrix

async def main():
    thread = EngineThread(make)
    loading = asyncio.create_task(thread.load(JobControl()))
    await asyncio.to_thread(begun.wait)
    print("came back:", await thread.close(timeout_s=0.1))
    loading.cancel()

asyncio.run(main())
print("said before it left", end="")
leave_if_stuck(3)
sys.exit(4)
"""


def test_an_engine_that_does_not_come_back_aborts_nothing() -> None:
    command = [sys.executable, "-c", STUCK_ENGINE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (3, "")
    assert ended.stdout == "came back: False\nsaid before it left"
