"""Environments of their own, for what cannot live beside Evergreen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def python_with(module: str, *wheels: str, given: str) -> str:
    """The python of an environment with the wheels, made once, in a cache folder; `given` names the variable that may
    hold another. Skips where they cannot be installed."""
    if python := os.environ.get(given):
        return python
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "evergreen" / module
    python = cache / "bin" / "python"
    if not python.is_file() or subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
        subprocess.run([sys.executable, "-m", "venv", cache], check=True)
        if subprocess.run([python, "-m", "pip", "install", "-q", *wheels]).returncode:
            pytest.skip(f"{wheels[0]} cannot be installed here")
    return str(python)
