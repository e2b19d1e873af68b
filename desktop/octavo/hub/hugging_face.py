"""The hub's answers: models by text, what a repository holds, who may have it.

The only module that imports `huggingface_hub`, and only when something is asked. The library moves
no model files: it cannot resume a download that another process began; `download` can.
"""

import contextlib
import importlib
import os
import re
import types
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo import __version__
from octavo.errors import DownloadError, InvalidInputError, ModelNotFoundError, OctavoError
from octavo.hub.hub_files import (
    DEFAULT_ENDPOINT,
    GGUF,
    SAFETENSORS,
    HubAddress,
    HubFile,
    HubRepository,
    pickle_in,
    variants_of,
)
from octavo.hub.transport import make_opener

SORTS = {
    "downloads": "downloads",
    "likes": "likes",
    "trending": "trendingScore",
    "updated": "lastModified",
}
"""Orders of a search, and what the hub calls them."""
KINDS = (GGUF, SAFETENSORS, "any")
_ERRNO = re.compile(r"\[Errno -?\d+\] ?")

_TIMEOUT_S = 20.0
_EXPANDED = ("downloads", "likes", "gated", "gguf", "safetensors", "tags", "lastModified")
# More than any file there is; what claims more is no hub.
_MOST_FILE_BYTES = 1 << 44
_MOST_FILES = 100_000


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
    last_modified: str = ""
    """ISO date, or empty."""
    kind: str = ""
    """`gguf` or `safetensors`; empty if it holds neither."""


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """One hub, as one person sees it. Every call blocks for a request."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str = field(default="", repr=False)
    proxy: str = field(default="", repr=False)
    """Empty: the environment's."""
    is_offline: bool = False
    """Whether the person wants nothing to be sent."""

    def search(
        self, text: str, *, limit: int = 20, sort: str = "downloads", kind: str = GGUF
    ) -> list[HubModel]:
        """Repositories of language models that fit a text; empty text: all.

        Args:
            sort: one of `SORTS`.
            kind: one of `KINDS`; what holds neither GGUF nor safetensors is never listed.

        Raises:
            InvalidInputError: there is no such order or kind.
            DownloadError: the hub cannot be asked.
        """
        if sort not in SORTS or kind not in KINDS:
            raise InvalidInputError(
                f"The hub cannot be searched for {kind!r} by {sort!r}.",
                hint=f"Kinds are {', '.join(KINDS)}; orders are {', '.join(SORTS)}.",
            )
        parameters: list[tuple[str, str | int]] = [
            ("search", text),
            ("sort", SORTS[sort]),
            ("limit", limit),
            *(("expand", name) for name in _EXPANDED),
        ]
        if kind != GGUF:
            # Many repositories of GGUF files do not say what they are for.
            parameters.append(("pipeline_tag", "text-generation"))
        if kind != "any":
            parameters.append(("filter", kind))
        items = self._get("/api/models", parameters, f"the search for {text!r}")
        with self._translated("the search"):
            models = [_as_model(item) for item in items[:limit]]
        return [model for model in models if model.kind]

    def repository(self, address: HubAddress) -> HubRepository:
        """What a repository holds.

        Raises:
            ModelNotFoundError: there is no such repository or revision, or not for this token.
            DownloadError: the hub cannot be asked.
        """
        path = f"/api/models/{address.repository}"
        if address.revision != "main":
            path += f"/revision/{urllib.parse.quote(address.revision, safe='')}"
        item = self._get(path, [("blobs", "true")], address.repository)
        with self._translated(address.repository):
            return _as_repository(item, address)

    def account(self) -> str:
        """As whom the hub knows the token; empty if there is none and the hub answers.

        Raises:
            DownloadError: the hub cannot be asked, or refuses the token.
        """
        if not self.token:
            self.search("", limit=1, kind="any")
            return ""
        item = self._get("/api/whoami-v2", [], "the account")
        with self._translated("the account"):
            return str(item["name"])

    def require_access(self, repository: HubRepository, file: HubFile) -> None:
        """Raises DownloadError if the file is not for this token; asks for gated ones only."""
        if not repository.gated:
            return
        with self._translated(repository.name), self._client() as client:
            # A file may lie elsewhere: that the hub sends on to there is leave enough.
            response = client.head(self.file_url(repository, file), follow_redirects=False)
            if not response.has_redirect_location:
                _library().utils.hf_raise_for_status(response)

    def file_url(self, repository: HubRepository, file: HubFile) -> str:
        """Where the file of that very commit is; the hub may send on to a signed address."""
        path = urllib.parse.quote(f"{repository.name}/resolve/{repository.commit}/{file.path}")
        return f"{self.endpoint.rstrip('/')}/{path}"

    def make_opener(self) -> urllib.request.OpenerDirector:
        """What files are fetched with; raises DownloadError if nothing is to be sent."""
        self._require_online()
        return make_opener(proxy=self.proxy)

    def _get(self, path: str, parameters: Sequence[tuple[str, str | int]], what: str) -> Any:
        # Not HfApi's own calls: they know no proxy but the environment's, and some are silent for
        # 23 seconds where there is no network.
        with self._translated(what), self._client() as client:
            response = client.get(self.endpoint.rstrip("/") + path, params=parameters)
            _library().utils.hf_raise_for_status(response)
            return response.json()

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        """A client of the library's HTTP library that goes through this person's proxy."""
        self._require_online()
        http = importlib.import_module(_http_error_class().__module__.partition(".")[0])
        headers = _library().utils.build_hf_headers(
            token=self.token or False, library_name="octavo", library_version=__version__
        )
        with http.Client(
            proxy=self.proxy or None, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True
        ) as client:
            yield client

    def _require_online(self) -> None:
        if self.is_offline:
            raise DownloadError(
                "Octavo is offline by its settings, so it asks no hub.",
                hint="Switch that off in the settings, then try again.",
            )
        if _library().constants.HF_HUB_OFFLINE:
            raise DownloadError(
                "$HF_HUB_OFFLINE is set, so Octavo asks no hub.", hint="Unset it, then try again."
            )

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
        # A gated repository's error is a missing repository's, too.
        if isinstance(error, errors.GatedRepoError):
            return self._gated(what)
        if isinstance(error, errors.RepositoryNotFoundError):
            login = "" if self.token else ", or it is private and Octavo has no token"
            return ModelNotFoundError(
                f"{self.endpoint} has no model {what}{login}.",
                hint="Check the name, or search for it. A token goes into the settings or"
                " $HF_TOKEN.",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFoundError(
                f"{what} has no such revision.", hint="Use the address of its main page."
            )
        if isinstance(error, errors.HfHubHTTPError):
            return self._status_error(error)
        if isinstance(error, OSError | _http_error_class()):
            return DownloadError(
                f"{self.endpoint} cannot be reached: {_reason(error)}.",
                hint="Check the network. A proxy goes into the settings or $HTTPS_PROXY, a mirror "
                "into the settings, $HF_ENDPOINT or --endpoint.",
            )
        return DownloadError(
            f"{self.endpoint} does not answer as a hub does.",
            hint="Check the network (a login page?) and the endpoint.",
        )

    def _gated(self, what: str) -> DownloadError:
        if self.token:
            return DownloadError(
                f"{what} is gated, and the account of the token has no access yet.",
                hint=f"Accept its terms at {self.endpoint}/{what}, then try again.",
            )
        return DownloadError(
            f"{what} is gated: its owner wants to know who downloads it.",
            hint=f"Accept its terms at {self.endpoint}/{what} and put a token of your account "
            "into the settings or $HF_TOKEN.",
        )

    def _status_error(self, error: Any) -> DownloadError:
        response = error.response
        status = response.status_code if response is not None else 0
        if status == 429:
            wait = response.headers.get("Retry-After", "")
            when = f"in {wait} s" if wait.isdigit() else "in some minutes"
            more = "" if self.token else " A token in the settings or $HF_TOKEN raises the limit."
            return DownloadError(
                f"{self.endpoint} refuses for now: too many requests.",
                hint=f"Try again {when}.{more}",
            )
        if status in (401, 403):
            given = "Check the token" if self.token else "Put a token of your account"
            return DownloadError(
                f"{self.endpoint} refuses the request ({status}).",
                hint=f"{given} in the settings or $HF_TOKEN, then try again.",
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
    import huggingface_hub.constants
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


def collect_shared_content(content: Path, cache: Path) -> int:
    """Deletes a content of the library's cache-wide store that nothing uses; freed bytes."""
    _library()
    try:
        # Not public, and not in every version; without it the content stays as the library has it.
        from huggingface_hub.utils._shared_blobs import sweep_shared_blob
    except ImportError:
        return 0
    return sweep_shared_blob(content, cache_dir=cache)


def _as_model(item: Mapping[str, Any]) -> HubModel:
    gguf, safetensors = item.get("gguf") or {}, item.get("safetensors") or {}
    tags = item.get("tags") or ()
    return HubModel(
        repository=str(item["id"]),
        downloads=int(item.get("downloads") or 0),
        likes=int(item.get("likes") or 0),
        num_parameters=int(gguf.get("total") or safetensors.get("total") or 0),
        architecture=str(gguf.get("architecture") or ""),
        is_gated=bool(item.get("gated")),
        last_modified=str(item.get("lastModified") or "")[:10],
        kind=next((kind for kind in (GGUF, SAFETENSORS) if kind in tags), ""),
    )


def _as_repository(item: Mapping[str, Any], address: HubAddress) -> HubRepository:
    siblings = item["siblings"][:_MOST_FILES]
    gated = item.get("gated")
    card = item.get("cardData") or {}
    commit = str(item.get("sha") or address.revision)
    if not commit.isalnum():
        raise ValueError(commit)
    return HubRepository(
        name=address.repository,
        commit=commit,
        variants=variants_of([_as_file(sibling) for sibling in siblings]),
        gated=gated if gated in ("auto", "manual") else "manual" if gated else "",
        license=str(card.get("license_name") or card.get("license") or _tagged_license(item)),
        downloads=int(item.get("downloads") or 0),
        likes=int(item.get("likes") or 0),
        last_modified=str(item.get("lastModified") or "")[:10],
        revision=address.revision,
        pickle=pickle_in([str(sibling["rfilename"]) for sibling in siblings]),
    )


def _as_file(sibling: Mapping[str, Any]) -> HubFile:
    large = sibling.get("lfs") or {}
    sha256, git_sha1 = str(large.get("sha256") or ""), str(sibling.get("blobId") or "")
    size_bytes = int(sibling.get("size") or large.get("size") or 0)
    if not 0 <= size_bytes <= _MOST_FILE_BYTES:
        raise ValueError(size_bytes)
    # Both become names of files here.
    if not all(set(digest) <= set("0123456789abcdef") for digest in (sha256, git_sha1)):
        raise ValueError(sha256)
    return HubFile(str(sibling["rfilename"]), size_bytes, sha256, sha256 or git_sha1)


def _tagged_license(item: Mapping[str, Any]) -> str:
    tags = [str(tag) for tag in item.get("tags") or ()]
    return next((tag.partition(":")[2] for tag in tags if tag.startswith("license:")), "")


def _reason(error: Exception) -> str:
    """The system's words for it, without the number that only programs know."""
    return _ERRNO.sub("", str(error)).rstrip(".") or type(error).__name__
