"""What a person types to name a hub's model, and which of its GGUF files is meant; no network."""

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from octavo.errors import InvalidInputError, ModelNotFoundError, UnsupportedModelError
from octavo.units import format_bytes

DEFAULT_ENDPOINT = "https://huggingface.co"
PREFERRED_QUANTS = ("Q4_K_M", "Q4_0", "Q4_1", "Q8_0", "Q5_K_M", "Q6_K", "BF16", "F16", "F32")

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
    """One GGUF file of a repository."""

    path: str
    """Inside the repository, with slashes."""
    size_bytes: int
    sha256: str
    """Empty if the hub does not say it."""

    @property
    def quantization(self) -> str:
        """`Q4_K_M` of `Model-7B.q4_k_m.gguf`; empty if the name does not say it."""
        return quantization_in(self.path)

    @property
    def num_parts(self) -> int:
        """Into how many files the model is split."""
        part = _PART.search(PurePosixPath(self.path).stem)
        return int(part[2]) if part else 1

    @property
    def label(self) -> str:
        """The quantisation, or the file where its name says none."""
        return self.quantization or self.path


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
            hint="Give its address with --endpoint or $HF_ENDPOINT, or ORG/NAME alone.",
        )
    parts = [urllib.parse.unquote(part) for part in path.split("/") if part]
    match = _REPOSITORY.fullmatch("/".join(parts[:2]))
    if match is None or parts[0] in ("datasets", "spaces"):
        raise InvalidInputError(
            f"{text!r} names no model: Octavo pulls `starter`, ORG/NAME or ORG/NAME:QUANT.",
            hint="`octavo search TEXT` lists models.",
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
    parts = path.split("/")
    return (
        path.lower().endswith(".gguf")
        and not _COMPANION.search(parts[-1])
        and not _UNSAFE.search(path)
        and not any(part.startswith(".") or not part for part in parts)
    )


def choose_file(address: HubAddress, files: Sequence[HubFile]) -> HubFile:
    """The file that is meant.

    With a QUANT: the file of that name or path, else the one file of that quantisation; capitals
    do not count. Without: the only file there is, else the first of `PREFERRED_QUANTS` that
    exactly one file has. Files that are parts of a split model are offered by no default.

    Raises:
        ModelNotFoundError: no file is meant, or several are; the message lists what there is.
        UnsupportedModelError: the model is split into several files.
    """
    if not files:
        raise ModelNotFoundError(
            f"{address.repository} has no GGUF files.",
            hint=f"`octavo search {address.repository.partition('/')[2]}` finds repositories that "
            "have.",
        )
    wanted = address.quant.casefold()
    if wanted:
        matches = [
            file
            for file in files
            if wanted in (file.path.casefold(), PurePosixPath(file.path).name.casefold())
        ] or [file for file in files if file.quantization.casefold() == wanted]
    else:
        matches = _preferred(files)
    whole = [file for file in matches if file.num_parts == 1]
    if len(whole) == 1:
        return whole[0]
    if matches and not whole:
        raise UnsupportedModelError(
            f"{matches[0].label} of {address.repository} is split into {matches[0].num_parts} "
            "files, which Octavo cannot read yet.",
            hint=f"There is: {_listing(files)}.",
        )
    if whole:
        names = ", ".join(file.path for file in whole)
        raise ModelNotFoundError(
            f"{len(whole)} files of {address.repository} are {whole[0].label}: {names}.",
            hint=f"Name the file: `octavo pull {address.repository}:{whole[0].path}`.",
        )
    problem = f"has no {address.quant}" if wanted else "has no file that is the obvious choice"
    raise ModelNotFoundError(
        f"{address.repository} {problem}. There is: {_listing(files)}.",
        hint=f"Choose one: `octavo pull {address.repository}:{files[0].label}`.",
    )


def _preferred(files: Sequence[HubFile]) -> list[HubFile]:
    if len(files) == 1:
        return list(files)
    whole = [file for file in files if file.num_parts == 1]
    if len(whole) == 1:
        return whole
    for quant in PREFERRED_QUANTS:
        matches = [file for file in whole if file.quantization == quant]
        if len(matches) == 1:
            return matches
    return []


def _listing(files: Sequence[HubFile]) -> str:
    """Each choice once, with its size; of a split model that of all parts."""
    sizes: dict[str, int] = {}
    is_repeated = len({file.label for file in files if file.num_parts == 1}) < sum(
        file.num_parts == 1 for file in files
    )
    for file in files:
        label = file.path if is_repeated and file.num_parts == 1 else file.label
        sizes[label] = sizes.get(label, 0) + file.size_bytes
    return ", ".join(f"{label} ({format_bytes(size)})" for label, size in sizes.items())
