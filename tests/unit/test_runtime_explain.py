"""Faults of the runtime in words."""

from __future__ import annotations

import errno
import os

from shoal.agent.runtime import records
from shoal.agent.runtime.explain import in_words


def test_a_full_disk_is_told_with_the_place_and_what_to_do() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        text = in_words(OSError(number, os.strerror(number), "/data/x"))
        assert text == "/data/x: the node's disk is full: remove images or files there, or enlarge it"


def test_other_faults_keep_their_own_words() -> None:
    assert in_words(OSError(errno.EACCES, "Permission denied", "/x")) == "/x: Permission denied"
    assert in_words(OSError(errno.ENOENT, "no spawner answers")) == "no spawner answers"
    assert in_words(ValueError("an odd request")) == "an odd request"
    assert in_words(OSError("only words")) == "only words"


def test_a_record_that_cannot_be_written_names_its_file() -> None:
    try:
        records._store("/dev/full", b"x" * 10)
    except OSError as fault:
        assert (fault.errno, fault.filename) == (errno.ENOSPC, "/dev/full")
    else:
        raise AssertionError("/dev/full took a record")
