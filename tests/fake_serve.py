"""`evergreen serve` over engines without a model: python fake_serve.py --model M --port 0 ...

FAKE_STEP_SECONDS is how long a step takes, FAKE_TEXT what is answered (else the prompt's token ids),
FAKE_HEAD_SECONDS how long a request's head may take, FAKE_KEEP_ALIVE_SECONDS how long a stream is silent."""

import os
import sys
from functools import partial

from fake_engine import FakeEngine

from evergreen import cli
from evergreen.engine.process import ProcessEngine
from evergreen.home import home_dir
from evergreen.serve import answering, server


def open_engine(given, base, adapters):
    factory = partial(FakeEngine, float(os.environ.get("FAKE_STEP_SECONDS", 0)), os.environ.get("FAKE_TEXT", ""))
    return ProcessEngine(factory, home_dir(given.home) / server.LOG_FILE, given.start_timeout, server._say)


if __name__ == "__main__":
    server.open_engine = open_engine
    server.HEAD_SECONDS = float(os.environ.get("FAKE_HEAD_SECONDS", server.HEAD_SECONDS))
    answering.KEEP_ALIVE_SECONDS = float(os.environ.get("FAKE_KEEP_ALIVE_SECONDS", answering.KEEP_ALIVE_SECONDS))
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
