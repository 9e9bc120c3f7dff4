"""The extension as Python loads it, built with AddressSanitizer and UndefinedBehaviorSanitizer, and looked at for leaks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounted import PATIENCE_S, REPOSITORY

LANE = REPOSITORY / "luxfuse" / "fuse" / "lane"
PROGRAM = Path(__file__).with_name("extension_program.py")
SEED = int(os.environ.get("LUXFUSE_LANE_SEED", "1"))
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
NO_SEARCH = "LeakSanitizer has encountered a fatal error"
"""It stops the process as a debugger does, which some containers forbid."""

Build = Callable[..., Path]


def said_by_gcc(name: str) -> str:
    return subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or not Path(said_by_gcc("libasan.so")).is_absolute(), reason="needs gcc and its sanitizers"
)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the extension as `pyproject.toml` says, in a directory, with sanitizers and maybe another source of a name."""
    known: dict[Path, Path] = {}
    objects = tmp_path_factory.mktemp("objects")
    modules = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    (said,) = [module for module in modules if module["name"] == "luxfuse.fuse._passthrough"]
    include = [f"-I{path}" for path in (*said["include-dirs"], LANE, sysconfig.get_path("include"))]
    define = [f"-D{name}={value}" for name, value in said["define-macros"]]

    def compiled(source: Path) -> Path:
        if source not in known:
            known[source] = objects / f"{len(known)}.o"
            command = ["gcc", "-c", "-fPIC", "-g", *said["extra-compile-args"], "-O1", *define, *include, *SANITIZED]
            subprocess.run([*command, "-o", known[source], source], check=True, timeout=PATIENCE_S)
        return known[source]

    def build_in(directory: Path, instead: Path | None = None) -> Path:
        extension = directory / f"_passthrough{sysconfig.get_config_var('EXT_SUFFIX')}"
        sources = map(REPOSITORY.joinpath, said["sources"])
        parts = [compiled(instead if instead and instead.name == source.name else source) for source in sources]
        libraries = [f"-l{name}" for name in said["libraries"]]
        command = ["gcc", "-shared", *SANITIZED, "-o", extension, *parts, *libraries]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        return extension

    return build_in


def run(extension: Path, kind: str, seed: int = SEED) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "LD_PRELOAD": said_by_gcc("libasan.so"), "PYTHONPATH": str(REPOSITORY),
        "PYTHONMALLOC": "malloc",  # else bytes within Python's arenas are all alike
        "ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip
    command = [sys.executable, PROGRAM, extension, kind, str(seed)]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)
        if NO_SEARCH not in done.stderr:
            return done
    environment["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)


def can_search(directory: Path) -> bool:
    program = directory / "program"
    (directory / "program.c").write_text("int main(void) { return 0; }")
    subprocess.run(["gcc", *SANITIZED, "-o", program, directory / "program.c"], check=True, timeout=PATIENCE_S)
    return subprocess.run([program], capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0


def faults(done: subprocess.CompletedProcess[str]) -> str:
    """What the sanitizers say; of leaks those of the extension's own calls, not those of Python and libfuse."""
    blocks = [block for block in done.stderr.split("\n\n") if "leak of" not in block or f"{LANE.name}/" in block]
    leaks = [block for block in blocks if "leak of" in block]
    return done.stderr if done.returncode else "\n\n".join(leaks)


@pytest.mark.parametrize("kind", ["prompt", "session", "calls"])
def test_the_extension_does_nothing_undefined(build: Build, tmp_path: Path, kind: str) -> None:
    done = run(build(tmp_path), kind)
    assert not faults(done), f"seed {SEED}"
    words = done.stdout.split()
    counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert counts
    assert min(counts.values()) > 0, f"seed {SEED}: something was never met: {counts}"


FREED = "\t\t\tfree(r->data);\n\t\t\tfree(r);\n"


@pytest.mark.parametrize(
    ("kind", "file", "correct", "wrong"),
    [
        ("prompt", "prompt.c", FREED, "\t\t\tfree(r);\n\t\t\tfree(r->data);\n"),
        pytest.param("prompt", "prompt.c", FREED, "\t\t\tfree(r);\n", marks=pytest.mark.slow),
        pytest.param(
            "session", "libfuse.c", "\tbuf->size = r->size;\n", "\tbuf->size = r->size;\n\tfree(r->data);\n",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "calls", "module.c", "\tPyMem_Free(names);\n\tPy_DECREF(fast);\n", "\tPy_DECREF(fast);\n",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["used after it is freed", "a request that is left", "freed twice", "names that are left"],
)  # fmt: skip
def test_the_program_notices(build: Build, tmp_path: Path, kind: str, file: str, correct: str, wrong: str) -> None:
    if len(wrong) < len(correct) and not can_search(tmp_path):
        pytest.skip("LeakSanitizer cannot look for leaks here")
    code = (LANE / file).read_text()
    assert code.count(correct) == 1
    changed = tmp_path / LANE.name / file
    changed.parent.mkdir()
    changed.write_text(code.replace(correct, wrong))
    assert faults(run(build(tmp_path, instead=changed), kind))
