"""Where a model on this machine came from, and what goes when it is removed."""

from pathlib import Path

from octavo.hub.library import LibraryModel
from octavo.units import format_bytes


def describe_origin(model: LibraryModel, models_dir: Path) -> str:
    """In a few words: the hub's repository, Octavo's folder, or the folder it was found in."""
    if model.repository:
        return f"from {model.repository}"
    if is_linked(model):
        return "linked"
    if model.path.is_relative_to(models_dir):
        return "in Octavo's folder"
    return f"in {model.path.parent}"


def is_linked(model: LibraryModel) -> bool:
    """Whether only a link is in the library's folder, and the files lie elsewhere."""
    return not model.repository and model.path.is_symlink()


def describe_removal(model: LibraryModel) -> str:
    """What is deleted, and how much that frees."""
    if is_linked(model):
        return (
            f"Only the link {model.path.name} goes from {model.path.parent}. The model itself"
            " stays where it is, so nothing is freed."
        )
    size = format_bytes(model.size_bytes)
    if model.repository:
        return (
            f"{model.repository} is deleted from the hub cache, for other programs that use the"
            f" cache, too. That frees up to {size}. It can be downloaded again."
        )
    return (
        f"{model.path.name} is deleted from {model.path.parent}. That frees {size}."
        " It cannot be undone."
    )
