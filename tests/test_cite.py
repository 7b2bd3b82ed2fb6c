"""Whether an answer's citations hold."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.knowledge.cite import check, is_abstention
from evergreen.knowledge.prompt import ABSTENTION, Source
from evergreen.knowledge.sentences import split

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import knowledge_cite  # noqa: E402

CAMERA = "青石相机X2于2026年3月18日发布,售价4,299元,重量为512克。董事长为陆怀川。"
BIKE = "The Larkfield S3 was announced on 14 April 2026. It costs $2,450 and weighs 19.8 kg. The older S2 cost $1,990."


def source(content: str, number: int = 1, title: str = "", date: str = "") -> Source:
    return Source(number, f"e{number}", "1.0.0", title, "", "", date, content)


def reason(answer: str, *contents: str, **more) -> str:
    """The first problem's reason, "" for a good answer."""
    found = check(answer, [source(content, n) for n, content in enumerate(contents, 1)], **more)
    assert found.ok == (not found.problems)
    return found.problems[0].reason if found.problems else ""


def test_a_supported_answer_is_good_and_says_what_it_cites():
    found = check("售价是4299元[2],重512克[1]。", [source(CAMERA, 1), source(CAMERA, 2)])
    assert (found.ok, found.is_abstention, found.cited, found.problems) == (True, False, [2, 1], [])


def test_a_source_that_does_not_exist_is_a_problem():
    assert reason("售价是4299元[3]。", CAMERA) == "source [3] does not exist: there are 1 to 1"
    assert "does not exist" in reason("售价是4299元[0]。", CAMERA)
    assert "does not exist" in reason("It costs $2,450 [1-3].", BIKE)


def test_a_source_that_is_no_longer_current_is_a_problem():
    def is_current(id, version):
        return (id, version) != ("e1", "1.0.0")

    found = check("售价是4299元[1]。", [source(CAMERA)], is_current)
    assert "withdrawn" in found.problems[0].reason and found.problems[0].number == 1
    assert check("售价是4299元[2]。", [source(CAMERA), source(CAMERA, 2)], is_current).ok


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("售价是4399元[1]。", "4399元"),
        ("重量是512千克[1]。", "512千克"),
        ("于2026年3月19日发布[1]。", "2026年3月19日"),
        ("董事长是陆怀山[1]。", "陆怀山"),
        ("又叫“蓝石”[1]。", "蓝石"),
        ("售价是4,299美元[1]。", "4,299美元"),
        ("青石相机X3售价4299元[1]。", "x3"),
    ],
)
def test_a_reason_names_what_is_not_in_the_source(answer, wrong):
    assert reason(answer, CAMERA) == f"{wrong} is not in source [1]"


@pytest.mark.parametrize(
    ("answer", "content", "wrong"),
    [
        ("总部已搬到临溪县[1]。", "霁月童车的总部在雁栖湖。", "临溪县"),
        ("现在由祁云舒担任负责人[1]。", "现任负责人是上官沛然。", "祁云舒"),
        ("它是恒信食品生产的[1]。", "它是天工机械厂生产的。", "恒信食品"),
        ("最先迁入的是法学院[1]。", "医学院将率先迁入。", "法学院"),
        ("导演是昆汀·塔伦蒂诺[1]。", "由史蒂文·斯皮尔伯格执导。", "昆汀·塔伦蒂诺"),
        ("县长白玉芬介绍了情况[1]。", "县长白玉珍介绍,情况良好。", "白玉芬"),
        ("The Bergen plant closes [1].", "The Halden plant closes.", "Bergen"),
        (
            "It runs on Python 3.10 [1].",
            "It needs Python 3.12, not 3.10 of others. Python 3.12 is free.",
            "python 3.10",
        ),
        ("门票3.20欧元[1]。", "A ticket costs 3.20 francs.", "3.20欧元"),
        ("周六营业[1]。", "周一至周五营业。", "周六"),
        ("片长2小时20分钟[1]。", "片长142分钟。", "2小时20分钟"),
    ],
)
def test_what_stands_nowhere_is_named(answer, content, wrong):
    said = reason(answer, content)
    assert said.endswith(" is not in source [1]") and wrong[:2] in said


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ("由昆汀·塔伦蒂诺执导[1]。", "导演昆汀·塔伦蒂诺说。"),
        ("周三营业[1]。", "周一至周五营业。"),
        ("片长2小时22分钟[1]。", "片长142分钟。"),
        ("The Kenyan runner Daniel Kiprop won [1].", "Kenya's Daniel Kiprop won."),
        ("时速可达80公里[1]。", "The train reaches 80 km/h."),
        ("From May 3, 2027 [1]", "from 3 May 2027"),
        ("Residents of Norwick pay 12 dollars [1].", "In Norwick it is $12."),
        ("The U.S. won [1].", "The United States won."),
    ],
)
def test_other_words_for_the_same_are_supported(answer, content):
    assert reason(answer, content) == ""


@pytest.mark.parametrize(
    "answer",
    [
        "４２９９元［１］。",
        "4299元【1】。",
        "价格为4299元[1][2]。",
        "4299元[1, 2]。",
        "It costs 4,299 yuan [1].",
        "约4300元[1]。",
        "四千二百九十九元 [1]",
    ],
)
def test_other_spellings_are_the_same(answer):
    assert reason(answer, CAMERA, CAMERA) == ""


def test_each_piece_is_checked_against_its_own_citation():
    assert reason("相机4299元[1],自行车$2,450[2]。", CAMERA, BIKE) == ""
    assert reason("相机4299元[2],自行车$2,450[1]。", CAMERA, BIKE)


def test_a_sentence_without_citation_is_checked_against_all_that_the_answer_cites():
    assert reason("It costs $2,450. It weighs 19.8 kg [1].", BIKE) == ""
    assert reason("It costs $2,540. It weighs 19.8 kg [1].", BIKE) == "$2,540 is not in source [1]"


def test_a_statement_without_any_citation_is_a_problem():
    found = check("It costs $2,450.", [source(BIKE)])
    assert found.problems[0].reason == "it states something and cites no source" and found.problems[0].number is None


@pytest.mark.parametrize(
    "answer",
    [
        "你好!很高兴为您服务。",
        "Hello! How can I help?",
        "根据现有信息无法回答。",
        "I cannot answer from the information given.",
        "抱歉,资料中没有提到这一点。",
        "I don't know.",
    ],
)
def test_greetings_and_abstentions_are_no_problem(answer):
    assert reason(answer, CAMERA) == ""


def test_the_abstention_is_told_apart():
    for text in ABSTENTION.values():
        assert check(text, [source(CAMERA)]).is_abstention
        assert check(text.rstrip(".。"), [source(CAMERA)]).is_abstention
    assert not is_abstention("根据现有信息无法回答,但大概是42元。")
    assert not check("售价是4299元[1]。", [source(CAMERA)]).is_abstention


def test_an_abstention_hides_no_statement():
    assert reason("很多人不知道,董事长是陆怀山[1]。", CAMERA) == "陆怀山 is not in source [1]"
    assert reason("I do not know the price. The chairman is Bob Stone.", CAMERA)
    assert not check("I do not know the price. The chairman is Bob Stone.", [source(CAMERA)]).is_abstention
    assert check("抱歉。根据现有信息无法回答。", [source(CAMERA)]).is_abstention


def test_a_number_of_a_sibling_is_a_problem():
    assert "of s2" in reason("The S3 costs $1,990 [1].", BIKE)
    assert reason("The S2 cost $1,990 [1].", BIKE) == ""


GROUP = (
    "海澜公司2025年营业收入为52.3亿元,同比增长9.1%;净利润4.7亿元,同比增长3.2%。"
    "研发人员640人。总经理为高明,董事长为王建国。"
)
FERRIES = (
    "The line has 42 ferries on 17 routes. Revenue was $12 million and net profit $3 million. "
    "Work begins in spring 2027 and is due to finish in late 2030. The fee was raised from 30 dollars to 45 dollars."
)


@pytest.mark.parametrize(
    ("answer", "content", "wrong"),
    [
        ("净利润为52.3亿元[1]。", GROUP, "52.3亿元"),
        ("净利润同比增长9.1%[1]。", GROUP, "9.1%"),
        ("董事长是高明[1]。", GROUP, "高明"),
        ("医学院学费5800元[1]。", "学费5,800元,医学院为6,500元。", "5800元"),
        ("园内有植物214种[1]。", "园内记录到鸟类214种、植物562种。", "214"),
        ("周日闭馆[1]。", "周二至周日开放,周一闭馆。", "周日"),
        ("The net profit was $12 million [1].", FERRIES, "$12 million"),
        ("It has 17 ferries on 42 routes [1].", FERRIES, "17"),
        ("It is due to finish in late 2027 [1].", FERRIES, "2027"),
        ("The fee was raised from 45 dollars to 30 dollars [1].", FERRIES, "from 45 to 30"),
        (
            "It improved in 48% of the placebo group [1].",
            "It improved in 48% of the Nuvorel group against 31% of the placebo group.",
            "48%",
        ),
    ],
)
def test_a_value_of_something_else_is_a_problem(answer, content, wrong):
    assert reason(answer, content).startswith("source [1] says ") and wrong in reason(answer, content)


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ("海澜公司盈利4.7亿元,比上年多3.2%[1]。", GROUP),
        ("公司2025年净利润为4.7亿元,营收52.3亿元[1]。", GROUP),
        ("总经理是高明[1]。", GROUP),
        ("The company runs 17 routes with 42 ferries [1].", FERRIES),
        ("The fee is now 45 dollars, up from 30 dollars [1].", FERRIES),
        ("Building 3 will close [1].", "Buildings 3 and 5 will close on 4 May."),
        ("第二小学有61位老师[1]。", "第一小学有教师74人;第二小学有学生980人、教师61人。"),
        ("计划用一年半完成[1]。", "计划工期18个月。"),
        ("成绩是2:09:31[1]。", "成绩2小时09分31秒。"),
        ("It has a capacity of 512 MW [1].", "Its capacity is 512 megawatts."),
        ("5点闭馆[1]。", "下午5点闭馆。"),
    ],
)
def test_the_same_value_with_other_words_is_supported(answer, content):
    assert reason(answer, content) == ""


TRADE = "远山乳业以8.4亿元收购牧歌乳品67%的股份,交易于9月22日完成。收购后牧歌乳品保留独立品牌,总经理仍由苏映雪担任。"
DEAL = (
    "Tessera Robotics bought the drone maker Kitewing from Holloway Partners for $312 million in cash. "
    "Kitewing's founder, Jonas Adeyemi, stays on as head of product."
)
DAMS = (
    "Kolwe Dam is 68% full, against 81% a year ago. Mira Dam, the smaller of the two, is 43% full. Both open at 9 a.m."
)
LEAGUE = "冠军由林海队获得,亚军是青松队,季军是白鹭队。林海队教练岳长风执教三年。最佳射手是青松队的秦越,共进11球。"
VERSIONS = "The Lark app adds a dark mode for Android, drops support for iOS 14, and runs on both."


@pytest.mark.parametrize(
    ("answer", "content", "wrong"),
    [
        ("Mira Dam is 68% full [1].", DAMS, "68% of kolwe dam"),
        (
            "长续航版售价15.98万元[1]。",
            "标准版续航510公里,售价15.98万元;长续航版续航680公里,售价18.58万元。",
            "15.98万元 of 标准版",
        ),
        (
            "Part-time staff accrue 1.75 days [1].",
            "Full-time staff accrue 1.75 days a month, part-time staff 0.9 days.",
            "1.75",
        ),
        ("由人事部审批[1]。", "由部门经理和财务部共同审批。", "人事部"),
        ("修复了鸿蒙系统上的闪退[1]。", "修复了在鸿雁系统上偶发闪退的问题。", "鸿蒙系统"),
        ("牧歌乳品以8.4亿元收购了远山乳业67%的股份[1]。", TRADE, "收购"),
        ("Kitewing bought Tessera Robotics for $312 million [1].", DEAL, "buy"),
        ("Holloway Partners bought Kitewing [1].", DEAL, "tessera robotics"),
        ("Jonas Adeyemi, the founder of Tessera Robotics, stays on [1].", DEAL, "kitewing"),
        ("女主角由温知夏担任[1]。", "话剧由温知夏编剧、段鸿导演。女主角由白羽担任。", "白羽"),
        ("冠军是青松队[1]。", LEAGUE, "林海队"),
        ("最佳射手是林海队的秦越[1]。", LEAGUE, "青松队"),
        ("It drops support for Android 14 [1].", VERSIONS, "android 14"),
        ("Paul Okoye succeeds Nina Petrov [1].", "Nina Petrov becomes treasurer, succeeding Paul Okoye.", "paul okoye"),
        ("It moved from Bonn to Rome [1].", "It moved from Rome to Bonn.", "from bonn to rome"),
        ("Zone B costs £2.40 [1].", "Parking in zone A costs £2.40 an hour and in zone B £1.60.", "zone a"),
        ("大厦高218层[1]。", "大厦高218米,共46层。", "218"),
    ],
)
def test_what_is_said_of_another_thing_is_a_problem(answer, content, wrong):
    assert wrong in reason(answer, content)


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ("Mira Dam opens at 9 a.m. [1].", DAMS),
        ("Mira Dam is 43% full, Kolwe Dam 68% [1].", DAMS),
        ("Kitewing was bought by Tessera Robotics [1].", DEAL),
        ("Kitewing, bought by Tessera Robotics, was owned by Holloway Partners [1].", DEAL),
        ("Kitewing founder Jonas Adeyemi stays on [1].", DEAL),
        ("牧歌乳品67%的股份由远山乳业收购[1]。", TRADE),
        ("收购方是远山乳业[1]。", TRADE),
        ("总经理是苏映雪[1]。", TRADE),
        ("林海队拿了第一,教练是岳长风[1]。", LEAGUE),
        ("青松队获得亚军[1]。", LEAGUE),
        ("9月新房均价是15830元[1]。", "9月新建商品住宅均价为15,830元。"),
        ("长续航版比标准版贵2.6万元[1]。", "标准版售价15.98万元;长续航版售价18.58万元。"),
        ("You get 1.75 days a month, i.e. 21 days a year [1].", "Employees accrue 1.75 days of leave per month."),
        ("国庆七天每天最多接待18000人[1]。", "国庆期间(10月1日至7日)每日限流1.8万人。"),
        ("市财政出60%的钱[1]。", "市财政承担六成,其余由上级补助。"),
        ("Shut from 5 September, 21:00 to 8 September, 06:00 [1].", "Shut 9 p.m. on Sept. 5 to 6 a.m. on Sept. 8."),
        ("Lark 3.2 needs Python 3.10 [1].", "Version 3.2 of Lark requires Python 3.10, 3.1 supported Python 3.8."),
    ],
)  # fmt: skip
def test_what_is_said_of_the_same_thing_in_other_words_is_supported(answer, content):
    assert reason(answer, content) == ""


def test_the_title_says_whose_value_it_is():
    two = [
        source("防水等级为IPX4。售价599元。", 1, "雨燕S3耳机"),
        source("防水等级为IPX5。售价899元,比S3贵300元。", 2, "雨燕S5耳机"),
    ]
    assert not check("雨燕S3的防水等级是IPX5[1][2]。", two).ok
    assert not check("雨燕S3售价899元[1][2]。", two).ok
    assert check("雨燕S5卖899元,比S3的599元贵300元[1][2]。", two).ok


def test_the_opposite_is_a_problem():
    text = "星图数据库5.2版本不支持Windows 7。销量下降了8%。"
    assert "opposite" in reason("星图数据库5.2支持Windows 7[1]。", text)
    assert reason("星图数据库5.2不支持Windows 7[1]。", text) == ""
    assert "opposite" in reason("销量上升了8%[1]。", text)


def test_a_computed_difference_is_supported_where_its_parts_are():
    assert reason("从380元调整为400元,多了20元[1]。", "缴费标准由380元调整为400元。") == ""
    assert reason("从380元调整为400元,多了30元[1]。", "缴费标准由380元调整为400元。")


def test_the_date_and_title_of_a_source_count():
    assert check("截至2026年11月8日,海港联队积61分[1]。", [source("积61分。", title="海港联队", date="2026-11-08")]).ok


def test_a_month_and_day_take_their_year_from_the_source():
    text = source("比赛在11月8日进行。", date="2026-11-09")
    assert check("比赛在2026年11月8日进行[1]。", [text]).ok
    assert not check("比赛在2025年11月8日进行[1]。", [text]).ok


def test_words_that_are_not_there_are_too_few():
    assert "too few" in reason("天空常常呈现蔚蓝色[1]。", CAMERA)
    assert reason("曲木[1]。", CAMERA)


def test_an_embedder_can_support_what_other_words_say():
    def embed(texts):
        return np.ones((len(texts), 2), np.float32) / 2**0.5

    answer = "天空常常呈现蔚蓝色[1]。"
    assert reason(answer, CAMERA) and reason(answer, CAMERA, embedder=embed) == ""
    assert reason("售价是4399元[1]。", CAMERA, embedder=embed)


def test_another_language_is_checked_by_its_numbers():
    assert reason("The camera was released on March 18, 2026 and weighs 512 grams [1].", CAMERA) == ""
    assert reason("The camera was released on March 19, 2026 [1].", CAMERA)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("一句。两句！三句？", 3),
        ("It costs 3.5 dollars. Dr. Li said so. See p.m. times.", 3),
        ("42元[1]。[2]下一句", 2),
        ("1. First\n2. Second", 2),
        ("U.S. sales rose. J. Smith left.", 2),
        ("```\na[1] = 5\n```\nDone.", 1),
        ("", 0),
        ("Open until 5 p.m. on Friday.", 1),
    ],
)
def test_sentences_end_where_they_end(text, count):
    assert len(list(split(text))) == count, list(split(text))


def test_citations_behind_the_full_stop_belong_to_the_sentence():
    assert [sentence.numbers for sentence in split("It is 5 kg. [1] It is red.[2]")] == [[1], [2]]


def test_brackets_in_code_are_no_citations():
    assert reason("Use `a[7]` for it. It costs $2,450 [1].", BIKE) == ""


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_any_answer_is_judged(answer, content):
    check(answer, [source(content)])


ENTRIES = [entry for entry in json.loads(knowledge_cite.CASES.read_text(encoding="utf-8"))["sources"].values()]
SENTENCES = [(entry, sentence.text) for entry in ENTRIES for sentence in split(entry[2])]


@settings(deadline=None)
@given(st.sampled_from(SENTENCES))
def test_a_sentence_of_the_source_is_supported_by_it(pair):
    (title, date, content), sentence = pair
    assert check(f"{sentence} [1]", [source(content, title=title, date=date)]).ok


@settings(deadline=None)
@given(st.sampled_from(SENTENCES), st.randoms(use_true_random=False))
def test_a_digit_changed_is_caught(pair, random):
    (title, date, content), sentence = pair
    places = [match.start() for match in re.finditer(r"\d", sentence)]
    if not places:
        return
    at = random.choice(places)
    digit = random.choice("123456789".replace(sentence[at], ""))
    changed = sentence[:at] + digit + sentence[at + 1 :]
    number = re.search(r"[\d.,:]*$", changed[: at + 1])[0] + re.match(r"[\d.,:]*", changed[at + 1 :])[0]
    if number.strip(".,:") in f"{content} {date}" or re.search(r"[A-Za-z]-?\d*$", changed[: at + 1]):
        return  # another number of the source, or a name's
    found = check(f"{changed} [1]", [source(content, title=title, date=date)])
    assert not found.ok, changed


def assert_told_apart(cases: list) -> None:
    """At least 95% of the unsupported caught, at most 3% of the supported rejected."""
    rows = knowledge_cite.figures(cases, show=False).values()
    caught = sum(row["caught"] * row["unsupported"] for row in rows) / sum(row["unsupported"] for row in rows)
    rejected = sum(row["rejected"] * row["supported"] for row in rows) / sum(row["supported"] for row in rows)
    assert caught >= 0.95 and rejected <= 0.03, (caught, rejected)


def test_the_cases_written_by_hand_are_told_apart():
    mended_on = knowledge_cite.written(groups=knowledge_cite.GROUPS[:-3])
    assert_told_apart([case for case in mended_on if case.kind in ("ok", *knowledge_cite.CHECKED)])


VARIANTS = list(knowledge_cite.written(groups=("variants",)))


@pytest.mark.parametrize("case", VARIANTS, ids=[f"{case.kind} {case.answer}" for case in VARIANTS])
def test_a_variant_of_what_was_judged_wrongly_is_judged_rightly(case):
    found = check(case.answer, case.sources, question=case.question)
    assert found.ok == (case.kind == "ok"), found.problems


def test_composed_sentences_are_told_apart():
    cases = knowledge_cite.composed(num_blocks=60, seed=11)
    assert_told_apart([case for case in cases if case.kind in ("ok", *knowledge_cite.CHECKED)])


def test_fake_answers_of_poisoned_passages_are_caught(shared_data):
    assert_told_apart(list(knowledge_cite.rgb(shared_data)))


@pytest.mark.parametrize(
    ("question", "answer", "wrong"),
    [
        ("How much does the Lumo Toaster cost?", "61 dollars [1].", "Lumo Toaster"),
        ("How much does the Lumo Kettle cost?", "61 dollars [1].", ""),
        ("What does the Nova Kettle cost?", "61 dollars [1].", "Nova Kettle"),
        ("What does a Lumo cost?", "61 dollars [1].", ""),
        ("Who sells the Lumo Kettle in Kirkwall Harbour?", "61 dollars [1].", ""),
        ("Lumo Toaster 多少钱?", "61 dollars[1]。", "Lumo Toaster"),
    ],
)
def test_a_bare_value_is_not_that_of_a_sibling_of_what_was_asked_about(question, answer, wrong):
    found = reason(answer, "The Lumo Kettle costs 61 dollars.", question=question)
    assert bool(found) == bool(wrong) and wrong in found


def test_a_month_that_there_is_not_is_no_sum():
    league = "在11月8日进行的甲级联赛第28轮比赛中,海港队主场3比1战胜雪峰队。"
    assert reason("在31月8日进行的甲级联赛第28轮比赛中,海港队主场3比1战胜雪峰队[1]。", league)
    assert not reason(f"{league}[1]", league)


@pytest.mark.parametrize(
    ("question", "title", "is_other"),
    [
        ("墨竹手表多少钱?", "墨竹手机", True),
        ("墨竹手机多少钱?", "墨竹手机", False),
        ("墨竹现在多少钱?", "墨竹手机", False),
        ("墨竹价格是多少?", "墨竹手机", False),
        ("手机多少钱?", "墨竹手机", False),
        ("墨竹手表多少钱?", "价格", False),
        ("how much is the lumo toaster?", "Lumo Kettle", True),
        ("how much is the lumo kettle?", "Lumo Kettle", False),
        ("how much does a lumo cost?", "Lumo Kettle", False),
        ("what is the lumo price?", "Lumo Kettle", False),
    ],
)
def test_a_bare_value_is_not_that_of_a_sibling_of_the_title(question, title, is_other):
    content = "它卖3599元。" if "手" in question or "墨" in question else "It is 61 dollars."
    answer = "3599元[1]。" if "3599" in content else "61 dollars [1]."
    assert check(answer, [source(content, title=title)], question=question).ok != is_other


def test_a_version_or_a_date_is_no_price():
    router = "星河路由器的最新固件版本是 4.7.2,2026年3月18日发布。"
    assert "no price" in reason("4.7.2[1]。", router, question="星河路由器多少钱?")
    assert "no price" in reason("2026年3月18日[1]。", router, question="星河路由器的价格是多少?")
    assert not reason("4.7.2[1]。", router, question="星河路由器的最新固件版本是多少?")
