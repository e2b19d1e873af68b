"""`FileLayout`: an output file whose size and places are known before a weight is read."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileLayout:
    """The start of a file, and where each tensor goes behind it; what lies between is zeros."""

    file_name: str
    header: bytes
    offsets: Mapping[str, int]
    """Of each tensor by its name, from the start of the file."""
    num_bytes: int

    @property
    def fingerprint(self) -> str:
        """The same for the same layout only."""
        digest = hashlib.sha256(self.header)
        digest.update(repr((self.file_name, self.num_bytes)).encode())
        return digest.hexdigest()
