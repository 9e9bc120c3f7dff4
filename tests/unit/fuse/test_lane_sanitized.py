"""The lanes beside a model of files, built with sanitizers: races, leaks, and requests with something wrong."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.mounted import REPOSITORY
from tests.support.seeds import drawn_seed

LANE = REPOSITORY / "luxfuse" / "fuse" / "lane"
SOURCES = [
    LANE / f"{name}.c"
    for name in ("answers", "asked", "bytes", "estate", "lane", "missing", "queue", "table", "trace", "waiting")
]
HARNESS = Path(__file__).with_name("lane_harness.c")
TIMEOUT_S = 120
SHORT_RUN = "-DRUN_BYTES=(49152u+16u)"
"""A file of the model and two words."""
FEW_ANSWERS = [
    "-DFILL_BYTES=8192u",
    "-DTRACED=32u",
    "-DANSWERS_BUDGET=2000u",
    "-DANSWER_BUCKETS=8u",
    "-DMISSING_DIRECTORIES=2u",
]
"""So that there is no room for all names of the model, nor for all that is traced, and lists are long."""
SEED = 1 + drawn_seed() % ((1 << 31) - 1)
SEND = "		send_reply(in->unique, 0, &out, sizeof out);\n"
UNLOCK = "	pthread_mutex_unlock(lock_of_name(bucket));\n"

Build = Callable[..., Path]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the program in a directory, with a sanitizer; what was compiled already is compiled no more."""
    known: dict[tuple[Path, str, tuple[str, ...]], Path] = {}
    objects = tmp_path_factory.mktemp("objects")

    def compiled(source: Path, sanitizer: str, defines: tuple[str, ...]) -> Path:
        key = (source, sanitizer, defines)
        if key not in known:
            known[key] = objects / f"{len(known)}.o"
            command = [
                "gcc", "-c", "-D_GNU_SOURCE", "-DLANE_PAUSE()=usleep(50)", "-DSPARE_S=0", SHORT_RUN, *FEW_ANSWERS, "-g",
                "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *defines, f"-fsanitize={sanitizer}",
                "-fno-sanitize-recover=all", f"-I{LANE}", "-include", "unistd.h", "-o", known[key], source,
            ]  # fmt: skip
            subprocess.run(command, check=True, timeout=TIMEOUT_S)
        return known[key]

    def build_in(directory: Path, sanitizer: str, *defines: str, instead: Path | None = None) -> Path:
        program = directory / "lane_harness"
        sources = [HARNESS, *(instead if instead and instead.name == source.name else source for source in SOURCES)]
        parts = [compiled(source, sanitizer, defines) for source in sources]
        command = ["gcc", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-o", program, *parts, "-lpthread"]
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
        return program

    return build_in


def run(program: Path, kind: str, amount: int, directory: Path, seed: int = SEED) -> subprocess.CompletedProcess[str]:
    files = directory / "files"
    files.mkdir(exist_ok=True)
    command = [program, kind, str(seed), str(amount), files]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_reads_and_writes_while_files_are_handed_over_and_taken_back(build: Build, tmp_path: Path, sanitizer: str) -> None:
    race(build(tmp_path, sanitizer), tmp_path)


def test_a_single_lane_never_waits_for_a_disk(build: Build, tmp_path: Path) -> None:
    race(build(tmp_path, "address,undefined", "-DMOST_LANES=1u"), tmp_path, never=("written", "sent_out"))


def race(program: Path, directory: Path, never: Sequence[str] = ()) -> None:
    """Run it until all was met, but for what is ``never`` to be: on a busy machine that takes longer."""
    for seconds in (4, 16, 60):
        done = run(program, "race", seconds, directory)
        assert done.returncode == 0, done.stderr
        counts = counts_of(done)
        assert [counts.pop(name) for name in never] == [0] * len(never)
        if min(counts.values()) > 0:
            return
    pytest.fail(f"seed {SEED}: something was never met: {counts}")


def counts_of(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    words = done.stdout.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_requests_of_random_bytes(build: Build, tmp_path: Path, sanitizer: str) -> None:
    done = run(build(tmp_path, sanitizer), "fuzz", 5_000, tmp_path)
    assert done.returncode == 0, done.stderr
    assert counts_of(done)["asked"] > 0


@pytest.mark.parametrize(
    ("file", "correct", "wrong", "sanitizer"),
    [
        ("table.c", "const bool live = !e->retired;", "const bool live = true;", "address,undefined"),
        ("table.c", "e->fill && !is_filled(e, offset, size)", "!is_filled(e, offset, size) && false", "address,undefined"),
        ("table.c", "return e->users ? NULL : e;", "return e;", "address,undefined"),
        (
            "table.c", "const int fd = e->writers || e->filling ? -1 : e->write_fd;", "const int fd = e->write_fd;",
            "address,undefined",
        ),
        ("table.c", "	pthread_mutex_lock(lock_of(ino));\n	const bool live", "	const bool live", "thread"),
        (
            "bytes.c", "	table_unuse(e, true, room);\n	has_blocked();\n", "	table_unuse(e, true, room);\n",
            "address,undefined",
        ),
        ("bytes.c", "	table_unuse(e, true, room);\n", "	table_unuse(e, true, 0);\n", "address,undefined"),
        ("table.c", "if (offset - e->run_end > MOST_BYTES)", "if (false)", "address,undefined"),
        ("table.c", "e->touched = stripe_of(e->ino)->touched = true;", "e->touched = true;", "address,undefined"),
        ("bytes.c", "	if (!e) {\n		has_blocked();\n", "	if (!e) {\n", "address,undefined"),
        ("bytes.c", "	if (!whole)\n", "	if (!whole && false)\n", "address,undefined"),
        (
            "answers.c", "for (unsigned i = 0; i < STRIPES; i++) {", "for (unsigned i = 0; i < STRIPES && false; i++) {",
            "address,undefined",
        ),
        pytest.param(  # it takes luck to meet the instant between the two
            "answers.c", f"{SEND}	}}\n{UNLOCK}", f"	}}\n{UNLOCK}	if (left)\n{SEND}",
            "address,undefined", marks=pytest.mark.slow,
        ),
        pytest.param(
            "answers.c", " == a->generation ? left : 0", " >= a->generation ? left : 0", "address,undefined",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "answers.c", "	return left > 0 && atomic", "	return left && atomic", "address,undefined",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "answers.c", "	take_out(find_ino(ino_bucket, said->ino));\n", "", "address,undefined", marks=pytest.mark.slow
        ),
        (
            "missing.c", "	if (!d->ino || d->ino != ino)\n		return;\n", "	return;\n", "address,undefined",
        ),
        ("missing.c", "		missing = now < d->answer_until_ns && ", "		missing = ", "address,undefined"),
        ("missing.c", "	pthread_mutex_lock(&d->lock);\n	if (d->ino != ino)\n", "	if (d->ino != ino)\n", "thread"),
        ("table.c", "are_among(e->opens, e->writers, writing)", "e->opens", "address,undefined"),
        ("table.c", "(e->inherited || !of_predecessor)", "(e->inherited || !of_predecessor || true)", "address,undefined"),
        ("asked.c", "r->size > start && !data[r->size - 1]", "r->size > start", "address,undefined"),
        ("waiting.c", "			taken = take(each);\n", "			taken = *each;\n", "address,undefined"),
    ],
    ids=[
        "a read after a change", "a page that is not there", "freed while in use", "closed while written to", "no lock",
        "blocked after a write", "room that is never filled", "sent to the disk twice", "an open that is not told",
        "blocked after no write", "a short write", "revoked without waiting", "sent without the lock", "revoked together",
        "too old", "two names of an inode", "a name that came", "missing for too long", "a set that is freed",
        "the end of another open", "the end of an open of before", "a name without an end",
        "an open that goes on to wait",
    ],
)  # fmt: skip
def test_the_model_notices(build: Build, tmp_path: Path, file: str, correct: str, wrong: str, sanitizer: str) -> None:
    code = (LANE / file).read_text()
    assert code.count(correct) == 1
    changed = tmp_path / file
    changed.write_text(code.replace(correct, wrong))
    program = build(tmp_path, sanitizer, instead=changed)
    kind, amount = ("fuzz", 5_000) if file == "asked.c" else ("race", 3)
    assert any(run(program, kind, amount, tmp_path, SEED + n).returncode != 0 for n in range(20))
