"""The hub's lists through `huggingface_hub`: models by text, the files of a repository.

The only module that imports the library, and only when something is asked. It moves no model files:
it cannot resume a download that another process began; `download` can.
"""

import contextlib
import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo import __version__
from octavo.errors import DownloadError, ModelNotFoundError, OctavoError
from octavo.hub.hub_files import DEFAULT_ENDPOINT, HubAddress, HubFile, is_model_file

_TIMEOUT_S = 20.0
_EXPANDED = ("downloads", "likes", "gated", "gguf")


@dataclass(frozen=True, slots=True)
class HubModel:
    """One repository of a search."""

    repository: str
    downloads: int
    likes: int
    num_parameters: int
    """As the hub read them from one of the files; 0 if it does not say."""
    architecture: str
    is_gated: bool


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at one commit."""

    name: str
    commit: str
    files: tuple[HubFile, ...]
    is_gated: bool


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """One hub, as one person sees it. Every call blocks for a request."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str = field(default="", repr=False)

    def search(self, text: str, *, limit: int = 20) -> list[HubModel]:
        """Repositories with GGUF files, the most downloaded first; raises DownloadError."""
        hub = _library()
        parameters: list[tuple[str, str | int]] = [
            ("search", text),
            ("filter", "gguf"),
            ("sort", "downloads"),
            ("limit", limit),
            *(("expand", name) for name in _EXPANDED),
        ]
        with self._translated(f"the search for {text!r}"):
            # Not HfApi.list_models: that one is silent for 23 seconds where there is no network.
            response = hub.get_session().get(
                f"{self.endpoint.rstrip('/')}/api/models",
                params=parameters,
                headers=self._headers(hub),
                timeout=_TIMEOUT_S,
            )
            hub.utils.hf_raise_for_status(response)
            items = response.json()
            return [_as_model(item) for item in items[:limit]]

    def repository(self, address: HubAddress) -> HubRepository:
        """The model files of a repository.

        Raises:
            ModelNotFoundError: there is no such repository or revision, or not for this token.
            DownloadError: the hub cannot be asked.
        """
        hub = _library()
        with self._translated(address.repository):
            info = hub.HfApi(
                endpoint=self.endpoint.rstrip("/"),
                token=self.token or False,
                library_name="octavo",
                library_version=__version__,
            ).model_info(
                address.repository,
                revision=None if address.revision == "main" else address.revision,
                files_metadata=True,
                timeout=_TIMEOUT_S,
            )
            files = tuple(
                HubFile(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else "")
                for item in info.siblings or ()
                if is_model_file(item.rfilename)
            )
            return HubRepository(
                address.repository, info.sha or address.revision, files, bool(info.gated)
            )

    def require_access(self, repository: HubRepository, file: HubFile) -> None:
        """Raises DownloadError if the file is not for this token; asks for gated ones only."""
        if repository.is_gated:
            hub = _library()
            with self._translated(repository.name):
                hub.get_hf_file_metadata(
                    self.file_url(repository, file),
                    token=self.token or False,
                    timeout=_TIMEOUT_S,
                    endpoint=self.endpoint.rstrip("/"),
                    library_name="octavo",
                    library_version=__version__,
                )

    def file_url(self, repository: HubRepository, file: HubFile) -> str:
        """Where the file of that very commit is; the hub may send on to a signed address."""
        url: str = _library().hf_hub_url(
            repository.name,
            file.path,
            revision=repository.commit,
            endpoint=self.endpoint.rstrip("/"),
        )
        return url

    def _headers(self, hub: types.ModuleType) -> dict[str, str]:
        headers: dict[str, str] = hub.utils.build_hf_headers(
            token=self.token or False, library_name="octavo", library_version=__version__
        )
        return headers

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turns the library's errors, and answers that are none of a hub's, into ours."""
        wrong_answers = (ValueError, LookupError, TypeError, AttributeError)
        try:
            yield
        except (OSError, _http_error_class(), *wrong_answers) as error:
            raise self._as_ours(error, what) from error

    def _as_ours(self, error: Exception, what: str) -> OctavoError:
        errors = _library().errors
        if isinstance(error, errors.OfflineModeIsEnabled):
            return DownloadError(
                "$HF_HUB_OFFLINE is set, so Octavo asks no hub.", hint="Unset it, then try again."
            )
        # A gated repository's error is a missing repository's, too.
        if isinstance(error, errors.GatedRepoError):
            return self._gated(what)
        if isinstance(error, errors.RepositoryNotFoundError):
            login = "" if self.token else ", or it is private and $HF_TOKEN is not set"
            return ModelNotFoundError(
                f"{self.endpoint} has no model {what}{login}.",
                hint="Check the name; `octavo search TEXT` lists models.",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFoundError(
                f"{what} has no such revision.", hint="Use the address of its main page."
            )
        if isinstance(error, errors.HfHubHTTPError):
            return self._status_error(error)
        if isinstance(error, OSError | _http_error_class()):
            return DownloadError(
                f"{self.endpoint} cannot be reached: {str(error) or type(error).__name__}.",
                hint="Check the network. Behind a proxy set $HTTPS_PROXY; for a mirror give "
                "--endpoint or $HF_ENDPOINT.",
            )
        return DownloadError(
            f"{self.endpoint} does not answer as a hub does.",
            hint="Check the network (a login page?) and the endpoint.",
        )

    def _gated(self, what: str) -> DownloadError:
        if self.token:
            return DownloadError(
                f"{what} is gated, and the account of $HF_TOKEN has no access yet.",
                hint=f"Accept its terms at {self.endpoint}/{what}, then try again.",
            )
        return DownloadError(
            f"{what} is gated: its owner wants to know who downloads it.",
            hint=f"Accept its terms at {self.endpoint}/{what} and set $HF_TOKEN to a token of "
            "your account.",
        )

    def _status_error(self, error: Any) -> DownloadError:
        response = error.response
        status = response.status_code if response is not None else 0
        if status == 429:
            wait = response.headers.get("Retry-After", "")
            when = f"in {wait} s" if wait.isdigit() else "in some minutes"
            more = "" if self.token else " A token in $HF_TOKEN raises the limit."
            return DownloadError(
                f"{self.endpoint} refuses for now: too many requests.",
                hint=f"Try again {when}.{more}",
            )
        if status in (401, 403):
            given = "Check $HF_TOKEN" if self.token else "Set $HF_TOKEN to a token of your account"
            return DownloadError(
                f"{self.endpoint} refuses the request ({status}).", hint=f"{given}, then try again."
            )
        if status >= 500:
            return DownloadError(
                f"{self.endpoint} has a problem of its own ({status}).", hint="Try again later."
            )
        return DownloadError(
            f"{self.endpoint} does not answer as a hub does (status {status}).",
            hint="Check the endpoint.",
        )


def _library() -> types.ModuleType:
    """`huggingface_hub`, which otherwise reports at its first import that and where it runs."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub
    import huggingface_hub.errors
    import huggingface_hub.utils

    return huggingface_hub


def _http_error_class() -> type[Exception]:
    """The base of all errors of the HTTP library below, which is httpx or httpx2 by version."""
    family: type[Exception] = _library().errors.HfHubHTTPError
    return next(
        (kind for kind in family.mro() if kind.__module__.startswith("httpx")),
        family,
    )


def _as_model(item: Mapping[str, Any]) -> HubModel:
    gguf = item.get("gguf") or {}
    return HubModel(
        repository=str(item["id"]),
        downloads=int(item.get("downloads") or 0),
        likes=int(item.get("likes") or 0),
        num_parameters=int(gguf.get("total") or 0),
        architecture=str(gguf.get("architecture") or ""),
        is_gated=bool(item.get("gated")),
    )
