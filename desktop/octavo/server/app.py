"""The routes. Imported when the server starts: FastAPI takes half a second."""

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from octavo import __version__
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import (
    DeviceLostError,
    EngineClosedError,
    EngineError,
    ModelNotFoundError,
    OctavoError,
)
from octavo.host import HostStatus, ModelHost
from octavo.hub.library import LibraryModel, ModelLibrary
from octavo.server.answer import Answer, GenerationCall
from octavo.server.board import RequestBoard
from octavo.server.error_table import error_body, kind_of, plain_error_body
from octavo.server.json_response import JSONResponse
from octavo.server.metrics import CONTENT_TYPE, metrics_text
from octavo.server.openai_requests import ChatCompletionBody, CompletionBody
from octavo.server.openai_responses import ChatShape, TextShape
from octavo.server.openai_schema import (
    ERRORS,
    ChatCompletion,
    ChatCompletionChunk,
    HealthShape,
    ModelEntry,
    ModelList,
    TextCompletion,
    TextCompletionChunk,
    answers,
    describe,
)

STARTER = "starter"


def make_app(host: ModelHost, library: ModelLibrary, board: RequestBoard) -> FastAPI:
    """The app behind `access.Door`."""
    app = FastAPI(
        title="Octavo",
        version=__version__,
        description="Models of this machine behind the OpenAI API.",
        docs_url=None,  # its page loads scripts from the internet
        redoc_url=None,
        strict_content_type=False,  # the Door checks origins; `curl -d` is to work as it stands
        responses=ERRORS,
    )
    app.openapi = functools.cache(functools.partial(describe, app))  # type: ignore[method-assign]
    created = int(time.time())
    _add_error_handlers(app)

    @app.get("/health", responses={200: {"model": HealthShape}, 503: {"model": HealthShape}})
    async def health() -> JSONResponse:
        """200 while a model answers, else 503; says which model and what it is doing."""
        state = host.state
        status = 200 if state.status is HostStatus.READY else 503
        model = None if state.model is None else state.model.name
        return JSONResponse({"status": state.status.value, "model": model}, status)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        text = metrics_text(host.stats, board.totals(), len(board.live()))
        return Response(text, headers={"content-type": CONTENT_TYPE})

    # Documented and not checked at each answer: hence `responses`, not a response model.
    @app.get("/v1/models", response_model=None, responses={200: {"model": ModelList}})
    async def list_models() -> dict[str, Any]:
        """The loaded model, the only one that answers; the list is empty while none is."""
        loaded = _loaded_model(host)
        models = [] if loaded is None else [_model_json(loaded, host, created)]
        return {"object": "list", "data": models}

    @app.get("/v1/models/{name:path}", response_model=None, responses={200: {"model": ModelEntry}})
    async def show_model(name: str) -> dict[str, Any]:
        """The loaded model; any other is not found, also one of the library."""
        return _model_json(await _require_model(name, host, library), host, created)

    @app.post(
        "/v1/chat/completions",
        response_class=Response,
        responses=answers(ChatCompletion, ChatCompletionChunk),
    )
    async def chat_completions(body: ChatCompletionBody) -> Response:
        """Answers messages with the loaded model's own chat template."""
        params = body.sampling_params()
        messages = body.template_messages()
        model = await _require_model(body.model, host, library)

        def encode() -> list[list[int]]:
            token_ids = host.encode_chat(messages)
            _check_unchanged(model, host)
            return [token_ids]

        return Answer(
            GenerationCall(
                model=model.name,
                encode=encode,
                sampling_params=params,
                shape=ChatShape(host.tokenizer),
                is_streamed=bool(body.stream),
                includes_usage=body.includes_usage,
            ),
            host,
            board,
        )

    @app.post(
        "/v1/completions",
        response_class=Response,
        responses=answers(TextCompletion, TextCompletionChunk),
    )
    async def completions(body: CompletionBody) -> Response:
        """Continues text or token ids as they stand."""
        params = body.sampling_params()
        prompts = body.prompts()
        model = await _require_model(body.model, host, library)
        tokenizer = host.tokenizer
        shape = TextShape(tokenizer)

        def encode() -> list[list[int]]:
            token_ids = [_encode_prompt(tokenizer, prompt) for prompt in prompts]
            _check_unchanged(model, host)
            if body.echo:
                shape.echo(prompts, token_ids, num_choices=params.n)
            return token_ids

        return Answer(
            GenerationCall(
                model=model.name,
                encode=encode,
                sampling_params=params,
                shape=shape,
                is_streamed=bool(body.stream),
                includes_usage=body.includes_usage,
            ),
            host,
            board,
        )

    return app


def _encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_bos=tokenizer.adds_bos, parse_special=True)
    return list(prompt)


def _loaded_model(host: ModelHost) -> LibraryModel | None:
    state = host.state
    return state.model if state.status is HostStatus.READY else None


async def _require_model(name: str | None, host: ModelHost, library: ModelLibrary) -> LibraryModel:
    """The loaded model, if that is the one that is meant.

    Raises:
        EngineClosedError: none is loaded.
        DeviceLostError: the engine has ended because its device failed.
        ModelNotFoundError: another one is meant, in the library or unknown.
    """
    state = host.state
    loaded = _loaded_model(host)
    if loaded is None:
        if state.status is HostStatus.LOADING and state.model is not None:
            raise EngineClosedError(f"{state.model.name} is being loaded.", hint="Try again soon.")
        if isinstance(state.error, DeviceLostError):
            raise state.error
        raise EngineClosedError("No model is loaded.", hint="Load one in Octavo.")
    if name is None or name.lower() in (loaded.name, loaded.title.lower()):
        return loaded
    if name.lower() == STARTER and await asyncio.to_thread(_is_starter, loaded, library):
        return loaded
    # By name only: a path would tell clients which files there are.
    known = {model.name for model in await asyncio.to_thread(library.scan)}
    hint = f"Loaded is {loaded.name!r}; ask for that, or load the other in Octavo."
    if name.lower() in known:
        raise ModelNotFoundError(f"The model {name!r} is in the library but not loaded.", hint=hint)
    raise ModelNotFoundError(f"There is no model {name[:200]!r}.", hint=hint)


def _is_starter(model: LibraryModel, library: ModelLibrary) -> bool:
    try:
        return library.find(STARTER).path == model.path
    except ModelNotFoundError:
        return False


def _check_unchanged(model: LibraryModel, host: ModelHost) -> None:
    """Token ids of one model mean nothing to another."""
    loaded = _loaded_model(host)
    if loaded is None or loaded.path != model.path:
        raise EngineClosedError(
            f"{model.name} was unloaded meanwhile.", hint="Load it and try again."
        )


def _model_json(model: LibraryModel, host: ModelHost, created: int) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "octavo",
        "max_model_len": host.context_limit_tokens,
    }


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(OctavoError)
    async def ours(_request: Request, error: OctavoError) -> JSONResponse:
        return JSONResponse(error_body(error), kind_of(error).status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            reason, character = first["ctx"]["error"], first["loc"][-1] + 1
            message = f"The body is no JSON: at character {character}, {reason}."
            return JSONResponse(plain_error_body(400, message, "invalid_json"), 400)
        # A field that may be several types is named by its place without the type's name.
        place = [str(part) for part in first["loc"] if part != "body"]
        param = ".".join(place) or None
        message = f"{param}: {first['msg']}." if param else f"The body is no use: {first['msg']}."
        body = plain_error_body(400, message, "invalid_value")
        body["error"]["param"] = place[0] if place else None
        return JSONResponse(body, 400)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse(
            plain_error_body(error.status_code, message), error.status_code, headers=error.headers
        )

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> JSONResponse:
        wrapped = EngineError(
            f"The request failed: {type(error).__name__}.", hint="Octavo's log has the details."
        )
        return JSONResponse(error_body(wrapped), 500)
