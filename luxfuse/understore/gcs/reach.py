"""The way to Google's storage for gcsfs: its own session, and the tokens that google-auth fetches by requests.

By themselves, the former heeds no variables, and the latter believe the certificates of a package.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import aiohttp
import requests
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request

from luxfuse.errors import NoCredentials
from luxfuse.understore.failures import CREDENTIAL_PLACES
from luxfuse.understore.reach import Reach
from luxfuse.understore.variables import variables

TOKENS = "https://oauth2.googleapis.com"
PLAIN = {"Accept-Encoding": "identity"}
"""Of answers in JSON."""
STORED = {"Accept-Encoding": "gzip"}
"""Of content: Google unpacks what is stored compressed for those who do not say this, and then heeds no Range."""
EARLY_S = 300
"""Tokens are renewed so long before they expire."""


def reach_by(filesystem: Any, options: Mapping[str, str]) -> Reach:
    """Make a file system of gcsfs use the certificates and the proxy of options and variables; returns these.

    Raises `ConfigError`.
    """
    reach = Reach.of((filesystem._location, TOKENS), options, variables())
    filesystem._set_session = functools.partial(_set_session, filesystem, reach, reach.trust.ssl_context())
    tokens = filesystem.credentials
    tokens.maybe_refresh = functools.partial(_refresh, tokens, Reach.of((TOKENS,), options, variables(), reach.trust))
    return reach


async def _set_session(filesystem: Any, reach: Reach, context: Any) -> Any:
    if filesystem._session is None:
        named = {"connector": aiohttp.TCPConnector(ssl=context), "proxy": next(iter(reach.proxies().values()), None)}
        given = filesystem.session_kwargs
        # Content comes as it is stored, of which sizes and ranges are; else a compressed object would be unpacked.
        plain = {"auto_decompress": False, "headers": {**PLAIN, **given.get("headers", {})}}
        filesystem.session_kwargs = {**named, **given, **plain}
    return await type(filesystem)._set_session(filesystem)


def _refresh(tokens: Any, reach: Reach, early_s: int = EARLY_S) -> None:
    """Do as gcsfs's own method does, by a session that goes the right way."""
    if tokens.credentials is None or tokens._credentials_valid(early_s):
        return
    with tokens.lock, requests.Session() as session:
        if tokens._credentials_valid(early_s):
            return
        session.trust_env = False
        session.verify, session.proxies = reach.trust.verify, reach.proxies()
        try:
            tokens.credentials.refresh(Request(session))
        except RefreshError:
            raise NoCredentials(f"no token could be had; credentials come from: {CREDENTIAL_PLACES['gs']}") from None
        tokens.credentials.apply(tokens.heads)
