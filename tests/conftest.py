"""No test can reach the user's home, the network, or more than one thread's worth of the machine."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def postgres():
    """The URL of a PostgreSQL server of its own, see registry_homes."""
    from registry_homes import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """A tiny random model, see small_models."""
    from small_models import make_base

    return make_base(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Three tiny increments, see lines."""
    from lines import make_dataset

    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")
