"""Conformance finds each planted fault by its own name, and nothing in an engine that has none."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_openai import Answer, serving

from evergreen import cli
from evergreen.evaluate.conformance import Case, run_cases
from evergreen.evaluate.targets import BASE, InProcess, Isolated, Question, Reply
from evergreen.evaluate.trial import Fault, Tally, Trial, comparable
from evergreen.records import BadInput, Failure

PAGE = 4
FOLDERS = {"A": Path("A"), "B": Path("B")}


class FakeModels:
    """Weights are a word. The KV of a token is what some weights make of all tokens up to it; the next token is what
    they make of all KV, so that KV of other weights shows in the answer. Pages of KV are kept by (root, tokens)."""

    can_load = True

    def __init__(self):
        self.weights = {BASE: "base weights"}
        self.pages: dict[tuple, list[int]] = {}
        self.is_caching = True

    def load(self, name: str, folder: Path) -> None:
        self.weights[name] = f"weights of {folder}"

    def unload(self, name: str) -> None:
        del self.weights[name]

    def root(self, name: str) -> str:
        return self.weights[name]

    def batch_weights(self, names: Sequence[str]) -> list[str]:
        return [self.weights[name] for name in names]

    def complete(
        self, questions: Sequence[Question], max_tokens: int, meanwhile: Callable[[], None] | None = None
    ) -> list[Reply]:
        for question in questions:
            if question.model not in self.weights:
                raise BadInput(f"no model {question.model}")
        weights, roots = (
            self.batch_weights([one.model for one in questions]),
            [self.root(one.model) for one in questions],
        )
        if meanwhile:
            meanwhile()
        return [
            self._go_on(own, root, question.prompt.split(), max_tokens)
            for own, root, question in zip(weights, roots, questions, strict=True)
        ]

    def _go_on(self, weights: str, root: str, words: list[str], max_tokens: int) -> Reply:
        num_cached = 0
        kv = []
        for start in range(0, len(words) - 1, PAGE):
            key = (root, *words[: start + PAGE])
            whole = start + PAGE < len(words)
            if whole and self.is_caching and key in self.pages:
                num_cached += PAGE
            elif whole:
                self.pages[key] = [hash((weights, *words[: place + 1])) for place in range(start, start + PAGE)]
            kv += (
                self.pages[key]
                if whole
                else [hash((weights, *words[: place + 1])) for place in range(start, len(words))]
            )
        tokens = []
        for _ in range(max_tokens):
            tokens.append(hash((weights, tuple(kv))) % 1000)
            kv.append(hash((weights, tokens[-1])))
        return Reply(tuple(tokens), " ".join(map(str, tokens)), (1.0,) * max_tokens, len(words), num_cached)


class FakeAlone:
    def answer(self, question: Question, max_tokens: int) -> Reply:
        models = FakeModels()
        for label, folder in FOLDERS.items():
            models.load(label, folder)
        return models.complete([question], max_tokens)[0]


def cases_of(target: FakeModels) -> dict[str, Case]:
    for label, folder in FOLDERS.items():
        target.load(label, folder)
    return {case.name: case for case in run_cases(Trial(target, FakeAlone(), list(FOLDERS), FOLDERS))}


def found(cases: dict[str, Case]) -> set[str]:
    return {name for name, case in cases.items() if case.ok is False}


def test_an_engine_without_a_fault_passes_every_case():
    cases = cases_of(FakeModels())
    assert not found(cases)
    assert all(case.ok for case in cases.values())


class SharesKv(FakeModels):
    """`reader` finds pages under the root of `owner`."""

    def __init__(self, owner: str, reader: str):
        super().__init__()
        self.owner, self.reader = owner, reader

    def root(self, name: str) -> str:
        return super().root(self.owner if name == self.reader and self.owner in self.weights else name)


@pytest.mark.parametrize(("owner", "reader"), [("A", BASE), ("A", "B"), ("B", "A"), (BASE, "A")])
def test_shared_kv_is_found_by_the_names_of_both(owner, reader):
    faults = found(cases_of(SharesKv(owner, reader)))
    assert f"KV of {owner} reused for {reader}" in faults
    others = {f"KV of {one} reused for {two}" for one, two in itertools.permutations((BASE, "A", "B"), 2)}
    assert not faults & (others - {f"KV of {owner} reused for {reader}", f"KV of {reader} reused for {owner}"})
    assert "base row gets the last slot" not in faults


class BaseRowsGetLastSlot(FakeModels):
    def batch_weights(self, names: Sequence[str]) -> list[str]:
        own = super().batch_weights(names)
        if len(set(names)) == 1:
            return own
        return [
            self.weights["B"] if name == BASE and "B" in self.weights else one
            for name, one in zip(names, own, strict=True)
        ]


def test_base_rows_computed_with_the_last_adapter_are_found():
    cases = cases_of(BaseRowsGetLastSlot())
    assert "base row gets the last slot" in found(cases)
    assert "the answer of B" in cases["base row gets the last slot"].detail
    assert not [name for name in found(cases) if name.startswith(("KV of", "adapter"))]


class ServesOldBytes(FakeModels):
    def __init__(self):
        super().__init__()
        self.first: dict[str, Path] = {}

    def load(self, name: str, folder: Path) -> None:
        super().load(name, self.first.setdefault(name, folder))


class KeepsKvOfName(FakeModels):
    def root(self, name: str) -> str:
        return name


@pytest.mark.parametrize("kind", [ServesOldBytes, KeepsKvOfName])
def test_a_reloaded_name_with_old_bytes_is_found(kind):
    assert found(cases_of(kind())) == {"same name reloaded serves old bytes"}


class IgnoresAdapter(FakeModels):
    def batch_weights(self, names: Sequence[str]) -> list[str]:
        return [self.weights[BASE]] * len(names)


def test_an_ignored_adapter_is_found():
    assert {"adapter A ignored", "adapter B ignored"} <= found(cases_of(IgnoresAdapter()))


class AnswersAnything(FakeModels):
    def complete(self, questions, max_tokens, meanwhile=None):
        known = [Question(one.model if one.model in self.weights else BASE, one.prompt) for one in questions]
        return super().complete(known, max_tokens, meanwhile)


def test_a_base_that_answers_for_unknown_names_is_found():
    assert found(cases_of(AnswersAnything())) == {"unknown name answered by the base", "unloaded adapter still answers"}


class KeepsSlotsKv(FakeModels):
    """Pages are kept by the slot that the adapter has, the lowest free one."""

    def __init__(self):
        super().__init__()
        self.slots = {BASE: 0}

    def load(self, name: str, folder: Path) -> None:
        super().load(name, folder)
        self.slots[name] = min({1, 2} - set(self.slots.values()))

    def unload(self, name: str) -> None:
        super().unload(name)
        del self.slots[name]

    def root(self, name: str) -> str:
        return str(self.slots[name])


def test_kv_that_outlives_its_adapter_is_found():
    faults = found(cases_of(KeepsSlotsKv()))
    assert faults == {"KV of an unloaded adapter outlives it", "same name reloaded serves old bytes"}


class Breaks(FakeModels):
    def complete(self, questions, max_tokens, meanwhile=None):
        if len(questions) > 1:
            raise Failure("out of memory")
        return super().complete(questions, max_tokens, meanwhile)


def test_an_engine_that_gives_up_fails_the_cases_that_met_it():
    cases = cases_of(Breaks())
    assert cases["base row gets the last slot"].detail == "the engine gave up: out of memory"
    assert cases["KV of A reused for base"].ok


def trial_of(wanted: Reply, max_gap: float = 0.01) -> Trial:
    class Says:
        def answer(self, question, max_tokens):
            return wanted

    return Trial(FakeModels(), Says(), [], {}, max_gap=max_gap)


def test_a_near_tie_is_counted_and_a_clear_difference_is_a_fault():
    wanted = Reply((1, 2, 3, 4), gaps=(1.0, 1.0, 0.005, 1.0))
    trial = trial_of(wanted)
    trial.check(BASE, "x", Reply((1, 2, 9, 9)))
    assert trial.tally == Tally(num_answers=1, num_ties=1, num_tokens=4, num_compared=2)
    with pytest.raises(Fault, match="token 2 is 9, alone it is 2 by 1 nats"):
        trial.check(BASE, "x", Reply((1, 9, 3, 4)))
    with pytest.raises(Fault, match="token 4 is none"):
        trial.check(BASE, "x", Reply((1, 2, 3)))


def test_near_ties_everywhere_are_no_proof():
    trial = trial_of(Reply((1, 2), gaps=(0.0, 0.0)))
    trial.check(BASE, "x", Reply((9, 9)))
    with pytest.raises(Fault, match="undecided: 0 of 2"):
        trial.tally.told()


def test_ids_and_spellings_are_compared_as_text():
    ids, text = Reply((5, 6), "ab", (1.0, 0.5)), Reply(("a", "b"), "ab")
    ours, wanted = comparable(text, ids)
    assert ours.tokens == wanted.tokens == ("a", "b")
    assert wanted.gaps == (0.5, 0.5)


# --- the real engine, whole and with one fault planted at a time


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    from evergreen.evaluate import specimen
    from evergreen.model.load import load_model, tokenizer_of

    folder = tmp_path_factory.mktemp("specimens")
    model = specimen.make_model(folder / "model")
    folders = specimen.make_adapters(model, folder)
    loaded = load_model(model, torch_dtype="float32", device="cpu")
    return loaded, folders, Isolated(model, folders, tokenizer_of(model))


def faults_of(specimens, engine_kind: type, *names: str, target_kind: type = InProcess) -> dict[str, str]:
    """{case: detail} of the cases of `names` that fail with an engine of a kind."""
    import copy

    from evergreen.engine.base import EngineSettings

    loaded, folders, reference = specimens
    engine = engine_kind(copy.deepcopy(loaded), EngineSettings(max_adapters=2, kv_cache_bytes=4 << 20))
    target = target_kind(engine, loaded.tokenizer)
    for label, folder in folders.items():
        target.load(label, folder)
    engine.digests = target.digests
    trial = Trial(target, reference, list(folders), folders, max_tokens=6)
    return {case.name: case.detail for case in run_cases(trial, names=names) if not case.ok}


def engine_with(**methods) -> type:
    from evergreen.engine.engine import Engine

    return type("Faulty", (Engine,), methods)


def shares_kv(owner: str, reader: str) -> type:
    """The root of the reader's keys is the owner's."""
    from evergreen.engine.block_manager import root_key

    def _row(self, request):
        row = super(kind, self)._row(request)
        if request.adapter == self.digests[reader]:
            row.root = root_key(self._name, self.digests[owner], request.tenant)
        return row

    kind = engine_with(_row=_row)
    return kind


CONTROLS = ("base wrong when asked alone", "A wrong when asked alone", "unknown name answered by the base")


def test_the_embedded_engine_passes_every_case(specimens):
    from evergreen.engine.engine import Engine

    assert not faults_of(specimens, Engine)


@pytest.mark.parametrize(("owner", "reader", "other"), [("A", BASE, "B"), ("A", "B", BASE)])
def test_kv_shared_inside_the_embedded_engine_is_found(specimens, owner, reader, other):
    name, innocent = f"KV of {owner} reused for {reader}", f"KV of {owner} reused for {other}"
    assert faults_of(specimens, shares_kv(owner, reader), name, innocent, *CONTROLS).keys() == {name}


def test_base_rows_that_get_the_last_slot_inside_the_embedded_engine_are_found(specimens):
    def _logits(self, chunks):
        rows = [chunk.sequence for chunk in chunks]
        was = [row.adapter_slot for row in rows]
        for row in rows:
            row.adapter_slot = row.adapter_slot or max(was)
        try:
            return super(kind, self)._logits(chunks)
        finally:
            for row, slot in zip(rows, was, strict=True):
                row.adapter_slot = slot

    kind = engine_with(_logits=_logits)
    name, innocent = "base row gets the last slot", "KV of A reused for base"
    assert faults_of(specimens, kind, name, innocent, *CONTROLS).keys() == {name}


def test_an_adapter_that_the_embedded_engine_ignores_is_found(specimens):
    def _row(self, request):
        row = super(kind, self)._row(request)
        if request.adapter == self.digests["A"]:
            row.adapter_slot = 0
        return row

    kind = engine_with(_row=_row)
    faults = faults_of(specimens, kind, "adapter A ignored", "adapter B ignored", "base row gets the last slot")
    assert faults.keys() == {"adapter A ignored"}
    assert "answers as the base" in faults["adapter A ignored"]


class NamedByName(InProcess):
    """What the engine gets as digest is the adapter's name."""

    def load(self, name: str, folder: Path) -> None:
        self.engine.load_adapter(name, [folder])
        self.digests[name] = name


def test_a_name_in_place_of_a_digest_is_found(specimens):
    from evergreen.engine.engine import Engine

    name = "same name reloaded serves old bytes"
    faults = faults_of(specimens, Engine, name, "KV of an unloaded adapter outlives it", target_kind=NamedByName)
    assert faults.keys() == {name}
    assert "R asked for" in faults[name]


# --- servers, beside themselves


def served(models: FakeModels, is_strict: bool = False):
    """The fake behind HTTP: names as models, cache_salt understood, loading by path."""

    def answer(path: str, body: dict) -> Answer:
        if is_strict and body.keys() & {"cache_salt", "cache_prompt", "return_token_ids", "return_tokens"}:
            return Answer(body={"error": {"message": "unknown field"}}, status=400)
        if path == "/v1/load_lora_adapter":
            if "lora_name" not in body:
                return Answer(body={}, status=400)
            models.load(body["lora_name"], Path((Path(body["lora_path"]) / "name").read_text()))
            return Answer(body={})
        if path == "/v1/unload_lora_adapter":
            models.unload(body["lora_name"])
            return Answer(body={})
        models.is_caching = "cache_salt" not in body
        try:
            reply = models.complete([Question(body["model"], body["prompt"])], body["max_tokens"])[0]
        except BadInput as error:
            return Answer(body={"error": {"message": str(error)}}, status=404)
        ids = {} if is_strict else {"token_ids": list(reply.tokens)}
        tops = [{str(token): -1.0, "other": -2.0} for token in reply.tokens]
        logprobs = {"tokens": [str(token) for token in reply.tokens], "top_logprobs": tops}
        usage = {"prompt_tokens": reply.num_prompt_tokens,
                 "prompt_tokens_details": {"cached_tokens": reply.num_cached_tokens}}  # fmt: skip
        return Answer(body={"choices": [{"text": reply.text, "logprobs": logprobs, **ids}], "usage": usage})

    return serving(answer)


def conformance_of(url: str, capsys, *flags: str) -> dict:
    cli.main(["conformance", "--url", url, "--models", "base,A,B", "--json", *flags])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def loaded(models: FakeModels) -> FakeModels:
    for label, folder in FOLDERS.items():
        models.load(label, folder)
    return models


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_server_that_is_well_passes_beside_itself(capsys, is_strict):
    with served(loaded(FakeModels()), is_strict) as fake:
        document = conformance_of(fake.url, capsys)
    assert document["failed"] == 0
    assert document["not_run"] == 4


@pytest.mark.parametrize(("kind", "fault"), [
    (lambda: SharesKv("A", BASE), "KV of A reused for base"),
    (IgnoresAdapter, "adapter A ignored"),
    (AnswersAnything, "unknown name answered by the base"),
])  # fmt: skip
def test_the_faults_of_a_server_are_found_with_itself_as_the_reference(capsys, kind, fault):
    with served(loaded(kind())) as fake:
        document = conformance_of(fake.url, capsys)
    assert fault in {case["name"] for case in document["cases"] if case["ok"] is False}


def test_cache_hits_that_a_server_tells_of_show_shared_kv_without_a_reference(capsys):
    with served(loaded(SharesKv("A", BASE)), is_strict=True) as fake:
        document = conformance_of(fake.url, capsys)
    [case] = [case for case in document["cases"] if case["name"] == "KV of A reused for base"]
    assert case["ok"] is False
    assert "that only A had been asked" in case["detail"]


def test_a_reloaded_name_on_a_server_has_the_same_path(tmp_path, capsys):
    folders = []
    for label in FOLDERS:
        folders.append(tmp_path / label)
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_text("{}")
        (folders[-1] / "name").write_text(label)
    flags = ["--adapters", *map(str, folders)]
    with served(loaded(FakeModels())) as fake:
        assert conformance_of(fake.url, capsys, *flags)["not_run"] == 0
    with served(loaded(KeepsKvOfName())) as fake:
        document = conformance_of(fake.url, capsys, *flags)
    assert {case["name"] for case in document["cases"] if not case["ok"]} == {"same name reloaded serves old bytes"}


# --- the command


def test_the_command_says_in_json_what_failed_and_its_code_says_so_too(monkeypatch, capsys):
    from evergreen.evaluate import conformance

    def trial(settings, stack):
        target = SharesKv("A", BASE)
        for label, folder in FOLDERS.items():
            target.load(label, folder)
        return Trial(target, FakeAlone(), list(FOLDERS), FOLDERS)

    monkeypatch.setattr(conformance, "_trial_of_engine", trial)
    assert cli.main(["conformance", "--json"]) == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["failed"] >= 1
    assert {"name", "ok", "detail"} == document["cases"][0].keys()
    assert [case["ok"] for case in document["cases"] if case["name"] == "KV of A reused for base"] == [False]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--adapters", "x"], "give --model, too"),
        (["--url", "http://127.0.0.1:9"], "--models base,a,b"),
        (["--engine", "vllm"], "--engine_python"),
    ],
)
def test_what_is_missing_is_one_line(flags, says, capsys):
    assert cli.main(["conformance", *flags]) == 2
    assert says in capsys.readouterr().err
