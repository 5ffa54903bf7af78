"""How a process of the command line asks for memory."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from dmlcore.allocation import keep_freed_memory
{call}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    b"x" * (1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str, **environment: str) -> int:
    """Pages that the system had to give while 64 MB were taken and freed 20 times."""
    code = FAULTS.format(call=call)
    ran = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again() -> None:
    kept, given_back = faults("keep_freed_memory()"), faults("")
    assert kept < given_back / 5
    assert faults("keep_freed_memory()", MALLOC_MMAP_THRESHOLD_="131072") > 5 * kept  # what the user says stays
