"""Who may ask: keys, hosts and origins, on every route there is or is not."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from octavo.errors import ForeignSiteError, InvalidInputError
from octavo.host import ModelHost
from octavo.hub.library import ModelLibrary
from octavo.server.access import AccessRules
from octavo.server.thread import ServerThread
from tests.server.conftest import Served

KEY = "sk-octavo-ä"
ROUTES = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("OPTIONS", "/v1/chat/completions"),
    ("GET", "/nowhere"),
    ("GET", "/"),
]


@pytest.fixture(scope="module")
def locked(loaded_host: ModelHost, library: ModelLibrary) -> Iterator[str]:
    server = ServerThread(loaded_host, library)
    yield server.start(port=0, key=KEY).url
    assert server.stop()


@pytest.mark.parametrize(
    "header",
    [None, "Bearer wrong", f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY],
)
def test_every_route_needs_the_key(locked: str, header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode()}
    with httpx.Client(base_url=locked) as http:
        for method, route in ROUTES:
            response = http.request(method, route, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert KEY not in response.text


def test_the_key_opens(locked: str) -> None:
    headers = {b"Authorization": f"Bearer {KEY}".encode()}
    assert httpx.get(f"{locked}/v1/models", headers=headers).status_code == 200
    assert httpx.get(f"{locked}/nowhere", headers=headers).status_code == 404


def test_the_client_names_a_wrong_key(locked: str) -> None:
    client = openai.OpenAI(base_url=f"{locked}/v1", api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError, match="API key"):
        client.models.list()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": "localhost.evil.example"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
    ],
)
def test_foreign_sites_are_refused_on_every_route(served: Served, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=served.url) as http:
        for method, route in ROUTES:
            response = http.request(method, route, headers=headers)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "foreign_site"
            assert not any(name.startswith("access-control") for name in response.headers)


def test_our_own_names_and_pages_are_let_in(served: Served) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        response = httpx.get(f"{served.url}/health", headers={"Host": host})
        assert response.status_code == 200
        origin = {"Host": host, "Origin": f"http://{host.lower()}"}
        assert httpx.get(f"{served.url}/health", headers=origin).status_code == 200


def test_further_names_are_let_in_where_they_are_ours() -> None:
    rules = AccessRules(host_names=("workstation",))
    rules.check_site([(b"host", b"Workstation:8000")])
    for headers in ([], [(b"host", b"a"), (b"host", b"workstation")], [(b"host", b"[::")]):
        with pytest.raises(ForeignSiteError):
            rules.check_site(headers)


ORIGIN = "https://app.example.org"


@pytest.fixture(scope="module")
def open_to_a_page(loaded_host: ModelHost, library: ModelLibrary) -> Iterator[str]:
    server = ServerThread(loaded_host, library)
    origins = (ORIGIN, "http://localhost:3000")
    yield server.start(port=0, key=KEY, allowed_origins=origins).url
    assert server.stop()


def headers_with_key(origin: str) -> dict[bytes, bytes]:
    return {b"Origin": origin.encode(), b"Authorization": f"Bearer {KEY}".encode()}


def preflight(url: str, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    return httpx.options(f"{url}/v1/chat/completions", headers=headers)


def test_an_allowed_page_may_ask_with_the_key(open_to_a_page: str) -> None:
    answer = preflight(open_to_a_page, ORIGIN)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers
    url = f"{open_to_a_page}/v1/models"
    models = httpx.get(url, headers=headers_with_key(ORIGIN))
    assert models.status_code == 200
    assert models.headers["access-control-allow-origin"] == ORIGIN
    other = httpx.get(url, headers=headers_with_key("http://localhost:3000"))
    assert other.headers["access-control-allow-origin"] == "http://localhost:3000"
    refused = httpx.get(url, headers={"Origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN, "the page can read why"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example.org",
        "https://app.example.org:8443",
        "https://app.example.org.evil.example",
        "https://x.app.example.org",
        "null",
        "*",
    ],
)
def test_every_other_page_is_refused(open_to_a_page: str, origin: str) -> None:
    headers = headers_with_key(origin)
    for answer in (
        preflight(open_to_a_page, origin),
        httpx.get(f"{open_to_a_page}/v1/models", headers=headers),
    ):
        assert answer.status_code == 403
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_host_that_is_not_ours_is_refused_to_an_allowed_page_too(open_to_a_page: str) -> None:
    headers = {"Origin": ORIGIN, "Host": "evil.example"}
    assert httpx.get(f"{open_to_a_page}/health", headers=headers).status_code == 403


def test_several_origins_at_once_are_refused() -> None:
    rules = AccessRules(allowed_origins=(ORIGIN,))
    headers = [(b"host", b"localhost"), (b"origin", ORIGIN.encode()), (b"origin", ORIGIN.encode())]
    with pytest.raises(ForeignSiteError):
        rules.check_site(headers)


@pytest.mark.parametrize("origin", ["*", "app.example.org", "https://a.example/path", ""])
def test_what_names_no_page_is_refused_at_the_start(
    loaded_host: ModelHost, library: ModelLibrary, origin: str
) -> None:
    server = ServerThread(loaded_host, library)
    with pytest.raises(InvalidInputError, match="names no web pages") as caught:
        server.start(port=0, allowed_origins=[origin])
    assert server.start_error is caught.value
    server.start(port=0, allowed_origins=[ORIGIN])
    assert server.start_error is None
    assert server.stop()
