"""What is said of datagrams that were rejected."""

from __future__ import annotations

import logging

import pytest

from luxfuse.peers.rejections import REASONS, Rejections


@pytest.mark.expected_logs("sealed with a key")
def test_a_line_a_minute_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rejections = Rejections()
    for tenths in range(1210):
        rejections.note("key", ("10.0.0.1", tenths), tenths / 10)
        rejections.note("garbage", ("fd00::1", 5), tenths / 10)
    lines = [(record.levelno, record.getMessage()) for record in caplog.records]
    key = [text for level, text in lines if level == logging.WARNING]
    assert key == [
        f"{count} rejected, the last from 10.0.0.1:{port}: sealed with a key that is not in our key file"
        for count, port in (("1 datagram", 0), ("600 datagrams", 600), ("600 datagrams", 1200))
    ]
    assert len([text for level, text in lines if level == logging.INFO and "[fd00::1]:5" in text]) == 3
    assert rejections.counts == {"key": 1210, "garbage": 1210}


@pytest.mark.parametrize("reason", sorted(set(REASONS) - {"key", "version", "namesake"}))
def test_what_anybody_can_send_or_the_network_can_do_is_no_warning(reason: str) -> None:
    Rejections().note(reason, ("10.0.0.1", 1), 0.0)
