"""The format of manifests: what goes in comes out, and no damaged one does."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import re
from contextlib import closing
from pathlib import Path

import pytest

from luxfuse.durable import replace_file
from luxfuse.index import manifest
from luxfuse.index.entries import Attributes, Found
from luxfuse.index.manifest import Head, Item, ManifestFile, ManifestRefused, ManifestWriter, Part
from luxfuse.types import Kind

HEAD = Head(source="s3://bucket", source_id="0123", made_s=1_800_000_000.5)
XATTRS = {"user.a": b"\0\xff", "user.b": b""}


def written(path: Path) -> dict[str, list[Item]]:
    tree: dict[str, list[Item]] = {
        "": [
            (Found(b"a", Kind.DIRECTORY), None),
            (Found(b"described", Kind.DIRECTORY, 0, "", 5), Attributes(mode=0o755, uid=3)),
            (Found('ä"\\\n'.encode(), Kind.FILE, 12, '"e\ttag"', 1_700_000_000_123_456_789), None),
            (Found(b"ln", Kind.SYMLINK, 3, "v", 7), None),
        ],
        "a": [(Found(f"{n:06}".encode(), Kind.FILE, n, f'"{n}"', n), None) for n in range(manifest.PART_ENTRIES + 5)],
        "described": [(Found(b"x", Kind.FILE, 1, "1", 2), Attributes(0o640, 1, 2, 3, 4, 5, None, XATTRS))],
        "a/empty": [],
    }
    writer = ManifestWriter(path, HEAD)
    try:
        for directory, items in tree.items():
            writer.begin(directory, 100.25 + len(directory))
            writer.add(items[:7])
            writer.add([*items[7:], (Found(b"fifo", Kind.SPECIAL), None)])
        writer.finish()
    finally:
        writer.close()
    return tree


def checked(path: Path, source_id: str, source: str) -> Head:
    with closing(ManifestFile(path)) as file:
        return file.check(source_id, source)


def contents(path: Path) -> list[Part]:
    with closing(ManifestFile(path)) as file:
        return list(file.read())


def test_what_was_checked_is_what_is_read_though_another_one_takes_its_place(tmp_path: Path) -> None:
    path, other = tmp_path / "m", tmp_path / "other"
    tree = written(path)
    writer = ManifestWriter(other, HEAD)
    writer.begin("elsewhere", 1.0)
    writer.finish()
    with closing(ManifestFile(path)) as file:
        file.check("0123", "s3://bucket")
        other.replace(path)
        assert {part.directory for part in file.read()} == set(tree)
        with closing(ManifestFile(path)) as new:
            assert new.identity != file.identity


def test_one_that_is_written_to_after_the_check_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    written(path)
    with closing(ManifestFile(path)) as file:
        file.check("0123", "s3://bucket")
        text = gzip.decompress(path.read_bytes()).replace(b'"000007","f",7', b'"000007","f",8')
        path.write_bytes(gzip.compress(text))
        with pytest.raises(ManifestRefused, match="was written to while it was read"):
            list(file.read())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m"
    tree = written(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    assert checked(path, "0123", "s3://bucket") == HEAD
    found: dict[str, list[Item]] = {}
    ended = []
    for part in contents(path):
        assert part.asked_s == 100.25 + len(part.directory)
        assert len(part.items) <= manifest.PART_ENTRIES
        found.setdefault(part.directory, []).extend(part.items)
        ended += [part.directory] * part.last
    assert found == tree
    assert ended == list(tree)
    assert json.loads(gzip.decompress(path.read_bytes()).splitlines()[-1])["entries"] == sum(map(len, tree.values()))


def test_no_damaged_one_is_taken(tmp_path: Path) -> None:
    path, copy = tmp_path / "m", tmp_path / "copy"
    written(path)
    data = path.read_bytes()
    rng = random.Random(1)
    for number in range(60):
        at = rng.randrange(len(data)) if number else len(data) - 1
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.randrange(8)
        copy.write_bytes(damaged if number % 2 else data[:at])
        if 3 < at < 10 and number % 2:
            continue  # gzip's own notes of time, level and system
        with pytest.raises(ManifestRefused) as caught:
            checked(copy, "0123", "s3://bucket")
        assert "\n" not in str(caught.value)
    text = gzip.decompress(data)
    for changed in (text.replace(b'"000007","f",7', b'"000007","f",8'), text[: text.rindex(b"{")], text + b"[]\n"):
        copy.write_bytes(gzip.compress(changed, 1))
        with pytest.raises(ManifestRefused, match=r"damaged|ends early"):
            checked(copy, "0123", "s3://bucket")


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"", "is no manifest"), (b"[1]", "is no manifest"), (b'{"luxfuse": "other"}', "is no manifest"),
        (b'{"luxfuse": "manifest", "format": 2}', "has format 2"), (b'{"luxfuse": "manifest", "format": 1}', "first line"),
        (b'{"luxfuse": "manifest", "format": 1, "source": "s3://b", "source_id": "x", "made_s": 1}', "is of s3://b, and"),
        (b"\xff\xfe", "is no manifest"),
    ],
)  # fmt: skip
def test_what_is_none_or_of_another_source_is_refused(tmp_path: Path, head: bytes, why: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(gzip.compress(head + b"\n{}\n"))
    with pytest.raises(ManifestRefused, match=why):
        checked(path, "0123", "s3://bucket")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"no gzip at all")
    for name, why in (("plain", "damaged"), ("missing", "No such file"), (".", "Is a directory")):
        with pytest.raises(ManifestRefused, match=why):
            checked(tmp_path / name, "0123", "s3://bucket")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ManifestRefused, match="no regular file"):
        checked(tmp_path / "pipe", "0123", "s3://bucket")


def test_a_line_without_an_end_is_not_kept(tmp_path: Path) -> None:
    """Some KiB of gzip become as many GiB as one likes."""
    path = tmp_path / "m"
    head = b'{"luxfuse": "manifest", "format": 1, "source": "s3://bucket", "source_id": "0123", "made_s": 1}\n'
    path.write_bytes(gzip.compress(head + b"x" * (3 * manifest.LINE_BYTES), 1))
    with pytest.raises(ManifestRefused, match="a line of it has more than"):
        checked(path, "0123", "s3://bucket")


@pytest.mark.parametrize(
    "line",
    [
        '["..", "d"]', '["a/b", "f", 1, "v", 1]', '["", "f", 1, "v", 1]', '["a\\u0000", "f", 1, "v", 1]',
        '[7, "f", 1, "v", 1]',
        f'["{"x" * 256}", "f", 1, "v", 1]', '["a", "f", -1, "v", 1]', f'["a", "f", {1 << 63}, "v", 1]',
        '["a", "f", 1, "v\\r\\nHost: x", 1]', f'["a", "f", 1, "v", {1 << 70}]', '["a", "x", 1, "v", 1]',
        '["a", "f", 1, "v", 1, [-1]]',
        f'["a", "f", 1, "v", 1, [420, {1 << 32}]]', '["a", "f", 1, "v", 1, [33188]]', '["a"]', "[]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("directory", ['{"directory": "", "asked_s": 1.0}\n', ""])
def test_no_entry_that_neither_index_nor_kernel_could_take(tmp_path: Path, line: str, directory: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(gzip.compress(f'{directory}{line}\n["fine", "f", 1, "v", 1]\n{{}}\n'.encode(), 1))
    with pytest.raises(ManifestRefused, match="cannot be understood") as caught:
        list(contents(path))
    assert "\n" not in str(caught.value)


def test_two_that_are_written_at_once_are_both_whole(tmp_path: Path) -> None:
    path = tmp_path / "m"
    writers = [ManifestWriter(path, HEAD) for _ in range(2)]
    for writer in writers:
        writer.begin("", 1.0)
    for writer in writers:
        writer.finish()
        writer.close()
        assert checked(path, "0123", "s3://bucket") == HEAD
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_the_manifest_and_leave_nothing(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "none/m", errno.ENOENT), (tmp_path, errno.EISDIR)):
        with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
            ManifestWriter(path, HEAD)
        assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (code, str(path), None)
    path = tmp_path / "m"
    writer = ManifestWriter(path, HEAD)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), writer._raw.fileno())
    with pytest.raises(OSError, match="No space left") as caught:
        writer.finish()
    assert caught.value.filename == str(path)
    writer.close()
    writer = ManifestWriter(path, HEAD)
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        writer.finish()
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    writer.close()
    path.rmdir()
    assert not list(tmp_path.iterdir())


def test_a_record_that_cannot_be_replaced_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none/record"
    with pytest.raises(FileNotFoundError) as caught:
        replace_file(path, b"new")
    assert caught.value.filename == str(path)
    (tmp_path / "record/full").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as caught:
        replace_file(tmp_path / "record", b"new")
    assert (caught.value.filename, caught.value.filename2) == (f"{tmp_path}/record", None)


def test_one_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")
    writer = ManifestWriter(path, HEAD)
    writer.begin("", 1.0)
    writer.close()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
