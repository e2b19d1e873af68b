"""The one table from class of error to HTTP status, and the error in the OpenAI API's shape."""

from dataclasses import dataclass
from typing import Any

from octavo.errors import (
    ChatTemplateError,
    DeviceLostError,
    DeviceMemoryError,
    EngineClosedError,
    EngineError,
    ForeignSiteError,
    InsufficientMemoryError,
    InvalidInputError,
    InvalidRequestError,
    InvalidSettingsError,
    ModelError,
    ModelNotFoundError,
    OctavoError,
    PromptTooLongError,
    RequestCancelledError,
    ServerStoppingError,
    WrongKeyError,
)


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How a class of errors is answered."""

    status: int
    type: str
    code: str | None = None


_BAD_REQUEST = "invalid_request_error"
_FAILED = "server_error"

ERROR_TABLE: dict[type[OctavoError], ErrorKind] = {
    OctavoError: ErrorKind(500, _FAILED),
    InvalidInputError: ErrorKind(400, _BAD_REQUEST),
    InvalidRequestError: ErrorKind(400, _BAD_REQUEST, "invalid_value"),
    PromptTooLongError: ErrorKind(400, _BAD_REQUEST, "context_length_exceeded"),
    InvalidSettingsError: ErrorKind(500, _FAILED),
    ModelError: ErrorKind(500, _FAILED),
    ModelNotFoundError: ErrorKind(404, _BAD_REQUEST, "model_not_found"),
    ChatTemplateError: ErrorKind(400, _BAD_REQUEST, "chat_template"),
    InsufficientMemoryError: ErrorKind(503, _FAILED, "out_of_memory"),
    EngineError: ErrorKind(500, _FAILED, "engine_failed"),
    EngineClosedError: ErrorKind(503, _FAILED, "model_not_loaded"),
    DeviceMemoryError: ErrorKind(503, _FAILED, "out_of_memory"),
    DeviceLostError: ErrorKind(503, _FAILED, "device_lost"),
    WrongKeyError: ErrorKind(401, "authentication_error", "invalid_api_key"),
    ForeignSiteError: ErrorKind(403, "permission_error", "foreign_site"),
    # 499 as proxies use it; a status from 500 up would make clients try again.
    RequestCancelledError: ErrorKind(499, "cancelled", "request_cancelled"),
    ServerStoppingError: ErrorKind(503, _FAILED, "server_stopping"),
}
"""A class that is not listed counts as its nearest listed base."""


def kind_of(error: OctavoError) -> ErrorKind:
    """The nearest entry of the table."""
    return next(ERROR_TABLE[base] for base in type(error).__mro__ if base in ERROR_TABLE)


def error_body(error: OctavoError) -> dict[str, Any]:
    """`{"error": {...}}` as OpenAI's clients read it, with our numbers beside."""
    kind = kind_of(error)
    body: dict[str, Any] = {
        "message": str(error),
        "type": kind.type,
        "param": error.field if isinstance(error, InvalidRequestError) else None,
        "code": kind.code,
    }
    if isinstance(error, PromptTooLongError):
        body |= {"prompt_tokens": error.prompt_tokens, "limit_tokens": error.limit_tokens}
    return {"error": body}


def plain_error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """The same shape for what the HTTP library refuses: unknown route, wrong method."""
    kind = _BAD_REQUEST if status < 500 else _FAILED
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
