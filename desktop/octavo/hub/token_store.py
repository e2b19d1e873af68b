"""The hub's token: in the system's keyring, else in a file that only its owner may read."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from octavo.errors import InvalidInputError, StorageError
from octavo.hub.disk import storage_error

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105  (a name, not a secret)
_SERVICE = "Octavo: token of the model hub"
_OWNER_ONLY = 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class TokenPlace(StrEnum):
    """Where the token comes from."""

    NOWHERE = ""
    ENVIRONMENT = "environment"
    KEYRING = "keyring"
    FILE = "file"


class Keyring(Protocol):
    """What is used of the system's keyring; every call may block and raise a KeyringError."""

    def get_password(self, service: str, username: str, /) -> str | None: ...

    def set_password(self, service: str, username: str, password: str, /) -> None: ...

    def delete_password(self, service: str, username: str, /) -> None: ...


def system_keyring() -> Keyring:
    """The keyring that this desktop has; may take a second, and raises a KeyringError or others."""
    import keyring

    return keyring.get_keyring()


class TokenStore:
    """One token. Every call may wait for the system's keyring: call it on a worker."""

    def __init__(self, file: Path, *, keyring: Callable[[], Keyring] = system_keyring) -> None:
        """Args:
        file: where the token lies if there is no keyring.
        """
        self._file = file
        self._keyring = keyring
        # Two installations of one person, as of one kept on a stick, do not share a token.
        self._username = str(file.absolute())

    def __repr__(self) -> str:
        return f"TokenStore({str(self._file)!r})"

    def read(self) -> str:
        """The token that counts: $HF_TOKEN, else what is kept; empty if there is none.

        Raises:
            StorageError: the token's file is there and cannot be read.
            InvalidInputError: it holds what cannot be a token.
        """
        return self._find()[0]

    @property
    def place(self) -> TokenPlace:
        """Where `read` finds the token; raises as it does."""
        return self._find()[1]

    def write(self, token: str) -> None:
        """Keeps a token in place of the one before.

        Raises:
            InvalidInputError: it cannot be a token.
            StorageError: neither the keyring nor the file can be written.
        """
        token = _checked(token, "The token")
        if not token:
            raise InvalidInputError("There is no token to keep.", hint="Paste it into the field.")
        if self._write_keyring(token):
            self._remove_file()
        else:
            self._write_file(token)

    def forget(self) -> None:
        """Deletes the token wherever it is kept; $HF_TOKEN is not ours to delete.

        Raises:
            StorageError: it is still there.
        """
        with contextlib.suppress(*_keyring_errors()):
            keyring = self._keyring()
            if keyring.get_password(_SERVICE, self._username) is not None:
                keyring.delete_password(_SERVICE, self._username)
        self._remove_file()
        if self._read_keyring():
            raise StorageError(
                "The keyring does not let go of the token.",
                hint="Delete it there, or revoke it on the hub's page.",
            )

    def _find(self) -> tuple[str, TokenPlace]:
        token = _checked(os.environ.get(TOKEN_VARIABLE, ""), f"${TOKEN_VARIABLE}")
        if token:
            return token, TokenPlace.ENVIRONMENT
        if token := self._read_keyring():
            return _checked(token, "The token in the keyring"), TokenPlace.KEYRING
        if token := self._read_file():
            return token, TokenPlace.FILE
        return "", TokenPlace.NOWHERE

    def _read_keyring(self) -> str:
        with contextlib.suppress(*_keyring_errors()):
            return self._keyring().get_password(_SERVICE, self._username) or ""
        return ""

    def _write_keyring(self, token: str) -> bool:
        """False where there is no keyring, or none that keeps anything."""
        with contextlib.suppress(*_keyring_errors()):
            keyring = self._keyring()
            keyring.set_password(_SERVICE, self._username, token)
            # Some that stand in for a missing one forget without a word.
            return keyring.get_password(_SERVICE, self._username) == token
        return False

    def _read_file(self) -> str:
        try:
            if os.name != "nt" and self._file.stat().st_mode & _OTHERS:
                self._file.chmod(_OWNER_ONLY)
            text = self._file.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise StorageError(
                f"The hub's token in {self._file} cannot be read: {error.strerror}.",
                hint="Check who owns the file, or delete it and enter the token again.",
                path=self._file,
            ) from error
        return _checked(text, f"The file {self._file}")

    def _write_file(self, token: str) -> None:
        temporary = ""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # mkstemp's files are for their owner alone from the first moment.
            handle, temporary = tempfile.mkstemp(
                prefix=f".{self._file.name}.", dir=self._file.parent
            )
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(token)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise storage_error(error, self._file) from error

    def _remove_file(self) -> None:
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"The hub's token in {self._file} cannot be deleted: {error.strerror}.",
                hint="Delete the file yourself.",
                path=self._file,
            ) from error


def _checked(token: str, source: str) -> str:
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        # The value stays out of the message: messages go into the log and into bug reports.
        raise InvalidInputError(f"{source} holds characters that no token has.")
    return token


def _keyring_errors() -> tuple[type[Exception], ...]:
    """What keyrings raise: their own errors, and what slips through from the desktop's services."""
    from keyring.errors import KeyringError

    return (KeyringError, ImportError, OSError, RuntimeError)
