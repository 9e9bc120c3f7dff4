"""The direct GETs against a server that answers oddly, built with sanitizers: races, leaks, and what is no object."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.mounted import REPOSITORY
from tests.support.odd_gets import OddGets
from tests.support.seeds import drawn_seed

GETS = REPOSITORY / "luxfuse" / "understore" / "gets"
SOURCES = ("answer.c", "bodies.c", "keep.c", "pool.c", "receive.c", "sets.c", "sign.c")
HARNESS = Path(__file__).with_name("gets_harness.c")
TIMEOUT_S = 120
SEED = 1 + drawn_seed() % ((1 << 31) - 1)
HEADERS = ("curl/curl.h", "openssl/evp.h", "xxhash.h")


def has_headers() -> bool:
    """Whether the extension can be built here at all."""
    if shutil.which("gcc") is None:
        return False
    code = "".join(f"#include <{name}>\n" for name in HEADERS)
    return subprocess.run(["gcc", "-E", "-"], input=code.encode(), capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not has_headers(), reason="needs gcc and the headers of libcurl, OpenSSL and xxHash")


def build(directory: Path, sanitizer: str, gets: Path = GETS) -> Path:
    program = directory / "gets_harness"
    hook = "void test_pause(const unsigned char *abandoned);\n"
    (directory / "hook.h").write_text(hook)
    command = [
        "gcc", "-D_GNU_SOURCE", "-DGETS_PAUSE(a)=test_pause(a)", "-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror",
        f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{gets}", "-include", directory / "hook.h",
        "-o", program, HARNESS, *(gets / name for name in SOURCES), "-lcurl", "-lcrypto", "-lxxhash", "-lpthread",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=TIMEOUT_S)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def race(program: Path, directory: Path, seconds: int, seed: int = SEED) -> subprocess.CompletedProcess[str]:
    files = directory / "files"
    files.mkdir(exist_ok=True)
    with OddGets() as server:
        return run(program, "race", server.host, str(seed), str(seconds), str(files))


def test_odd_answers_heads_and_keys_and_memory(tmp_path: Path) -> None:
    program = build(tmp_path, "address,undefined")
    check_race(program, tmp_path, 2)
    for mode in (["fuzz", str(SEED), "500"], ["bodies"]):
        done = run(program, *mode)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_odd_answers_for_longer(tmp_path: Path, sanitizer: str) -> None:
    check_race(build(tmp_path, sanitizer), tmp_path, 20)


def check_race(program: Path, tmp_path: Path, seconds: int) -> None:
    for longer in (seconds, 10, 40):  # a busy machine meets less in the same time
        done = race(program, tmp_path, longer)
        assert done.returncode == 0, done.stderr
        words = done.stdout.split()
        counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        if min(counts.values()) > 0:
            break
    assert min(counts.values()) > 0, f"seed {SEED}: something was never met: {counts}"
    files = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert not files, "left behind"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "correct", "wrong"),
    [
        ("answer.c", "!strcmp(a->etag, version)", "(version != NULL)"),
        ("answer.c", "a->total == size && ", ""),
        ("answer.c", "a->first == start && a->last == start + size - 1 && ", "start <= a->last && "),
        ("bodies.c", "		*at = found->next;\n", ""),
        ("answer.c", "a->status == 200 && !a->odd && a->has_length", "a->status == 200 && a->has_length"),
        ("receive.c", "return s->answer.status == 200;", "return true;"),
        ("pool.c", "	if (is_abandoned(b))\n		return GET_ABANDONED;\n", ""),
        ("keep.c", "size - at < PAGE_BYTES ? size - at : PAGE_BYTES", "size - at"),
        ("keep.c", "	if (stay_open)\n", "	if (!stay_open)\n"),
    ],
    ids=[
        "another version",
        "a part",
        "another part",
        "memory for two",
        "an odd head",
        "no listing",
        "after it was given up",
        "one checksum for all",
        "closed",
    ],
)
def test_the_model_notices(tmp_path: Path, file: str, correct: str, wrong: str) -> None:
    gets = tmp_path / "gets"
    shutil.copytree(GETS, gets)
    code = (gets / file).read_text()
    assert code.count(correct) == 1
    (gets / file).write_text(code.replace(correct, wrong))
    program = build(tmp_path, "address,undefined", gets)
    assert any(race(program, tmp_path, 2, SEED + n).returncode != 0 for n in range(3))
