"""A host name that resolves to loopback while a file exists, in processes that are started with a library loaded before."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

HOST = "store.invalid"

_LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    const char *file = getenv("RESOLVES_WHILE");
    if (node == NULL || file == NULL || strcmp(node, "store.invalid") != 0)
        return real(node, service, hints, found);
    return access(file, F_OK) == 0 ? real("127.0.0.1", service, hints, found) : EAI_NONAME;
}
"""


@dataclass(frozen=True)
class Resolver:
    """``environment`` is for the processes; `HOST` resolves in them while ``switch`` exists."""

    environment: dict[str, str]
    switch: Path


def resolver(directory: Path) -> Resolver:
    """Build the library; the name does not resolve yet."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    library, switch = directory / "resolving.so", directory / "resolves"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-x", "c", "-o", library, "-", "-ldl"]
    subprocess.run(command, input=_LIBRARY.encode(), check=True)
    return Resolver({"LD_PRELOAD": str(library), "RESOLVES_WHILE": str(switch)}, switch)
