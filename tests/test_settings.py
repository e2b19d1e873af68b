"""Settings on disk: only differences, unknown keys kept, broken files left alone."""

import dataclasses
import errno
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.config import DTYPES as ENGINE_DTYPES
from octavo.engine.config import EngineConfig
from octavo.engine.sampling_params import SamplingParams
from octavo.errors import InvalidSettingsError, StorageError
from octavo.settings import (
    DTYPES,
    Appearance,
    ChatDefaults,
    EngineSettings,
    Hub,
    Server,
    Settings,
    SettingsStore,
    Storage,
)

CHANGED = Settings(
    appearance=Appearance(theme="dark", font_scale=1.25, shows_monitor_strip=False),
    storage=Storage(models_dir="/models", extra_folders=("/a", "/b"), shows_hub_cache=False),
    hub=Hub(
        endpoint="https://mirror.example", proxy="http://me:secret@proxy:8080", is_offline=True
    ),
    engine=EngineSettings(
        device="cuda:1",
        dtype="float32",
        weights="packed",
        kv_dtype="int8",
        max_num_seqs=8,
        max_num_batched_tokens=256,
        max_model_len=4096,
        enable_prefix_caching=False,
        cpu_kernels="off",
        cpu_threads=3,
    ),
    chat=ChatDefaults(
        system_prompt='Say "hello" 👋\nin two lines.',
        temperature=0.0,
        top_p=1.0,
        max_tokens=100,
        seed=-3,
        last_model="smollm2",
    ),
    server=Server(
        port=9000,
        api_key="octavo-Key_1",
        is_on=True,
        allowed_origins=("https://app.example.org", "http://localhost:3000"),
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "settings.toml"


@pytest.fixture
def store(path: Path) -> SettingsStore:
    return SettingsStore(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_defaults_hold_without_a_file(store: SettingsStore, path: Path) -> None:
    assert store.load() == Settings()
    assert not path.exists()


def test_every_setting_comes_back(store: SettingsStore, path: Path) -> None:
    defaults = Settings()
    for section in dataclasses.fields(Settings):
        ours, default = getattr(CHANGED, section.name), getattr(defaults, section.name)
        for item in dataclasses.fields(ours):
            assert getattr(ours, item.name) != getattr(default, item.name), (
                "the test must change it"
            )
    store.save(CHANGED)
    assert SettingsStore(path).load() == CHANGED


@given(
    theme=st.sampled_from(["auto", "light", "dark"]),
    font_scale=st.floats(0.5, 3.0),
    folders=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=3),
    prompt=st.text(st.characters(codec="utf-8")),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_any_value_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    theme: str,
    font_scale: float,
    folders: list[str],
    prompt: str,
    seed: int | None,
) -> None:
    path = tmp_path_factory.mktemp("settings") / "settings.toml"
    settings = Settings(
        appearance=Appearance(theme=theme, font_scale=font_scale),
        storage=Storage(extra_folders=tuple(folders)),
        chat=ChatDefaults(system_prompt=prompt, seed=seed),
    )
    SettingsStore(path).save(settings)
    assert SettingsStore(path).load() == settings


def test_only_differences_are_written(store: SettingsStore, path: Path) -> None:
    store.update(appearance=Appearance(theme="dark"))
    assert tomllib.loads(path.read_text()) == {"version": 1, "appearance": {"theme": "dark"}}
    store.update(appearance=Appearance())
    assert tomllib.loads(path.read_text()) == {"version": 1}


def test_unknown_keys_and_sections_are_kept(store: SettingsStore, path: Path) -> None:
    write(
        path,
        'version = 1\nnews = [1]\n[appearance]\ntheme = "dark"\nglow = true\n[weather]\nwind = 1\n',
    )
    store.load()
    store.update(appearance=Appearance(theme="auto"), chat=ChatDefaults(temperature=0.0))
    assert tomllib.loads(path.read_text()) == {
        "version": 1,
        "news": [1],
        "appearance": {"glow": True},
        "weather": {"wind": 1},
        "chat": {"temperature": 0.0},
    }


def test_changes_made_by_others_meanwhile_are_kept(path: Path) -> None:
    one, two = SettingsStore(path), SettingsStore(path)
    one.load()
    two.load()
    one.update(appearance=Appearance(theme="dark"))
    two.update(chat=ChatDefaults(last_model="smollm2"))
    assert two.value.appearance.theme == "dark"
    assert SettingsStore(path).load() == two.value


def test_changed_is_emitted_once_and_only_for_changes(store: SettingsStore) -> None:
    seen: list[Settings] = []
    store.changed.connect(seen.append)
    store.update(appearance=Appearance(theme="dark"))
    store.update(appearance=Appearance(theme="dark"))
    assert seen == [Settings(appearance=Appearance(theme="dark"))]


def test_whole_numbers_stand_for_fractions(store: SettingsStore, path: Path) -> None:
    write(path, "[appearance]\nfont_scale = 2\n[chat]\ntop_p = 1\n")
    settings = store.load()
    assert isinstance(settings.appearance.font_scale, float)
    assert settings.chat.top_p == 1.0


@pytest.mark.parametrize(
    ("text", "cause", "line"),
    [
        ("[appearance\ntheme = 1\n", "", "line 1"),
        ("version = 1\n\n[appearance]\nfont_scale = 9\n", "font_scale is 9", "line 4"),
        ("[appearance]\ntheme = 'pink'\n", "auto, light, dark", "line 2"),
        ("[engine]\ndtype = 'int8'\n", "bfloat16", "line 2"),
        ("[engine]\ndevice = 'tpu'\n", "cuda:N", "line 2"),
        ("[engine]\nmax_num_seqs = 0\n", "it must be 1 up", "line 2"),
        ("[engine]\nmax_num_seqs = true\n", "whole number", "line 2"),
        ("[engine]\nenable_prefix_caching = 1\n", "true or false", "line 2"),
        ("[chat]\ntemperature = nan\n", "must be a number", "line 2"),
        ("[chat]\n\nsystem_prompt = 3\n", "must be text", "line 3"),
        ("[chat]\nseed = 1.5\n", "whole number", "line 2"),
        ("[storage]\nextra_folders = '/a'\n", "list of folders", "line 2"),
        ("[storage]\nextra_folders = ['/a', 3]\n", "must be text", "line 2"),
        ("[storage]\nextra_folders = ['']\n", "empty", "line 2"),
        ("[server]\nport = 0\n", "it must be 1 to 65535", "line 2"),
        ("[server]\nport = '8000'\n", "whole number", "line 2"),
        ("[server]\napi_key = 'two words'\n", "without spaces", "line 2"),
        ("appearance = 3\n", "must be a section", "line 1"),
        ("[[chat]]\nseed = 1\n", "must be a section", ""),
        ("chat.top_p = 0\n", "above 0", "section [chat]"),
        ("version = 'one'\n", "version", "line 1"),
        ("version = 2\n", "newer Octavo", ""),
    ],
)
def test_broken_file_is_named_and_left_alone(
    store: SettingsStore, path: Path, text: str, cause: str, line: str
) -> None:
    write(path, text)
    with pytest.raises(InvalidSettingsError) as caught:
        store.load()
    assert str(path) in caught.value.message
    assert cause in caught.value.message
    assert line in caught.value.message
    assert caught.value.hint
    assert store.value == Settings()
    with pytest.raises(InvalidSettingsError):
        store.update(appearance=Appearance(theme="dark"))
    assert store.value.appearance.theme == "dark", "the choice holds for this run"
    assert path.read_text() == text


def test_file_that_is_not_utf8(store: SettingsStore, path: Path) -> None:
    write(path, "")
    path.write_bytes(b"version = 1\n# \xff\n")
    with pytest.raises(InvalidSettingsError, match="line 2"):
        store.load()


def test_corrected_file_can_be_saved_again(store: SettingsStore, path: Path) -> None:
    write(path, "[appearance\n")
    with pytest.raises(InvalidSettingsError):
        store.load()
    write(path, "[chat]\nseed = 3\n")
    store.update(appearance=Appearance(theme="dark"))
    assert store.value.chat.seed == 3


def test_reset_keeps_the_old_files(store: SettingsStore, path: Path) -> None:
    assert store.reset() is None
    backups = []
    for text in ("[broken\n", "[broken again\n"):
        write(path, text)
        backup = store.reset()
        assert backup is not None
        backups.append(backup.read_text())
        assert SettingsStore(path).load() == Settings()
    assert backups == ["[broken\n", "[broken again\n"]
    assert len(list(path.parent.glob("*.bak"))) == 2
    store.update(appearance=Appearance(theme="dark"))


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file where the folder should be")
    store = SettingsStore(tmp_path / "config" / "settings.toml")
    with pytest.raises(StorageError) as caught:
        store.update(appearance=Appearance(theme="dark"))
    assert caught.value.path is not None
    assert store.value.appearance.theme == "dark"


def test_full_disk_keeps_the_old_file(
    store: SettingsStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update(appearance=Appearance(theme="dark"))
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        store.update(appearance=Appearance(theme="light"))
    assert store.value.appearance.theme == "light"
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path], "no half-written file is left behind"


def test_link_to_the_settings_stays_a_link(tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "octavo.toml"
    write(target, "version = 1\n")
    link = tmp_path / "settings.toml"
    link.symlink_to(target)
    SettingsStore(link).update(appearance=Appearance(theme="dark"))
    assert link.is_symlink()
    assert "dark" in target.read_text()


def test_folder_name_outside_utf8_is_refused() -> None:
    with pytest.raises(InvalidSettingsError, match="UTF-8"):
        Storage(models_dir="/models/\udcff")


def test_engine_section_speaks_the_engine_s_language() -> None:
    """settings.py may not import the engine; here the two are held together."""
    assert DTYPES == ENGINE_DTYPES
    config = EngineConfig()
    values = dataclasses.asdict(EngineSettings())
    assert {name: getattr(config, name) for name in values} == values
    EngineConfig(**dataclasses.asdict(CHANGED.engine))


@pytest.mark.parametrize("chat", [ChatDefaults(), CHANGED.chat])
def test_chat_section_makes_sampling_params(chat: ChatDefaults) -> None:
    names = ("temperature", "top_p", "max_tokens", "seed")
    arguments: dict[str, Any] = {name: getattr(chat, name) for name in names}
    SamplingParams(**arguments)


@pytest.mark.parametrize("key", ["clé", "two words", "line\n", 3])
def test_an_api_key_that_no_header_can_carry_is_refused_and_not_repeated(key: Any) -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        Server(api_key=key)
    assert repr(key) not in str(caught.value)


def test_an_api_key_stays_out_of_what_is_logged() -> None:
    assert "octavo-Key_1" not in repr(CHANGED)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hub(endpoint="huggingface.co"),
        lambda: Hub(endpoint="https://name:word@huggingface.co"),
        lambda: Hub(proxy="proxy:8080"),
        lambda: Server(allowed_origins=("app.example.org",)),
        lambda: Server(allowed_origins=("https://app.example.org/path",)),
    ],
)
def test_addresses_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidSettingsError, match="must be"):
        make()


def test_a_proxy_keeps_its_password_out_of_messages() -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        Hub(proxy="ftp://me:secret@proxy")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(Hub(proxy="http://me:secret@proxy"))
