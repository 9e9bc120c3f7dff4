from __future__ import annotations

import signal

import pytest

from luxfuse.core.signals import is_to_end, was_killed


def mask(*signals: int) -> str:
    return f"{sum(1 << (number - 1) for number in signals):016x}"


def status(*, thread=(), process=(), blocked=(), ignored=(), caught=()) -> str:
    return (
        f"Name:\tSigPnd: is a name\nState:\tD (disk sleep)\nSigQ:\t1/7\n"
        f"SigPnd:\t{mask(*thread)}\nShdPnd:\t{mask(*process)}\n"
        f"SigBlk:\t{mask(*blocked)}\nSigIgn:\t{mask(*ignored)}\nSigCgt:\t{mask(*caught)}\n"
    )


@pytest.mark.parametrize(
    ("signals", "ends"),
    [
        ({}, False),
        ({"thread": [signal.SIGKILL]}, True),
        ({"process": [signal.SIGINT]}, True),
        ({"process": [signal.SIGINT], "caught": [signal.SIGINT]}, True),
        ({"process": [signal.SIGTERM], "blocked": [signal.SIGTERM]}, False),
        ({"process": [signal.SIGHUP], "ignored": [signal.SIGHUP]}, False),
        ({"thread": [signal.SIGSEGV]}, True),
        ({"process": [signal.SIGALRM]}, True),
        ({"process": [signal.SIGALRM], "caught": [signal.SIGALRM]}, False),
        ({"thread": [signal.SIGURG], "caught": [signal.SIGURG]}, False),
        ({"process": [signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG, signal.SIGCONT]}, False),
        ({"process": [signal.SIGTSTP]}, False),
        ({"process": [signal.SIGCHLD, signal.SIGQUIT], "caught": [signal.SIGCHLD]}, True),
        ({"process": [signal.SIGRTMIN]}, True),
        ({"process": [signal.SIGRTMIN], "caught": [signal.SIGRTMIN]}, False),
    ],
)
def test_only_signals_that_end_a_program_or_ask_it_to_end_count(signals: dict, ends: bool) -> None:
    assert is_to_end(status(**signals)) == ends


@pytest.mark.parametrize(
    ("flags", "code", "killed"),
    [(0x40404C, 9, True), (0x40404C, 2, True), (0x40404C, 0x100, False), (0x40404C, 0, False), (0x404048, 9, False)],
)
def test_a_thread_that_exits_because_of_a_signal_was_killed(flags: int, code: int, killed: bool) -> None:
    fields = ["D", "1", "1", "1", "0", "-1", str(flags), *["7"] * 42, str(code)]
    assert was_killed(f"4711 (a (strange) name) {' '.join(fields)}\n") == killed


def test_a_line_that_is_cut_off_tells_nothing() -> None:
    assert not was_killed("4711 (name) D 1")
    assert not is_to_end("")
