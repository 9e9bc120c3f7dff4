"""Which proxy a request goes through: the table of what curl knows."""

from __future__ import annotations

import pytest

from luxfuse.core.proxies import bypasses, proxy_for
from luxfuse.errors import ConfigError

P = "http://proxy:3128"


@pytest.mark.parametrize(
    ("host", "port", "no_proxy", "direct"),
    [
        ("a.com", 443, "", False),
        ("a.com", 443, "*", True),
        ("10.1.2.3", 443, "*", True),
        ("::1", 443, "*", True),
        ("a.com", 443, "b.com, *", True),
        ("a.com", 443, "a.com", True),
        ("a.com.", 443, "a.com", True),
        ("a.com", 443, "a.com.", True),
        ("s3.a.com", 443, "a.com", True),
        ("s3.a.com", 443, ".a.com", True),
        ("a.com", 443, ".a.com", True),
        ("s3.a.com", 443, "*.a.com", True),
        ("bad-a.com", 443, "a.com", False),
        ("bad-a.com", 443, ".a.com", False),
        ("a.com", 443, "s3.a.com", False),
        ("A.COM", 443, "a.Com", True),
        ("a.com", 443, "x.org, a.com", True),
        ("a.com", 443, "x.org a.com", True),
        ("a.com", 443, " x.org ,\ta.com ,", True),
        ("a.com", 443, ",,", False),
        ("a.com", 443, ".", False),
        ("a.com", 9000, "a.com:9000", True),
        ("s3.a.com", 9000, ".a.com:9000", True),
        ("a.com", 443, "a.com:9000", False),
        ("10.1.2.3", 80, "10.1.2.3", True),
        ("10.1.2.3", 9000, "10.1.2.3:9000", True),
        ("10.1.2.3", 80, "10.1.2.3:9000", False),
        ("10.1.2.3", 80, "10.1.0.0/16", True),
        ("10.1.2.3", 80, "10.1.9.9/16", True),
        ("10.2.2.3", 80, "10.1.0.0/16", False),
        ("10.1.2.3", 80, "2.3", False),
        ("110.1.2.3", 80, "10.1.2.3", False),
        ("10.1.2.3", 80, "10.1.2.3/99", False),
        ("a.com", 80, "10.0.0.0/8", False),
        ("::1", 80, "::1", True),
        ("::1", 80, "[::1]", True),
        ("::1", 80, "0:0:0:0:0:0:0:1", True),
        ("::1", 9000, "[::1]:9000", True),
        ("::1", 80, "[::1]:9000", False),
        ("fd00::12", 80, "fd00::/8", True),
        ("fd00::12", 80, "[fd00::]/8", True),
        ("FE80::1%eth0", 80, "fe80::1", True),
        ("::1", 80, "127.0.0.1", False),
        ("localhost", 80, "127.0.0.1", False),
        ("localhost", 80, "LocalHost", True),
    ],
)
def test_no_proxy(host, port, no_proxy, direct):
    assert bypasses(host, port, no_proxy) is direct


@pytest.mark.parametrize(
    ("url", "variables", "chosen", "proxy"),
    [
        ("https://a.com", {}, None, None),
        ("https://a.com", {"HTTPS_PROXY": P}, None, P),
        ("https://a.com", {"https_proxy": P}, None, P),
        ("http://a.com", {"HTTP_PROXY": P}, None, P),
        ("https://a.com", {"HTTP_PROXY": P}, None, None),
        ("http://a.com", {"HTTPS_PROXY": P}, None, None),
        ("https://a.com", {"ALL_PROXY": P}, None, P),
        ("http://a.com", {"all_proxy": P}, None, P),
        ("https://a.com", {"ALL_PROXY": "http://other", "HTTPS_PROXY": P}, None, P),
        ("https://a.com", {"https_proxy": P, "HTTPS_PROXY": "http://other"}, None, P),
        ("https://a.com", {"https_proxy": "", "HTTPS_PROXY": P, "ALL_PROXY": P}, None, None),
        ("https://a.com", {"HTTPS_PROXY": "proxy:3128"}, None, P),
        ("https://a.com", {"HTTPS_PROXY": "http://other"}, P, P),
        ("https://a.com", {"NO_PROXY": "a.com"}, P, None),
        ("https://a.com", {"HTTPS_PROXY": P, "NO_PROXY": "a.com"}, None, None),
        ("https://a.com", {"HTTPS_PROXY": P, "no_proxy": "b.com", "NO_PROXY": "a.com"}, None, P),
        ("https://a.com", {"HTTPS_PROXY": P, "NO_PROXY": "a.com:443"}, None, None),
        ("http://a.com", {"HTTP_PROXY": P, "NO_PROXY": "a.com:443"}, None, P),
        ("http://a.com:9000/x", {"HTTP_PROXY": P, "NO_PROXY": "a.com:9000"}, None, None),
        ("http://[::1]:9000", {"HTTP_PROXY": P, "NO_PROXY": "[::1]:9000"}, None, None),
        ("https://a.com", {"HTTPS_PROXY": "http://u:p@proxy:1"}, None, "http://u:p@proxy:1"),
    ],
)
def test_proxy_of_a_request(url, variables, chosen, proxy):
    assert proxy_for(url, variables, chosen) == proxy


@pytest.mark.parametrize(
    "proxy", ["socks5h://u:secret@proxy:1080", "http://", "ftp://u:secret@x", "http://u:secret@x:port"]
)
def test_proxies_that_cannot_be_used_are_refused_without_their_secrets(proxy):
    with pytest.raises(ConfigError, match=r"^ALL_PROXY: .*write http://HOST:PORT") as caught:
        proxy_for("https://a.com", {"ALL_PROXY": proxy})
    assert "secret" not in str(caught.value)
    assert proxy_for("https://a.com", {"ALL_PROXY": proxy, "NO_PROXY": "*"}) is None
