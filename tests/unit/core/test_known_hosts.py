import base64
import subprocess

import pytest

from luxfuse.core.known_hosts import Verdict, fingerprint, host_keys, name_of

ONE, OTHER = b"\0\0\0\x0bssh-ed25519one", b"\0\0\0\x0bssh-ed25519other"


def line(names: str, key: bytes = ONE, marker: str = "") -> str:
    return f"{marker} {names} ssh-ed25519 {base64.b64encode(key).decode()} a comment\n".lstrip()


def verdict(text: str, host: str = "Host.example.com", port: int = 22, key: bytes = ONE) -> Verdict:
    return host_keys(host, port, {"f": text}).judge(key)


@pytest.mark.parametrize(
    ("names", "port", "expected"),
    [
        ("host.example.com", 22, Verdict.KNOWN),
        ("other,HOST.example.com", 22, Verdict.KNOWN),
        ("*.example.com", 22, Verdict.KNOWN),
        ("h?st.example.com", 22, Verdict.KNOWN),
        ("*.example.com,!host.*", 22, Verdict.UNKNOWN),
        ("example.com", 22, Verdict.UNKNOWN),
        ("hostxexample.com", 22, Verdict.UNKNOWN),
        ("[host.example.com]:2222", 2222, Verdict.KNOWN),
        ("[host.example.com]:2222", 22, Verdict.UNKNOWN),
        ("[host.example.com]:2222", 2223, Verdict.UNKNOWN),
        ("host.example.com", 2222, Verdict.KNOWN),  # as with OpenSSH
    ],
)
def test_names(names, port, expected):
    assert verdict(line(names), port=port) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Verdict.UNKNOWN),
        (line("host.example.com", OTHER), Verdict.CHANGED),
        (line("host.example.com", OTHER) + line("host.example.com"), Verdict.KNOWN),
        (line("host.example.com") + line("*", marker="@revoked"), Verdict.REVOKED),
        (line("host.example.com") + line("*", OTHER, "@revoked"), Verdict.KNOWN),
        (line("*", marker="@revoked"), Verdict.REVOKED),
        (line("*", marker="@cert-authority"), Verdict.UNKNOWN),
        (line("*", marker="@unheard-of"), Verdict.UNKNOWN),
        ("# " + line("host.example.com"), Verdict.UNKNOWN),
        ("host.example.com ssh-ed25519\nhost.example.com ssh-ed25519 !!!\n", Verdict.UNKNOWN),
    ],
)
def test_lines(text, expected):
    assert verdict(text) is expected


def test_a_key_of_the_port_goes_before_one_of_the_host():
    text = line("host.example.com") + line("[host.example.com]:2222", OTHER)
    assert verdict(text, port=2222) is Verdict.CHANGED
    assert host_keys("host.example.com", 2222, {"f": text}).known[0].place == "f:2"
    text = line("[host.example.com]:2222") + line("host.example.com", marker="@revoked")
    assert verdict(text, port=2222) is Verdict.REVOKED


def test_hashed_names_and_fingerprints_are_those_of_openssh(tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    kind, key = (tmp_path / "key.pub").read_text().split()[:2]
    hosts = tmp_path / "known_hosts"
    hosts.write_text(f"host.example.com {kind} {key}\n[host.example.com]:2222 {kind} {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", hosts], check=True, capture_output=True)
    text = hosts.read_text()
    assert "host" not in text
    raw = base64.b64decode(key)
    assert verdict(text, key=raw) is verdict(text, port=2222, key=raw) is Verdict.KNOWN
    assert verdict(text, "elsewhere", key=raw) is Verdict.UNKNOWN
    assert verdict(text.replace("|1|", "|2|"), key=raw) is verdict("|1|x|y" + text[5:], key=raw) is Verdict.UNKNOWN
    shown = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], check=True, capture_output=True)
    assert fingerprint(raw) in shown.stdout.decode()
    assert name_of("h", 22) == "h"
    assert name_of("h", 2222) == "[h]:2222"
