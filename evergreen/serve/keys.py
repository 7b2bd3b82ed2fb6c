"""API keys: who may ask, who may change what is served, and how much a minute.

Promises: a key itself is in memory only while it is compared; what is kept, here and in the home, is its SHA-256, and
comparisons take the same time for every guess. A home's own file is readable by its owner alone.
Does not: protect the wire. Put TLS in front of anything but a loopback address.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from evergreen.home import write_atomic
from evergreen.records import BadInput

Scope = Literal["user", "admin"]
KEYS_FILE = "keys.yaml"  # of the home
HASHED = "sha256:"
FIELDS = ("key", "name", "scope", "requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True)
class Key:
    """A key by its digest. Limits of 0 are none."""

    name: str
    digest: str
    scope: Scope = "user"
    requests_per_minute: int = 0
    tokens_per_minute: int = 0


OPEN = Key("", "", "admin")  # who asks a server without keys


class Keys:
    """The keys of a server; without any, everybody is its administrator."""

    def __init__(self, keys: Iterable[Key] = ()):
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, given: str) -> Key | None:
        """The key that was given; None for a wrong one."""
        digest, found = digest_of(given), None
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def keys_of(
    home: Path,
    user_keys: Iterable[str] = (),
    admin_keys: Iterable[str] = (),
    file: str = "",
    requests_per_minute: int = 0,
    tokens_per_minute: int = 0,
) -> Keys:
    """Keys from flags, $EVERGREEN_API_KEY and $EVERGREEN_ADMIN_KEY (commas between several), a file, and the home's
    keys.yaml. The limits hold for every key that has none of its own. Raises BadInput."""
    user_keys = [*user_keys, *_listed("EVERGREEN_API_KEY")]
    admin_keys = [*admin_keys, *_listed("EVERGREEN_ADMIN_KEY")]
    keys = [Key(f"user-{i}", digest_of(key)) for i, key in enumerate(filter(None, user_keys), 1)]
    keys += [Key(f"admin-{i}", digest_of(key), "admin") for i, key in enumerate(filter(None, admin_keys), 1)]
    for path in (Path(file).expanduser() if file else None, home / KEYS_FILE):
        if path and (path.is_file() or path != home / KEYS_FILE):
            keys += read_keys(path)
    names = [key.name for key in keys]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise BadInput(f"two API keys are named {twice}: limits and logs go by the name, so give each its own")
    return Keys(
        replace(
            key,
            requests_per_minute=key.requests_per_minute or requests_per_minute,
            tokens_per_minute=key.tokens_per_minute or tokens_per_minute,
        )
        for key in keys
    )


def read_keys(path: Path) -> list[Key]:
    """A YAML list of keys, each `{key, name, scope, requests_per_minute, tokens_per_minute}` or the key alone; a key is
    itself or `sha256:` with its digest. Raises BadInput."""
    import yaml

    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no file of API keys at {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"the API keys in {path} cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(rows, str):  # one key a line
        rows = rows.split()
    if not isinstance(rows, list):
        raise BadInput(f"{path} wants a list of API keys, got {type(rows).__name__}")
    return [_as_key(row, path, number) for number, row in enumerate(rows, 1)]


def make_key(home: Path) -> str:
    """A new admin key; its digest is added to the home's file, the key itself is only returned."""
    path, key = home / KEYS_FILE, f"eg-{secrets.token_urlsafe(24)}"
    write_atomic(
        path,
        "# API keys of this home: {key: itself or sha256:DIGEST, name, scope: user|admin, requests_per_minute,\n"
        "# tokens_per_minute}. Without this file a server that is open to the network makes a new one.\n"
        f"- {{key: '{HASHED}{digest_of(key)}', name: first, scope: admin}}\n",
        mode=0o600,
    )
    return key


def _listed(variable: str) -> list[str]:
    return [word.strip() for word in os.environ.get(variable, "").split(",") if word.strip()]


def _as_key(row: Any, path: Path, number: int) -> Key:
    row = row if isinstance(row, dict) else {"key": row}
    where = f"{path}, key {number}"
    if unknown := [name for name in row if name not in FIELDS]:
        raise BadInput(f"{where}: {unknown[0]} is not known; there are {', '.join(FIELDS)}")
    key, scope = row.get("key"), row.get("scope", "user")
    if not isinstance(key, str) or not key.strip():
        raise BadInput(f"{where}: wants a key of text (quote one that is a number)")
    if scope not in ("user", "admin"):
        raise BadInput(f"{where}: scope wants user or admin, got {scope!r}")
    limits = {name: row.get(name, 0) for name in FIELDS[3:]}
    if wrong := [name for name, limit in limits.items() if type(limit) is not int or limit < 0]:
        raise BadInput(f"{where}: {wrong[0]} wants a whole number, got {limits[wrong[0]]!r}")
    digest = key.removeprefix(HASHED).lower() if key.startswith(HASHED) else digest_of(key)
    return Key(str(row.get("name", f"{path.stem}-{number}")), digest, scope, **limits)
