"""What a model's name means, and that promotions, reloads and full houses cost no request."""

import asyncio
import json
import threading
from pathlib import Path

import pytest
from serving import serving
from small_models import make_base
from transformers import AutoTokenizer
from waiting import wait_until

from evergreen.engine.base import Stats
from evergreen.model.find import version_digest
from evergreen.records import BadInput, Failure
from evergreen.registry import Registry
from evergreen.registry.pointers import Pointers
from evergreen.serve import models as room
from evergreen.serve.models import Models, UnknownModel
from evergreen.settings import ServeSettings

PASSED = {"decision": "promote"}


class Engine:
    """Remembers what is loaded."""

    max_context_tokens = 100

    def __init__(self, place: str, merged=(), refuses: str = ""):
        self.place, self.merged, self.refuses = place, merged, refuses
        self.adapters: dict[str, list[Path]] = {}
        self.num_loads, self.is_closed = 0, False

    def load_adapter(self, digest, folders):
        if self.refuses:
            raise BadInput(self.refuses)
        self.num_loads += 1
        self.adapters[digest] = list(folders)

    def unload_adapter(self, digest):
        del self.adapters[digest]

    def stats(self):
        return Stats()

    def is_healthy(self):
        return not self.is_closed

    def memory_bytes(self):
        return 1 << 20

    def close(self):
        self.is_closed = True


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> list[str]:
    """Two bases that differ in shape."""
    folder = tmp_path_factory.mktemp("bases")
    return [make_base(folder / "one"), make_base(folder / "two", hidden_size=16)]


def make_adapter(folder: Path, base: str, content: str = "") -> str:
    """An adapter by its files; its weights are its name, or `content`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 1}))
    (folder / "adapter_model.safetensors").write_text(content or folder.name)
    (folder / "args.json").write_text(json.dumps({"base": base, "base_digest": version_digest(Path(base))}))
    record = {"digest": version_digest(folder), "base": base, "base_digest": version_digest(Path(base))}
    (folder / "version.json").write_text(json.dumps(record))
    return str(folder)


class House:
    """A registry, and the models over it, with the engines that were opened."""

    def __init__(self, tmp_path: Path, bases: list[str]):
        self.folder, self.bases = tmp_path, bases
        self.registry = Registry(tmp_path / "home", digest=version_digest)
        self.engines: list[Engine] = []
        self.said: list[str] = []
        self.refuses, self.gate, self.models = "", threading.Event(), None
        self.gate.set()

    def open(self, **settings) -> Models:
        self.models = Models(ServeSettings(**settings), self.registry, self.open_engine, self.said.append)
        return self.models

    def open_engine(self, settings, place, adapters):
        self.gate.wait(30)
        self.engines.append(Engine(place, adapters, "" if adapters else self.refuses))
        return self.engines[-1]

    def adapter(self, name: str, content: str = "", base: int = 0) -> str:
        return make_adapter(self.folder / "made" / name, self.bases[base], content)

    def release(self, name: str, base: int = 0, **more) -> str:
        digest = self.registry.add_version(self.adapter(name, base=base))
        return self.registry.create(adapter=digest, gate=PASSED, **more).id

    def promote(self, name: str, to: str = "stable", base: int = 0) -> str:
        id = self.release(name, base)
        self.registry.promote(id, to)
        return id

    def ask(self, name: str = ""):
        async def choose():
            async with self.models.chosen(name) as served:
                return served

        return asyncio.run(choose())


@pytest.fixture
def house(tmp_path, bases, monkeypatch):
    monkeypatch.setattr(room, "WATCH_SECONDS", 3600)  # requests alone find out
    one = House(tmp_path, bases)
    yield one
    one.gate.set()
    if one.models:
        one.models.close()


# -- names


def test_a_model_without_releases_is_served_by_the_name_it_was_given(house):
    house.open(model=house.bases[0])
    assert house.ask().adapter == "" and house.ask(house.bases[0]).name == house.bases[0]
    with pytest.raises(UnknownModel, match="no model gpt is served"):
        house.ask("gpt")
    with pytest.raises(UnknownModel, match="points to nothing"):
        house.ask("stable")


def test_adapters_are_named_by_flag_by_folder_or_as_vllm_does(house):
    a, b, c = (house.adapter(name) for name in "abc")
    house.open(model=house.bases[0], lora_modules=[f"first={a}", b, json.dumps({"name": "third", "path": c})])
    assert [house.ask(name).adapter for name in ("first", "b", "third")] == [
        version_digest(Path(folder)) for folder in (a, b, c)
    ]
    assert [one.name for one in house.models.all()] == [house.bases[0], "first", "b", "third"]


@pytest.mark.parametrize("word,said", [("=x", "NAME=FOLDER"), ('{"name": 1}', "path"), ("stable=x", "alias")])
def test_an_adapter_that_is_named_wrongly_is_refused(word, said, house):
    with pytest.raises(BadInput, match=said):
        house.open(model=house.bases[0], lora_modules=[word])
    assert all(engine.is_closed for engine in house.engines)


def test_served_model_names_replace_the_one_that_was_given(house):
    house.open(model=house.bases[0], served_model_name=["gpt-4", "mine"])
    assert house.ask().name == house.ask("gpt-4").name == "gpt-4" and house.ask("mine").adapter == ""


def test_an_adapters_folder_as_the_model_is_served_over_its_base_and_the_base_beside_it(house):
    folder = house.adapter("a")
    house.open(model=folder)
    assert house.ask().adapter == version_digest(Path(folder)) and house.ask("one").adapter == ""
    assert house.engines[0].place == house.bases[0] and len(house.engines) == 1


def test_an_adapter_that_the_engine_cannot_take_by_itself_is_merged_and_said(house):
    house.refuses = "modules_to_save cannot be served"
    folder = house.adapter("a")
    house.open(model=folder)
    first, second = house.engines
    assert first.is_closed and second.merged == (folder,) and house.ask().adapter == ""
    assert "merged into the weights" in house.said[0]


def test_an_adapter_of_another_base_is_refused_with_both_names(house):
    house.open(model=house.bases[0])
    with pytest.raises(BadInput, match="was trained on .*two"):
        house.models.load_adapter("b", house.adapter("b", base=1))


# -- releases


def test_without_a_model_the_stable_release_is_served_and_a_promotion_is_in_the_next_answer(house):
    first = house.promote("a")
    house.open()
    assert house.ask().release.id == house.ask("stable").release.id == first
    second = house.promote("b")
    assert house.ask().release.id == second and house.ask(first).release.id == first
    house.registry.rollback()
    assert house.ask().release.id == first
    assert house.engines[0].num_loads == 2 and len(house.engines) == 1  # both stayed resident


def test_a_release_is_asked_for_by_id_by_its_beginning_and_as_candidate(house):
    first, other = house.promote("a"), house.promote("b", "candidate")
    house.open()
    assert house.ask(first[:10]).release.id == house.ask(first).release.id == first
    assert house.ask("candidate").release.id == other
    with pytest.raises(UnknownModel, match="no release"):
        house.ask("0123456789ab")


def test_a_home_without_a_stable_release_says_what_to_do(house):
    with pytest.raises(BadInput, match="release promote RELEASE --to stable"):
        house.open()


def test_a_models_own_flag_goes_before_the_stable_release(house):
    house.promote("a")
    house.open(model=house.bases[0])
    assert house.ask().release is None and house.ask("stable").release is not None


def test_a_release_brings_its_prompt(house):
    digest = house.registry.add_version(house.adapter("a"))
    id = house.registry.create(adapter=digest, gate=PASSED, prompt={"system": "You are Tara."}).id
    house.registry.promote(id)
    house.open()
    assert house.ask().system == "You are Tara."


def test_a_promotion_by_another_process_is_seen_at_once(house):
    house.promote("a")
    house.open()
    elsewhere = Registry(house.registry.home, digest=version_digest)
    for name in "bcd":
        id = house.release(name)
        elsewhere.promote(id)
        assert house.ask().release.id == id


def test_a_damaged_release_leaves_the_old_one_serving_and_is_said_once(house):
    first = house.promote("a")
    house.open()
    second = house.promote("b")
    version = house.registry.get(second).adapter
    (house.registry.home / "adapters" / version / "adapter_model.safetensors").write_text("x")
    assert [house.ask().release.id for _ in range(3)] == [first] * 3
    assert len(house.said) == 1 and "stable stays at" in house.said[0] and "damaged" in house.said[0]


def test_a_release_on_another_base_is_loaded_beside_while_the_old_one_answers(house):
    first = house.promote("a")
    house.open()
    house.gate.clear()
    second = house.promote("b", base=1)
    assert [house.ask().release.id for _ in range(3)] == [first] * 3
    house.gate.set()
    wait_until(lambda: house.ask().release.id == second)
    assert [engine.place for engine in house.engines] == house.bases and not house.engines[0].is_closed
    house.registry.rollback()
    assert house.ask().release.id == first


def test_a_release_on_another_base_that_would_not_fit_is_refused_with_the_forecast(house, monkeypatch):
    first = house.promote("a")
    house.open()
    house.engines[0].memory_bytes = lambda: 1 << 50
    house.promote("b", base=1)
    assert house.ask().release.id == first and len(house.engines) == 1
    assert "GiB beside one" in house.said[0] and "GiB are free" in house.said[0]


def test_nobody_opens_another_base_by_asking_for_a_release(house):
    house.promote("a")
    house.open()
    other = house.release("b", base=1)
    with pytest.raises(UnknownModel, match="stands on another base"):
        house.ask(other)
    assert len(house.engines) == 1


def test_what_an_alias_moves_to_is_loaded_before_anybody_asks(house, monkeypatch):
    monkeypatch.setattr(room, "WATCH_SECONDS", 0.02)
    house.promote("a")
    house.open()
    house.promote("b")
    wait_until(lambda: house.engines[0].num_loads == 2)


def test_pointers_say_what_they_said_last_while_the_database_cannot_be_read(house):
    id = house.promote("a")
    pointers = Pointers(house.registry)
    assert pointers.get("stable") == id and pointers.get("candidate") is None
    database = house.registry.home / "evergreen.db"
    database.rename(house.folder / "away.db")
    assert pointers.get("stable") == id
    (house.folder / "away.db").rename(database)
    assert pointers.get("stable") == id
    pointers.close()


# -- loading and unloading


def test_the_same_name_again_is_another_digest_and_the_old_one_stays_while_it_is_used(house):
    folder = house.adapter("a", "old weights")
    house.open(model=house.bases[0], lora_modules=[f"mine={folder}"])

    async def reload():
        async with house.models.chosen("mine") as old:
            house.adapter("a", "new weights")
            new = await asyncio.to_thread(house.models.load_adapter, "mine", folder)
            async with house.models.chosen("mine") as now:
                assert now.adapter == new.adapter != old.adapter
            assert {old.adapter, new.adapter} <= set(house.engines[0].adapters)

    asyncio.run(reload())


def test_what_the_engine_gets_does_not_change_with_the_folder(house):
    folder = house.adapter("a", "weights as loaded")
    house.open(model=house.bases[0], lora_modules=[f"mine={folder}"])
    house.adapter("a", "weights of later")
    [[kept]] = house.engines[0].adapters.values()
    assert (kept / "adapter_model.safetensors").read_text() == "weights as loaded"
    assert version_digest(kept) == house.ask("mine").adapter


def test_an_unloaded_adapter_is_unknown_unless_another_name_has_it(house):
    folder = house.adapter("a")
    house.open(model=house.bases[0], lora_modules=[f"one={folder}", f"two={folder}"])
    house.models.unload_adapter("one")
    assert house.ask("two").adapter in house.engines[0].adapters
    house.models.unload_adapter("two")
    assert not house.engines[0].adapters
    for name in ("one", house.bases[0], "never"):
        with pytest.raises(UnknownModel, match="no adapter"):
            house.models.unload_adapter(name)


def test_a_full_house_gives_up_what_was_asked_for_longest_ago(house):
    for name in "abc":
        house.promote(name)
    house.open(max_adapters=2)
    releases = [one.id for one in house.registry.list()][::-1]  # c is stable
    house.ask(releases[0])
    house.ask(releases[1])
    loaded = set(house.engines[0].adapters)
    assert loaded == {house.registry.get(id).adapter for id in releases[1:]}
    assert house.ask().release.id == releases[2]
    assert house.ask(releases[0]).release.id == releases[0]


def test_what_a_request_is_using_is_not_given_up(house):
    ids = [house.promote(name) for name in "abc"]
    house.open(max_adapters=2)

    async def hold() -> None:
        async with house.models.chosen(ids[0]) as held:
            with pytest.raises(Failure, match="--max_adapters"):
                async with house.models.chosen(ids[1]):
                    pass
            assert held.adapter in house.engines[0].adapters
        async with house.models.chosen(ids[1]) as served:
            assert served.adapter in house.engines[0].adapters and held.adapter not in house.engines[0].adapters

    asyncio.run(hold())


def test_a_house_full_of_what_is_needed_refuses_one_more(house):
    names = [f"{name}={house.adapter(name)}" for name in "ab"]
    house.open(model=house.bases[0], lora_modules=names, max_adapters=2)
    with pytest.raises(Failure, match="all 2 adapters .* --max_adapters"):
        house.models.load_adapter("c", house.adapter("c"))
    assert house.ask("a") and house.ask("b")


# -- the server


def test_promotions_and_rollbacks_under_load_fail_no_request_and_hold_from_the_next_one(house):
    ids = [house.promote("a")]
    with serving(house.registry.home, FAKE_STEP_SECONDS="0.002") as server:
        seen: list[tuple[int, str]] = []
        is_over = threading.Event()

        def ask() -> None:
            with server.client() as client:
                while not is_over.is_set():
                    answer = client.post("/generate", json={"prompt": [5, 6, 7]})
                    seen.append((answer.status_code, answer.json().get("evergreen", {}).get("release")))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for name in "bcd":
            ids.append(house.promote(name))
            answer = server.ask(max_tokens=2).json()
            assert answer["evergreen"]["release"] == ids[-1] and answer["system_fingerprint"] == ids[-1]
            assert house.registry.get(ids[-1]).adapter[:6] in answer["choices"][0]["message"]["content"]
        for expected in ids[-2::-1]:
            house.registry.rollback()
            assert server.ask(max_tokens=2).json()["evergreen"]["release"] == expected
        is_over.set()
        for thread in threads:
            thread.join()
        assert {status for status, _ in seen} == {200} and {release for _, release in seen} <= set(ids)
        with server.client() as client:
            models = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert models[0] == "stable" and set(ids) <= set(models)


def test_adapters_come_and_go_over_http_and_lora_request_is_choosing_the_model(house):
    a, b = house.adapter("a"), house.adapter("b")
    base = house.bases[0]
    with serving(house.registry.home, "--model", base, "--enable-lora", "--lora-modules", f"a={a}") as server:
        with server.client() as client:
            assert client.post("/v1/load_lora_adapter", json={"lora_name": "b", "lora_path": b}).status_code == 200
            bad = client.post("/v1/load_lora_adapter", json={"lora_name": "c", "lora_path": "/nowhere"})
            assert bad.status_code == 400 and bad.json()["error"]["type"] == "invalid_request_error"
        digests = {name: version_digest(Path(folder)) for name, folder in (("a", a), ("b", b))}
        for name, digest in digests.items():
            for how in ({"model": name}, {"lora_request": {"lora_name": name}},
                        {"model": base, "lora_request": {"lora_name": name}},
                        {"model": name, "lora_request": {"lora_name": name}}):  # fmt: skip
                answer = server.ask(max_tokens=2, **how).json()
                assert answer["choices"][0]["message"]["content"].startswith(f"<{digest[:6]}>"), how
                assert answer["evergreen"]["adapter"] == digest
        other = server.ask(max_tokens=2, model="a", lora_request={"lora_name": "b"})
        assert other.status_code == 400 and other.json()["error"]["param"] == "lora_request"
        assert "<" not in server.ask(max_tokens=2, model=base).json()["choices"][0]["message"]["content"]
        with server.client() as client:
            assert client.post("/v1/unload_lora_adapter", json={"lora_name": "b"}).status_code == 200
            assert client.post("/v1/unload_lora_adapter", json={"lora_name": "b"}).status_code == 404
        assert server.ask(model="b").status_code == 404
        server.engine().kill()
        answer = server.ask(max_tokens=2, model="a").json()  # loaded again in the next engine
        assert answer["choices"][0]["message"]["content"].startswith(f"<{digests['a'][:6]}>")


def test_an_adapter_that_peft_wrote_is_served_and_a_server_in_front_of_another_says_the_same(tmp_path):
    """Greedy, by its own folder and loaded over HTTP, equal to PEFT alone; --url serves what another server has."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base", max_position_embeddings=256, initializer_range=0.2)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.generation_config.eos_token_id = None
    prompt = [11, 300, 42, 7, 99, 1000]

    def said() -> list[int]:
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
        return ids[0, len(prompt) :].tolist()

    plain = said()
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, config)
    model.save_pretrained(tmp_path / "adapter")
    adapted = said()
    assert plain != adapted
    how = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 0}

    def tokens(server, name: str) -> list[str]:
        with server.client() as client:
            answer = client.post("/v1/completions", json={"model": name, **how})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["logprobs"]["tokens"]

    words = AutoTokenizer.from_pretrained(base)
    spelled = {name: [words.decode([token]) for token in ids] for name, ids in (("a", adapted), ("base", plain))}
    flags = ["--adapters", str(tmp_path / "adapter"), "--served_model_name", "a", "--torch_dtype", "float32"]
    with serving(tmp_path / "home", *flags, fake=False) as server:
        assert {name: tokens(server, name) for name in spelled} == spelled
        with server.client() as client:
            body = {"lora_name": "b", "lora_path": str(tmp_path / "adapter")}
            assert client.post("/v1/load_lora_adapter", json=body).status_code == 200
        assert tokens(server, "b") == spelled["a"]
        front = ["--model", base, "--url", server.url]
        with serving(tmp_path / "front", *front, fake=False) as other:
            answer = other.ask("hi", max_tokens=6, temperature=0).json()
            assert (
                answer["choices"][0]["message"]
                == server.ask("hi", max_tokens=6, temperature=0, model="base").json()["choices"][0]["message"]
            )
