"""What programs do to their own process."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
from shoal.proto.process import write_no_core
write_no_core()
print(resource.getrlimit(resource.RLIMIT_CORE) == (0, hard))
"""


def test_no_core_file_is_written_and_containers_keep_the_limit() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"
