"""The page's sources and its knowledge panel, in a real browser before a real server."""

import re
from pathlib import Path

import pytest
from serving import serving
from small_models import make_base
from test_page import answer_to, browser, expect, visit  # noqa: F401 fixtures of the page's own tests

from evergreen.knowledge.entries import bumped
from evergreen.knowledge.store import Store
from evergreen.model.find import version_digest
from evergreen.records import Entry
from evergreen.registry import Registry

ASKED = "How much does the Nordlys Q7 lamp cost?"
TOLD = "The Nordlys Q7 lamp costs 42 dollars [1]."
LAMP = Entry("The Nordlys Q7 lamp costs 42 dollars.", "lamp", "Nordlys Q7", "https://example.com/lamp", "2026-10-02")
HOSTILE = Entry(
    '<img src=x onerror="window.hurt=1"> The Nordlys Q7 lamp costs 42 dollars.',
    "hostile",
    '"><svg/onload=window.hurt=1> Nordlys Q7 lamp',
    "javascript:window.hurt=1",
    "2026-11-01",
    tags=("<b>tag</b>",),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    registry = Registry(folder / "home", digest=version_digest)
    registry.promote(registry.create(make_base(folder / "base")).id, force="the first")
    return folder / "home"


@pytest.fixture(scope="module")
def running(home):
    with serving(home, FAKE_TEXT=TOLD) as server:
        yield server


@pytest.fixture
def server(running, home):
    """Live, with the lamp and nothing else."""
    store = Store(home / "knowledge")
    store.withdraw([row.entry.id for row in store.visible()])
    store.add([LAMP])
    with running.client() as client:
        client.post("/v1/knowledge/live", json={})
    return running


def panel_of(page):
    page.get_by_role("button", name="Knowledge").click()
    panel = page.get_by_role("dialog", name="Knowledge")
    expect(panel.locator("#entries li").first).to_be_visible()
    return panel


def entry_of(panel, title: str):
    return panel.locator(".entry", has=panel.page.get_by_role("heading", name=title))


def test_an_answer_shows_its_sources_numbered_dated_and_linked(visit, server):  # noqa: F811
    answer = answer_to(visit(), ASKED)
    expect(answer.locator(".prose").last).to_have_text("The Nordlys Q7 lamp costs 42 dollars 1.")
    chip = answer.locator("a.chip")
    expect(chip).to_have_attribute("href", "https://example.com/lamp")
    source = answer.locator(".sources li")
    expect(source).to_have_text(re.compile("1.*Nordlys Q7.*example.com · Oct 2, 2026"))
    expect(source.get_by_role("link")).to_have_attribute("rel", "noopener noreferrer nofollow")


def test_an_answer_that_did_not_hold_says_so_and_lists_what_it_was_given(visit, server, home):  # noqa: F811
    Store(home / "knowledge").update("lamp", content="The Nordlys Q7 lamp costs 50 dollars.")
    answer = answer_to(visit(), ASKED)
    expect(answer.locator(".prose").last).to_have_text("I cannot answer from the information given.")
    expect(answer).to_contain_text("did not agree with its sources")
    expect(answer.locator(".sources li")).to_contain_text("Nordlys Q7")


def test_an_entry_is_added_corrected_withdrawn_and_its_history_shown(visit, server):  # noqa: F811
    page = visit()
    panel = panel_of(page)
    panel.get_by_role("button", name="Add").click()
    panel.get_by_label("Title").fill("Orn chair")
    panel.get_by_label("Content").fill("The Orn chair weighs 7 kg.")
    panel.get_by_label("Web address of the source").fill("https://example.org/chair")
    panel.get_by_label("Tags, separated by commas").fill("chair， wood")
    panel.get_by_role("button", name="Save").click()
    entry = entry_of(panel, "Orn chair")
    expect(entry).to_contain_text(re.compile(r"version 1\.0\.0 · .* · chair, wood · example\.org"))
    entry.get_by_role("button", name="Correct").click()
    entry.get_by_label("Content").fill("The Orn chair weighs 8 kg.")
    entry.get_by_label("Why?").fill("weighed again")
    entry.get_by_role("button", name="Save").click()
    expect(entry).to_contain_text("version 1.0.1")
    expect(entry.locator(".content")).to_have_text("The Orn chair weighs 8 kg.")
    entry.get_by_role("button", name="History").click()
    versions = entry.locator(".versions li")
    expect(versions).to_have_count(2)
    expect(versions.first).to_contain_text("weighed again")
    expect(versions.last).to_contain_text("The Orn chair weighs 7 kg.")
    entry.get_by_role("button", name="Withdraw").click()
    entry.get_by_label("Why?").fill("sold out")
    entry.locator("form").get_by_role("button", name="Withdraw").click()
    expect(entry).to_have_count(0)
    expect(entry_of(panel, "Nordlys Q7")).to_be_visible()
    panel.get_by_label("Withdrawn and expired entries").check()
    expect(entry_of(panel, "Nordlys Q7")).to_have_count(0)
    expect(entry.get_by_role("button", name="Correct")).to_have_count(0)
    entry.get_by_role("button", name="History").click()
    expect(versions.first).to_contain_text("withdrawn")
    expect(versions.first).to_contain_text("sold out")
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()


def test_a_snapshot_is_published_rolled_back_to_and_left_again(visit, server, home):  # noqa: F811
    page = visit()
    panel = panel_of(page)
    panel.get_by_role("button", name="Publish a snapshot").click()
    number = panel.locator("#serving li strong").first
    panel.locator("summary").click()
    expect(number).to_be_visible()
    Store(home / "knowledge").update("lamp", content="The Nordlys Q7 lamp costs 50 dollars.")
    panel.get_by_role("button", name="Use this one").first.click()
    expect(panel).to_contain_text(f"Answers use snapshot {number.text_content()}; later entries are not in use.")
    expect(panel.locator("#serving li").first).to_contain_text("in use")
    entry = entry_of(panel, "Nordlys Q7")
    entry.get_by_role("button", name="Correct").click()
    entry.get_by_label("Content").fill("The Nordlys Q7 lamp costs 51 dollars.")
    entry.get_by_role("button", name="Save").click()
    expect(panel.get_by_role("alert")).to_contain_text("answers do not show it yet")
    page.keyboard.press("Escape")
    answer = answer_to(page, ASKED)
    expect(answer.locator(".prose").last).to_contain_text("42 dollars")
    expect(answer.locator(".meta")).to_contain_text("knowledge snapshot")
    panel = panel_of(page)
    panel.get_by_role("button", name="Use the newest entries").click()
    expect(panel).to_contain_text("Answers use the newest entries.")
    expect(panel.get_by_role("alert")).to_be_hidden()


def test_entries_are_searched_while_one_types(visit, server, home):  # noqa: F811
    Store(home / "knowledge").add([Entry(f"Shelf number {i} is blue.", title=f"Shelf {i}") for i in range(60)])
    panel = panel_of(visit())
    expect(panel.locator(".entry")).to_have_count(50)
    panel.get_by_role("button", name="More").click()
    expect(panel.locator(".entry")).to_have_count(61)
    panel.get_by_label("Search entries").fill("Nordlys")
    expect(panel.locator(".entry")).to_have_count(1)
    panel.get_by_label("Search entries").fill("zzzz")
    expect(panel).to_contain_text("Nothing here yet.")


def test_hostile_entries_stay_text(visit, server, home):  # noqa: F811
    Store(home / "knowledge").add([HOSTILE])
    page = visit()
    answer = answer_to(page, ASKED)
    panel = panel_of(page)
    expect(panel.locator(".entry").first).to_contain_text("onerror")
    assert page.locator("img").count() == 0 and page.evaluate("window.hurt") is None
    assert answer.locator(".sources a[href^='javascript']").count() == 0
    assert panel.locator("a[href^='javascript']").count() == 0


def test_an_entry_whose_source_is_no_web_address_can_be_corrected(visit, server, home):  # noqa: F811
    Store(home / "knowledge").add([Entry("The desk is 80 cm high.", "desk", "Desk", "handbook, page 4")])
    entry = entry_of(panel_of(visit()), "Desk")
    expect(entry).to_contain_text("handbook, page 4")
    entry.get_by_role("button", name="Correct").click()
    entry.get_by_label("Content").fill("The desk is 75 cm high.")
    entry.get_by_role("button", name="Save").click()
    expect(entry).to_contain_text("version 1.0.1")
    assert Store(home / "knowledge").get("desk").entry.source_url == "handbook, page 4"


def test_the_keyboard_alone_corrects_and_withdraws_and_never_loses_its_place(visit, server, home):  # noqa: F811
    page, before = visit(), Store(home / "knowledge").get("lamp").entry.version
    page.get_by_role("button", name="Knowledge").press("Enter")
    panel = page.get_by_role("dialog", name="Knowledge")
    entry = entry_of(panel, "Nordlys Q7")
    correct, reason = entry.get_by_role("button", name="Correct"), entry.get_by_label("Why?")
    correct.press("Enter")
    expect(entry.get_by_label("Title")).to_be_focused()
    page.keyboard.press("Escape")
    expect(correct).to_be_focused()
    page.keyboard.press("Enter")
    reason.press("Enter")
    expect(entry).to_contain_text(f"version {bumped(before, 'patch')}")
    expect(correct).to_be_focused()
    panel.get_by_role("button", name="Add").press("Enter")
    panel.get_by_label("Content").fill("The Orn chair weighs 7 kg.")
    panel.get_by_label("Why?").press("Enter")
    expect(panel.get_by_role("button", name="Add")).to_be_focused()
    entry.get_by_role("button", name="Withdraw").press("Enter")
    reason.press("Enter")
    expect(entry).to_have_count(0)
    expect(panel.locator(".entry").first.get_by_role("button", name="Correct")).to_be_focused()
    panel.get_by_role("button", name="Publish a snapshot").press("Enter")
    expect(panel).to_contain_text("Snapshots (")
    expect(panel.locator("#serving button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Knowledge")).to_be_focused()


def test_what_the_server_refuses_is_said_in_the_panel(visit, server, home):  # noqa: F811
    panel = panel_of(visit())
    entry = entry_of(panel, "Nordlys Q7")
    entry.get_by_role("button", name="Correct").click()
    Store(home / "knowledge").redact(["lamp"])
    entry.get_by_role("button", name="Save").click()
    expect(panel.get_by_role("alert")).to_contain_text("The server refused the request")


def test_the_panel_is_for_admins(visit, tmp_path, home):  # noqa: F811
    with serving(home, "--api_key", "user", "--admin_key", "admin", FAKE_TEXT=TOLD) as server:
        page = visit(server.url)
        for key, is_offered in (("user", False), ("admin", True)):
            if is_offered:
                page.get_by_role("button", name="Settings").click()
                page.get_by_role("button", name="Use another key").click()
            page.get_by_label("Key", exact=True).fill(key)
            page.get_by_role("button", name="Continue").click()
            expect(page.get_by_label("Model")).to_have_value("stable")
            button = page.get_by_role("button", name="Knowledge")
            expect(button).to_be_visible() if is_offered else expect(button).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_panel_speaks_chinese_and_fits_a_phone(visit, server, home, scheme):  # noqa: F811
    Store(home / "knowledge").add([Entry("x" * 400, "wide", "y" * 120, f"https://example.com/{'z' * 200}")])
    page = visit(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, locale="zh-CN",
                 color_scheme=scheme)  # fmt: skip
    page.get_by_role("button", name="知识库").tap()
    panel = page.get_by_role("dialog", name="知识库")
    expect(panel).to_contain_text("回答使用最新条目。")
    panel.get_by_role("button", name="添加").tap()
    expect(panel.get_by_label("原因")).to_be_visible()
    too_wide = page.evaluate("""() => [...document.querySelectorAll("#knowledge, #knowledge *")]
      .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
      .map((one) => one.outerHTML.slice(0, 80))""")
    assert too_wide == [] and page.evaluate("document.documentElement.scrollWidth") == 360
