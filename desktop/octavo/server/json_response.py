"""JSON as the endpoint writes it."""

import json
from typing import Any

from starlette.responses import Response


class JSONResponse(Response):
    """A response whose content is JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode_json(content)


# Kept: `json.dumps` would make one for each token.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode_json(value: Any) -> bytes:
    """Compact UTF-8; half a surrogate pair, which a request may carry, does not stop it."""
    return _ENCODER.encode(value).encode("utf-8", "replace")
