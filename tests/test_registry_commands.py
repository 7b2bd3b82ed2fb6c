"""What `evergreen release ...` prints and gives as JSON."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from registry_homes import FAILED, PASSED, digest, make_adapter, make_base, make_release, registry_of

from evergreen import settings
from evergreen.records import BadInput
from evergreen.registry.commands import run_release


@pytest.fixture
def registry(tmp_path):
    return registry_of(tmp_path / "home")


@pytest.fixture
def run(registry):
    def release(action, **flags):
        kind = getattr(settings, f"Release{action.title()}Settings")
        return run_release(action, kind(home=str(registry.home), **flags), digest, resolve)

    return release


def resolve(model, adapters):
    """Stands for the model room's: folders are taken as they are."""
    own = tuple(map(Path, adapters))
    base = model or json.loads((own[-1] / "version.json").read_text())["base"]
    return SimpleNamespace(base=base, adapters=own, args={"system": "你是客服。", "template": ""})


def test_an_empty_home_lists_nothing_and_says_what_to_do(run, capsys):
    assert run("list") == {"releases": [], "aliases": {"stable": None, "candidate": None}}
    assert "evergreen release create" in capsys.readouterr().out


def test_the_list_has_a_line_for_each_release_with_gate_and_alias(run, registry, capsys):
    one = make_release(registry, "one")
    two = make_release(registry, "two", FAILED, parent=one.id)
    registry.promote(one.id)
    document = run("list")
    assert document["aliases"] == {"stable": one.id, "candidate": None}
    assert document["releases"][0] == {
        "id": two.id, "version": two.adapter, "parent": one.id, "created": two.created, "gate": "reject"
    }  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert two.id[:12] in lines[1] and "reject" in lines[1] and one.id[:12] in lines[1]
    assert one.id[:12] in lines[2] and "promote" in lines[2] and lines[2].rstrip().endswith("stable")
    json.dumps(document)


def test_json_keeps_the_tables_out_of_stdout(run, registry, capsys):
    make_release(registry, "one")
    run("list", json=True)
    assert capsys.readouterr().out == ""


def test_show_tells_lineage_verdict_moves_and_damage(run, registry, capsys):
    gate = FAILED | {"reasons": ["旧任务退步了 4 分"]}
    release = make_release(registry, "one", gate, prompt={"system": "你是客服。", "template": ""})
    registry.promote(release.id, force="因为旧版本报错价")
    document = run("show", release="stable")
    text = capsys.readouterr().out
    for word in ("data data of one, 12 rows", "旧任务退步了 4 分", "因为旧版本报错价", "forced", "whole", "你是客服。"):
        assert word in text
    assert document["id"] == release.id and document["damaged"] is None and document["aliases"] == ["stable"]
    assert [part["kind"] for part in document["versions"]] == ["base", "adapter"]
    (registry.home / "adapters" / release.adapter / "adapter_model.safetensors").write_bytes(b"")
    assert "bytes instead of" in run("show", release=release.id[:8])["damaged"]
    assert "DAMAGED" in capsys.readouterr().out
    with pytest.raises(BadInput, match="wants a release"):
        run("show")


def test_diff_shows_both_sides(run, registry, capsys):
    one, two = make_release(registry, "one"), make_release(registry, "two", FAILED)
    document = run("diff", releases=[one.id[:8], two.id[:8]])
    assert document["differences"]["gate.decision"] == ["promote", "reject"]
    assert "data of one" in capsys.readouterr().out
    assert run("diff", releases=[one.id, one.id]) == {"differences": {}}
    with pytest.raises(BadInput, match="wants two releases, got 1"):
        run("diff", releases=[one.id])


def test_create_takes_the_prompt_of_the_run_and_names_the_next_step(run, registry, tmp_path, capsys):
    folder = make_adapter(tmp_path / "run", make_base(tmp_path / "base"))
    document = run("create", adapters=[str(folder)])
    assert document["prompt"] == {"system": "你是客服。", "template": ""} and document["gate"] is None
    assert "--force" in capsys.readouterr().out
    child = run("create", adapters=[str(folder)], system="", parent=document["id"][:8])
    assert child["parent"] == document["id"] and child["prompt"]["system"] == ""
    alone = run("create", model=str(tmp_path / "base"))
    assert alone["adapter"] is None and alone["base"] == digest(tmp_path / "base")
    other = make_adapter(tmp_path / "other", tmp_path / "base")
    with pytest.raises(BadInput, match="holds one adapter"):
        run("create", adapters=[str(folder), str(other)])


def test_promote_and_rollback_give_what_is_served_and_what_was(run, registry, capsys):
    one, two = make_release(registry, "one"), make_release(registry, "two")
    assert run("promote", release=one.id) == {"stable": one.id, "previous": None}
    assert run("promote", release=two.id[:9]) == {"stable": two.id, "previous": one.id}
    assert run("promote", release="stable") == {"stable": two.id, "previous": two.id}
    assert "already" in capsys.readouterr().out
    assert run("rollback", reason="too slow") == {"stable": one.id, "previous": two.id}
    assert run("promote", release=two.id, to="candidate") == {"candidate": two.id, "previous": None}
    document = run("history")
    assert [move["action"] for move in document["history"]] == ["rollback", "promote", "promote"]
    assert document["history"][0]["reason"] == "too slow" and "too slow" in capsys.readouterr().out


def test_prune_says_what_it_frees_and_a_dry_run_frees_nothing(run, registry, capsys):
    made = [make_release(registry, f"r{number}", FAILED) for number in range(5)]
    assert run("prune", dry_run=True)["releases"] == (made[0].id, made[1].id)
    assert "would free" in capsys.readouterr().out and registry.damage(made[0].id) == ""
    assert run("prune")["versions"] == (made[0].adapter, made[1].adapter)
    assert "freed" in capsys.readouterr().out
    assert len(run("list")["releases"]) == 3 and len(run("list", all=True)["releases"]) == 5


def test_the_list_answers_in_half_a_second_of_cpu_without_torch(registry):
    make_release(registry, "one", PASSED)
    code = (
        "import sys, time\n"
        "from evergreen import settings; from evergreen.registry.commands import run_release\n"
        f"run_release('list', settings.ReleaseListSettings(home={str(registry.home)!r}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    seconds = []
    while not seconds or (seconds[-1] > 0.5 and len(seconds) < 3):  # a busy machine may slow one down
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout.split()[-1]))
    assert seconds[-1] < 0.5, seconds


# -- --model RELEASE on the other commands


@pytest.mark.parametrize("ref", ["stable", "id"])
def test_a_release_brings_its_prompt_unless_flags_say_otherwise(ref, registry):
    from evergreen.cli import _locate

    release = make_release(registry, "one", prompt={"system": "你是客服。", "template": "chatml"})
    registry.promote(release.id, force="the first one")
    name, home = release.id[:10] if ref == "id" else ref, str(registry.home)
    given = settings.InferSettings(model=name, home=home)
    _locate(given)
    assert (given.system, given.template) == ("你是客服。", "chatml")
    for kind in (settings.InferSettings, settings.EvalSettings):
        given = kind(model=name, home=home, system="", template="qwen")
        _locate(given)
        assert (given.system, given.template) == ("", "qwen")
    by_version = settings.EvalSettings(model=release.adapter, home=home)
    _locate(by_version)
    assert by_version.system is None  # its own run says it
