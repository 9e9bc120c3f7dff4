"""Hosts with a network of their own: namespaces on one bridge, with loss and partitions by nftables.

Programs are put into one by `Host.prefix`, which changes the network alone: files, mounts and processes stay shared.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterable

TABLE = "luxfuse_test"
_serial = itertools.count()
_random = random.SystemRandom()


def missing() -> str | None:
    """Why there can be no such network here, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for program in ("ip", "nft", "nsenter"):
        if shutil.which(program) is None:
            return f"needs {program} (Debian: iproute2 nftables)"
    name = f"luxfuse-{os.getpid()}-probe"
    try:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"lx{os.getpid() % 100_000}p", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("nsenter", f"--net=/run/netns/{name}", "nft", "add", "table", "inet", TABLE)
    except AssertionError as exc:
        return f"needs network namespaces with veth and nftables ({exc})"
    finally:
        run("ip", "netns", "delete", name, check=False)
    return None


def run(*command: str, check: bool = True, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that is quick."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, input=text)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done


class Host:
    """One namespace."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.path = f"/run/netns/{name}"
        self.prefix = ["nsenter", f"--net={self.path}"]

    def rules(self, *rules: str) -> None:
        """Let these rules, and no others, hold for what arrives."""
        lines = [f"table inet {TABLE}", f"delete table inet {TABLE}"]
        if rules:
            lines += [f"table inet {TABLE} {{", "chain arrive {", "type filter hook input priority 0", *rules, "}", "}"]
        run(*self.prefix, "nft", "-f", "-", text="\n".join(lines))

    def cut_off_from(self, others: Iterable[Host]) -> None:
        """Hear nothing from others."""
        self.rules(f"ip saddr {{ {', '.join(other.address for other in others)} }} drop")

    def lose(self, percent: int, server: str) -> None:
        """Lose some of what arrives, but not from the server."""
        self.rules(f"ip saddr != {server} numgen random mod 100 < {percent} counter drop")

    def lost(self) -> int:
        """How many packets `lose` has taken away."""
        listed = run(*self.prefix, "nft", "list", "table", "inet", TABLE).stdout
        return int(listed.partition("counter packets ")[2].split()[0])


def _claim_subnet() -> tuple[str, socket.socket]:
    """Return a subnet that no other process of tests has, and what makes it ours until that is closed."""
    known = run("ip", "-4", "-o", "address").stdout
    while True:
        subnet, claim = f"10.{_random.randrange(77, 177)}.{_random.randrange(250)}", socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            claim.bind(f"\0luxfuse-tests-{subnet}")  # goes with its process, whatever ends that
            if f" {subnet}.1/" not in known:
                return subnet, claim
        claim.close()


class Network:
    """A bridge and hosts on it. A context manager: nothing is left."""

    def __init__(self, count: int) -> None:
        number = next(_serial)
        self._id = f"{os.getpid()}-{number}"
        self._bridge = f"lx{os.getpid() % 100_000}b{number}"
        subnet, self._claim = _claim_subnet()
        self.server = f"{subnet}.1"
        """Address of the machine itself, which all reach."""
        self.hosts = [Host(f"luxfuse-{self._id}-{n}", f"{subnet}.{10 + n}") for n in range(count)]

    def __enter__(self) -> Network:
        try:
            run("ip", "link", "add", self._bridge, "type", "bridge")
            run("ip", "address", "add", f"{self.server}/24", "dev", self._bridge)
            run("ip", "link", "set", self._bridge, "up")
            for number, host in enumerate(self.hosts):
                self._add(number, host)
        except BaseException:
            self.close()
            raise
        return self

    def _add(self, number: int, host: Host) -> None:
        link = f"{self._bridge}v{number}"
        run("ip", "netns", "add", host.name)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        run("ip", "link", "set", link, "master", self._bridge, "up")
        run("ip", "-n", host.name, "link", "set", "lo", "up")
        run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        run("ip", "-n", host.name, "link", "set", "eth0", "up")

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything."""
        for host in self.hosts:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                run("ip", "netns", "delete", host.name, check=False)
        run("ip", "link", "delete", self._bridge, check=False)
        self._claim.close()
