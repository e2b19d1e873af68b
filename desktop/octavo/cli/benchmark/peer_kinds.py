"""`PEERS`: the other programs that `octavo bench --against` knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class PeerKind:
    """A way to run a model file that is not ours."""

    title: str
    script: str
    """Of the program, beside this module."""
    package: str
    """What pip calls it."""
    arguments: tuple[str, ...] = ()
    """After path and threads."""


PEERS: Mapping[str, PeerKind] = MappingProxyType(
    {
        "llama.cpp": PeerKind("llama.cpp", "llama_cpp_peer.py", "llama-cpp-python"),
        "llama.cpp-q4_0": PeerKind(
            "llama.cpp, Q4_0", "llama_cpp_peer.py", "llama-cpp-python", ("q4_0",)
        ),
        "openvino": PeerKind("OpenVINO GenAI", "openvino_peer.py", "openvino-genai"),
    }
)
"""By the names that `--against` takes."""
