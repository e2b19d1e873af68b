"""Where Octavo keeps its files on this machine."""

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

HOME_VARIABLE = "OCTAVO_HOME"


@dataclass(frozen=True, slots=True)
class AppPaths:
    """The folders of one installation; nothing is created until something is written."""

    config_dir: Path
    data_dir: Path
    cache_dir: Path
    run_dir: Path
    is_one_folder: bool = False
    """Whether all lies below one root, so that nothing is to lie elsewhere."""

    @classmethod
    def default(cls) -> "AppPaths":
        """The user's own folders, or everything below `$OCTAVO_HOME` where that is set."""
        if home := os.environ.get(HOME_VARIABLE):
            return cls.below(Path(home).expanduser())
        dirs = platformdirs.PlatformDirs("octavo", appauthor=False)
        return cls(
            config_dir=Path(dirs.user_config_dir),
            data_dir=Path(dirs.user_data_dir),
            cache_dir=Path(dirs.user_cache_dir),
            run_dir=Path(dirs.user_data_dir) / "run",
        )

    @classmethod
    def below(cls, root: Path) -> "AppPaths":
        """All folders below one root: tests and portable installations."""
        return cls(root / "config", root / "data", root / "cache", root / "run", is_one_folder=True)

    @property
    def settings_file(self) -> Path:
        return self.config_dir / "settings.toml"

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def downloads_file(self) -> Path:
        return self.data_dir / "downloads.json"

    @property
    def token_file(self) -> Path:
        return self.config_dir / "hub-token"

    @property
    def chats_file(self) -> Path:
        return self.data_dir / "chats.sqlite3"

    @property
    def kernels_dir(self) -> Path:
        """Of kernels that were compiled on this machine, and can be again."""
        return self.cache_dir / "kernels"

    @property
    def tiles_dir(self) -> Path:
        """Of weights as the kernels read them; they can be made again from the models."""
        return self.cache_dir / "tiles"

    @property
    def gpu_tuning_table(self) -> Path:
        """What `octavo bench --tune` found out about this machine's GPU."""
        return self.data_dir / "gpu_tuning.toml"

    @property
    def log_file(self) -> Path:
        return self.data_dir / "logs" / "octavo.log"


def resources_dir() -> Path:
    """The folder of fonts, icons and catalogues: in the wheel or in the checkout.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "resources", package.parents[1] / "resources"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"Octavo's resources folder is missing beside {package}.")


def short_path(path: str) -> str:
    """The path with `~` for the person's own folder, as terminals and file managers write it."""
    home = Path.home()
    if Path(path).is_relative_to(home) and home != Path(home.anchor):
        return str(Path("~") / Path(path).relative_to(home))
    return path
