"""Pulls a model the way the queue and the command line do: ask, choose, fetch."""

from dataclasses import dataclass
from pathlib import Path

from octavo.hub.download import Patience
from octavo.hub.hub_cache import HubCache
from octavo.hub.hub_files import HubAddress, HubRepository, HubVariant, choose_variant
from octavo.hub.hub_pull import Check, pull_variant
from octavo.hub.hugging_face import HuggingFace
from octavo.jobs import JobControl


@dataclass(frozen=True)
class Pulled:
    """What was pulled, and where it is."""

    repository: HubRepository
    variant: HubVariant
    path: Path


def pull_model(
    hub: HuggingFace,
    address: HubAddress,
    cache: HubCache,
    *,
    control: JobControl | None = None,
    check: Check = lambda header: None,
    patience: Patience | None = None,
) -> Pulled:
    """Everything that an address means."""
    repository = hub.repository(address)
    variant = choose_variant(address, repository)
    path = pull_variant(
        hub, repository, variant, cache, control or JobControl(), check=check, patience=patience
    )
    return Pulled(repository, variant, path)
