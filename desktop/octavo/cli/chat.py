"""`octavo run`: one answer, or a conversation, streamed to the terminal."""

import argparse
import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncGenerator

from octavo.chats.message import Message, MessageStatus
from octavo.chats.session import ChatSession
from octavo.chats.store import IN_MEMORY, ChatStore
from octavo.cli.parsers.manual import EXIT_FAILED
from octavo.cli.terminal import STARTER, find_model, loaded, make_core, read_stdin
from octavo.core import Core
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import InvalidInputError, ModelNotFoundError
from octavo.host import HostStatus
from octavo.hub.library import LibraryModel
from octavo.paths import AppPaths

HELP = """\
/clear    start over        /bye or Ctrl-D   leave
Ctrl-C    stop the answer   \"\"\"              begin and end a message of several lines"""


def run_verb(options: argparse.Namespace, paths: AppPaths) -> int:
    """`octavo run [MODEL] [PROMPT]`."""
    core = make_core(options, paths)
    name, prompt = _model_and_prompt(core, options.model, options.prompt)
    piped = read_stdin()
    if piped is not None and piped.strip():
        prompt = f"{prompt}\n\n{piped}" if prompt else piped
    if prompt is None and piped is not None:
        raise InvalidInputError(
            "There is no prompt: no argument, and standard input is empty.",
            hint='Try: octavo run starter "Why is the sky blue?"',
        )
    model = find_model(core, name)
    if prompt is None:
        return asyncio.run(_converse(core, model, options))
    return asyncio.run(_answer(core, model, options, prompt))


def converse(options: argparse.Namespace, paths: AppPaths) -> int:
    """A conversation with the starter model: what the window does where there is no display."""
    core = make_core(options, paths)
    return asyncio.run(_converse(core, find_model(core, STARTER), options))


def answer_once(options: argparse.Namespace, paths: AppPaths, prompt: str) -> int:
    """One answer of the starter model."""
    core = make_core(options, paths)
    return asyncio.run(_answer(core, find_model(core, STARTER), options, prompt))


def _model_and_prompt(core: Core, first: str | None, second: str | None) -> tuple[str, str | None]:
    """One argument is a model if there is one of that name, else a prompt if it has a space."""
    if first is None:
        return STARTER, None
    if second is not None or first == STARTER:
        return first, second
    try:
        core.library.find(first)
    except ModelNotFoundError as error:
        if any(character.isspace() for character in first):
            return STARTER, first
        say = f"To say it to the starter model: `octavo run {STARTER} {shlex.quote(first)}`."
        raise ModelNotFoundError(error.message, hint=f"{error.hint} {say}".strip()) from error
    return first, None


def _sampling(core: Core, options: argparse.Namespace) -> SamplingParams:
    """The settings' values with the command line's on top."""
    chat = core.settings.value.chat
    values = {
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "max_tokens": chat.max_tokens,
        "seed": chat.seed,
    }
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
    for name in names:
        if (value := getattr(options, name, None)) is not None:
            values[name] = value
    return SamplingParams.from_mapping(values)


def _new_session(core: Core, store: ChatStore, options: argparse.Namespace) -> ChatSession:
    system = getattr(options, "system", None)
    conversation = store.create_conversation(
        system_prompt=core.settings.value.chat.system_prompt if system is None else system
    )
    return ChatSession(store, core.host, conversation.id)


async def _answer(core: Core, model: LibraryModel, options: argparse.Namespace, prompt: str) -> int:
    sampling = _sampling(core, options)
    with ChatStore(IN_MEMORY) as store:
        async with loaded(core, model):
            session = _new_session(core, store, options)
            final = await _print_stream(session.send(prompt, sampling))
    return _report(final)


async def _converse(core: Core, model: LibraryModel, options: argparse.Namespace) -> int:
    sampling = _sampling(core, options)
    with ChatStore(IN_MEMORY) as store:
        async with loaded(core, model):
            print(f"{model.title} · /help for help", file=sys.stderr)
            session = _new_session(core, store, options)
            while (text := await asyncio.to_thread(_ask)) is not None:
                match text.strip():
                    case "":
                        continue
                    case "/bye" | "/exit" | "/quit":
                        break
                    case "/help" | "/?":
                        print(HELP, file=sys.stderr)
                    case "/clear":
                        session = _new_session(core, store, options)
                        print("A new conversation.", file=sys.stderr)
                    case _:
                        _report(await _print_stream(session.send(text, sampling)))
                if core.host.state.status is HostStatus.FAILED:  # the engine has ended
                    return EXIT_FAILED
    return 0


def _ask() -> str | None:
    '''One message; lines between two lines of """ belong together. None: end of input.'''
    try:
        line = input("› ")
        if line.strip() != '"""':
            return line
        lines: list[str] = []
        while (line := input("… ")).strip() != '"""':
            lines.append(line)
        return "\n".join(lines)
    except EOFError:
        print(file=sys.stderr)
        return None


async def _print_stream(updates: AsyncGenerator[Message, None]) -> Message | None:
    """Prints the answer as it grows; Ctrl-C stops it. Returns the message as it ended."""
    latest: Message | None = None

    async def stream() -> None:
        nonlocal latest
        shown = 0
        async with contextlib.aclosing(updates) as messages:
            async for message in messages:
                print(message.content[shown:], end="", flush=True)
                shown = len(message.content)
                latest = message

    task = asyncio.ensure_future(stream())
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError, ValueError):  # Windows: Ctrl-C ends the program
        loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if asyncio.current_task() is not None and task.cancelled():
            print("  [stopped]", end="", file=sys.stderr)
        else:
            raise
    finally:
        with contextlib.suppress(NotImplementedError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)
        print(flush=True)
    return latest


def _report(message: Message | None) -> int:
    """Says on standard error how fast the answer was, or why it failed."""
    if message is None:
        return 0
    if message.status is MessageStatus.FAILED:
        print(f"octavo: {message.error}", file=sys.stderr)
        return 1
    if message.dropped_messages:
        print(
            f"{message.dropped_messages} older messages were left out to fit the context.",
            file=sys.stderr,
        )
    metrics = message.metrics
    if metrics is not None and sys.stderr.isatty():
        rate = metrics.tokens_per_second
        speed = "" if rate is None else f"{rate:.1f} tok/s · "
        print(
            f"{speed}{metrics.time_to_first_token_s:.2f} s to the first token ·"
            f" {metrics.output_tokens} tokens",
            file=sys.stderr,
        )
    return 0
