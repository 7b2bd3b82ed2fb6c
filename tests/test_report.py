"""The report of an evolve in a real browser, and what stands in it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from evergreen import report

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8cfc0000003010100"
    "18dd8db00000000049454e44ae426082"
)
MATRIX = {
    "rows": [
        {"version": "start", "latency_ms": {"p50": 12.0, "p95": 20.0}},
        {"version": "一月", "drift": {"mean": 0.5}},
    ],
    "OP": {"mean": 0.5, "low": 0.4, "high": 0.6, "divisor": 1}, "BWT": None,
}  # fmt: skip
STEP = {
    "name": "一月", "share": 0.8, "release": "c" * 64, "seconds": 90.0, "shift": {"advice": ["shorter | answers"]},
    "version": {"digest": "d" * 64},
    "verdict": {
        "decision": "promote", "promoted": True, "reasons": ["一月 gained <b>5</b> points"], "advice": [],
        "checks": [{"name": "gain", "task": "一月", "value": 0.05, "low": 0.02, "limit": 0.0, "passed": True}],
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "matrix.png").write_bytes(PIXEL)
    waiting = {**STEP, "name": "二月", "verdict": None}
    report.write(tmp_path, MATRIX, [STEP, waiting], {"model": "nano", "dataset": ["a", "b"], "system": ""})
    return tmp_path


def test_the_report_tells_what_passed_and_with_which_settings(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "1 of 2 increments passed, 1 to come" in text and "**promote**, with 0.8 of the step" in text
    assert "| gain | 一月 | 5.0 | 2.0 | 0.0 | holds |" in text and "| `--dataset` | a b |" in text
    assert "--system" not in text and "| 一月 |  |  | 0.5 |" in text


def test_a_browser_shows_the_report_with_its_pictures_and_no_foreign_markup(folder):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    page = subprocess.run(
        [chromium, *options, "--dump-dom", (folder / "report.html").as_uri()], capture_output=True, timeout=120
    ).stdout.decode()
    assert "一月: promote" in page and 'src="data:image/png;base64,' in page and "<b>5</b>" not in page


@pytest.mark.parametrize("name", ["一月", "increment_2 第二批 (cities)"])
def test_the_loss_of_an_increment_with_any_name_is_in_the_page(name, tmp_path):
    for place in (tmp_path / "matrix.png", tmp_path / name / "training_loss.png"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(PIXEL)
    report.write(tmp_path, MATRIX, [STEP | {"name": name}], {})
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count('src="data:image/png;base64,iVBOR') == 2
