"""Who completes an upload, when, and what an object in the store means for it."""

from __future__ import annotations

import pytest

from luxfuse.core.replicas import (
    WRITE_METADATA,
    Ask,
    Drop,
    FileId,
    Replica,
    Write,
    decode_message,
    decode_replica,
    encode,
    write_of,
)  # fmt: skip
from luxfuse.core.takeover import FOLLOW_S, TAKEOVER_S, Absences, Judgement, Verdict, judge, ranked, takes_over_in_s

FILE = FileId("a" * 16, "b" * 8, 7)
OTHER = FileId("c" * 16, "d" * 8, 7)


def test_a_write_id_says_of_one_key_what_was_written():
    write = Write(FILE, 3)
    metadata = {WRITE_METADATA: write.text("some/key")}
    assert write_of(metadata, "some/key") == write
    assert write_of(metadata, "a/copy") is None
    assert write_of({WRITE_METADATA: "garbage"}, "some/key") is None
    assert write_of(None, "some/key") is None


def test_messages_come_back_as_they_were_sent():
    replica = Replica(b"12345678", Write(FILE, 1), "key", 5, {"mode": "0100644"}, None, ("e" * 16,), 1.5)
    assert decode_replica(encode(replica)) == replica
    for message in (Ask((FILE,)), Drop((Write(FILE, 2),))):
        assert decode_message(encode(message)) == message


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 16, "a" * 15, ""])
def test_names_that_would_leave_the_directory_are_refused(name: str):
    replica = Replica(b"12345678", Write(FileId(name, "b" * 8, 7), 1), "key", 5, {}, None, (), 1.5)
    with pytest.raises(ValueError, match="makes no sense"):
        decode_replica(encode(replica))


def test_garbage_and_other_formats_are_refused():
    with pytest.raises(ValueError, match="cannot be read"):
        decode_replica(b"\xc1")
    with pytest.raises(ValueError, match="cannot be read"):
        decode_message(b"")
    changed = bytearray(encode(Ask((FILE,))))
    changed[1] = 2
    with pytest.raises(ValueError, match="has format 2"):
        decode_message(bytes(changed))


def test_holders_that_have_it_come_first_then_other_racks_and_files_spread():
    peers = [(f"{number:016x}", f"rack{number % 2}") for number in range(8)]
    order = ranked(FILE, "rack0", peers)
    assert [name for name in order if int(name, 16) % 2] == order[:4]
    assert ranked(FILE, "rack0", reversed(peers)) == order
    assert ranked(FILE, "rack0", peers, keep=[order[6]])[0] == order[6]
    firsts = {ranked(FileId(FILE.writer, FILE.journal, number), "", peers)[0] for number in range(1, 60)}
    assert len(firsts) == len(peers)


def test_the_first_holder_that_is_here_takes_over_and_the_next_follows():
    holders, here = ["x", "y", "z"], {"x", "y", "z"}

    def wait_s(me: str, gone_s: float | None) -> float | None:
        return takes_over_in_s(me, holders, gone_s, lambda name: name in here)

    assert [wait_s(me, None) for me in holders] == [None] * 3
    assert [wait_s(me, TAKEOVER_S) for me in holders] == [0, FOLLOW_S, 2 * FOLLOW_S]
    here.remove("x")
    assert wait_s("y", TAKEOVER_S) == 0
    assert wait_s("z", TAKEOVER_S) == FOLLOW_S
    assert wait_s("no holder", TAKEOVER_S) == 2 * FOLLOW_S


def test_an_absence_counts_from_when_it_was_seen_without_a_break():
    absences, here = Absences(), {"x"}
    for now_s in (100.0, 110.0):
        absences.look(["x", "y"], here.__contains__, now_s)
    assert absences.gone_s("x", 110.0) is None
    assert absences.gone_s("y", 115.0) == 15.0
    here.add("y")
    absences.look(["x", "y"], here.__contains__, 120.0)
    here.clear()
    absences.look(["x", "y"], here.__contains__, 130.0)
    assert absences.gone_s("y", 131.0) == 1.0


@pytest.mark.parametrize(
    ("expect", "version", "found", "wanted"),
    [
        ("", "", None, Judgement(Verdict.UPLOAD, "")),
        ("v1", "v1", None, Judgement(Verdict.UPLOAD, "v1")),
        ("v1", "", None, Judgement(Verdict.UPLOAD, "")),
        (None, "v9", None, Judgement(Verdict.UPLOAD, "v9")),
        ("v1", "v2", Write(FILE, 5), Judgement(Verdict.DONE)),
        ("v1", "v2", Write(FILE, 6), Judgement(Verdict.DONE)),
        ("v1", "v2", Write(FILE, 4), Judgement(Verdict.UPLOAD, "v2")),
        ("v1", "v2", None, Judgement(Verdict.FOREIGN)),
        ("", "v2", None, Judgement(Verdict.FOREIGN)),
        ("v1", "v2", Write(OTHER, 5), Judgement(Verdict.FOREIGN)),
        ("v1", "v2", Write(FileId(FILE.writer, FILE.journal, 8), 1), Judgement(Verdict.OUTDATED)),
        ("v1", "v2", Write(FileId(FILE.writer, FILE.journal, 6), 1), Judgement(Verdict.FOREIGN)),
        ("v1", "v1", Write(OTHER, 5), Judgement(Verdict.UPLOAD, "v1")),
    ],
)
def test_what_the_store_has_decides(expect: str | None, version: str, found: Write | None, wanted: Judgement):
    assert judge(Write(FILE, 5), expect, version, found) == wanted
