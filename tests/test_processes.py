"""What a benchmark started ends with it, whatever it was that ended it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vdu.bench.processes import processes

# A parent that says who works for it, and would wait for ten minutes.
PARENT = """
import os, time
from vdu.bench.processes import processes

if __name__ == "__main__":
    with processes(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def _ended_within(seconds, pid):
    """Whether the process is gone, or nothing but its exit code is left."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="asks /proc who is alive")
@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_a_process_ends_with_its_parent(tmp_path, ended_by):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        worker = int(parent.stdout.readline())
        assert not _ended_within(0.3, worker)
        parent.send_signal(ended_by)
        assert parent.wait(30)
        assert _ended_within(30, worker)


def _full_disk(work_seconds):
    with processes(1) as pool:
        pool.submit(os.getpid).result()
        pool.submit(time.sleep, work_seconds)
        raise OSError("no space left")


def test_an_exception_ends_what_works_in_the_midst_of_it():
    started = time.monotonic()
    with pytest.raises(OSError, match="no space left"):
        _full_disk(work_seconds=600)
    assert time.monotonic() - started < 300
