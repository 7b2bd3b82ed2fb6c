"""What can be checked in a text: numbers, dates, names, in one spelling."""

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.knowledge.facts import facts_of, is_negated, quantities
from evergreen.knowledge.names import codes, han_names, latin_names, normal


def numbers(text: str) -> set[str]:
    return set(facts_of(text).numbers)


def dates(text: str) -> set[str]:
    return set(facts_of(text).dates)


@pytest.mark.parametrize(
    "spellings",
    [
        ("1361万", "1,361万", "13.61 million", "１３６１万", "13610000", "一千三百六十一万", "1361萬"),
        ("3.42亿元", "3.42 亿人民币", "342 million yuan", "¥342 million", "RMB 342 million", "三点四二亿元"),
        ("$3.42 billion", "3.42 billion dollars", "US$3,420 million", "34.2亿美元", "$3.42bn"),
        ("75%", "75 percent", "百分之七十五", "百分之75", "75 per cent", "７５％", "75个百分点"),
        ("10.48‰", "1.048%", "千分之10.48"),
        ("2.38公里", "2,380米", "2380 metres", "2.38 km", "2.38千米"),
        ("45分钟", "forty-five minutes", "45 min", "四十五分钟", "0.75小时"),
        ("2小时22分钟", "142分钟", "2 hours and 22 minutes", "2小时22分"),
        ("时速80公里", "每小时80公里", "80公里/小时", "80 km/h", "80 kilometres per hour"),
        ("8GB", "8 GB", "8gb"),
        ("18 months", "18个月", "一年零六个月"),
        ("零下5℃", "-5 °C"),
        ("two hundred and fifty thousand", "250,000", "25万", "250k"),
    ],
)
def test_one_number_has_one_spelling(spellings):
    found = [numbers(text) for text in spellings]
    assert all(one == found[0] and len(one) == 1 for one in found), dict(zip(spellings, found, strict=True))


@pytest.mark.parametrize(
    "spellings",
    [
        (
            "2026年10月2日",
            "2026-10-02",
            "Oct 2, 2026",
            "2 October 2026",
            "2026/10/2",
            "October 2nd, 2026",
            "二〇二六年十月二日",
            "２０２６年１０月２日",
            "2026.10.02",
            "2nd of October 2026",
        ),
        ("10月2日", "Oct. 2", "2 October", "十月二号"),
        ("2026年10月", "October 2026", "Oct 2026", "2026年10月份"),
        ("19:30", "7:30 p.m.", "晚上7点半", "下午七点三十分", "7:30pm"),
        ("2026年第三季度", "Q3 2026", "third quarter of 2026", "2026年三季度"),
        ("周二", "星期二", "Tuesday", "Tuesdays"),
        ("from 4 to 19 July", "July 4-19", "7月4日至19日", "7月4日到7月19日"),
        ("in 1998", "1998年"),
    ],
)
def test_one_date_has_one_spelling(spellings):
    found = [dates(text) for text in spellings]
    assert all(one == found[0] and one for one in found), dict(zip(spellings, found, strict=True))


def chinese(number: int) -> str:
    """A number below 10^8 in Chinese, as children learn it: the slow twin of what reads it."""
    digits, text, gap = "零一二三四五六七八九", "", False
    if number >= 10_000:
        rest = number % 10_000
        return chinese(number // 10_000) + "万" + ("零" if 0 < rest < 1000 else "") + (chinese(rest) if rest else "")
    for power, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, power)
        if digit:
            text += ("零" if gap and text else "") + digits[digit] + name
            gap = False
        else:
            gap = True
    return text or digits[0]


@settings(deadline=None)
@given(st.integers(min_value=11, max_value=99_999_999))
def test_chinese_and_arabic_numbers_are_equal(number):
    assert numbers(f"{chinese(number)}元") == numbers(f"{number:,}元") == numbers(f"{number} yuan") == {f"{number} 元"}


FORMS = (
    "{0.year}年{0.month}月{0.day}日",
    "{0.year}-{0.month}-{0.day}",
    "{0:%B} {0.day}, {0.year}",
    "{0.day} {0:%b} {0.year}",
)


@settings(deadline=None)
@given(st.dates(date(1500, 1, 1), date(2199, 12, 31)), st.sampled_from(FORMS))
def test_every_date_is_read_in_every_form(day, form):
    assert dates("x " + form.format(day)) == {day.isoformat()}


def test_different_units_are_different_numbers():
    assert numbers("12.6亿元") != numbers("12.6亿美元") != numbers("12.6万美元")
    assert numbers("512克") != numbers("512千克")
    assert numbers("5 m") == {"5 m"} and numbers("$5m") == {"5000000 USD"}


def test_digits_of_names_are_no_numbers():
    facts = facts_of("The F-35 and GPT-4o, 青石相机X2, v5.2.1")
    assert not facts.numbers
    assert {"f-35", "gpt-4o", "x2", "v5.2.1"} <= facts.names


def test_words_that_only_look_like_numbers_are_none():
    assert not numbers("万一统一了,一些人千万不要忘了百姓") and not numbers("one of them")


def test_names_of_people_and_places_are_found():
    assert {"陆怀川", "曲木县", "武汉"} <= set(han_names("董事长陆怀川在曲木县和武汉说"))
    assert "史蒂文·斯皮尔伯格" in " ".join(han_names("史蒂文·斯皮尔伯格"))
    assert latin_names("According to Maria Oduya, the Halden plant") == ["Maria", "Oduya", "Halden"]


def test_ordinary_words_are_no_names():
    assert han_names("它荣获大奖,城市更美丽,上市时间明白了") == []
    assert latin_names("Electricity was cut. Residents waited. The price rose.") == []


def test_quotations_are_kept_whole():
    assert facts_of('《长河两岸》和“热带鱼” and "Rivers of Glass"').quoted == {"长河两岸", "热带鱼", "rivers of glass"}


def test_two_negations_are_none():
    assert is_negated("它不支持Windows 7") and is_negated("It no longer supports it") and is_negated("didn’t open")
    assert not is_negated("并非不支持") and not is_negated("不仅支持,未来也支持") and not is_negated("No. 1")


def test_a_number_knows_what_it_counts():
    found = quantities(normal("双向六车道,约620张,排名第二"))
    assert [(str(one), one.noun, one.is_rough) for one in found][:2] == [("6", "车道", False), ("620", "张", True)]


def test_codes_end_where_chinese_begins():
    assert codes(normal("小米MIX2的处理器")) == ["mix2"]


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_facts_or_none(text):
    facts_of(text), is_negated(text)
