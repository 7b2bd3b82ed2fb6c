"""The chat page in a real browser, before a server that says what a test wants it to say."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from page_server import WEB, PageServer, running
from waiting import wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
expect = playwright.expect
expect.set_options(timeout=20_000)
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = """<script>window.hurt = 1</script><img src=x onerror="window.hurt = 1"><svg/onload=window.hurt=1>
<iframe srcdoc="<script>parent.hurt=1</script>"></iframe><style>body{display:none}</style><form action=/v1/feedback>

[a](javascript:window.hurt=1) [b](java&#10;script:window.hurt=1) [c](data:text/html,<script>window.hurt=1</script>)
[d](/v1/models) <a href="javascript:window.hurt=1">e</a> <javascript:window.hurt=1> [good](https://example.com/)

![pixel](https://example.com/pixel.png) ![p](x" onerror="window.hurt=1)
[t](https://example.com "x\\" onmouseover=window.hurt=1")

```html" onmouseover="window.hurt=1
<b onclick="window.hurt=1">code</b>
```

`<img src=x onerror=window.hurt=1>` <div id="send" class="primary">forged</div>
| <img src=x onerror=window.hurt=1> | b |
|---|---|
| <script>window.hurt=1</script> | one<br>two |
"""
REFUSALS = [  # status, error, headers, and what the page says
    (429, {}, {"Retry-After": "7"}, "The server is busy. Try again in 7 s.", "服务器繁忙。请在 7 秒后重试。"),
    (503, {}, {}, "The model is not ready. Try again in a moment.", "模型尚未就绪。请稍后重试。"),
    (400, {"code": "context_length_exceeded"}, {}, "longer than the model can read", "超出模型可读长度"),
    (404, {"code": "model_not_found"}, {}, "no longer served", "已停止服务"),
    (403, {}, {}, "This key may not do that", "此密钥没有权限"),
    (500, {"message": "Traceback"}, {}, "The server made an error", "服务器出错"),
]
MARKDOWN = """# Title

A **bold** word, `code`, and 见 https://example.com/a。下一句 **注意：**这里

- [x] one
- two

| name | price |
|---|--:|
| tea | 42 |

```python
print("hi")
```
"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[PageServer]:
    with running() as server:
        yield server


@pytest.fixture
def visit(browser, server):
    """Opens the page as a new visitor; in the end the page must have complained of nothing but refused requests."""
    contexts, complaints = [], []

    def visit(url: str = "", **options):
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: line.type in ("error", "warning") and complaints.append(line.text))
        page.goto(url or server.url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [line for line in complaints if "Failed to load resource" not in line] == []


def ask(page, text: str = "Hi") -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def answer_to(page, text: str = "Hi"):
    """The answer's element, when it is complete."""
    ask(page, text)
    expect(page.locator("#turns")).to_have_attribute("aria-busy", "false")
    return page.locator(".answer").last


def test_an_answer_streams_in_and_says_what_made_it(visit, server):
    server.thoughts, server.pieces, server.seconds_per_piece = ["Let me ", "see."], ["Hello ", "there."], 0.1
    page = visit()
    answer = answer_to(page)
    expect(answer.locator(".prose").last).to_have_text("Hello there.")
    thought = answer.locator("details")
    assert thought.get_attribute("open") is None and thought.locator(".prose").text_content().strip() == "Let me see."
    meta = answer.locator(".meta")
    expect(meta).to_contain_text("stable")
    expect(meta).to_contain_text("release 0123456789ab")
    expect(meta).to_contain_text(re.compile(r"\d tokens/s0\.\d s"))
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Hi"}] and server.asked[0]["model"] == "stable"


def test_text_shows_before_the_answer_is_complete_and_can_be_stopped(visit, server):
    server.pieces, server.seconds_per_piece = ["word "] * 1000, 0.02
    page = visit()
    ask(page)
    expect(page.locator(".answer")).to_contain_text("word word")
    expect(page.locator("#turns")).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    expect(page.locator(".answer")).to_contain_text("You stopped this answer.")
    expect(page.get_by_label("Send", exact=True)).to_be_visible()
    text = page.locator(".answer .prose").last.text_content()
    assert 10 <= len(text) < 5000
    wait_until(lambda: server.num_cancelled == 1)


def test_the_conversation_goes_with_each_question_and_survives_a_reload(visit, server):
    page = visit()
    answer_to(page, "first")
    page.reload()
    expect(page.locator(".question")).to_have_count(0)
    page.get_by_role("button", name="first", exact=True).click()
    answer_to(page, "second")
    roles = [(message["role"], message["content"]) for message in server.asked[1]["messages"]]
    assert roles == [("user", "first"), ("assistant", "Hello there."), ("user", "second")]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".question")).to_have_count(0)
    answer_to(page, "third")
    assert len(server.asked[2]["messages"]) == 1
    expect(page.locator("#chats li")).to_have_count(2)


def test_a_deleted_chat_can_be_had_back(visit):
    page = visit()
    answer_to(page, "keep me")
    page.get_by_role("button", name="Delete “keep me”").click()
    expect(page.locator("#chats li")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".question")).to_have_text("keep me")


def test_a_chat_that_is_deleted_while_it_is_answered_stays_away(visit, server):
    server.pieces, server.seconds_per_piece = ["word "] * 1000, 0.02
    page = visit()
    ask(page)
    expect(page.locator(".answer")).to_contain_text("word")
    page.get_by_role("button", name="Delete “Hi”").click()
    expect(page.locator("#status")).to_have_text("You stopped this answer.")
    expect(page.locator("#chats li")).to_have_count(0)
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('chat.'))") == []


def test_answering_again_keeps_the_earlier_answer(visit, server):
    page = visit()
    answer = answer_to(page)
    server.pieces = ["Another one."]
    answer.get_by_label("Answer again").click()
    expect(answer.locator(".prose").last).to_have_text("Another one.")
    assert server.asked[0]["messages"] == server.asked[1]["messages"]
    answer.get_by_label("Earlier answer").click()
    expect(answer.locator(".prose").last).to_have_text("Hello there.")
    answer_to(page, "next")
    assert server.asked[2]["messages"][1]["content"] == "Hello there."
    wait_until(lambda: any(rating.get("action") == "regenerate" for rating in server.ratings))


def test_thumbs_and_corrections_are_stored_with_the_answer(visit, server):
    page = visit()
    answer = answer_to(page)
    answer.get_by_label("Good answer").click()
    expect(answer.get_by_label("Good answer")).to_have_attribute("aria-pressed", "true")
    answer.get_by_role("button", name="This answer is wrong").click()
    answer.get_by_label("What would be right?").fill("价格是42元。")
    answer.get_by_label("Anything else? (optional)").fill("see the list")
    answer.get_by_role("button", name="Send").click()
    expect(answer).to_contain_text("Your correction is stored")
    expect(answer.get_by_label("Bad answer")).to_have_attribute("aria-pressed", "true")
    thumb, correction = server.ratings
    assert thumb["response_id"] == correction["response_id"] == "answer-1" and thumb["thumb"] == "up"
    assert (correction["thumb"], correction["correction"], correction["comment"]) == (
        "down",
        "价格是42元。",
        "see the list",
    )
    assert correction["dwell_ms"] >= thumb["dwell_ms"] >= 0
    page.reload()
    page.get_by_role("button", name="Hi", exact=True).click()
    expect(page.get_by_label("Bad answer")).to_have_attribute("aria-pressed", "true")


def test_a_rating_that_could_not_be_stored_says_so_and_is_not_shown_as_given(visit, server):
    page = visit()
    answer = answer_to(page)
    server.can_rate = False
    answer.get_by_label("Good answer").click()
    expect(page.locator("#notice")).to_have_text("Your rating could not be stored. Please try again.")
    expect(answer.get_by_label("Good answer")).to_have_attribute("aria-pressed", "false")
    answer.get_by_role("button", name="This answer is wrong").click()
    answer.get_by_label("What would be right?").fill("long and careful")
    answer.get_by_role("button", name="Send").click()
    expect(answer.get_by_label("What would be right?")).to_have_value("long and careful")


def test_copy_gives_the_markdown_and_code_its_text(visit, server, browser):
    server.pieces = [MARKDOWN]
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    answer = answer_to(page)
    answer.get_by_label("Copy the answer").click()
    expect(answer.locator(".copy-answer use[href='#icon-check']")).to_have_count(1)
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN
    answer.get_by_role("button", name="Copy", exact=True).click()
    page.wait_for_function("navigator.clipboard.readText().then((text) => text === 'print(\"hi\")\\n')")
    wait_until(lambda: [rating["action"] for rating in server.ratings] == ["copy"])


def test_markdown_becomes_elements_also_in_chinese(visit, server):
    server.pieces = list(MARKDOWN)
    prose = answer_to(visit()).locator(".prose").last
    assert prose.locator("strong").all_text_contents() == ["bold", "注意："]
    assert prose.locator("p a").get_attribute("href") == "https://example.com/a"
    assert prose.locator("li").first.text_content().strip() == "☑ one"
    assert prose.locator("td").all_text_contents() == ["tea", "42"]
    assert prose.locator("td").last.get_attribute("align") == "right"
    assert prose.locator(".code-bar span").first.text_content() == "python"


@pytest.mark.parametrize("cut", [1, 17, 10_000])
def test_hostile_markdown_is_inert(visit, server, cut):
    server.pieces = [HOSTILE[start : start + cut] for start in range(0, len(HOSTILE), cut)]
    server.thoughts = [HOSTILE]
    page = visit()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    answer = answer_to(page, HOSTILE)
    answer.locator("summary").click()
    made = set(answer.locator(".prose *").evaluate_all("all => all.map((one) => one.tagName.toLowerCase())"))
    assert not made & {"script", "img", "iframe", "style", "form", "input", "object", "embed", "base", "meta", "link"}
    links = answer.locator(".prose a").evaluate_all("all => all.map((one) => one.getAttribute('href'))")
    assert {"https://example.com/", "https://example.com/pixel.png"} <= set(links)
    assert all(link is None or link.startswith("https://") for link in links)
    attributes = answer.locator(".prose *").evaluate_all("all => all.flatMap((one) => one.getAttributeNames())")
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "id", "srcdoc")]
    assert "<script>window.hurt = 1</script>" in answer.text_content() and "forged" in answer.text_content()
    expect(page.locator(".bubble")).to_have_text(HOSTILE, use_inner_text=False)
    for target in answer.locator(".prose a, .prose pre, .prose code").all():
        target.hover()
    assert page.evaluate("window.hurt") is None
    assert not [url for url in requests if not url.startswith(server.url)]


def test_text_nested_too_deep_to_render_is_shown_as_it_is(visit, server):
    server.pieces = ["> " * 5000 + "deep"]
    page = visit()
    expect(answer_to(page).locator(".prose").last).to_contain_text("> > deep")
    page.reload()
    page.get_by_role("button", name="Hi", exact=True).click()
    expect(page.locator(".answer .prose").last).to_contain_text("> > deep")


def test_what_is_drawn_stays_while_the_answer_grows(visit, server):
    server.pieces, server.seconds_per_piece = ["First.\n\n", "| a |\n|---|\n", *["| b |\n"] * 30], 0.05
    page = visit()
    ask(page)
    expect(page.locator(".answer .prose p")).to_have_text("First.")
    page.locator(".answer .prose p").evaluate("(first) => { first.isTheSame = true; }")
    expect(page.locator("#turns")).to_have_attribute("aria-busy", "false")
    assert page.locator(".answer .prose p").evaluate("(first) => first.isTheSame")
    expect(page.locator(".answer td")).to_have_count(30)


def test_hostile_names_sources_and_errors_are_text(visit, server):
    bad = '"><img src=x onerror="window.hurt=1">'
    server.models, server.pieces = [bad], ["As said [1], not [2] or [9]. `[1]`"]
    server.evergreen = {
        "release": bad,
        "sources": [
            {"number": 1, "title": bad, "url": "https://example.com/a", "date": "2026-10-02"},
            {"number": 2, "title": "x", "url": "javascript:window.hurt=1", "date": bad},
        ],
    }
    page = visit()
    answer = answer_to(page, bad)
    assert page.locator("img").count() == 0
    assert answer.locator(".chip").all_text_contents() == ["1", "2"] and answer.locator("a.chip").count() == 1
    expect(answer.locator(".sources")).to_contain_text("Oct 2, 2026")
    assert answer.locator(".sources a").count() == 1
    server.refusal = (400, {"message": bad}, {})
    ask(page, "again")
    expect(page.locator(".answer .failure")).to_contain_text(bad)
    page.reload()
    assert page.locator("img").count() == 0 and page.evaluate("window.hurt") is None


def test_every_way_to_write_a_citation_that_the_server_reads_shows_its_source(visit, server):
    server.pieces = ["A [1, 2] b 【2】 c [１] d [1-2] e [7]. `[1]` [9999]"]
    server.evergreen = {"sources": [{"number": n, "title": f"t{n}", "url": f"https://example.com/{n}"} for n in (1, 2)]}
    answer = answer_to(visit())
    assert answer.locator("a.chip").all_text_contents() == ["1", "2", "2", "1", "1", "2"]
    expect(answer.locator(".prose").last).to_have_text("A 12 b 2 c 1 d 12 e [7]. [1] [9999]")


def test_a_source_without_a_web_address_is_named_as_it_was_given(visit, server):
    server.pieces = ["So it is [1]."]
    server.evergreen = {"sources": [{"number": 1, "title": "Prices", "url": "handbook, page 4", "date": "2026-10-02"}]}
    expect(answer_to(visit()).locator(".sources li")).to_contain_text("handbook, page 4 · Oct 2, 2026")


def test_text_from_right_to_left_is_laid_out_that_way(visit, server):
    arabic = "مصباح نورد يكلف 42 دولارا"
    server.pieces = [f"{arabic}.\n\n- {arabic}\n\nPlain words.\n\n```\n{arabic}\n```"]
    page = visit()
    answer = answer_to(page, arabic)
    direction = "all => all.map((one) => getComputedStyle(one).direction)"
    assert page.locator(".bubble").evaluate_all(direction) == ["rtl"]
    assert answer.locator(".prose p, .prose ul, .prose pre").evaluate_all(direction) == ["rtl", "rtl", "ltr", "ltr"]


def test_broken_or_hostile_storage_does_not_break_the_page(visit):
    page = visit()
    answer_to(page, "good one")
    page.evaluate("""() => {
      localStorage.setItem("evergreen.chat.a", "{");
      localStorage.setItem("evergreen.chat.b", JSON.stringify({id: "b", turns: [{role: "assistant"}]}));
      localStorage.setItem("evergreen.settings", "[]");
    }""")
    page.reload()
    expect(page.locator("#chats li")).to_have_count(1)
    answer_to(page)


def test_enter_of_an_input_method_does_not_send(visit, server):
    page = visit()
    page.get_by_label("Your message").focus()
    devtools = page.context.new_cdp_session(page)
    devtools.send("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    page.evaluate("""() => document.querySelector("#message").dispatchEvent(
      new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true, cancelable: true}))""")
    page.evaluate("""() => document.querySelector("#message").dispatchEvent(
      new KeyboardEvent("keydown", {key: "Enter", keyCode: 229, bubbles: true, cancelable: true}))""")
    devtools.send("Input.insertText", {"text": "你好"})
    expect(page.get_by_label("Your message")).to_have_value("你好")
    assert server.asked == []
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("你好\nb", use_inner_text=True)
    expect(page.locator(".answer")).to_contain_text("Hello there.")
    assert server.asked[0]["messages"][0]["content"] == "你好\nb"


def test_slash_goes_to_the_message(visit):
    page = visit()
    page.locator("#scroller").focus()
    page.keyboard.press("/")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("a/b")
    expect(page.get_by_label("Your message")).to_have_value("a/b")


def test_the_language_is_the_browsers_until_another_is_chosen(visit):
    page = visit(locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    expect(page.get_by_role("button", name="新对话")).to_be_visible()
    ask_in = page.get_by_label("您的消息")
    ask_in.fill("你好")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="回答有误")).to_be_visible()
    page.get_by_label("语言").select_option("en")
    expect(page.get_by_role("button", name="This answer is wrong")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="How can I help?")).to_be_visible()


def test_both_languages_have_every_word_that_is_said(visit):
    own = "\n".join(path.read_text(encoding="utf-8") for path in WEB.glob("*.*"))
    said = set(re.findall(r'say\("(\w+)"|data-(?:word|label|hint)="(\w+)"', own))
    words = visit().evaluate("import('/static/words.js').then((module) => module.WORDS)")
    assert {name for pair in said for name in pair if name} <= words["en"].keys() == words["zh"].keys()
    assert words["en"]["failure"].keys() == words["zh"]["failure"].keys()


def test_settings_go_with_the_request(visit, server):
    page = visit()
    page.get_by_label("Model").select_option("csdn-assistant")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Top p").fill("7")
    expect(page.locator("#settings small.failure")).to_contain_text("Not used")
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Longest answer").fill("64")
    page.keyboard.press("Escape")
    answer_to(page)
    server.seconds_for_models = 1.0  # who is quicker than the list of models is still answered by the chosen one
    page.reload()
    answer_to(page)
    for asked in server.asked:
        assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (asked["model"], asked["temperature"], asked["seed"], asked["max_tokens"]) == (
            "csdn-assistant",
            0,
            3,
            64,
        )
        assert "top_p" not in asked


def test_a_key_is_asked_for_and_never_leaves_the_tab(visit, server):
    server.key = "right"
    page = visit()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("did not accept")
    dialog.get_by_label("Key").fill("right")
    dialog.get_by_role("button", name="Continue").click()
    expect(page.get_by_label("Model")).to_have_value("stable")
    expect(answer_to(page).locator(".prose").last).to_have_text("Hello there.")
    assert "right" not in page.url and "right" not in json.dumps(page.evaluate("({...localStorage})"))
    server.key = "another"
    ask(page, "again")
    dialog.get_by_label("Key").fill("another")
    page.keyboard.press("Enter")
    expect(page.locator(".answer").last.locator(".prose").last).to_have_text("Hello there.")


def test_another_key_can_take_the_place_of_the_one_in_use(visit, server):
    page = visit()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_role("button", name="Use another key")).to_be_hidden()  # this server asks for none
    server.key = "one"
    page.reload()
    page.get_by_label("Key", exact=True).fill("one")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model")).to_have_value("stable")
    server.key = "two"
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Use another key").click()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    expect(page.locator("#key-wrong")).to_be_hidden()
    assert not page.locator("#key input").evaluate("(field) => field.matches(':user-invalid')")
    page.get_by_label("Key", exact=True).fill("two")
    page.keyboard.press("Enter")
    expect(answer_to(page).locator(".prose").last).to_have_text("Hello there.")


def test_a_number_out_of_range_is_refused_in_the_pages_language(visit):
    page = visit()  # the browser's own words are English
    page.get_by_label("Language").select_option("zh")
    page.get_by_role("button", name="设置").click()
    page.get_by_label("温度").fill("3")
    expect(page.locator("#temperature-help")).to_have_text("未生效：应为0 到 2 之间的数。")
    page.get_by_label("回答长度上限").fill("1.5")
    expect(page.locator("#max_tokens-help")).to_have_text("未生效：应为不小于 1 的整数。")


def test_a_correction_that_is_sent_twice_is_stored_once(visit, server):
    answer = answer_to(visit())
    answer.get_by_role("button", name="This answer is wrong").click()
    answer.get_by_label("What would be right?").fill("42")
    answer.locator("form").evaluate("(form) => { form.requestSubmit(); form.requestSubmit(); }")
    expect(answer).to_contain_text("Your correction is stored")
    assert [rating["correction"] for rating in server.ratings] == ["42"]


def test_a_refusal_is_one_line_with_what_to_do_in_the_pages_language(visit, server):
    page = visit()
    for status, error, headers, english, chinese in REFUSALS:
        server.refusal = (status, error, headers)
        ask(page)
        line = page.locator(".answer").last.locator(".failure[role=alert]")
        expect(line).to_contain_text(english)
        page.get_by_label("Language").select_option("zh")
        expect(line).to_contain_text(chinese)
        line.get_by_role("button", name="重试").click()
        expect(page.locator(".answer").last.locator(".prose").last).to_have_text("Hello there.")
        page.get_by_label("语言").select_option("en")


def test_a_lost_connection_keeps_what_had_arrived(visit, server):
    server.is_cut = True
    page = visit()
    answer = answer_to(page)
    expect(answer).to_contain_text("Hello there.")
    expect(answer.locator(".failure")).to_contain_text("The connection was lost before the answer was complete.")
    page.context.set_offline(True)
    ask(page, "more")
    expect(page.locator(".answer").last).to_contain_text("The server cannot be reached.")


def test_an_error_in_the_middle_of_an_answer_is_said_below_it(visit, server):
    server.breaks_with = {"message": "the engine died", "code": "engine_unavailable"}
    answer = answer_to(visit())
    expect(answer).to_contain_text("Hello there.")
    expect(answer.locator(".failure")).to_contain_text("The model is not ready.")


def test_two_chats_can_be_answered_at_a_time(visit, server):
    server.pieces, server.seconds_per_piece = ["slow "] * 20, 0.05
    page = visit()
    ask(page, "first")
    expect(page.locator(".answer")).to_contain_text("slow")
    page.get_by_role("button", name="New chat").click()
    server.pieces, server.seconds_per_piece = ["quick"], 0.0
    expect(answer_to(page, "second").locator(".prose").last).to_have_text("quick")
    page.get_by_role("button", name="first", exact=True).click()
    expect(page.locator(".answer .prose").last).to_have_text("slow " * 20)


def test_a_phone_scrolls_down_only(visit, server):
    server.pieces = [
        MARKDOWN,
        "\n```\n" + "x" * 400 + "\n```\n" + "y" * 400,
        "\n\n|" + "column|" * 12 + "\n|" + "-|" * 12,
    ]
    server.models = ["a-very-long-model-name-" * 4]
    page = visit(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    answer = answer_to(page, "z" * 300)
    answer.get_by_role("button", name="This answer is wrong").tap()
    too_wide = page.evaluate("""() => [...document.querySelectorAll("#page *")]
      .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest("pre, .table, .unseen"))
      .map((one) => one.outerHTML.slice(0, 80))""")
    assert too_wide == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(
        "document.querySelector('#scroller').scrollWidth <= document.querySelector('#scroller').clientWidth"
    )
    page.get_by_role("button", name="Show chats").tap()
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()


def test_the_system_chooses_dark_or_light_until_the_user_does(visit):
    page = visit(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(23, 26, 24)"
    page.get_by_label("Appearance").select_option("light")
    assert page.evaluate(background) == "rgb(253, 253, 251)"
    page.reload()
    assert page.evaluate(background) == "rgb(253, 253, 251)"


def test_the_page_asks_no_other_host_for_anything():
    own = "\n".join(path.read_text(encoding="utf-8") for path in WEB.glob("*.*"))
    assert set(re.findall(r"//([\w-]+(?:\.[\w-]+)+)", own)) == {"www.w3.org", "example.com"}  # a namespace, a comment
    assert "<script>" not in own and " style=" not in own and "innerHTML" not in own


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    """Where `evergreen serve --model nano` answers."""
    command = [
        sys.executable,
        "-m",
        "evergreen",
        "serve",
        "--model",
        "nano",
        "--port",
        "0",
        "--home",
        str(tmp_path / "home"),
    ]
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 200
            while not (found := re.search(r"http://127[.0-9]+:[0-9]+", (tmp_path / "said").read_text())):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
                time.sleep(0.2)
            yield found[0]
        finally:
            process.terminate()
            process.wait(timeout=60)


def test_the_real_server_answers_the_page_and_stores_what_it_is_told(visit, address):
    page = visit(address, locale="zh-CN")
    expect(page.get_by_label("模型")).to_have_value("nano")
    page.get_by_label("您的消息").fill("你是谁？")
    page.keyboard.press("Enter")
    expect(page.locator("#turns")).to_have_attribute("aria-busy", "false", timeout=60_000)
    answer = page.locator(".answer")
    expect(answer.locator(".prose").last).not_to_be_empty()
    expect(answer.locator(".meta")).to_contain_text("token/秒")
    answer.get_by_role("button", name="回答有误").click()
    answer.get_by_label("正确答案是什么？").fill("我是常青。")
    answer.get_by_role("button", name="提交").click()
    expect(answer).to_contain_text("您的更正已与该回答一起保存。")
    page.get_by_role("button", name="设置").click()
    page.get_by_label("回答长度上限").fill("1000000")
    page.keyboard.press("Escape")
    page.get_by_label("您的消息").fill("再说一遍")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .failure")).to_contain_text("回答长度上限超出模型容量")
