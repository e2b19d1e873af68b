"""Wheels with a model file inside, as small as a test needs them."""

import hashlib
import io
import random
import zipfile
from dataclasses import dataclass

from octavo.hub.catalog import CatalogEntry

MEMBER = "tiny/Tiny.gguf"


@dataclass(frozen=True)
class Wheel:
    content: bytes
    model: bytes
    entry: CatalogEntry


def make_wheel(num_bytes: int = 400_000) -> Wheel:
    """Its model is random bytes, which zip does not make smaller."""
    model = random.Random(num_bytes).randbytes(num_bytes)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        # A fixed date: the same bytes in every process.
        archive.writestr(zipfile.ZipInfo(MEMBER), model, zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("tiny/plugin.py"), "raise SystemExit('never run')")
    content = buffer.getvalue()
    entry = CatalogEntry(
        id="starter",
        name="tiny",
        title="Tiny Model",
        summary="A model for tests.",
        license="Apache-2.0",
        file_name="Tiny.gguf",
        size_bytes=len(model),
        sha256=hashlib.sha256(model).hexdigest(),
        package="tiny-model",
        version="1.0",
        member=MEMBER,
        download_bytes=len(content),
        download_sha256=hashlib.sha256(content).hexdigest(),
    )
    return Wheel(content, model, entry)
