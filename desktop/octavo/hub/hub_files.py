"""What a person types to name a hub's model, and which of a repository's is meant; no network."""

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from octavo.checkpoint.folder import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    WEIGHTS_SUFFIX,
    is_pickled_weights,
    pickled_weights_error,
)
from octavo.errors import InvalidInputError, ModelNotFoundError
from octavo.units import format_bytes

DEFAULT_ENDPOINT = "https://huggingface.co"
GGUF = "gguf"
SAFETENSORS = "safetensors"
PREFERRED_QUANTS = ("Q4_K_M", "Q4_0", "Q4_1", "Q8_0", "Q5_K_M", "Q6_K", "BF16", "F16", "F32")

FOLDER_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "quantize_config.json",
    "quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""What a folder of safetensors needs beside its weights; nothing of it is ever run."""

_KNOWN_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"({_NAME}/{_NAME})(?::(.+))?")
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?=[-.]|$)",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
# What lies beside a model: eyes for pictures, statistics of a quantisation.
_COMPANION = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)(?:[-._]|$)", re.IGNORECASE)
# Windows refuses these; no honest repository needs them.
_UNSAFE = re.compile(r'[\x00-\x1f\\:*?"<>|]')


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository of a hub, and what of it is wanted."""

    repository: str
    """ORG/NAME."""
    quant: str = ""
    """A quantisation's name or a file's; empty: none was given."""
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository."""

    path: str
    """Inside the repository, with slashes."""
    size_bytes: int
    sha256: str
    """Empty if the hub does not say it, as of small files."""
    blob_id: str
    """The hub's etag: the sha256 of large files, git's sha1 of small ones."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class HubVariant:
    """What is downloaded together to be one model."""

    label: str
    """Unique in the repository: `Q4_K_M`, a file's path where several share a quantisation, or
    `safetensors`."""
    kind: str
    """`gguf`: one file or the parts of one; `safetensors`: weights and the small files beside."""
    files: tuple[HubFile, ...]
    """The first is the file whose path is the model; of `safetensors`, config.json."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def quantization(self) -> str:
        """`Q4_K_M`; empty if no name says it."""
        return quantization_in(self.files[0].path) if self.kind == GGUF else ""


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at one commit."""

    name: str
    """ORG/NAME."""
    commit: str
    variants: tuple[HubVariant, ...]
    gated: str = ""
    """Empty: open to all; `auto`: to who accepts its terms; `manual`: to whom its owner lets in."""
    license: str = ""
    downloads: int = 0
    likes: int = 0
    last_modified: str = ""
    """ISO date, or empty."""
    revision: str = "main"
    """The branch or tag that was asked for."""
    pickle: str = ""
    """A file of weights that only running a program could read; empty where there is none."""

    @property
    def short_name(self) -> str:
        return self.name.partition("/")[2]


def parse_address(text: str, *, endpoint: str = DEFAULT_ENDPOINT) -> HubAddress:
    """Understands `ORG/NAME`, `ORG/NAME:QUANT`, `hf.co/ORG/NAME` and a page's or file's URL.

    Raises:
        InvalidInputError: it is none of these, or of another site.
    """
    text = text.strip()
    own_host = urllib.parse.urlsplit(endpoint).netloc
    try:
        address = urllib.parse.urlsplit(text)
    except ValueError as error:
        raise InvalidInputError(f"{text!r} is no web address: {error}.") from error
    if address.scheme in ("http", "https"):
        host, path = address.netloc, address.path
    else:
        host, _, path = text.partition("/")
        if host not in (*_KNOWN_HOSTS, own_host):
            host, path = own_host, text
    if host not in (*_KNOWN_HOSTS, own_host):
        raise InvalidInputError(
            f"{host} is not the hub that Octavo asks ({own_host}).",
            hint="Give its address in the settings or with --endpoint, or ORG/NAME alone.",
        )
    parts = [urllib.parse.unquote(part) for part in path.split("/") if part]
    match = _REPOSITORY.fullmatch("/".join(parts[:2]))
    if match is None or parts[0] in ("datasets", "spaces"):
        raise InvalidInputError(
            f"{text!r} names no model: Octavo pulls `starter`, ORG/NAME or ORG/NAME:QUANT.",
            hint="Search for it by a word of its name.",
        )
    quant, revision = match[2] or "", "main"
    if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve"):
        revision = parts[3]
        if parts[2] != "tree":
            quant = "/".join(parts[4:])
    elif len(parts) > 2:
        raise InvalidInputError(
            f"{text!r} is no page of a model.", hint="Give the model's own page, or ORG/NAME."
        )
    return HubAddress(match[1], quant, revision)


def quantization_in(path: str) -> str:
    """The quantisation that a file's name states last, in capitals; empty if it states none."""
    stem = _PART.sub("", PurePosixPath(path).name.removesuffix(".gguf"))
    found = _QUANT.findall(stem)
    name = found[-1].upper() if found else ""
    return {"FP16": "F16", "FP32": "F32"}.get(name, name)


def is_model_file(path: str) -> bool:
    """Whether it is a GGUF file of a model itself, under a name that a disk can carry."""
    return (
        path.lower().endswith(".gguf")
        and not _COMPANION.search(path.rpartition("/")[2])
        and _is_safe(path)
    )


def variants_of(files: Sequence[HubFile]) -> tuple[HubVariant, ...]:
    """The models that a repository's files make up: GGUF first, in the order of the files."""
    groups: dict[str, list[HubFile]] = {}
    for file in files:
        if is_model_file(file.path):
            whole = _PART.sub("", file.path[: -len(".gguf")])
            groups.setdefault(whole, []).append(file)
    models = [sorted(group, key=lambda file: file.path) for group in groups.values()]
    # A split model of which parts are missing cannot be run by anybody.
    models = [model for model in models if len(model) == _num_parts(model[0].path)]
    quants = [quantization_in(model[0].path) for model in models]
    variants = [
        HubVariant(
            quant if quant and quants.count(quant) == 1 else model[0].path, GGUF, tuple(model)
        )
        for model, quant in zip(models, quants, strict=True)
    ]
    if folder := _folder_files(files):
        variants.append(HubVariant(SAFETENSORS, SAFETENSORS, folder))
    return tuple(variants)


def pickle_in(paths: Sequence[str]) -> str:
    """A file of pickled weights at the top of a repository; empty if there is none."""
    return next((path for path in paths if "/" not in path and is_pickled_weights(path)), "")


def choose_variant(address: HubAddress, repository: HubRepository) -> HubVariant:
    """The variant that is meant.

    With a QUANT: the one of that label, or with a file of that name or path, else the one of that
    quantisation; capitals do not count. Without: the only one there is, else the first of
    `PREFERRED_QUANTS` that exactly one has; GGUF before safetensors, whole files before split ones.

    Raises:
        ModelNotFoundError: none is meant, or several are; the message lists what there is.
        UnsupportedModelError: the weights are there as a pickle only.
    """
    variants = repository.variants
    if not variants:
        if repository.pickle:
            raise pickled_weights_error(repository.name, repository.pickle)
        raise ModelNotFoundError(
            f"{repository.name} has no language model as GGUF or safetensors.",
            hint=f"Search for {repository.short_name}: other repositories may have one.",
        )
    wanted = address.quant.casefold()
    if wanted:
        matches = [variant for variant in variants if _is_called(variant, wanted)] or [
            variant for variant in variants if variant.quantization.casefold() == wanted
        ]
    else:
        matches = _preferred(variants)
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(variant.files[0].path for variant in matches)
        raise ModelNotFoundError(
            f"{len(matches)} models of {repository.name} are {matches[0].quantization}: {names}.",
            hint=f"Name the file: {repository.name}:{matches[0].files[0].path}.",
        )
    listing = ", ".join(
        f"{variant.label} ({format_bytes(variant.size_bytes)})" for variant in variants
    )
    problem = f"has no {address.quant}" if wanted else "has no model that is the obvious choice"
    raise ModelNotFoundError(
        f"{repository.name} {problem}. There is: {listing}.",
        hint=f"Choose one, as in {repository.name}:{variants[0].label}.",
    )


def _is_called(variant: HubVariant, wanted: str) -> bool:
    if variant.label.casefold() == wanted:
        return True
    weights = variant.files if variant.kind == GGUF else ()
    return any(wanted in (file.path.casefold(), file.name.casefold()) for file in weights)


def _preferred(variants: Sequence[HubVariant]) -> list[HubVariant]:
    ggufs = [variant for variant in variants if variant.kind == GGUF]
    whole = [variant for variant in ggufs if len(variant.files) == 1]
    for choice in (variants, ggufs, whole):
        if len(choice) == 1:
            return list(choice)
    for among in (whole, ggufs):
        for quant in PREFERRED_QUANTS:
            matches = [variant for variant in among if variant.quantization == quant]
            if len(matches) == 1:
                return matches
    return []


def _folder_files(files: Sequence[HubFile]) -> tuple[HubFile, ...]:
    """config.json, the other small files, and the weights at the top of a repository, if any."""
    top = {file.path: file for file in files if "/" not in file.path and _is_safe(file.path)}
    if CONFIG_FILE not in top:
        return ()
    if SINGLE_FILE in top:
        weights = [SINGLE_FILE]
    elif INDEX_FILE in top:
        # Beside them may lie the same weights for another program, `consolidated.safetensors`.
        shards = [name for name in top if name.endswith(WEIGHTS_SUFFIX)]
        weights = [name for name in shards if name.startswith("model")] or [
            name for name in shards if not name.startswith(("consolidated", "adapter"))
        ]
    else:
        weights = []
    if not weights:
        return ()
    small = [name for name in FOLDER_FILES if name in top and name != CONFIG_FILE]
    if SINGLE_FILE not in top:
        small.insert(0, INDEX_FILE)
    return tuple(top[name] for name in (CONFIG_FILE, *small, *sorted(weights)))


def _num_parts(path: str) -> int:
    part = _PART.search(PurePosixPath(path).stem)
    return int(part[2]) if part else 1


def _is_safe(path: str) -> bool:
    return not _UNSAFE.search(path) and not any(
        part.startswith(".") or not part for part in path.split("/")
    )
