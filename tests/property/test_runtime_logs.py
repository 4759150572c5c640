"""However a stream is cut into reads, its log joins to what was written."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent.runtime import logs

STAMP = b"2026-01-02T03:04:05.000000006Z"
WORDS = st.sampled_from([b"", b"a", b"\n", b"\n\n", b"some text", b"x" * 16384, b"y" * 20000, b"\r", b"\xff\x00"])


def joined(log: bytes) -> bytes:
    """What a reader makes of a log."""
    text = b""
    for line in log.splitlines(keepends=True) if b"\r" not in log else [part + b"\n" for part in log.split(b"\n")[:-1]]:
        _, stream, tag, rest = line[:-1].split(b" ", 3)
        assert stream == b"stdout"
        assert len(rest) <= logs.MAX_PIECE
        text += rest + (b"\n" if tag == b"F" else b"")
    return text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(WORDS, max_size=6), st.booleans()), max_size=6))
def test_log_joins_to_its_stream(reads: list[tuple[list[bytes], bool]]) -> None:
    stamper = logs.Stamper("stdout")
    written, log = b"", b""
    for words, silence in reads:
        data = b"".join(words)
        written += data
        log += stamper.feed(data, STAMP)
        if silence:
            log += stamper.flush(STAMP, final=False)
    log += stamper.flush(STAMP, final=True)
    found = joined(log)
    assert found.removesuffix(b"\n") == written.removesuffix(b"\n")
    assert found.count(b"\n") - written.count(b"\n") in (0, 1)
