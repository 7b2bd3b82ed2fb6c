"""The pages tell the truth: their commands parse, the README's run, links and names resolve, cli.md is up to date."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evergreen import cli, settings
from evergreen.options import flags_of, parse

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "runs").glob("*.sh"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OF_THE_SHELL = ("make ", "source .venv/")
NOT_OURS = {"--nproc_per_node", "--nnodes", "--node_rank", "--master_addr", "--help"}  # torchrun's and argparse's


def _slow_if_it_trains_for_long(script: Path):
    return pytest.param(script, id=script.name, marks=[pytest.mark.slow] * (script.stem in ("quickstart", "serving")))


def settings_of(command: str) -> type:
    return getattr(settings, command.title().replace(" ", "") + "Settings")


def blocks(page: Path, *kinds: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    """Every `evergreen ...` of a shell text as words; what stands before a pipe or after -m does not matter."""
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True, punctuation_chars="|;&()<>")
        words.whitespace_split, words.commenters = True, ""
        for part in _parts(list(words)):
            if "evergreen" in part and (part[0] == "evergreen" or part[part.index("evergreen") - 1] == "-m"):
                yield part[part.index("evergreen") + 1 :]


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in [*words, ";"]:
        if word.strip("|;&()<>"):
            part.append(word)
        elif part:
            yield part
            part = []


def commands_of(page: Path) -> list[list[str]]:
    shown = [text for kind in ("bash", "text") for text in blocks(page, kind)]
    inline = [text for text in re.findall(r"`([^`]+)`", prose(page)) if text.startswith("evergreen ")]
    return [words for text in (*shown, *inline) for words in commands(text)]


def check(words: list[str]) -> None:
    """Parse a command as the command line would, without running it."""
    if words in (["COMMAND", "--help"], ["--help"]):
        return
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in cli.COMMANDS), None)
    assert name, f"evergreen has no command {words[0]}"
    flags = cli.positional(words[len(name.split()) :], name)
    if "--config" in flags:  # the recipe of an example does not exist
        del flags[flags.index("--config") : flags.index("--config") + 2]
    if not (flags and flags[0].endswith(".yaml")) and "--help" not in flags:
        parse(settings_of(name), flags, name)


def shell(script: str, folder: Path) -> str:
    """Run in `folder` as a person would after `source .venv/bin/activate`; stdout and stderr together."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("EVERGREEN_HOME", None)
    done = subprocess.run(
        ["bash", "-c", "set -euo pipefail\n" + script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_the_page_parses(page):
    for words in commands_of(page):
        check(words)


def test_the_pages_show_every_command():
    shown = {" ".join(words[:2]) for page in PAGES for words in commands_of(page)}
    assert all(any(f"{words} ".startswith(f"{name} ") for words in shown) for name in cli.COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_named_in_the_text_exists(page):
    known = {flag for name in cli.COMMANDS for flag in flags_of(settings_of(name))} | {"--config"} | NOT_OURS
    named = {
        flag.replace("-", "_").replace("__", "--", 1)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", page.read_text(encoding="utf-8"))
    }
    assert not named - known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(page)):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_file_tree_names_what_is_there(page):
    [tree] = blocks(page, "")
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        path = (folder if line.startswith(" ") else ROOT) / name
        assert path.exists(), path
        folder = path if not line.startswith(" ") else folder


@pytest.mark.parametrize("page", [*READMES, ROOT / "docs" / "start.md"], ids=lambda page: page.name)
def test_the_make_targets_on_the_page_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\S+)", "\n".join(blocks(page, "bash")), re.MULTILINE)
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_both_readmes_have_the_same_sections_and_run_the_same_commands():
    english, chinese = ([words[0] for words in commands_of(page)] for page in READMES)
    assert english == chinese
    headings = [len(re.findall(r"^## ", prose(page), re.MULTILINE)) for page in READMES]
    assert headings[0] == headings[1]


def test_the_example_rows_of_the_data_page_are_read_as_the_kinds_it_names(tmp_path):
    from evergreen.data.formats import detect_file, read_records

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    kinds = []
    for number, text in enumerate(re.findall(r"^```json\n(.*?)^```$", page.split("## Sources")[0], re.M | re.S)):
        (tmp_path / f"{number}.json").write_text(text, encoding="utf-8")
        assert len(list(read_records(tmp_path / f"{number}.json"))) == 1
        kinds.append(detect_file(tmp_path / f"{number}.json"))
    assert kinds == ["alpaca", "sharegpt", "messages", "query_response", "preference", "kto", "text"]


def test_the_example_items_of_the_evaluation_page_are_a_task(tmp_path):
    from evergreen.evaluate.tasks import read_tasks

    [text, *_] = blocks(ROOT / "docs" / "evaluation.md", "json")
    (tmp_path / "task.jsonl").write_text(text, encoding="utf-8")
    [task] = read_tasks([str(tmp_path / "task.jsonl")])
    assert len(task.items) == 2 and len(task.items[1].choices) == 4


def test_the_recipe_of_the_training_page_parses(tmp_path):
    [text] = blocks(ROOT / "docs" / "training.md", "yaml")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    given = parse(settings.SftSettings, ["--config", str(tmp_path / "recipe.yaml")], "sft")
    assert given.train_type == "lora" and given.lora_rank == 16 and given.dataset == ["returns", "general.jsonl#500"]


def test_the_data_page_lists_every_kind_of_finding():
    from evergreen.data.check import KINDS

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(KINDS)


def test_the_evaluation_page_lists_every_metric():
    from evergreen.evaluate.metrics import METRICS

    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(METRICS)


def test_cli_md_is_what_the_settings_say():
    spec = importlib.util.spec_from_file_location("make_cli_docs", ROOT / "scripts" / "make_cli_docs.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    is_up_to_date = script.page() == script.PAGE.read_text(encoding="utf-8")
    assert is_up_to_date, "run: python scripts/make_cli_docs.py"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_commands_of_the_readme_run_as_pasted(page, tmp_path):
    shutil.copytree(ROOT / "evergreen" / "assets", tmp_path / "evergreen" / "assets")
    lines = "".join(blocks(page, "bash")).splitlines()
    said = shell("\n".join(line for line in lines if not line.startswith(OF_THE_SHELL)), tmp_path)
    assert ("青竹" if page.name == "README_zh.md" else "Tara") in said and "all items side by side are in" in said


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_in_runs_says_how_it_is_used_and_can_be_executed(script):
    first, second, third, fourth, *_ = script.read_text(encoding="utf-8").splitlines()
    assert first == "#!/usr/bin/env bash" and second.startswith("# ")
    assert third.startswith(f"# usage: runs/{script.name} [FOLDER]") and fourth == "set -euo pipefail"
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_commands_of_every_script_in_runs_parse(script):
    found = list(commands(script.read_text(encoding="utf-8")))
    assert found
    for words in found:
        check(words)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("script", [*map(_slow_if_it_trains_for_long, SCRIPTS)])
def test_every_script_in_runs_runs_from_any_folder(script, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shell(f"{shlex.quote(str(script))} {shlex.quote(str(tmp_path / 'a folder'))}", tmp_path / "elsewhere")
    assert list((tmp_path / "a folder").glob("*/")) and not list((tmp_path / "elsewhere").iterdir())
