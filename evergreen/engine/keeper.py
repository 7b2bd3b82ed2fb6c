"""Runs a command for as long as whoever holds the other end of stdin lives: `python keeper.py COMMAND ...`.

Ends with the command's exit code (128 + the signal, as shells say it). No evergreen here, so that it starts at once.
"""

import os
import signal
import subprocess
import sys
import threading

STOP_SECONDS = 10.0


def main() -> None:
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, args=(process,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    os._exit(code if code >= 0 else 128 - code)


def _end_with_parent(process: subprocess.Popen) -> None:
    sys.stdin.buffer.read()
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        os.killpg(0, signal.SIGKILL)  # whatever it has started, and this process too


if __name__ == "__main__":
    main()
