"""Homes with releases in them, and a PostgreSQL server, for the tests of the registry and of backups."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evergreen.records import Release
from evergreen.registry import Registry

PASSED, FAILED = {"decision": "promote"}, {"decision": "reject", "reasons": ["old task: 4 points lost"]}
SERVERS = ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)]


def digest(folder: Path) -> str:
    """Names a folder by its weights, as the model room's digests do."""
    weights = next(path for name in ("adapter_model", "model") if (path := folder / f"{name}.safetensors").is_file())
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def make_base(folder: Path) -> Path:
    """Made once: writers that are killed must not leave half a base to the others."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=folder.parent))
        (staged / "config.json").write_text("{}")
        (staged / "model.safetensors").write_bytes(f"weights of {folder.name}".encode())
        with contextlib.suppress(OSError):  # another writer was first
            staged.rename(folder)
    return folder


def make_adapter(folder: Path, base: Path, **facts) -> Path:
    """What a run leaves: an adapter, its record, and files that only resuming needs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(f"weights of {folder.name}".encode() * 500)
    (folder / "args.json").write_text(json.dumps({"settings": {"learning_rate": len(folder.name) / 1000}}))
    (folder / "optimizer.pt").write_bytes(b"0" * 5000)
    record = {"digest": digest(folder), "base": str(base), "base_digest": digest(base), "parent": None,
              "method": "lora", "data": {"hash": f"data of {folder.name}", "rows": 12}}  # fmt: skip
    (folder / "version.json").write_text(json.dumps(record | facts))
    return folder


def registry_of(home: Path) -> Registry:
    return Registry(home, digest=digest)


def make_release(registry: Registry, name: str, gate: dict | None = PASSED, **more) -> Release:
    """A release of a new adapter whose name is its content."""
    made = registry.home.parent / "made"
    version = registry.add_version(make_adapter(made / name, make_base(made / "base")))
    return registry.create(adapter=version, gate=gate, **more)


def check_invariants(registry: Registry) -> int:
    """What must hold whatever happened: pointers lead to whole files and agree with the history. Number of moves."""
    num_moves = 0
    for alias in ("stable", "candidate"):
        moves, pile = registry.history(alias)[::-1], []
        for move in moves:
            assert move.previous == (pile[-1] if pile else None)
            if move.action == "promote":
                pile.append(move.release)
            else:
                pile.pop()
                assert pile[-1] == move.release
        pointer = registry.alias(alias)
        assert (pointer.id if pointer else None) == (pile[-1] if pile else None)
        assert not pointer or registry.damage(pointer.id) == ""
        num_moves += len(moves)
    for release in registry.list():
        assert registry.damage(release.id) == ""
    return num_moves


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """A server of its own on a socket in a temporary folder; gives its URL."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [shutil.which("initdb") or ""]
    if not found[-1]:
        pytest.skip("no PostgreSQL server here (apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="no driver (pip install 'evergreen-lm[postgres]')")
    if os.geteuid() == 0 and subprocess.run(["id", "postgres"], capture_output=True).returncode:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    programs, folder = (
        Path(found[-1]).parent,
        Path(tempfile.mkdtemp(prefix="pg", dir="/tmp")),
    )  # sockets want short names
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*as_user, programs / program, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=folder)

    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=40"
    try:
        run("initdb", "-D", f"{folder}/data", "-U", "tester", "-A", "trust", "--no-sync")
        run("pg_ctl", "-D", f"{folder}/data", "-l", f"{folder}/log", "-w", "-o", options, "start")
        yield f"postgresql://tester@/postgres?host={folder}"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str, name: str) -> str:
    """A schema of its own in one database: as good, and made and removed much faster."""
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"')
    return f"{server}&options=-csearch_path%3D{name}"
