"""A process that notes and commits in the journal is killed at any moment.

What the next one finds must be what was noted up to the end of some stretch of code without an await, and not less than
was acknowledged. Both sides make the same stretches from a seed; the killed process tells what was acknowledged.
"""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from luxfuse.index.journal import DeleteRecord, FileRecord, Journal, OperationRecord
from luxfuse.types import Kind, WriteMode

STRETCHES = 2000
ROUNDS = 3


@dataclass
class State:
    """What a journal says, contents of small files included."""

    files: dict[int, FileRecord] = field(default_factory=dict)
    inline: dict[int, bytes] = field(default_factory=dict)
    deletes: dict[str, DeleteRecord] = field(default_factory=dict)
    operations: dict[int, OperationRecord] = field(default_factory=dict)
    uploads: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of(cls, journal: Journal) -> State:
        inline = {number: journal.inline(number) for number, record in journal.files.items() if record.has_inline}
        assert None not in inline.values(), "a record came without its content"
        return cls(journal.files, inline, journal.deletes, journal.operations, journal.uploads.open)  # type: ignore[arg-type]

    def copied(self) -> State:
        return copy.deepcopy(self)


def note(rng: random.Random, state: State, journal: Journal | None, number: int) -> None:
    """Make one note in the model, and in the journal if there is one. ``number``: a new id."""
    action = rng.choice(["file", "file", "inline", "drop", "delete", "undelete", "operation", "done", "upload", "over"])
    stamp = rng.randrange(1 << 60)
    if action in ("file", "inline"):
        target = rng.choice(sorted(state.files)) if state.files and rng.random() < 0.5 else number
        content = rng.randbytes(rng.randrange(5000)) if action == "inline" else None
        keeps = content is not None or (target in state.inline and rng.random() < 0.5)
        record = FileRecord(
            f"d/{stamp}", Kind.FILE, WriteMode.ASYNC_THROUGH, stamp, None, None, "", "", 0, 1, stamp, True, True, 1.5, keeps
        )
        state.files[target] = record
        if content is not None:
            state.inline[target] = content
        elif not keeps:
            state.inline.pop(target, None)
        if journal is not None:
            journal.put_file(target, record, content)
    elif action == "drop" and state.files:
        target = rng.choice(sorted(state.files))
        del state.files[target]
        state.inline.pop(target, None)
        if journal is not None:
            journal.drop_file(target)
    elif action == "delete":
        state.deletes[f"k{stamp}"] = DeleteRecord(None, number, 2.5)
        if journal is not None:
            journal.put_delete(f"k{stamp}", DeleteRecord(None, number, 2.5))
    elif action == "undelete" and state.deletes:
        key = rng.choice(sorted(state.deletes))
        del state.deletes[key]
        if journal is not None:
            journal.drop_delete(key)
    elif action == "operation":
        state.operations[number] = OperationRecord("move", {"to": str(stamp)}, 1, 3.5)
        if journal is not None:
            journal.put_operation(number, OperationRecord("move", {"to": str(stamp)}, 1, 3.5))
    elif action == "done" and state.operations:
        target = rng.choice(sorted(state.operations))
        del state.operations[target]
        if journal is not None:
            journal.drop_operation(target)
    elif action == "upload":
        state.uploads.add((f"k{stamp}", "u"))
        if journal is not None:
            journal.uploads.begun(f"k{stamp}", "u", {})
    elif action == "over" and state.uploads:
        upload = rng.choice(sorted(state.uploads))
        state.uploads.remove(upload)
        if journal is not None:
            journal.uploads.over(*upload)


def stretch(seed: int, index: int, state: State, journal: Journal | None, base: int) -> None:
    """Make the notes of one stretch; each takes a new id."""
    rng = random.Random(f"{seed} {index}")
    for place in range(rng.randrange(1, 8)):
        number = base + 8 * index + place
        if journal is not None:
            while (taken := journal.new_id()) < number:
                pass
            assert taken == number
        note(rng, state, journal, number)


def killed_process(path: Path, seed: int) -> None:
    """Note and commit until killed; tells the first id, and then each stretch that is known to be durable."""

    def tell(value: int) -> None:
        os.write(1, b"%d\n" % value)

    async def acknowledge(journal: Journal, index: int) -> None:
        await journal.commit()
        tell(index)

    async def main() -> None:
        journal = Journal(path)
        state = State.of(journal).copied()
        base = journal.new_id() + 1
        tell(base)
        rng = random.Random(seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.committer)
            for index in range(STRETCHES):
                stretch(seed, index, state, journal, base)
                assert State.of(journal) == state
                choice = rng.random()
                if choice < 0.1:
                    await acknowledge(journal, index)
                elif choice < 0.6:
                    nursery.start_soon(acknowledge, journal, index)
                    await trio.sleep(0)
                elif choice < 0.65:
                    await trio.sleep(rng.random() * 0.03)
            await trio.sleep_forever()

    trio.run(main)


def run_and_kill(path: Path, seed: int, delay_s: float, *, committed: bool) -> list[int]:
    """Return what the killed process told; ``committed``: it is killed so long after its first commit."""
    code = (
        "import sys; from pathlib import Path; from tests.crash.test_journal import killed_process; "
        "killed_process(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(path), str(seed)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        if committed:
            first += process.stdout.readline()
        time.sleep(delay_s)
        process.kill()
        rest = process.stdout.read()
        errors = process.stderr.read().decode()
        assert process.wait(120) == -signal.SIGKILL, errors
    return [int(line) for line in (first + rest).splitlines()]


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_found_was_noted_as_a_whole_and_holds_what_was_acknowledged(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    state, used = State(), 0
    acknowledged = 0
    for number in range(ROUNDS):
        run = ROUNDS * seed + number
        kill = partial(run_and_kill, tmp_path / "j", run, rng.random() ** 2 * 0.5, committed=number == 0)
        base, *told = await trio.to_thread.run_sync(kill)
        assert base > used, "an id was given again after a crash"
        journal = Journal(tmp_path / "j")
        found = State.of(journal).copied()
        journal.close()
        least = max(told, default=-1)
        acknowledged += least + 1
        index = -1
        while index < least or state != found:
            index += 1
            assert index < STRETCHES, f"what is found was never noted, after {least} was acknowledged"
            stretch(run, index, state, None, base)
        used = base + 8 * STRETCHES
    assert acknowledged
