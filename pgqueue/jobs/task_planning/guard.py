"""A program: runs another in a process group of its own, and kills the group when its own stdin closes.

`python guard.py COMMAND [ARGUMENT...]`. Owns the promise that a planner does not outlive the process that wants its
plan: when that one closes the pipe, or is killed and the kernel closes it, every process of the group gets SIGKILL.
So does what the command leaves behind when it ends. Exits as the command does: its status, 128 + a signal's number,
127 if it cannot be started. Imports nothing of pgqueue, so that it starts in a few milliseconds.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command; returns its exit status."""
    try:
        command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]} cannot be started: {error.strerror}\n")
        return 127

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)

    def watch() -> None:
        os.read(0, 1)
        kill()

    threading.Thread(target=watch, daemon=True).start()
    # Not reaped yet: until then its process id, and so the group's, is nobody else's.
    os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)
    kill()
    status = command.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
