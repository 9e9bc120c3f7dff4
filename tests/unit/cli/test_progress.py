"""Rate and time left."""

from __future__ import annotations

from typing import Any

from luxfuse.cli.progress import CheckMeter, LoadMeter, Meter

MIB = 1 << 20


def step(**fields: Any) -> dict[str, Any]:
    plain = {
        "files": 0,
        "bytes": 0,
        "deletes": 0,
        "renames": 0,
        "open_files": 0,
        "put_bytes": 0,
        "stalled_s": 0.0,
        "error": None,
    }
    return {**plain, **fields}


def test_an_even_pace() -> None:
    meter = Meter()
    for second in range(6):
        meter.feed(float(second), step(files=10 - second, bytes=(10 - second) * MIB, put_bytes=700 * MIB + second * MIB))
    assert meter.fraction == 0.5
    assert meter.rate_bytes_s == MIB
    assert meter.left_s is not None
    assert round(meter.left_s) == 5
    assert meter.text == "5 files (5.0 MiB), 1.0 MiB/s, about 5 s left"
    meter.feed(6.0, step())
    assert meter.fraction == 1.0


def test_the_parts_of_a_large_file_count() -> None:
    meter = Meter()
    meter.feed(0.0, step(files=1, bytes=100 * MIB))
    meter.feed(10.0, step(files=1, bytes=100 * MIB, put_bytes=50 * MIB))
    assert 0.49 < meter.fraction < 0.51
    meter.feed(20.0, step(files=1, bytes=100 * MIB, put_bytes=400 * MIB))
    assert meter.fraction < 1.0


def test_only_deletes() -> None:
    meter = Meter()
    meter.feed(0.0, step(deletes=100))
    meter.feed(1.0, step(deletes=75))
    assert meter.fraction == 0.25
    assert meter.text == "0 files (0 B) and 75 deletes, 0 B/s, about 3 s left"


def test_nothing_moves() -> None:
    meter = Meter()
    for second in (0.0, 30.0, 60.0):
        meter.feed(second, step(files=1, bytes=5, stalled_s=second, error="a: PUT 'a': 503"))
    assert meter.left_s is None
    assert meter.text == "1 file (5 B), waiting for the under-store: a: PUT 'a': 503"


def test_more_comes_than_goes() -> None:
    meter = Meter()
    for second in range(5):
        meter.feed(float(second), step(files=second + 1, bytes=(second + 1) * MIB))
        assert 0 <= meter.fraction <= 1


def test_nothing_to_do() -> None:
    meter = Meter()
    meter.feed(0.0, step())
    assert (meter.fraction, meter.rate_bytes_s, meter.left_s) == (1.0, 0.0, None)


def load_step(**fields: Any) -> dict[str, Any]:
    kinds = ("loaded", "present", "left_out", "failed")
    plain: dict[str, Any] = {f"{kind}_{what}": 0 for kind in kinds for what in ("files", "bytes")}
    return {**plain, "walking": False, "files": 0, "bytes": 0, **fields}


def test_a_load_at_an_even_pace() -> None:
    meter = LoadMeter()
    for second in range(6):
        meter.feed(float(second), load_step(files=20, bytes=20 * MIB, present_files=10, present_bytes=10 * MIB,
                                            loaded_files=second, loaded_bytes=second * MIB))  # fmt: skip
    assert meter.fraction == 0.75
    assert meter.left_s is not None
    assert round(meter.left_s) == 5
    assert meter.text == "15 of 20 files (15.0 MiB of 20.0 MiB), 1.0 MiB/s, 1 files/s, about 5 s left"


def test_how_long_a_load_takes_is_not_told_before_all_is_found() -> None:
    meter = LoadMeter()
    for second in range(2):
        meter.feed(float(second), load_step(files=10, bytes=10 * MIB, walking=True, loaded_files=second, failed_files=2))
    assert meter.left_s is None
    assert meter.text.startswith("1 of at least 10 files (0 B of 10.0 MiB), 2 failed, ")
    meter.feed(2.0, load_step())
    assert meter.fraction == 1.0


def test_the_time_left_of_a_check() -> None:
    meter = CheckMeter()
    step = {"files": 0, "bytes": 0, "total_files": 16, "total_bytes": 15 << 20, "problems": 0}
    meter.feed(100.0, step)
    assert (meter.fraction, meter.left_s) == (0.0, None)
    assert meter.text == "0 of 16 files checked (0 B of 15.0 MiB)"
    meter.feed(104.0, {**step, "files": 4, "bytes": (3 << 20) + (3 << 18), "problems": 2})
    assert meter.fraction == 0.25
    assert meter.text == "4 of 16 files checked (3.8 MiB of 15.0 MiB), 2 problems, about 12 s left"
    meter.feed(105.0, {**step, "total_files": 0, "total_bytes": 0})
    assert meter.fraction == 1.0
