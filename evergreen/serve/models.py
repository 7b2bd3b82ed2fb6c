"""What a request's `model` means: the base, an adapter, a release or an alias, and the engine that answers for it.

Promises: a name stands for one digest until it is loaded anew, and requests that run finish on what they began with; a
promotion or rollback is in the next answer, and none fails over it: an adapter is loaded first, a release on another
base is loaded beside the one that serves, and what cannot be served leaves the old one serving, and it is said. What
has served stays resident while there is room.
Does not: keep a second full model when the memory forecast says no; it is refused with the figures.
"""

import asyncio
import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evergreen.engine.base import Engine, Stats
from evergreen.home import digest_of
from evergreen.model.adapters import adapter_digest
from evergreen.model.find import Reference, absolute_name, model_digest, resolve
from evergreen.records import BadInput, EvergreenError, Failure, Release
from evergreen.registry import Registry
from evergreen.registry.pointers import Pointers
from evergreen.registry.registry import ALIASES, LOOKS_LIKE_A_NAME
from evergreen.serve import split
from evergreen.serve.copies import Copies
from evergreen.settings import ServeSettings

WATCH_SECONDS = 0.5
RETRY_SECONDS = 60.0
MAX_LISTED = 20  # releases


class UnknownModel(BadInput):
    """No model of that name is served."""


@dataclass
class Base:
    """A model in an engine, and what is loaded on it: adapter digest -> when it was last asked for."""

    name: str
    place: str
    digest: str
    engine: Engine
    adapters: dict[str, float]


@dataclass(frozen=True)
class Served:
    """What answers a request: adapter `adapter` ("" for none) on a base, its tokenizer and template, system prompt."""

    name: str
    base: Base
    adapter: str
    tokenizer: Any
    system: str | None
    release: Release | None = None

    @property
    def engine(self) -> Engine:
        return self.base.engine

    @property
    def fingerprint(self) -> str:
        """Changes when the answers may."""
        return self.release.id if self.release else digest_of([self.base.digest, self.adapter, self.system])


class Models:
    """The models of one server. Made when the default one is loaded; raises BadInput or Failure when it is not."""

    def __init__(
        self,
        settings: ServeSettings,
        registry: Registry,
        open_engine: Callable[[ServeSettings, str, tuple[str, ...]], Engine],
        say: Callable[[str], None] | None = None,
    ):
        """`open_engine(settings, base, adapters)` loads a base, with adapters that it cannot take one by one."""
        self.settings, self.registry, self.open_engine = settings, registry, open_engine
        self.pointers, self._copies = Pointers(registry), Copies(registry.home)
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._bases: dict[str, Base] = {}
        self._names: dict[str, Served] = {}  # bases and adapters
        self._releases: dict[str, Served] = {}
        self._standing: dict[str, Served] = {}  # what an alias gave last
        self._not_now: dict[str, float] = {}  # releases that are being opened, or that failed: until when
        self._tokenizers: dict[str, Any] = {}
        self._in_use: Counter[tuple[str, str]] = Counter()
        self._loads: dict[str, asyncio.Task[Served]] = {}
        self._lock, self._counts, self._stop = threading.RLock(), threading.Lock(), threading.Event()
        try:
            self.default = self._open_default()
            for word in settings.lora_modules:
                self.load_adapter(*_name_and_folder(word))
        except BaseException:
            self.close()
            raise
        self._watcher = threading.Thread(target=self._watch, name="release watcher", daemon=True)
        self._watcher.start()

    # -- asked for by requests

    @contextlib.asynccontextmanager
    async def chosen(self, name: str) -> AsyncIterator[Served]:
        """What a name stands for, kept loaded while the block runs. "" is the default.

        Raises UnknownModel, BadInput for what cannot be served, Failure for what is damaged."""
        name = name or self.default
        while True:
            served = self.resident(name) or await self._loaded(name)
            key = served.base.digest, served.adapter
            with self._counts:
                if not served.adapter or served.adapter in served.base.adapters:  # else just given up for another
                    self._in_use[key] += 1
                    if served.adapter:
                        served.base.adapters[served.adapter] = time.monotonic()
                    break
        try:
            yield served
        finally:
            with self._counts:
                self._in_use[key] -= 1

    def knowledge_served(self) -> str:
        """What the default answers from: "live" or a snapshot's number."""
        served = self.resident(self.default)
        return served.release.knowledge if served and served.release else "live"

    def is_split(self, name: str) -> bool:
        """Whether some who ask for this name get the candidate."""
        return (name or self.default) == "stable" and self.pointers.share() > 0

    def arm(self, name: str, user: str) -> str:
        """`name`, or the candidate's for its share of the users of stable."""
        if not self.is_split(name):
            return name
        share, trial = self.pointers.share(), self.pointers.get("candidate") or ""
        arm = split.arm_of(user, {"candidate": share, "stable": 1 - share}, trial)
        return "candidate" if arm == "candidate" else name

    async def _loaded(self, name: str) -> Served:
        """`_load` in a thread, once for all who ask meanwhile."""
        task = self._loads.get(name)
        if task is None:
            task = self._loads[name] = asyncio.create_task(asyncio.to_thread(self._load, name))
            task.add_done_callback(lambda _: self._loads.pop(name, None))
        return await asyncio.shield(task)

    def resident(self, name: str) -> Served | None:
        """What a name stands for when it can answer at once."""
        if name in self._names:
            return self._names[name]
        if name not in ALIASES:
            return self._releases.get(name)
        id = self.pointers.get(name)
        if id in self._releases:
            self._standing[name] = self._releases[id]
            return self._releases[id]
        if self._not_now.get(id or "", 0) > time.monotonic():
            return self._standing.get(name)
        return None

    def all(self) -> list[Served]:
        """Every name that can be asked for: the default first, aliases, adapters and bases, the newest releases. Those
        that are not loaded come without a tokenizer."""
        found: dict[str, Served] = {}
        for name in (self.default, *ALIASES):
            with contextlib.suppress(EvergreenError):
                if served := self.resident(name):
                    found[name] = replace(served, name=name)
        found |= self._names
        for release in self.registry.list()[:MAX_LISTED]:
            if base := self._bases.get(release.base):
                unloaded = Served(release.id, base, release.adapter or "", None, None, release)
                found[release.id] = self._releases.get(release.id, unloaded)
        return list(found.values())

    def stats(self) -> dict[str, Stats]:
        """By the base's name; an engine that is being started again is left out."""
        found = {}
        for base in list(self._bases.values()):
            with contextlib.suppress(EvergreenError):
                found[base.name] = base.engine.stats()
        return found

    def is_ready(self) -> bool:
        return all(base.engine.is_healthy() for base in list(self._bases.values()))

    # -- asked for by administrators

    def load_adapter(self, name: str, folder: str) -> Served:
        """Serve an adapter under a name; the same name again is another version, from the next request on."""
        if name in ALIASES or LOOKS_LIKE_A_NAME.fullmatch(name) or name in [base.name for base in self._bases.values()]:
            raise BadInput(f"an adapter cannot be named {name}: that is what an alias, a release or a base is called")
        base = self._names[self.default].base if self.default in self._names else next(iter(self._bases.values()))
        with self._lock:
            try:
                found = resolve(base.place, [folder])
            except OSError as error:  # a name that is too long, a folder that may not be read
                raise BadInput(f"no adapter can be read at {folder[:200]}: {error.strerror}") from None
            self._names[name] = self._on(base, found, name, kept=True)
            return self._names[name]

    def unload_adapter(self, name: str) -> None:
        """Returns when the adapter's running requests have ended. Raises UnknownModel."""
        with self._lock:
            served = self._names.get(name)
            if served is None or not served.adapter or name == self.default:
                raise UnknownModel(f"no adapter {name[:80]} is loaded")
            del self._names[name]
            if any(self._is(other, served) for other in [*self._names.values(), *self._releases.values()]):
                return
            with self._counts:
                served.base.adapters.pop(served.adapter, None)
        served.engine.unload_adapter(served.adapter)

    def close(self) -> None:
        self._stop.set()
        for base in self._bases.values():
            base.engine.close()
        self.pointers.close()

    # -- loading

    def _open_default(self) -> str:
        """Load what is served by default; its name."""
        given = self.settings
        if not given.model and not given.adapters or given.model in ALIASES:
            name = given.model or "stable"
            if not given.url or self.pointers.get(name):
                if not self.pointers.get(name):
                    raise BadInput(f"nothing is released as {name} yet: evergreen release promote RELEASE --to {name}, "
                                   "or name a --model")  # fmt: skip
                self._load(name)
                return name
        if LOOKS_LIKE_A_NAME.fullmatch(given.model) and self.registry.locate(given.model):
            return self._load(given.model).release.id
        found = resolve(given.model, given.adapters)
        names = given.served_model_name or [given.model or given.adapters[-1]]
        base = self._open_base(found.base, names[0] if not found.adapters else _short(found.base))
        self._names[base.name] = self._on(base, Reference(found.base), base.name)
        if found.adapters:
            try:
                served = self._on(base, found, names[0], kept=True)
            except BadInput as error:
                served = self._merged(base, found, names[0], error)
            self._names[names[0]] = served
        for name in names[1:]:
            self._names[name] = replace(self._names[names[0]], name=name)
        return names[0]

    def _merged(self, base: Base, found: Reference, name: str, error: BadInput) -> Served:
        """Adapters that the engine cannot take one by one, merged into the weights instead of the plain base."""
        self._say(f"{error}; it is merged into the weights instead")
        base.engine.close()
        del self._bases[base.digest], self._names[base.name]
        whole = self._open_base(found.base, name, found.adapters)
        return self._on(whole, Reference(found.base, (), found.args), name, tokenizer_of=found)

    def _open_base(self, place: str, name: str, adapters: tuple[Path, ...] = ()) -> Base:
        folders = tuple(map(str, adapters))
        digest = model_digest(place)
        if folders:
            digest = digest_of([digest, [adapter_digest(folder) for folder in adapters]])
        engine = self.open_engine(self.settings, place, folders)
        self._bases[digest] = Base(name, place, digest, engine, {})
        return self._bases[digest]

    def _load(self, name: str) -> Served:
        """What `resident` does not have: a release, by itself or by an alias."""
        if name not in ALIASES:
            if not LOOKS_LIKE_A_NAME.fullmatch(name):
                there_is = ", ".join(one.name for one in self.all()[:8])
                raise UnknownModel(f"no model {name[:80]} is served; there is {there_is}")
            try:
                return self._load_release(self.registry.get(name))
            except BadInput as error:
                raise UnknownModel(str(error)) from None
        id = self.pointers.get(name)
        standing = self._standing.get(name)
        if id is None and standing is None:
            raise UnknownModel(f"{name} points to nothing yet: evergreen release promote RELEASE --to {name}")
        try:
            served = self._load_release(self.registry.get(id or ""), beside=bool(standing))
        except EvergreenError as error:
            if standing is None:
                raise
            self._not_now[id or ""] = time.monotonic() + RETRY_SECONDS
            self._say(f"{name} stays at {_short(standing.fingerprint)}: {error}")
            return standing
        if served is None:
            return standing
        self._standing[name] = served
        return served

    def _load_release(self, release: Release, beside: bool | None = None) -> Served | None:
        """A release on an engine. On a base that is not loaded: opened now (None), beside and later (True: returns
        None), or refused when only a request names it."""
        with self._lock:
            if release.id in self._releases:
                return self._releases[release.id]
            model, adapters = self.registry.locate(release.id) or ("", ())
            prompt = release.prompt or {}
            found = resolve(model, adapters)
            base = self._bases.get(model_digest(found.base))
            if base is None and self._bases:
                if beside is None:
                    raise BadInput(f"release {release.id[:12]} stands on another base, {_short(found.base)}, than what "
                                   "is served: promote it, or start a server with it")  # fmt: skip
                self._check_memory(found.base)
                self._not_now[release.id] = float("inf")
                threading.Thread(target=self._open_beside, args=(release, found, prompt), daemon=True).start()
                return None
            base = base or self._open_base(found.base, _short(found.base))
            self._names.setdefault(base.name, self._on(base, Reference(found.base), base.name))
            self._releases[release.id] = self._on(base, found, release.id, prompt, release)
            return self._releases[release.id]

    def _open_beside(self, release: Release, found: Reference, prompt: dict[str, Any]) -> None:
        try:
            base = self._open_base(found.base, _short(found.base))
            if self._stop.is_set():
                base.engine.close()
                return
            with self._lock:
                self._names.setdefault(base.name, self._on(base, Reference(found.base), base.name))
                self._releases[release.id] = self._on(base, found, release.id, prompt, release)
            self._not_now.pop(release.id, None)
        except Exception as error:
            self._not_now[release.id] = time.monotonic() + RETRY_SECONDS
            self._say(f"release {release.id[:12]} is not served, what served before still does: {error}")

    def _check_memory(self, place: str) -> None:
        """Raises Failure with the forecast when another model would not fit beside those that are loaded."""
        import psutil

        largest = max(self._bases.values(), key=lambda base: _weight_bytes(base.place))
        used = getattr(largest.engine, "memory_bytes", lambda: 0)()
        wanted = used * _weight_bytes(place) // max(1, _weight_bytes(largest.place))
        free = psutil.virtual_memory().available
        if wanted > free:
            raise Failure(f"{_short(place)} would take about {wanted / 2**30:.1f} GiB beside {largest.name}, and "
                          f"{free / 2**30:.1f} GiB are free: restart the server to change the base")  # fmt: skip

    def _on(
        self,
        base: Base,
        found: Reference,
        name: str,
        prompt: dict[str, Any] | None = None,
        release: Release | None = None,
        kept: bool = False,
        tokenizer_of: Reference | None = None,
    ) -> Served:
        """An adapter (or none) on a base that is open, loaded if it is not yet."""
        args, prompt, own = found.args or {}, prompt or {}, self.settings
        digest = ""
        if found.adapters:
            digests = [adapter_digest(folder) for folder in found.adapters]
            digest = digests[0] if len(digests) == 1 else digest_of(digests)
            if digest not in base.adapters:
                self._make_room(base)
                folders = [
                    self._copies.keep(*one) if kept else one[0] for one in zip(found.adapters, digests, strict=True)
                ]
                base.engine.load_adapter(digest, folders)
            base.adapters[digest] = time.monotonic()
        tokenizer = self._tokenizer(
            tokenizer_of or found, own.template or prompt.get("template") or args.get("template") or ""
        )
        system = next((one for one in (own.system, prompt.get("system"), args.get("system")) if one is not None), None)
        return Served(name, base, digest, tokenizer, system, release)

    def _make_room(self, base: Base) -> None:
        """Unload what was asked for longest ago, if nothing needs it now."""
        while len(base.adapters) >= self.settings.max_adapters:
            pointed = [self._releases[id] for alias in ALIASES if (id := self.pointers.get(alias)) in self._releases]
            needed = [*self._names.values(), *self._standing.values(), *pointed]
            needed_here = {served.adapter for served in needed if served.base is base}
            with self._counts:
                needed_here |= {adapter for (digest, adapter), n in self._in_use.items() if n and digest == base.digest}
                free = [digest for digest in base.adapters if digest not in needed_here]
                oldest = min(free, key=lambda digest: base.adapters[digest], default="")
                base.adapters.pop(oldest, None)
            if not oldest:
                raise Failure(f"all {self.settings.max_adapters} adapters that fit are in use: unload one, or start "
                              "with a larger --max_adapters")  # fmt: skip
            self._releases = {id: one for id, one in self._releases.items() if one.base is not base
                              or one.adapter != oldest}  # fmt: skip
            base.engine.unload_adapter(oldest)

    def _tokenizer(self, found: Reference, template: str) -> Any:
        """One tokenizer for all adapters that bring the same files."""
        from evergreen.model.load import TOKENIZER_FILES, tokenizer_for

        folder = Path(found.adapters[-1] if found.adapters else found.base)
        if not (folder / "tokenizer_config.json").is_file():
            folder = Path(found.base)
        names = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", *TOKENIZER_FILES)
        files = sorted(path for name in names for path in folder.glob(name)) if folder.is_dir() else []
        key = digest_of([template, [[path.name, digest_of(path.read_bytes().hex())] for path in files] or str(folder)])
        if key not in self._tokenizers:
            self._tokenizers[key] = tokenizer_for(found, template)
        return self._tokenizers[key]

    def _is(self, one: Served, other: Served) -> bool:
        return one.base is other.base and one.adapter == other.adapter

    def _watch(self) -> None:
        """Loads what an alias has moved to before anybody asks."""
        while not self._stop.wait(WATCH_SECONDS):
            for alias in ALIASES:
                if self.pointers.get(alias) and self.resident(alias) is None:
                    with contextlib.suppress(EvergreenError):
                        self._load(alias)


def _name_and_folder(word: str) -> tuple[str, str]:
    """`name=folder`, vLLM's {"name": ..., "path": ...}, or a folder alone."""
    if word.lstrip().startswith("{"):
        import json

        with contextlib.suppress(ValueError, KeyError, TypeError):
            given = json.loads(word)
            return str(given["name"]), str(given["path"])
        raise BadInput(f'--lora_modules wants NAME=FOLDER or {{"name": ..., "path": ...}}, got {word}')
    name, equals, folder = word.partition("=")
    if equals and not name:
        raise BadInput(f"--lora_modules wants NAME=FOLDER, got {word}")
    return (name, folder) if equals else (Path(word).expanduser().resolve().name, word)


def _short(name: str) -> str:
    """A folder's own name; a digest's first characters; a hub name as it is."""
    if LOOKS_LIKE_A_NAME.fullmatch(name):
        return name[:12]
    return Path(absolute_name(name)).name if Path(name).is_dir() else name


def _weight_bytes(place: str) -> int:
    folder = Path(place)
    return sum(path.stat().st_size for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind))
