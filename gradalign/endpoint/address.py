"""Where a model is served: `server:URL` or `server:URL#MODEL`. Reads the text alone; opens no connection."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gradalign.types import GradalignError

PREFIX = "server:"
_FORM = "server:URL or server:URL#MODEL, as server:http://127.0.0.1:8000#my-model"


@dataclass(frozen=True)
class Address:
    """`url` is the root of the API with its version, as http://127.0.0.1:8000/v1; `model` None is the only one that is served there."""

    url: str
    model: str | None = None

    @property
    def origin(self) -> str:
        """The server alone, as a key is bound to it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}".lower()

    @property
    def root(self) -> str:
        """The server without the version, where what is beside the API lies."""
        return self.url.rpartition("/")[0]


def require_no_secret(text: str, thing: str, key: str) -> None:
    """Refuse, without showing it, an address anywhere in `text` that could hold a secret: a user, a password or a query.

    `thing` is what the address is one of, `key` a variable of the environment that the secret belongs in. What has no :// is no address.
    """
    if "://" in text and ("?" in text or any("@" in authority for authority in re.findall(r"://([^/]*)", text))):
        raise GradalignError(
            f"the address of {thing} may hold no user, password or query; give the key as {key} in the environment"
        )


def parse_address(text: str) -> Address:
    """The address that `text` names. One that could hold a secret is refused, and not shown."""
    url, _, model = text.removeprefix(PREFIX).partition("#")
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known, parts = False, None
    if "@" in text or "?" in text:
        raise GradalignError(
            "the address of a served model may hold no user, password or query; give the key as GRADALIGN_API_KEY in the environment"
        )
    if not known or parts is None or not text.startswith(PREFIX):
        raise GradalignError(f"{text!r} is not the address of a served model; write {_FORM}")
    path = parts.path.rstrip("/")
    version = "" if re.search(r"/v\d+$", path) else "/v1"
    return Address(f"{parts.scheme}://{parts.netloc}{path}{version}", model or None)
