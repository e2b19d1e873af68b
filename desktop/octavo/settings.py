"""What a person may set, kept as TOML: only what differs from the default is on disk.

Read in `core` and on the settings and server pages; other parts get the values they need, never
`Settings`.
"""

import contextlib
import dataclasses
import math
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from octavo.errors import InvalidSettingsError, StorageError
from octavo.events import Event

FORMAT_VERSION = 1
THEMES = ("auto", "light", "dark")
DTYPES = ("auto", "float32", "bfloat16", "float16")
WEIGHTS = ("auto", "packed", "unpacked")
CPU_KERNELS = ("auto", "off")
KV_DTYPES = ("auto", "float16", "bfloat16", "float8_e4m3", "int8")
FONT_SCALE_RANGE = (0.5, 3.0)
PORT_RANGE = (1, 65535)
API_KEY_PATTERN = re.compile(r"[!-~]*")
DEVICE_PATTERN = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
ORIGIN_PATTERN = re.compile(r"https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?")
WEB_ADDRESS_PATTERN = re.compile(r"(https?://[^\s/@]+(/[^\s@]*)?)?")
PROXY_PATTERN = re.compile(r"(https?://\S+)?")


@dataclass(frozen=True, slots=True)
class Appearance:
    """How the window looks."""

    theme: str = "auto"
    """`auto` follows the desktop; see `THEMES`."""
    font_scale: float = 1.0
    """Factor on every font size; see `FONT_SCALE_RANGE`."""
    shows_monitor_strip: bool = True
    """Whether memory and rate stand at the window's lower edge on every page."""

    def __post_init__(self) -> None:
        _check_choice("theme", self.theme, THEMES)
        _check_number("font_scale", self.font_scale, *FONT_SCALE_RANGE)
        _check_switch("shows_monitor_strip", self.shows_monitor_strip)


@dataclass(frozen=True, slots=True)
class Storage:
    """Where models lie on this machine."""

    models_dir: str = ""
    """Folder that downloads go to; empty: `AppPaths.models_dir`."""
    extra_folders: tuple[str, ...] = ()
    """Further folders that are searched for models and never written to."""
    shows_hub_cache: bool = True
    """Whether models that other programs put into the hub's own cache are listed, too."""

    def __post_init__(self) -> None:
        _check_text("models_dir", self.models_dir)
        if not isinstance(self.extra_folders, tuple):
            raise InvalidSettingsError(
                f"extra_folders must be a list of folders, not {self.extra_folders!r}."
            )
        for folder in self.extra_folders:
            _check_text("extra_folders", folder)
            if not folder:
                raise InvalidSettingsError("extra_folders holds an empty folder name.")
        _check_switch("shows_hub_cache", self.shows_hub_cache)


@dataclass(frozen=True, slots=True)
class Hub:
    """How Octavo reaches the hub; the token is a secret and lies elsewhere (`hub.token_store`)."""

    endpoint: str = ""
    """A mirror; empty: $HF_ENDPOINT, else the hub itself."""
    proxy: str = field(default="", repr=False)
    """Empty: the environment's. May hold a login."""
    is_offline: bool = False
    """Nothing is sent to any hub."""

    def __post_init__(self) -> None:
        _check_text("endpoint", self.endpoint)
        if not WEB_ADDRESS_PATTERN.fullmatch(self.endpoint):
            raise InvalidSettingsError(
                f"endpoint is {self.endpoint!r}; it must be a web address such as"
                " https://huggingface.co, or empty."
            )
        # The value stays out of the message: it may hold a password.
        if not isinstance(self.proxy, str) or not PROXY_PATTERN.fullmatch(self.proxy):
            raise InvalidSettingsError(
                "proxy must be an address such as http://proxy.example.org:8080, or empty."
            )
        _check_switch("is_offline", self.is_offline)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The fields of `EngineConfig` that a person may set, under the same names."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: str = "auto"
    """Of weights and activations; see `DTYPES`."""
    weights: str = "auto"
    """How matrices lie in memory, `packed` as stored, `unpacked` or `auto`; see `WEIGHTS`."""
    kv_dtype: str = "auto"
    """Of cached keys and values, `auto` as weights; see `KV_DTYPES`."""
    max_num_seqs: int = 64
    """Sequences that run at the same time."""
    max_num_batched_tokens: int | None = None
    """Token budget of one step; longer prompts are prefilled in chunks of it. None: what suits the
    device."""
    max_model_len: int | None = None
    """Longest sequence in tokens; None: what the model was trained for."""
    enable_prefix_caching: bool = True
    """Whether prompts that begin alike share their cached blocks."""
    cpu_kernels: str = "auto"
    """Whether compiled kernels run models on the CPU; see `CPU_KERNELS`."""
    cpu_threads: int | None = None
    """Threads of those kernels; None: one for each core."""

    def __post_init__(self) -> None:
        _check_text("device", self.device)
        if not DEVICE_PATTERN.fullmatch(self.device):
            raise InvalidSettingsError(
                f"device is {self.device!r}; it must be auto, cpu, cuda or cuda:N."
            )
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("weights", self.weights, WEIGHTS)
        _check_choice("kv_dtype", self.kv_dtype, KV_DTYPES)
        _check_integer("max_num_seqs", self.max_num_seqs, 1)
        if self.max_num_batched_tokens is not None:
            _check_integer("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        if self.max_model_len is not None:
            _check_integer("max_model_len", self.max_model_len, 1)
        _check_switch("enable_prefix_caching", self.enable_prefix_caching)
        _check_choice("cpu_kernels", self.cpu_kernels, CPU_KERNELS)
        if self.cpu_threads is not None:
            _check_integer("cpu_threads", self.cpu_threads, 1)


@dataclass(frozen=True, slots=True)
class ChatDefaults:
    """What a new conversation begins with."""

    system_prompt: str = ""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.95
    max_tokens: int | None = None
    """Tokens of one answer at most; None: until the context is full."""
    seed: int | None = None
    """None: a fresh one for every answer."""
    last_model: str = ""
    """Library name of the model that was used last; empty: none yet."""

    def __post_init__(self) -> None:
        _check_text("system_prompt", self.system_prompt)
        _check_number("temperature", self.temperature, 0.0, 100.0)
        _check_number("top_p", self.top_p, 0.0, 1.0, open_minimum=True)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1)
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), 2**63 - 1)
        _check_text("last_model", self.last_model)


@dataclass(frozen=True, slots=True)
class Server:
    """The endpoint for other programs on this machine."""

    port: int = 8000
    """The next free one is taken where another program holds it; see `PORT_RANGE`."""
    api_key: str = field(default="", repr=False)
    """What clients must send; empty: nothing."""
    is_on: bool = False
    """Whether it is switched on when Octavo starts: as the person left it."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may call the endpoint from a browser, as `https://app.example.org`."""

    def __post_init__(self) -> None:
        _check_integer("port", self.port, *PORT_RANGE)
        _check_switch("is_on", self.is_on)
        if not isinstance(self.allowed_origins, tuple):
            raise InvalidSettingsError(
                f"allowed_origins must be a list of web addresses, not {self.allowed_origins!r}."
            )
        for origin in self.allowed_origins:
            if not isinstance(origin, str) or not ORIGIN_PATTERN.fullmatch(origin):
                raise InvalidSettingsError(
                    f"allowed_origins holds {origin!r}; it must be like https://app.example.org."
                )
        # The value stays out of the message: messages go into the log and into bug reports.
        if not isinstance(self.api_key, str) or not API_KEY_PATTERN.fullmatch(self.api_key):
            raise InvalidSettingsError(
                "api_key must be text of ASCII letters, digits and signs without spaces: it travels"
                " in a header of HTTP."
            )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; a section of the file each.

    Raises:
        InvalidSettingsError: a value is of the wrong type or out of range, in any section.
    """

    appearance: Appearance = field(default_factory=Appearance)
    storage: Storage = field(default_factory=Storage)
    hub: Hub = field(default_factory=Hub)
    engine: EngineSettings = field(default_factory=EngineSettings)
    chat: ChatDefaults = field(default_factory=ChatDefaults)
    server: Server = field(default_factory=Server)


class SettingsStore:
    """The settings in memory and their file.

    A file that cannot be read is never overwritten: the defaults hold, every save is refused, and
    `reset` puts the file aside. Only fields changed here are written, so that what an editor or a
    second Octavo wrote meanwhile stays; comments in the file do not survive a save.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.value = Settings()
        self.changed: Event[Settings] = Event()

    @property
    def path(self) -> Path:
        return self._path

    def load(self) -> Settings:
        """Reads the file; where there is none, the defaults hold.

        Raises:
            InvalidSettingsError: the file is broken or holds a value out of range; `value` stays.
            StorageError: the file is there and cannot be read; `value` stays.
        """
        self._set(self._read()[1])
        return self.value

    def update(
        self,
        *,
        appearance: Appearance | None = None,
        storage: Storage | None = None,
        hub: Hub | None = None,
        engine: EngineSettings | None = None,
        chat: ChatDefaults | None = None,
        server: Server | None = None,
    ) -> None:
        """Saves with these sections replaced; raises as `save`."""
        self.save(
            Settings(
                appearance=appearance or self.value.appearance,
                storage=storage or self.value.storage,
                hub=hub or self.value.hub,
                engine=engine or self.value.engine,
                chat=chat or self.value.chat,
                server=server or self.value.server,
            )
        )

    def save(self, settings: Settings) -> None:
        """Takes the settings over and writes what changed; they hold for this run in any case.

        Raises:
            InvalidSettingsError: the file on disk is broken and would be lost; see `reset`.
            StorageError: the file cannot be written, as on a full disk.
        """
        changes = _differences(settings, self.value)
        try:
            document, on_disk = self._read()
        except (InvalidSettingsError, StorageError):
            self._set(settings)
            raise
        merged = _replace_fields(on_disk, changes)
        self._set(merged)
        _store_differences(document, merged)
        self._write(document)

    def reset(self) -> Path | None:
        """Goes back to the defaults and keeps the old file as a `.bak` beside it.

        Returns:
            Where the old file is now, or None where there was none.

        Raises:
            StorageError: the file cannot be moved or written.
        """
        path = _target_of(self._path)
        backup = None
        if path.exists():
            backup = _unused_backup_name(path)
            try:
                path.rename(backup)
            except OSError as error:
                raise _storage_error("put aside", path, error) from error
        self._set(Settings())
        self._write({"version": FORMAT_VERSION})
        return backup

    def _set(self, settings: Settings) -> None:
        if settings != self.value:
            self.value = settings
            self.changed.emit(settings)

    def _read(self) -> tuple[dict[str, Any], Settings]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {"version": FORMAT_VERSION}, Settings()
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise self._invalid(f"it is not UTF-8 (at line {line})") from error
        except OSError as error:
            raise _storage_error("read", self._path, error) from error
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise self._invalid(str(error).rstrip(".")) from error
        version = document.get("version", FORMAT_VERSION)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise self._invalid(f"version is {version!r} (at line {_line_of(text, '', 'version')})")
        if version > FORMAT_VERSION:
            raise InvalidSettingsError(
                f"The settings file {self._path} was written by a newer Octavo (format {version};"
                f" this one knows {FORMAT_VERSION}).",
                hint="The defaults hold and the file is left as it is. Update Octavo, or reset the"
                " settings.",
            )
        sections: dict[str, Any] = {}
        for section in dataclasses.fields(Settings):
            default = section.default_factory
            assert default is not dataclasses.MISSING
            sections[section.name] = self._read_section(document, text, section.name, default())
        return document, Settings(**sections)

    def _read_section(
        self, document: Mapping[str, Any], text: str, name: str, section: Any
    ) -> object:
        """Applies the fields one by one, so that an error names the line of its own."""
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise self._invalid(
                f"{name} must be a section, not a value (at line {_line_of(text, '', name)})"
            )
        for item in dataclasses.fields(section):
            if item.name not in table:
                continue
            value = table[item.name]
            if isinstance(value, list):
                value = tuple(value)
            elif isinstance(value, int) and item.type is float and not isinstance(value, bool):
                value = float(value)
            try:
                section = dataclasses.replace(section, **{item.name: value})
            except InvalidSettingsError as error:
                line = _line_of(text, name, item.name)
                where = f"at line {line}" if line else f"in section [{name}]"
                raise self._invalid(f"{error.message.rstrip('.')} ({where})") from error
        return section

    def _invalid(self, cause: str) -> InvalidSettingsError:
        return InvalidSettingsError(
            f"The settings file {self._path} cannot be used: {cause}.",
            hint="The defaults hold and the file is left as it is. Correct that line, or reset the"
            " settings, which keeps a copy.",
        )

    def _write(self, document: Mapping[str, Any]) -> None:
        path = _target_of(self._path)
        temporary = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "wb", dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
            ) as file:
                temporary = file.name
                file.write(tomli_w.dumps(document).encode())
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except OSError as error:
            if temporary:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink(missing_ok=True)
            raise _storage_error("written", path, error) from error


def _target_of(path: Path) -> Path:
    """Follows a link, as people who keep their settings in a repository have one here."""
    return Path(os.path.realpath(path))


def _unused_backup_name(path: Path) -> Path:
    backup = path.with_name(f"{path.name}.bak")
    number = 1
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.{number}.bak")
    return backup


def _storage_error(action: str, path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The settings file {path} cannot be {action}: {error.strerror or error}.",
        hint="The settings hold until Octavo is closed. Free some space or correct the folder's"
        " permissions, then save again.",
        path=path,
    )


def _differences(settings: Settings, base: Settings) -> dict[tuple[str, str], Any]:
    """(section, field) of every value that is not as in `base`."""
    return {
        (section.name, item.name): value
        for section in dataclasses.fields(Settings)
        for item in dataclasses.fields(getattr(base, section.name))
        if (value := getattr(getattr(settings, section.name), item.name))
        != getattr(getattr(base, section.name), item.name)
    }


def _replace_fields(settings: Settings, changes: Mapping[tuple[str, str], Any]) -> Settings:
    for (section_name, field_name), value in changes.items():
        section = dataclasses.replace(getattr(settings, section_name), **{field_name: value})
        settings = dataclasses.replace(settings, **{section_name: section})
    return settings


def _store_differences(document: dict[str, Any], settings: Settings) -> None:
    """Puts what is not the default into the document and takes the rest of our fields out."""
    document.setdefault("version", FORMAT_VERSION)
    changed = _differences(settings, Settings())
    for section in dataclasses.fields(Settings):
        table = document.setdefault(section.name, {})
        for item in dataclasses.fields(getattr(settings, section.name)):
            if (section.name, item.name) in changed:
                value = changed[section.name, item.name]
                table[item.name] = list(value) if isinstance(value, tuple) else value
            else:
                table.pop(item.name, None)
        if not table:
            del document[section.name]


def _line_of(text: str, section: str, key: str) -> int | None:
    """Number of the line that sets the key, or None where it is written in an unusual form."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            current = header[1]
            if not section and current.split(".")[0] == key:
                return number
        elif current == section and re.match(rf"\s*{re.escape(key)}\s*=", line):
            return number
    return None


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidSettingsError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidSettingsError(f"{name} must be text, not {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidSettingsError(
            f"{name} is {value!r}, which cannot be written as UTF-8.",
            hint="Rename the folder so that its name is valid UTF-8.",
        ) from None


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidSettingsError(f"{name} must be true or false, not {value!r}.")


def _check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidSettingsError(f"{name} must be a whole number, not {value!r}.")
    if value < minimum or (maximum is not None and value > maximum):
        upper = f"to {maximum}" if maximum is not None else "up"
        raise InvalidSettingsError(f"{name} is {value}; it must be {minimum} {upper}.")


def _check_number(
    name: str, value: object, minimum: float, maximum: float, *, open_minimum: bool = False
) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidSettingsError(f"{name} must be a number, not {value!r}.")
    if value < minimum or value > maximum or (open_minimum and value == minimum):
        lower = f"above {minimum:g}" if open_minimum else f"at least {minimum:g}"
        raise InvalidSettingsError(
            f"{name} is {value:g}; it must be {lower} and at most {maximum:g}."
        )
