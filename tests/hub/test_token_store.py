"""The token: keyring or a file for its owner alone, and never in a message."""

import os
import stat
from pathlib import Path

import pytest
from keyring.errors import KeyringError, NoKeyringError

from octavo.errors import InvalidInputError, StorageError
from octavo.hub.token_store import Keyring, TokenPlace, TokenStore

TOKEN = "hf_very_secret"


class FakeKeyring:
    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}
        self.error: Exception | None = None

    def get_password(self, service: str, username: str) -> str | None:
        self._fail()
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._fail()
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._fail()
        del self.held[service, username]

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class ForgetfulKeyring(FakeKeyring):
    def set_password(self, service: str, username: str, password: str) -> None:
        pass


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "hub-token"


def make_store(file: Path, keyring: Keyring) -> TokenStore:
    return TokenStore(file, keyring=lambda: keyring)


def test_the_keyring_keeps_it_and_no_file_does(file: Path) -> None:
    keyring = FakeKeyring()
    store = make_store(file, keyring)
    assert (store.read(), store.place) == ("", TokenPlace.NOWHERE)
    store.write(f"  {TOKEN}\n")
    assert (store.read(), store.place) == (TOKEN, TokenPlace.KEYRING)
    assert not file.exists()
    store.forget()
    assert (store.read(), keyring.held) == ("", {})


@pytest.mark.parametrize("error", [KeyringError("locked"), NoKeyringError("none"), OSError("bus")])
def test_without_a_keyring_a_file_for_its_owner_alone(file: Path, error: Exception) -> None:
    keyring = FakeKeyring()
    keyring.error = error
    store = make_store(file, keyring)
    store.write(TOKEN)
    assert (store.read(), store.place) == (TOKEN, TokenPlace.FILE)
    if os.name != "nt":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    store.forget()
    assert not file.exists()
    store.forget()


def test_a_keyring_that_forgets_is_none(file: Path) -> None:
    store = make_store(file, ForgetfulKeyring())
    store.write(TOKEN)
    assert store.place is TokenPlace.FILE


def test_a_keyring_that_comes_later_takes_over_from_the_file(file: Path) -> None:
    keyring = FakeKeyring()
    keyring.error = NoKeyringError("none")
    store = make_store(file, keyring)
    store.write("hf_old")
    keyring.error = None
    assert store.read() == "hf_old"
    store.write(TOKEN)
    assert (store.read(), file.exists()) == (TOKEN, False)


def test_two_installations_do_not_share_a_token(tmp_path: Path) -> None:
    keyring = FakeKeyring()
    make_store(tmp_path / "one" / "hub-token", keyring).write(TOKEN)
    assert make_store(tmp_path / "two" / "hub-token", keyring).read() == ""


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_a_file_that_others_can_read_is_closed(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(TOKEN)
    file.chmod(0o644)
    assert make_store(file, ForgetfulKeyring()).read() == TOKEN
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_environment_goes_before_both(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(file, FakeKeyring())
    store.write("hf_kept")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (store.read(), store.place) == (TOKEN, TokenPlace.ENVIRONMENT)
    store.forget()
    assert store.read() == TOKEN


def test_no_message_and_no_repr_holds_the_token(file: Path, tmp_path: Path) -> None:
    store = make_store(file, ForgetfulKeyring())
    store.write(TOKEN)
    assert TOKEN not in repr(store)
    for bad in (f"{TOKEN} x", f"{TOKEN}\n{TOKEN}", f"{TOKEN}ü"):
        with pytest.raises(InvalidInputError) as refused:
            store.write(bad)
        assert TOKEN not in str(refused.value)
    with pytest.raises(InvalidInputError, match="no token to keep"):
        store.write(" ")
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError) as unwritable:
        make_store(tmp_path / "taken" / "hub-token", ForgetfulKeyring()).write(TOKEN)
    assert TOKEN not in str(unwritable.value)


def test_a_keyring_that_does_not_let_go_is_said(file: Path) -> None:
    class Clinging(FakeKeyring):
        def delete_password(self, service: str, username: str) -> None:
            raise KeyringError("no")

    store = make_store(file, Clinging())
    store.write(TOKEN)
    with pytest.raises(StorageError, match="does not let go"):
        store.forget()
