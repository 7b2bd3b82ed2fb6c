"""What a question asks for, and whether knowledge is shown for it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.knowledge import route
from evergreen.knowledge.route import decide, load_rules, understand
from evergreen.records import BadInput, Entry

NOW = "2026-11-21T14:00:00.000Z"


@dataclass
class FakeRow:
    entry: Entry


@dataclass
class FakeHit:
    row: FakeRow
    score: float = 0.03
    coverage: float = 0.0
    cosine: float | None = None


def hit(content: str, title: str = "", day: str = "2026-03-18", **more) -> FakeHit:
    return FakeHit(FakeRow(Entry(content, id=content[:8], title=title, update_time=f"{day}T00:00:00.000Z")), **more)


CAMERA = hit("青石相机X2于2026年3月18日发布,售价4,299元", "青石相机X2")
BRIDGE = hit("北川大桥全长2,380米", "北川大桥")
BIKE = hit("The Larkfield S3 was announced on 14 April 2026. It costs $2,450.", "Larkfield S3")


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("你好", "greeting"),
        ("您好!在吗", "greeting"),
        ("谢谢你", "greeting"),
        ("Hello there!", "greeting"),
        ("thanks a lot", "greeting"),
        ("thank you so much", "greeting"),
        ("good morning", "greeting"),
        ("你好,青石相机多少钱?", "fact"),
        ("hi, what does the S3 cost?", "fact"),
        ("你是谁?", "identity"),
        ("你叫什么名字", "identity"),
        ("谁开发了你", "identity"),
        ("Who are you?", "identity"),
        ("What's your name?", "identity"),
        ("12*(3+4)=?", "arithmetic"),
        ("37+58等于多少", "arithmetic"),
        ("计算 45 乘以 12", "arithmetic"),
        ("What is 17 + 25?", "arithmetic"),
        ("12 divided by 5", "arithmetic"),
        ("2026年GDP增长了多少", "fact"),
        ("What is 5G?", "fact"),
        ("2025-2026赛季冠军是谁", "fact"),
        ("写一首关于春天的诗", "creative"),
        ("给我讲个笑话", "creative"),
        ("Write a short story about a cat", "creative"),
        ("tell me a joke", "creative"),
        ("这首诗的作者是谁", "fact"),
        ("Who wrote the song Yesterday?", "fact"),
        ("把这段话翻译成英文:早上好", "rewriting"),
        ("Translate this: guten Tag", "rewriting"),
        ("用Python写一个快速排序函数", "code"),
        ("写一段SQL查询", "code"),
        ("Write a function that reverses a list", "code"),
        ("Fix this code: ```x = ```", "code"),
        ("谁发明了Python?", "fact"),
        ("When was Python 3.12 released?", "fact"),
        ("法国的首都是哪里", "fact"),
        ("How many people live in Norwick?", "fact"),
        ("地铁末班车几点", "fact"),
    ],
)
def test_the_kind_of_a_question(question, kind):
    assert understand(question, NOW).kind == kind


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("青石相机X2多少钱", "zh"),
        ("Who is 习近平?", "en"),
        ("Python 3.12什么时候发布", "zh"),
        ("price?", "en"),
        ("42", "en"),
        ("", "en"),
        ("iPhone 15 Pro Max价格", "zh"),
        ("请问how are you是什么意思", "zh"),
    ],
)
def test_the_language_of_a_question(question, language):
    assert understand(question, NOW).language == language


def test_a_question_is_taken_apart():
    seen = understand("截至2025年底,青石相机X2现在的价格超过4,000元吗?“蓝石”呢?", NOW)
    assert seen.as_of == "2025-12-31" and seen.facts.numbers == {"4000 元"}
    assert {"x2", "蓝石"} <= set(seen.entities) and "现在" in seen.time_words and "价格" in seen.volatile


@pytest.mark.parametrize(
    ("question", "date"),
    [
        ("截至2025年底云岭茶业有多少员工", "2025-12-31"),
        ("截止到2026年3月的价格", "2026-03-31"),
        ("as of 5 May 2026, who leads?", "2026-05-05"),
        ("as of Q2 2026, who leads?", "2026-06-30"),
        ("截至昨天", "2026-11-20"),
        ("as of yesterday", "2026-11-20"),
        ("截至去年", "2025-12-31"),
        ("截至3月31日", "2026-03-31"),
        ("截至12月1日", "2025-12-01"),
        ("as of 2030-01-01", None),
        ("2025年的价格", None),
        ("截至目前有多少", None),
        ("价格多少", None),
        ("as of February 2024", "2024-02-29"),
        ("截至2025年2月30日", None),
    ],
)
def test_as_of_is_the_last_day_that_is_meant(question, date):
    assert understand(question, NOW).as_of == date


def test_a_relevant_entry_is_shown_and_others_are_not():
    made = decide(understand("青石相机X2多少钱?", NOW), [BRIDGE, CAMERA, BIKE])
    assert made.inject and made.hits == [CAMERA]
    assert any("of the question's words" in reason for reason in made.reasons)


def test_an_entry_that_only_looks_like_the_one_asked_about_is_left_out():
    kettle = hit("The weight of Silver Kettle H371 is 900 grams", "Silver Kettle H371")
    other = hit("The weight of Falcon Kettle H137 is 850 grams", "Falcon Kettle H137")
    question = understand("What is the current weight of Silver Kettle H371?", NOW)
    assert decide(question, [other, kettle]).hits == [kettle]
    both = understand("Which is heavier now, Silver Kettle H371 or Falcon Kettle H137?", NOW)
    assert decide(both, [other, kettle]).hits == [other, kettle]


def test_an_irrelevant_entry_is_not_shown():
    assert not decide(understand("法国的首都是哪里", NOW), [CAMERA, BRIDGE, BIKE]).inject
    assert not decide(understand("What is the capital of France?", NOW), [CAMERA, BRIDGE, BIKE]).inject


@pytest.mark.parametrize(
    "question", ["你好", "What is 17 + 25?", "写一首关于春天的诗", "Who are you?", "用Python写一个快速排序函数"]
)
def test_what_knowledge_is_not_for_gets_none(question):
    made = decide(understand(question, NOW), [CAMERA, BIKE], cutoff="2024-10")
    assert not made.inject and "kind" in made.reasons[0]


def test_a_code_question_on_an_entry_gets_it():
    lumen = hit("Lumen 3.0 raises the upload limit from 25 MB to 100 MB.", "Lumen 3.0 upload limit")
    assert decide(understand("Write a function that checks Lumen 3.0's upload limit", NOW), [lumen]).inject


def test_time_words_and_new_entries_lower_the_bar():
    half = hit("青石相机参加了展览", "")
    assert not decide(understand("青石相机的镜头卡口规格", NOW), [half]).inject
    assert decide(understand("青石相机最新的镜头卡口规格", NOW), [half]).inject
    assert decide(understand("青石相机的镜头卡口规格", NOW), [half], cutoff="2025-01").inject
    assert not decide(understand("青石相机的镜头卡口规格", NOW), [half], cutoff="2026-12").inject


def test_on_shows_everything_and_off_nothing():
    seen = understand("法国的首都是哪里", NOW)
    assert decide(seen, [CAMERA], "on").hits == [CAMERA] and not decide(seen, [], "on").inject
    assert not decide(understand("青石相机X2多少钱?", NOW), [CAMERA], "off").inject


def test_what_the_search_says_counts_too():
    question = understand("How expensive is the blue-stone camera?", NOW)
    assert not decide(question, [hit("青石相机售价4,299元")]).inject
    assert decide(question, [hit("青石相机售价4,299元", cosine=0.9)]).inject
    assert decide(question, [hit("青石相机售价4,299元", coverage=0.9)]).inject
    assert not decide(understand("你好", NOW), [hit("你好", cosine=1.0)]).inject


def test_a_users_file_is_laid_over_the_rules(tmp_path):
    file = tmp_path / "routing.yaml"
    file.write_text(
        "relevance: {stable: 0}\ntime_words: {en: [eftsoons]}\nkinds: {weather: {zh: [天气]}}\n", encoding="utf-8"
    )
    rules = load_rules(file)
    assert rules.stable == 0 and rules.fresh == route.shipped_rules().fresh
    assert understand("Who came eftsoons today?", NOW, rules).time_words == ("eftsoons",)
    assert understand("现在多少钱", NOW, rules).time_words == ("现在",)
    assert understand("今天天气", NOW, rules).kind == "weather" and understand("你好", NOW, rules).kind == "greeting"


def test_an_empty_file_changes_nothing(tmp_path):
    file = tmp_path / "routing.yaml"
    file.write_text("# nothing\n", encoding="utf-8")
    assert load_rules(file) == route.shipped_rules()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("relevances: {}", "relevances is no rule"),
        ("relevance: {stable: 2}", "from 0 to 1"),
        ("relevance: {stable: yes}", "from 0 to 1"),
        ("relevance: 3", "relevance holds"),
        ("relevance: {stabel: 0.2}", "relevance holds"),
        ("time_words: {de: [jetzt]}", "under zh and en"),
        ("time_words: [now]", "under zh and en"),
        ("volatile: {en: price}", "must be a list"),
        ("volatile: {en: [1]}", "must be a list"),
        ("volatile: {en: ['(']}", "no regular expression"),
        ("kinds: {code: {en: ['[']}}", "kinds.code.en"),
        ("kinds: {code: {unless_relevance: high}}", "kinds.code.unless"),
        ("kinds: [code]", "kinds holds"),
        ("kinds: {code: []}", "under zh and en"),
        ("- a", "must hold keys"),
        ("a: [", "not YAML"),
        ("\x00", "not YAML"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, text, said):
    file = tmp_path / "routing.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=said.replace("(", r"\(")) as error:
        load_rules(file)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(BadInput, match="no file"):
        load_rules(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not YAML"):
        load_rules(tmp_path / "binary")


def test_the_shipped_rules_are_whole():
    shipped = yaml.safe_load(Path(route.RULES).read_text(encoding="utf-8"))
    assert set(shipped["kinds"]) == {kind.name for kind in route.shipped_rules().kinds}


@settings(deadline=None)
@given(st.text(max_size=120))
def test_any_question_is_understood(question):
    decide(understand(question, NOW), [CAMERA, BIKE], cutoff="2024-10")
