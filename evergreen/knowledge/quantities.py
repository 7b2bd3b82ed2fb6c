"""Numbers with their units, as they stand in Chinese and English texts.

Promises: 1,361万, 13.61 million and 一千三百六十一万 are one number; 2.38公里 and 2,380 metres are one length.
Does not: convert currencies, or imperial measures into metric ones.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

# -- the tables -----------------------------------------------------------------------------------------------------

DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
POWERS = {"十": 10, "百": 100, "千": 1000}
MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
SCALES = {
    **{"千": 10**3, "百万": 10**6, "千万": 10**7, "万亿": 10**12, "十万": 10**5, "十亿": 10**9, "百亿": 10**10},
    **{"千亿": 10**11, "百": 100, **MYRIADS},
    **{"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"k": 10**3, "m": 10**6, "mn": 10**6, "bn": 10**9, "b": 10**9, "tn": 10**12},
}
FRACTIONS = {"百分之": 1, "千分之": 10, "万分之": 100}  # of a percent
SMALL = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
} | {word: 10 * value for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}

# base unit: (spelling, how many base units it is) ...
UNITS: dict[str, tuple[tuple[str, str], ...]] = {
    "%": (
        ("% percent 百分点 个百分点|per cent|percentage points|percentage point", "1"),
        ("‰ permille", "0.1"),
        ("成", "10"),
    ),
    "元": (("元 块钱 圆 人民币 rmb cny yuan 块", "1"),),
    "USD": (("美元 美金 usd dollars dollar $", "1"), ("美分 cents cent", "0.01")),
    "EUR": (("欧元 eur euros euro €", "1"),),
    "GBP": (("英镑 gbp £", "1"),),
    "JPY": (("日元 日圆 jpy yen", "1"),),
    "HKD": (("港元 港币 hkd", "1"),),
    "CHF": (("瑞士法郎 法郎 chf francs franc", "1"),),
    "KRW": (("韩元 韩币 krw won", "1"),),
    "RUB": (("卢布 rub rubles ruble roubles rouble", "1"),),
    "INR": (("卢比 印度卢比 inr rupees rupee ₹", "1"),),
    "AUD": (("澳元 澳币 aud", "1"),),
    "CAD": (("加元 加币 cad", "1"),),
    "TWD": (("新台币 台币 twd", "1"),),
    "SEK": (("克朗 sek kronor krona kroner crowns", "1"),),
    "peso": (("比索 pesos peso", "1"),),
    "THB": (("泰铢 thb baht", "1"),),
    "m": (
        ("米 m meters meter metres metre", "1"),
        ("公里 千米 km kilometers kilometer kilometres kilometre", "1000"),
        ("厘米 公分 cm centimeters centimeter centimetres centimetre", "0.01"),
        ("毫米 mm millimeters millimeter millimetres millimetre", "0.001"),
        ("微米 μm micrometres micrometers", "0.000001"),
        ("纳米 nm nanometers nanometres", "0.000000001"),
    ),
    "ft": (("英尺 ft feet foot", "1"), ("码 yards yard yd", "3"), ("英里 miles mile mi", "5280")),
    "in": (("英寸 吋 inches inch", "1"),),
    "m²": (
        ("平方米 m² m2 sqm|square meters|square metres|square meter|square metre", "1"),
        ("平方公里 平方千米 km² km2|square kilometers|square kilometres|square kilometer|square kilometre", "1000000"),
        ("公顷 hectares hectare ha", "10000"),
    ),
    "亩": (("亩", "1"),),
    "acre": (("英亩 acres acre", "1"),),
    "m³": (("立方米 m³ m3|cubic meters|cubic metres|cubic meter|cubic metre", "1"),),
    "g": (
        ("克 g grams gram", "1"),
        ("公斤 千克 kg kilograms kilogram kilos kilo", "1000"),
        ("毫克 mg milligrams milligram", "0.001"),
        ("吨 t tonnes tonne|metric tons", "1000000"),
    ),
    "斤": (("斤", "1"),),
    "lb": (("磅 lb lbs pounds pound", "1"),),
    "ton": (("tons ton", "1"),),
    "L": (("升 l liters liter litres litre", "1"), ("毫升 ml milliliters millilitres", "0.001")),
    "min": (
        ("分钟 分鐘 min mins minutes minute", "1"),
        ("秒 秒钟 seconds second sec secs", "1/60"),
        ("毫秒 ms milliseconds millisecond", "1/60000"),
        ("小时 个小时 小時 钟头 hours hour hrs hr", "60"),
    ),
    "day": (("天 days day", "1"), ("周 星期 个星期 weeks week", "7")),
    "month": (("个月 months month", "1"), ("年 周年 years year", "12")),
    "岁": (("岁 周岁|years old|year old|years of age|year-olds|year-old", "1"),),
    "°C": (("℃ °c 摄氏度|degrees celsius|degree celsius", "1"),),
    "°F": (("℉ °f 华氏度|degrees fahrenheit", "1"),),
    "B": (
        ("bytes byte 字节", "1"),
        ("kb 千字节", "1000"),
        ("mb 兆字节", "1000000"),
        ("gb gigabytes", "1000000000"),
        ("tb terabytes", "1000000000000"),
        ("pb petabytes", "1000000000000000"),
    ),
    "bit/s": (("kbps", "1000"), ("mbps", "1000000"), ("gbps", "1000000000")),
    "Hz": (("hz 赫兹 赫", "1"), ("khz", "1000"), ("mhz 兆赫", "1000000"), ("ghz", "1000000000")),
    "W": (
        ("瓦 w watts watt", "1"),
        ("千瓦 kw kilowatts kilowatt", "1000"),
        ("兆瓦 mw megawatts megawatt", "1000000"),
        ("吉瓦 gw gigawatts gigawatt", "1000000000"),
    ),
    "Wh": (
        ("瓦时 wh", "1"),
        ("千瓦时 kwh|kilowatt hours|kilowatt-hours", "1000"),
        ("mwh|megawatt hours|megawatt-hours", "1000000"),
        ("gwh", "1000000000"),
    ),
    "V": (("伏 伏特 v volts volt", "1"),),
    "mAh": (("毫安时 毫安 mah", "1"),),
    "m/h": (
        ("公里/小时 公里每小时 千米/小时 km/h kmh kph|kilometers per hour|kilometres per hour", "1000"),
        ("m/s 米/秒 米每秒|meters per second|metres per second", "3600"),
    ),
    "mph": (("英里/小时 mph|miles per hour", "1"),),
    "倍": (("倍 times fold 倍多", "1"),),
    "级": (("级 magnitude", "1"),),
    "像素": (("像素 pixels pixel", "1"), ("megapixels megapixel mp", "1000000")),
}


def _ratio(text: str) -> Decimal:
    over, _, under = text.partition("/")
    return Decimal(over) / Decimal(under or 1)


def _spellings(words: str) -> list[str]:
    """ "% percent|per cent" -> %, percent, per cent: single words, then those of several."""
    single, *several = words.split("|")
    return [*single.split(), *several]


SPELLINGS: dict[str, tuple[str, Decimal]] = {
    spelling: (base, _ratio(factor))
    for base, groups in UNITS.items()
    for words, factor in groups
    for spelling in _spellings(words)
}
SIGNS = {
    "$": "USD",
    "us$": "USD",
    "€": "EUR",
    "£": "GBP",
    "¥": "元",
    "hk$": "HKD",
    "rmb": "元",
    "usd": "USD",
    "eur": "EUR",
}


NO_TENTHS = (
    "(?!立|员|为|长|果|本|品|熟|功|绩|分|年|人|交|都|套|型|就|因|效|名|婚|家|千|百|群|吨|片|不变)"  # 三成, no 2015成立
)


def _either(words: Iterable[str]) -> str:
    """An alternation of words, the longest first; one of letters ends where the word ends."""
    spelled = sorted(words, key=len, reverse=True)
    ends = {word: r"(?![a-z])" if re.search("[a-z]$", word) else "" for word in spelled} | {
        "成": NO_TENTHS,
        "年": "(?!级)",
    }
    return "|".join(re.escape(word) + ends[word] for word in spelled)


UNIT = _either(SPELLINGS)
SCALE = _either(SCALES)
_ENGLISH = "|".join(sorted([*SMALL, "hundred", "thousand", "million", "billion", "trillion"], key=len, reverse=True))
_CHINESE = "零〇一二三四五六七八九十百千万亿两萬億"
ROUGHLY = re.compile(
    r"(约|大约|约为|近|将近|接近|超过|超|逾|大概|左右|多达|至少|不到|不足|about|around|roughly|approximately|nearly|almost|some|"
    r"over|more than|less than|under|~|≈|up to|at least)\s*(?:us\$|hk\$|[$€£¥])?\s*$"
)
ROUGHLY_AFTER = re.compile(r"\s*(多|余|左右|上下|or so)")
SPEED = re.compile("(?:每秒|秒速|每小时|时速)[为约达到可]{0,2}$")

NUMBER = re.compile(
    rf"""(?P<sign>us\$|hk\$|rmb|usd|eur|[$€£¥])?\s?
    (?:(?P<minus>(?<![\w.)\]])-)?(?P<digits>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?)
      (?P<suffix>st|nd|rd|th)?(?![a-z\d]*[a-z]\d)
      |(?P<fraction>百分之|千分之|万分之)(?P<part>\d+(?:\.\d+)?|[{_CHINESE}]{{1,20}}(?:点[{_CHINESE}]{{1,10}})?)
      |(?P<chinese>(?!零下)[{_CHINESE}]{{1,20}}(?:点[零〇一二三四五六七八九]{{1,10}})?)
      |\b(?P<english>(?:{_ENGLISH})(?:(?:[\s-]|\sand\s)+(?:{_ENGLISH})){{0,12}})\b)
    (?:\s?(?P<scale>{SCALE}))?
    (?P<more>多|余)?
    (?:\s?-?(?![$€£]\s?\d)(?P<unit>{UNIT}))?""",
    re.VERBOSE,
)


# -- quantities -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """A number as it stands in a text. `value` is in `unit`, a base unit or "" for a bare number; `noun` is what stands
    right behind it. `is_word`: a small number written as a word, often no statement (两家公司, two of them)."""

    value: Decimal
    unit: str
    text: str
    noun: str
    start: int
    end: int
    is_word: bool = False
    is_rough: bool = False
    said: Decimal = Decimal(0)  # the number without its unit: 2.38 of 2.38公里
    step: Decimal = Decimal(0)  # what the last digit that is said is worth, in `unit`: 100 for "about 4,300"

    def __str__(self) -> str:
        return f"{plain(self.value)} {self.unit}".strip()


def quantities_in(text: str) -> list[Quantity]:
    """The numbers of a text in lower case and without full-width forms."""
    found: list[Quantity] = []
    for match in NUMBER.finditer(text):
        if (quantity := _quantity(match, text)) is None:
            continue
        if found and (whole := _compound(found[-1], quantity, text)):
            found[-1] = whole
        else:
            found.append(quantity)
    return found


def _compound(first: Quantity, second: Quantity, text: str) -> Quantity | None:
    """2小时22分钟, 1 hour and 20 minutes, 3公斤500克 as one quantity; None for two."""
    between = text[first.end : second.start].strip()
    if first.unit not in ("min", "month", "m", "g") or between not in ("", "and", "零", "又", "分"):
        return None
    is_same = second.unit == first.unit or first.unit == "min" and not second.unit and second.noun[:1] == "分"
    if not is_same or second.value >= first.value:
        return None
    value, said = first.value + second.value, text[first.start : second.end]
    return replace(first, value=value, said=value, step=second.step, text=said, end=second.end, noun=second.noun)


def _quantity(match: re.Match, text: str) -> Quantity | None:
    part = match.groupdict()
    value, unit, is_word = _value(part)
    if value is None:
        return None
    before, noun = text[max(0, match.start() - 20) : match.start()], _noun(text[match.end() :])
    scale, spelling = part["scale"], part["unit"]
    if scale in ("m", "b") and not part["sign"]:  # 5 m are metres, $5m are millions
        scale, spelling = None, scale if scale == "m" else spelling
    digits, value = value, value * (SCALES[scale] if scale else 1)
    said = value
    if spelling and not unit:
        unit, factor = SPELLINGS[spelling]
        value *= factor
    unit = SIGNS[part["sign"]] if part["sign"] else unit
    if unit == "m" and (speed := SPEED.search(before)):
        value, unit = value * (3600 if "秒" in speed[0] else 1), "m/h"
    if before.endswith("零下"):
        value = -value
    if not unit and (is_word and not scale and value <= 1 or _is_no_number(part["chinese"])):
        return None
    if is_word and before.endswith("第"):  # 第二年: 次年
        unit, value, spelling = "", said, None
    is_rough = bool(part["more"] or ROUGHLY.search(before) or ROUGHLY_AFTER.match(text, match.end()))
    step = _last_digit(digits) * value / digits if digits else Decimal(0)
    end = match.end()
    if spelling and unit in ("month", "min", "day") and re.match("半(?![年月天日小])", text[end:]):  # 一年半
        value, is_word, end = value + SPELLINGS[spelling][1] / 2, False, end + 1
    return Quantity(
        value, unit, text[match.start() : end].strip(), noun, match.start(), end, is_word, is_rough, said, step
    )


def _last_digit(value: Decimal) -> Decimal:
    """What the last digit other than trailing zeros of a whole number is worth: 100 for 4300, 0.1 for 12.5 and 12.0."""
    exponent = value.as_tuple().exponent
    return Decimal(1).scaleb(exponent if exponent < 0 else value.normalize().as_tuple().exponent)


def _noun(rest: str) -> str:
    match = re.match(r"[\s个名位座家只条种件台款-]*([一-鿿]{1,4}|[a-z]+)?", rest)
    return (match[1] or "") if match else ""


def _is_no_number(chinese: str | None) -> bool:
    """百 of 百姓, 千万 of 千万不要: without a unit behind them powers alone say nothing."""
    return bool(chinese) and chinese != "十" and all(char in POWERS or char in MYRIADS for char in chinese)


def _value(part: dict[str, str | None]) -> tuple[Decimal | None, str, bool]:
    """(value, unit so far, is it a small number in words)"""
    if part["digits"]:
        value = Decimal(part["digits"].replace(",", ""))
        return (-value if part["minus"] else value), "", False
    if part["fraction"]:
        digits = part["part"] or ""
        value = Decimal(digits) if digits[0].isdigit() else chinese_number(digits)
        return (None if value is None else value / FRACTIONS[part["fraction"]]), "%", False
    if part["chinese"]:
        value = chinese_number(part["chinese"])
        return value, "", value is not None and value <= 10
    value = english_number(part["english"] or "")
    return value, "", value <= 12


def plain(value: Decimal) -> str:
    """1E+3 -> 1000, 12.50 -> 12.5."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def chinese_number(text: str) -> Decimal | None:
    """三千一百五十 -> 3150, 二〇二六 -> 2026, 三点五亿 -> 350000000; None for what is no number."""
    text, _, decimals = text.partition("点")
    if len(text) > 1 and all(char in DIGITS for char in text):
        whole = int("".join(str(DIGITS[char]) for char in text))
    else:
        whole = _sum_of_powers(text)
    if whole is None or any(char not in DIGITS for char in decimals):
        return None
    return Decimal(f"{whole}.{''.join(str(DIGITS[char]) for char in decimals)}") if decimals else Decimal(whole)


def _sum_of_powers(text: str) -> int | None:
    total = section = digit = 0
    for char in text:
        if char in DIGITS:
            digit = DIGITS[char]
        elif char in POWERS:
            section += (digit or 1) * POWERS[char]
            digit = 0
        elif char in MYRIADS:
            if not (total or section or digit):
                return None  # 万一: no number begins so
            total = (total + section + digit) * MYRIADS[char]
            section = digit = 0
        else:
            return None
    return total + section + digit


def english_number(text: str) -> Decimal:
    """two hundred and fifty thousand -> 250000."""
    total = section = 0
    for word in re.split(r"[\s-]+", text):
        if word in SMALL:
            section += SMALL[word]
        elif word == "hundred":
            section = (section or 1) * 100
        elif word in SCALES:
            total += (section or 1) * SCALES[word]
            section = 0
    return Decimal(total + section)
