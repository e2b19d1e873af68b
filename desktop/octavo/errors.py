"""Every error Octavo raises on purpose, on one page.

    OctavoError                      message, hint, and the numbers that belong to it
    ├── InvalidInputError            what the caller gave cannot be used
    │   ├── InvalidRequestError      a sampling value or request field
    │   ├── PromptTooLongError       prompt_tokens, limit_tokens
    │   └── InvalidSettingsError     the settings file
    ├── ModelError                   the model cannot be used
    │   ├── ModelNotFoundError       no such name or path
    │   ├── CheckpointError          damaged or incomplete file: path, tensor
    │   ├── UnsupportedModelError    architecture, quantisation or tokenizer we do not run
    │   └── ChatTemplateError        the model's own template fails
    ├── ResourceError                the machine cannot do it now
    │   ├── InsufficientMemoryError  needed_bytes, free_bytes
    │   └── StorageError             disk full, folder unreadable: path
    ├── DownloadError                the network, the index or a checksum
    ├── ChatStoreError               the conversations' database
    ├── EngineError                  the engine failed
    │   ├── EngineClosedError        no model is loaded, or it was unloaded meanwhile
    │   ├── DeviceMemoryError        needed_bytes, free_bytes: a step found no room on the device
    │   └── DeviceLostError          the device failed, and the engine has ended
    └── ServerError                  the endpoint for other programs cannot start
        ├── ServerStoppingError      it is being switched off
        ├── RequestCancelledError    somebody in Octavo ended the request
        ├── WrongKeyError            no API key, or not the right one
        └── ForeignSiteError         a Host or Origin header of another site

The window shows `message` and `hint`; the log gets the cause (`raise ... from`). Messages are whole
sentences with the numbers in them; hints say the next step.
"""

from pathlib import Path


class OctavoError(Exception):
    """Base of every error that is shown to a person."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidInputError(OctavoError):
    """What the caller gave cannot be used."""


class InvalidRequestError(InvalidInputError):
    """A field of a generation request is out of range or of the wrong type."""

    def __init__(self, message: str, *, hint: str = "", field: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class PromptTooLongError(InvalidInputError):
    """The prompt can never fit into the context or the KV cache."""

    def __init__(
        self, message: str, *, prompt_tokens: int, limit_tokens: int, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class InvalidSettingsError(InvalidInputError):
    """The settings file cannot be read or holds a value out of range."""


class ModelError(OctavoError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError):
    """No model of that name is in the library, and no file is at that path."""


class CheckpointError(ModelError):
    """A checkpoint file is damaged, truncated or inconsistent."""

    def __init__(
        self, message: str, *, hint: str = "", path: Path | None = None, tensor: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.tensor = tensor


class UnsupportedModelError(ModelError):
    """The architecture, quantisation or tokenizer is one Octavo does not run."""


class ChatTemplateError(ModelError):
    """The model's own chat template is broken or refuses the messages."""


class ResourceError(OctavoError):
    """The machine cannot do it now."""


class InsufficientMemoryError(ResourceError):
    """The model does not fit into the memory that is free."""

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class StorageError(ResourceError):
    """A file or folder cannot be read or written."""

    def __init__(self, message: str, *, hint: str = "", path: Path | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class DownloadError(OctavoError):
    """The network, the index or a checksum stands in the way of a download."""


class ChatStoreError(OctavoError):
    """The conversations' database cannot be read or written."""


class EngineError(OctavoError):
    """The engine failed while it ran requests."""


class EngineClosedError(EngineError):
    """No model is loaded, or it was unloaded while the request waited."""


class DeviceMemoryError(EngineError):
    """The device's memory ran out in the middle of a step; None: a number is not known."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        needed_bytes: int | None = None,
        free_bytes: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class DeviceLostError(EngineError):
    """The device failed for good: illegal access, uncorrectable memory, fallen off the bus."""


class ServerError(OctavoError):
    """The endpoint for other programs cannot start or cannot serve a request."""


class ServerStoppingError(ServerError):
    """The endpoint is being switched off."""


class RequestCancelledError(ServerError):
    """Somebody in Octavo ended the request."""


class WrongKeyError(ServerError):
    """The API key is missing or not the right one."""


class ForeignSiteError(ServerError):
    """The request comes through a foreign name or from another site's page."""
