"""What commands set for their process, seen in real processes."""

import os
import subprocess
import sys

import pytest

FAULTS_OF_TEN_STEPS = """
import resource, sys
if sys.argv[1] == "keep":
    from memvit.commands.process import keep_freed_memory
    print(keep_freed_memory())
def step():
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(argument: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", FAULTS_OF_TEN_STEPS, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no mallopt")
def test_freed_memory_serves_the_next_step() -> None:
    num_pages = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    (faults_as_it_is,) = run("as it is")
    kept, faults = run("keep")
    assert kept == "True"
    assert int(faults_as_it_is) > 5 * num_pages
    assert int(faults) < num_pages


def test_what_the_user_chose_stays() -> None:
    kept, _ = run("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"
