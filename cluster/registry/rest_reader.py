"""The registry of an MLflow server, asked over its REST API 2.0 without MLflow; why, and at what price: reader.py.

    GET /api/2.0/mlflow/registered-models/search | get        names, aliases
    GET /api/2.0/mlflow/model-versions/search | get           versions
    GET /api/2.0/mlflow/model-versions/get-download-uri, /api/2.0/mlflow/logged-models/{id}

https://mlflow.org/docs/latest/api_reference/rest-api.html. There is no patience here: a server that is away, slow or
behind a login, and any answer but the two that are known (200, and 404 with MLflow's own code), is the client's affair,
which retries, knows more ways to log in, and says what is wrong.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cluster.masking import login_of, taken_out
from cluster.registry.client_reader import condition_of
from cluster.registry.reader import IS_PROMPT, Record, Unsure

API = "/api/2.0/mlflow/"
SECONDS = 5.0  # for one answer; the client then waits as long as it is set to
# What is set under these names changes how the client asks; only the second line is understood here.
SETTINGS = ("MLFLOW_TRACKING_", "MLFLOW_WORKSPACE", "MLFLOW_ENABLE_WORKSPACES")
UNDERSTOOD = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
CREDENTIALS = ("~/.mlflow/credentials", "~/.netrc", "~/_netrc")  # the client, or its `requests`, reads these too


def can_ask(environment: Mapping[str, str]) -> bool:
    """Whether nothing is set up that only MLflow's client knows how to follow."""
    settings = [n for n in environment if n.startswith(SETTINGS) and n not in UNDERSTOOD]
    return not settings and "NETRC" not in environment and not any(Path(p).expanduser().exists() for p in CREDENTIALS)


class RestReader:
    """Look-ups at one server.

    Raises:
        Unsure: the server doesn't give the answer that is expected.
    """

    page = 100  # entries in one answer of a search

    def __init__(self, uri: str):
        self.uri, *self._login = login_of(taken_out(uri).rstrip("/"))

    def names(self) -> list[str]:
        return [m["name"] for m in self._pages("registered-models/search", "registered_models")]

    def aliases(self, name: str) -> dict[str, int] | None:
        found = self._get("registered-models/get", "registered_model", name=name)
        if found is None or any(t["key"] == IS_PROMPT for t in found.get("tags", [])):
            return None
        return {a["alias"]: int(a["version"]) for a in found.get("aliases", [])}

    def versions(self, name: str, tag: tuple[str, str] | None = None) -> list[Record]:
        pages = self._pages("model-versions/search", "model_versions", filter=condition_of(name, tag))
        return [_record(v) for v in pages]

    def version(self, name: str, number: int) -> Record | None:
        found = self._get("model-versions/get", "model_version", name=name, version=number)
        record = found and _record(found)
        return None if record is None or IS_PROMPT in record.tags else record

    def location(self, name: str, number: int) -> str:
        uri = self._get("model-versions/get-download-uri", "artifact_uri", name=name, version=number)
        if uri and uri.startswith("models:/m-"):
            model = self._get(f"logged-models/{quote(uri.removeprefix('models:/'), safe='')}", "model")
            uri = model and model["info"]["artifact_uri"]
        if not uri:
            raise Unsure(f"no files of {name} {number}")
        return uri

    def _headers(self) -> dict[str, str]:
        """How the client would log in: as the address says, else as the variables do."""
        user, password = self._login
        return basic(user, password) if user or password else _login(os.environ)

    # -- requests --------------------------------------------------------------------------------------------

    def _pages(self, path: str, key: str, **query: Any) -> Iterator[dict]:
        token = None
        while True:
            page = self._get(path, max_results=self.page, **query, **({"page_token": token} if token else {}))
            if page is None:
                raise Unsure(f"no {path}")
            yield from page.get(key, [])
            token = page.get("next_page_token")
            if not token:
                return

    def _get(self, path: str, key: str | None = None, **query: Any) -> Any:
        """The answer, or what it has under `key`; None where MLflow says that there is no such thing."""
        url = f"{self.uri}{API}{path}" + (f"?{urlencode(query)}" if query else "")
        opener = build_opener(_NoRedirect)  # a password must go nowhere else
        try:
            with opener.open(Request(url, headers=self._headers()), timeout=SECONDS) as response:
                answer = json.load(response)
            return answer if key is None and isinstance(answer, dict) else answer[key]
        except HTTPError as error:
            with error:
                if error.code == 404 and _code(error.read()) == "RESOURCE_DOES_NOT_EXIST":
                    return None
            raise Unsure(f"{url}: {error}") from error
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:  # away, or no such JSON
            raise Unsure(f"{url}: {error!r}") from error


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kw: Any) -> None:
        return None


def _code(body: bytes) -> Any:
    try:
        return json.loads(body)["error_code"]
    except (ValueError, LookupError, TypeError):
        return None


def basic(user: str, password: str) -> dict[str, str]:
    """The header of HTTP's basic authentication, RFC 7617."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def _login(environment: Mapping[str, str]) -> dict[str, str]:
    name, password, token = (environment.get(f"MLFLOW_TRACKING_{w}") for w in ("USERNAME", "PASSWORD", "TOKEN"))
    if name and password:
        return basic(name, password)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _record(found: dict) -> Record:
    return Record(
        name=found["name"],
        version=int(found["version"]),
        created=int(found.get("creation_timestamp") or 0),
        run_id=found.get("run_id") or "",
        source=found.get("source") or "",
        description=found.get("description") or "",
        tags={t["key"]: t.get("value", "") for t in found.get("tags", [])},
    )
