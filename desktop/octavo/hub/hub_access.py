"""Which hub is asked, and as whom: option, settings, environment and token put together."""

import os
import urllib.parse

from octavo.errors import InvalidInputError
from octavo.hub.hub_files import DEFAULT_ENDPOINT
from octavo.hub.hugging_face import HuggingFace
from octavo.hub.token_store import TokenStore

ENDPOINT_VARIABLE = "HF_ENDPOINT"


def make_hub(
    tokens: TokenStore, *, endpoint: str = "", proxy: str = "", is_offline: bool = False
) -> HuggingFace:
    """The hub for one person. Waits for the system's keyring: call it on a worker.

    Args:
        endpoint: empty: $HF_ENDPOINT, else the hub itself.

    Raises:
        InvalidInputError: the endpoint is no web address, or the token cannot be one.
        StorageError: the token cannot be read.
    """
    url = endpoint or os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT
    if not _is_web_address(url):
        raise InvalidInputError(
            f"The endpoint {url!r} is no web address.",
            hint=f"It looks like {DEFAULT_ENDPOINT}; see the settings, --endpoint and"
            f" ${ENDPOINT_VARIABLE}.",
        )
    token = "" if is_offline else tokens.read()
    return HuggingFace(url.rstrip("/"), token, proxy, is_offline)


def _is_web_address(url: str) -> bool:
    try:
        address = urllib.parse.urlsplit(url)
        # Asking for the port checks it.
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        return False
