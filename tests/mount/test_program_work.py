"""The programs of everyday work on a mount and on the local disk: the same results, also through an empty cache."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.mount.test_programs import Staging, needs, staging
from tests.support.mounted import MIB, PATIENCE_S
from tests.support.programs import assert_same

__all__ = ["staging"]

IN_MODES = pytest.mark.parametrize("mode", ["async-through", pytest.param("cache-through", marks=pytest.mark.slow)])
EPOCH_S = 1_700_000_000


# -- git


def commit(repository: Path, number: int) -> None:
    """Change some files of a local repository and commit."""
    rng = random.Random(number)
    for _ in range(25):
        path = repository / f"src/part{rng.randrange(6)}/file{rng.randrange(20)}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"line {rng.randrange(1000)}\n" for _ in range(rng.randrange(1, 400))))
    (repository / "big.bin").write_bytes(rng.randbytes(200_000))
    link = repository / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(f"src/part{rng.randrange(6)}")
    for command in (["add", "-A"], ["commit", "-q", "-m", f"Change {number}"]):
        subprocess.run(["git", *command], cwd=repository, env=os.environ | GIT, check=True, timeout=PATIENCE_S)


GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b", "GIT_AUTHOR_DATE": f"{EPOCH_S} +0000",
    "GIT_COMMITTER_DATE": f"{EPOCH_S} +0000", "HOME": "/nonexistent",
}  # fmt: skip
GIT_WORK = """
set -e
git clone -q "$SOURCE" clone
cd clone
git checkout -q -b work
for i in 1 2; do
    seq $i 300 > "new$i.txt"
    git mv "src/part$i" "moved$i"
    git add -A
    git commit -q -m "Work $i"
done
git checkout -q -
git merge -q --no-ff -m Merge work
git rm -q -r moved1
git stash -q
git stash pop -q
git commit -q -a -m Removed
git gc -q --prune=now
git repack -q -a -d -f
git worktree add -q ../tree work
git -C ../tree status --porcelain
"""
GIT_CHECK = """
set -e
cd clone
git fsck --full --strict --no-dangling 2>&1
git status --porcelain
git rev-parse HEAD work
git cat-file --batch-all-objects --batch-check | sort
git log --stat --format=%H%n%s
"""


@needs("git")
@IN_MODES
def test_git(staging: Staging, mode: str) -> None:
    stage = staging(mode)
    source = stage.scratch / "source"
    source.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=source, env=os.environ | GIT, check=True, timeout=PATIENCE_S)
    for number in range(3):
        commit(source, number)

    def check(root: Path) -> str:
        return stage.run(["sh", "-c", GIT_CHECK], where=root, env=GIT)

    stage.both(lambda root: stage.run(["sh", "-c", GIT_WORK], where=root, env=GIT | {"SOURCE": str(source)}))
    expected = check(stage.local)
    assert check(stage.path) == expected
    stage.compare_with_local(ignore=lambda path: ".git" in path.split("/"))
    stage.compare_again()
    assert check(stage.path) == expected


# -- rsync


def make_tree(root: Path) -> None:
    """Files of many sizes, modes, owners and times, links, empty directories, and names that are hard to write."""
    rng = random.Random(7)
    names = [f"dir{i % 7}/sub{i % 3}/file{i}" for i in range(120)]
    names += ["with space/a b", "ünï/côdé", "odd/new\nline", "odd/per%41cent+plus&amp;", "odd/back\\slash", "." + "n" * 200]
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice((0, 1, 100, 4096, 5000, 70_000))))
        os.chown(path, 1000 + number % 3, 1000 + number % 2)
        path.chmod(rng.choice((0o600, 0o644, 0o755, 0o400, 0o4755, 0o2711, 0o777)))
    (root / "large").write_bytes(rng.randbytes(20 * MIB + 12345))
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(3 * MIB)
        sparse.seek(MIB)
        sparse.write(b"x" * 5000)
    (root / "empty/deeper").mkdir(parents=True)
    for name, target in {"link": "dir0", "dir1/up": "../large", "dangling": "nowhere", "absolute": "/etc/hostname"}.items():
        (root / name).symlink_to(target)
    (root / "dir2").chmod(0o2775)
    (root / "dir3").chmod(0o1777)
    set_times(root, rng)


def set_times(root: Path, rng: random.Random) -> None:
    """A time of its own for each entry, to the nanosecond; directories after what is in them."""
    for directory, names, files in os.walk(root, topdown=False):
        for name in [*names, *files, "."]:
            when = EPOCH_S * 10**9 + rng.randrange(10**16)
            os.utime(os.path.join(directory, name), ns=(when, when), follow_symlinks=False)


def change_tree(root: Path) -> None:
    """Change, append, shorten, remove, add, turn a file into a link and a directory into a file."""
    rng = random.Random(8)
    with (root / "large").open("r+b") as large:
        large.seek(7 * MIB)
        large.write(rng.randbytes(100))
    with (root / "sparse").open("ab") as sparse:
        sparse.write(b"more")
    os.truncate(root / "with space/a b", 0)
    shutil.rmtree(root / "dir4")
    (root / "dir4").write_text("now a file")
    (root / "dir5/sub2/file5").unlink()
    (root / "dir5/sub2/file5").symlink_to("file12")
    (root / "link").unlink()
    (root / "fresh/one").mkdir(parents=True)
    (root / "fresh/one/file").write_text("fresh")
    set_times(root, rng)


@needs("rsync")
@pytest.mark.parametrize("mode", ["async-through", "copying"])
def test_rsync_there_and_back(staging: Staging, mode: str) -> None:
    """Content, modes, owners, links and times, those of directories too."""
    stage = staging(mode)
    source, back = stage.local / "tree", stage.scratch / "back"
    source.mkdir()
    make_tree(source)
    there = stage.path / "tree"

    def rsync(*arguments: str | Path) -> str:
        return stage.run(["rsync", "-a", "--checksum", "--delete", *arguments], where=Path("/"))

    def around(*options: str) -> None:
        expected = stage.tree(source)
        rsync(*options, f"{source}/", f"{there}/")
        assert_same(stage.tree(stage.path), stage.tree(stage.local), "on the mount")
        rsync(f"{there}/", f"{back}/")
        assert_same(stage.tree(back), expected, "back on the local disk")

    around()
    change_tree(source)
    around("--inplace", "--no-whole-file")
    stage.compare_again(directory_times=True)
    assert rsync("--dry-run", "--itemize-changes", "--omit-link-times", f"{source}/", f"{there}/") == ""


# -- tar, make, gcc

PARTS = 24


def make_project(root: Path) -> None:
    """A C program of several files with a Makefile that knows what depends on what."""
    (root / "src").mkdir(parents=True)
    (root / "include").mkdir()
    for n in range(PARTS):
        (root / f"include/part{n}.h").write_text(f"#define SEED_{n} {n * 17}u\nunsigned part{n}(unsigned x);\n")
        table = ", ".join(str(n * i % 251) for i in range(400))
        (root / f"src/part{n}.c").write_text(
            f'#include "part{n}.h"\nstatic const unsigned table[] = {{{table}}};\n'
            f"unsigned part{n}(unsigned x) {{ return (x ^ SEED_{n}) * 31u + table[x % 400]; }}\n"
        )
    calls = "".join(f"    x = part{n}(x);\n" for n in range(PARTS))
    includes = "".join(f'#include "part{n}.h"\n' for n in range(PARTS))
    (root / "src/main.c").write_text(
        f'#include <stdio.h>\n{includes}int main(void) {{\n    unsigned x = 1;\n{calls}    printf("%u\\n", x);\n'
        "    return 0;\n}\n"
    )
    (root / "Makefile").write_text(
        "OBJECTS = $(patsubst src/part%.c,build/part%.o,$(wildcard src/part*.c))\n"
        "program: build/main.o build/libparts.a\n\tgcc -o $@ $^\n"
        "build/libparts.a: $(sort $(OBJECTS))\n\trm -f $@\n\tar rcD $@ $^\n"
        "build/%.o: src/%.c | build\n\tgcc -O1 -Iinclude -MMD -c -o $@ $<\n"
        "build:\n\tmkdir build\n-include $(wildcard build/*.d)\n"
    )
    (root / "latest").symlink_to("src/main.c")


@needs("tar", "make", "gcc", "ar")
@IN_MODES
def test_unpack_and_compile(staging: Staging, mode: str) -> None:
    stage = staging(mode)
    make_project(stage.scratch / "project")
    set_times(stage.scratch / "project", random.Random(9))
    archive = stage.scratch / "project.tar.gz"
    subprocess.run(["tar", "-C", stage.scratch, "-czf", archive, "project"], check=True, timeout=PATIENCE_S)
    stage.both(lambda root: stage.run(["tar", "-xzf", archive], where=root))
    stage.compare_with_local(times=True)

    def make(root: Path) -> str:
        return stage.run(["make", "-j2"], where=root / "project", env={"LC_ALL": "C"})

    stage.both(make)
    results = [stage.run(["./program"], where=root / "project") for root in (stage.local, stage.path)]
    assert results[0] == results[1] != ""
    assert "is up to date" in make(stage.path)
    stage.run(["touch", "project/include/part3.h"])
    again = make(stage.path)
    assert sorted(w for w in again.split() if w.endswith(".c")) == ["src/main.c", "src/part3.c"]
    stage.compare_with_local()
    stage.compare_again()
    assert stage.run(["./program"], where=stage.path / "project") == results[0]
    assert "is up to date" in make(stage.path)


# -- pip

MODULES = 40


def make_wheel(directory: Path) -> Path:
    """A wheel of a package with several modules and a command."""
    name = "luxsample-1.0.dist-info"
    files = {f"luxsample/module{n}.py": f"VALUE = {n}\n" + "# filling\n" * n * 10 for n in range(MODULES)}
    files["luxsample/__init__.py"] = (
        "import importlib\ndef main():\n"
        f"    print(sum(importlib.import_module(f'luxsample.module{{n}}').VALUE for n in range({MODULES})))\n"
    )
    files[f"{name}/METADATA"] = "Metadata-Version: 2.1\nName: luxsample\nVersion: 1.0\n"
    files[f"{name}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{name}/entry_points.txt"] = "[console_scripts]\nluxsample = luxsample:main\n"
    record = ""
    for path, text in files.items():
        sha = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={sha},{len(text)}\n"
    files[f"{name}/RECORD"] = record + f"{name}/RECORD,,\n"
    wheel = directory / "luxsample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for path, text in files.items():
            out.writestr(path, text)
    return wheel


RECORDS = """
import base64, csv, hashlib, pathlib, sys
count = 0
for record in pathlib.Path(sys.argv[1]).glob("env/lib/*/site-packages/*.dist-info/RECORD"):
    for name, sha, size in csv.reader(record.read_text().splitlines()):
        if sha:
            data = (record.parent.parent / name).read_bytes()
            assert len(data) == int(size), name
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert sha == "sha256=" + digest, name
            count += 1
print(count)
"""


@pytest.mark.parametrize("own_pip", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_venv_and_pip_install(staging: Staging, own_pip: bool) -> None:
    """Every file is what its package says, before and after. ``own_pip``: of pip as well, 1,500 files."""
    stage = staging("async-through")
    wheel = make_wheel(stage.scratch)
    stage.run([sys.executable, "-m", "venv", "env", *([] if own_pip else ["--without-pip"])])
    pip = ["env/bin/python"] if own_pip else [sys.executable]
    pip += ["-m", "pip", "--disable-pip-version-check", *([] if own_pip else ["--python", "env"])]
    stage.run([*pip, "install", "-q", "--no-index", wheel])

    def check() -> None:
        assert stage.run(["env/bin/luxsample"]) == f"{sum(range(MODULES))}\n"
        assert int(stage.run([sys.executable, "-I", "-S", "-c", RECORDS, stage.path])) > MODULES
        assert "luxsample" in stage.run([*pip, "list"])

    check()
    stage.compare_again()
    check()


# -- checkpoints

CHECKPOINTS = """
import os, sys
import torch
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(600, 600), torch.nn.ReLU(), torch.nn.Linear(600, 600))
optimizer = torch.optim.Adam(model.parameters())
for step in range(4):
    model(torch.randn(8, 600)).square().mean().backward()
    optimizer.step()
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    for directory in sys.argv[1:]:
        os.chdir(directory)
        for name in ("last.pt", f"step{step}.pt"):
            with open(name + ".tmp", "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name + ".tmp", name)
        if step >= 2:
            os.unlink(f"step{step - 2}.pt")
        loaded = torch.load("last.pt", map_location="cpu", mmap=step % 2 == 0)
        assert loaded["step"] == step
        for name, value in model.state_dict().items():
            assert torch.equal(loaded["model"][name], value), name
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (the extra luxfuse[torch])")
@IN_MODES
def test_checkpoints(staging: Staging, mode: str) -> None:
    stage = staging(mode)
    command = [sys.executable, "-c", CHECKPOINTS, stage.local, stage.path]
    stage.run(command, env={"OMP_NUM_THREADS": "1"})
    assert sorted(stage.tree()) == ["last.pt", "step2.pt", "step3.pt"]
    stage.compare_with_local()
    stage.compare_again()
