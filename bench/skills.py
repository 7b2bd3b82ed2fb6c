"""Five invented skills for the nano model, each as train rows and dev items, half Chinese, half English.

Promises: the same seed gives the same rows; no dev item has the prompt of a train row, of its own skill or another;
one prompt has one answer over all skills. Two skills read the same record form and write it differently, two answer a
question with one word, one reads dates: learning one invites the model to lose another. Does not: need knowledge of
the world; what a row wants is learnt from the rows of its own skill alone.

A skill is a function (Random, language, is_dev) -> (prompt, answer). Names and facts come from the same lists in both
parts; the sentences of `facts`, `desk` and `agenda` differ between them.
"""

import json
import random
from collections.abc import Callable, Iterator

Skill = Callable[[random.Random, str, bool], tuple[str, str]]

GOODS = dict(
    zh="台灯 水壶 书架 风扇 背包 雨伞 耳机 手表 键盘 相框 滑板 音箱 饼干 果酱 茶叶 毛巾".split(),
    en="lamp kettle shelf fan bag umbrella phone watch printer clock table radio cookie rice tea blanket".split(),
)
TOWNS = dict(
    zh="东溪 白茅 石屏 鹭洲 梧川 青山 南桥 北湖 云林 金沙 长岭 新河".split(),
    en="Millford Stonedale Lakewood Eastport Greenhill Northbay Silverton Oakridge Westhaven Redcliff Longfield "
    "Newbrook".split(),
)
ASK = {
    "ticket": dict(
        zh=["写成票据", "请写票据", "把它写成票据", "票据怎么写"],
        en=["Write the ticket", "As a ticket", "Make a ticket of it", "What is the ticket"],
    ),
    "stock": dict(
        zh=["写成库存", "请写库存", "把它写成库存", "库存怎么写"],
        en=["Write the stock entry", "As a stock entry", "Make a stock entry of it", "What is the stock entry"],
    ),
}
FIELDS = dict(zh=("品名", "数量", "城市"), en=("item", "amount", "city"))


# -- one record, two ways to write it


def record(r: random.Random, language: str) -> tuple[str, str, int, str]:
    """(the record as text, its thing, its number, its town), its fields in any order."""
    thing, number, town = r.choice(GOODS[language]), r.randint(2, 99), r.choice(TOWNS[language])
    pairs = list(zip(FIELDS[language], (thing, number, town), strict=True))
    r.shuffle(pairs)
    colon, between = (":", ";") if language == "zh" else (": ", "; ")
    return between.join(f"{name}{colon}{shown}" for name, shown in pairs), thing, number, town


def of_record(skill: str, write: Callable[[str, int, str], str]) -> Skill:
    def make(r: random.Random, language: str, is_dev: bool) -> tuple[str, str]:
        text, thing, number, town = record(r, language)
        return f"{r.choice(ASK[skill][language])}\n{text}", write(thing, number, town)

    return make


def ticket(thing: str, number: int, town: str) -> str:
    return f"#{number}*{thing}@{town}"


def stock(thing: str, number: int, town: str) -> str:
    return json.dumps({"w": town, "p": thing, "n": number}, ensure_ascii=False)


# -- facts about invented products

WARES = dict(
    zh=[f"{a}{b}" for a in "澄珩翎汐朔" for b in ("灯", "壶", "伞")],
    en=[f"{a} {b}" for a in ("Zuma", "Keno", "Tavi", "Lopo", "Rika") for b in ("lamp", "cup", "box")],
)
TRAITS = {
    "colour": dict(
        zh="红色 橙色 黄色 绿色 蓝色 紫色 黑色 白色".split(),
        en="red orange yellow green blue purple black white".split(),
    ),
    "town": TOWNS,
}
QUESTIONS = {  # wordings of the train rows, and of the dev items
    ("colour", "zh"): (
        ["{}是什么颜色?", "{}的颜色?", "{}是哪种颜色的?", "请问{}的颜色是什么?", "你知道{}是什么颜色吗?"],
        ["{}的颜色是什么?", "请问{}是什么颜色?", "{}是什么颜色的?"],
    ),
    ("colour", "en"): (
        ["What color is the {}?", "The color of the {}?", "Which color is the {}?"]
        + ["Please tell me the color of the {}.", "Do you know what color the {} is?"],
        ["What is the color of the {}?", "Please tell me what color the {} is.", "Which color has the {}?"],
    ),
    ("town", "zh"): (
        ["{}产自哪里?", "{}的产地?", "{}是哪里生产的?", "请问{}的产地是哪里?", "你知道{}产自哪里吗?"],
        ["{}的产地是哪里?", "请问{}产自哪里?", "{}是在哪里生产的?"],
    ),
    ("town", "en"): (
        ["Where is the {} made?", "The origin of the {}?", "Which city makes the {}?"]
        + ["Please tell me where the {} is made.", "Do you know where the {} is made?"],
        ["Where does the {} come from?", "What is the origin of the {}?", "Please tell me the origin of the {}."],
    ),
}


def facts(r: random.Random, language: str, is_dev: bool) -> tuple[str, str]:
    ware, trait = r.choice(WARES[language]), r.choice(list(TRAITS))
    values = TRAITS[trait][language]
    answer = random.Random(f"{ware} {trait}").choice(values)  # the world, the same for every seed
    stop = "。" if language == "zh" else "."
    return r.choice(QUESTIONS[trait, language][is_dev]).format(ware), answer + stop


# -- a message, and the desk that takes it

DESKS = {
    "zh": {"甲台": "包裹 快递 物流 送货".split(), "乙台": "发票 账单 付款 退款".split(),
           "丙台": "密码 登录 账号 网页".split(), "丁台": "维修 零件 安装 故障".split()},
    "en": {"Amber": "parcel delivery package shipping".split(), "Birch": "invoice bill payment price".split(),
           "Coral": "password login account website".split(), "Delta": "repair engine battery printer".split()},
}  # fmt: skip
MESSAGES = {
    "zh": (["我的{}有问题。", "请看一下{}。", "{}怎么办?", "{}还没有好。", "关于{},请回复。", "我要问{}的事。"],
           ["{}的事怎么办?", "我的{}还没有好。", "请看一下我的{}。"]),
    "en": (["I have a problem with the {}.", "Please look at the {}.", "What about the {}?", "The {} is not good.",
            "About the {}, please answer.", "I have a question about the {}."],
           ["There is a problem with the {}.", "What is wrong with my {}?", "Please answer about the {}."]),
}  # fmt: skip


def desk(r: random.Random, language: str, is_dev: bool) -> tuple[str, str]:
    """Which desk takes a message of some customer about some topic, from some town."""
    name = r.choice(list(DESKS[language]))
    topic, town = r.choice(DESKS[language][name]), r.choice(TOWNS[language])
    message = r.choice(MESSAGES[language][is_dev]).format(topic)
    if language == "zh":
        return f"{town}的客户说:{message}哪个台?", name
    return f"A customer from {town}: {message} Which desk?", name


# -- a date and a town, out of a sentence

MEETINGS = {
    "zh": (
        ["{town}的会议在{date}开。", "{date}在{town}开会。", "{date},{town}有会议。", "会议在{town},日期是{date}。"],
        ["{date}的会议在{town}。", "在{town}开会,日期{date}。"],
    ),
    "en": (
        ["The meeting in {town} is on {date}.", "On {date} there is a meeting in {town}.", "{date}: meeting in {town}."]
        + ["There is a meeting in {town}, the date is {date}."],
        ["The date of the meeting in {town} is {date}.", "Meeting in {town} on {date}."],
    ),
}


def agenda(r: random.Random, language: str, is_dev: bool) -> tuple[str, str]:
    """A meeting as an entry of the agenda: day, month and town."""
    year, month, day, town = r.randint(2015, 2029), r.randint(1, 12), r.randint(1, 28), r.choice(TOWNS[language])
    text = r.choice(MEETINGS[language][is_dev]).format(town=town, date=f"{year}-{month:02d}-{day:02d}")
    return text, f"[{day:02d}/{month:02d}]{town}"


SKILLS: dict[str, Skill] = {
    "facts": facts,
    "ticket": of_record("ticket", ticket),
    "desk": desk,
    "stock": of_record("stock", stock),
    "agenda": agenda,
}


# -- rows


def rows(skill: str, seed: int, num_train: int = 600, num_dev: int = 150) -> tuple[list[dict], list[dict]]:
    """Train rows and dev items of a skill, as `messages`; train rows may repeat, dev items may not."""
    r = random.Random(f"{skill} {seed}")
    made = {split: _endless(skill, r, split) for split in (False, True)}
    dev: dict[str, dict] = {}
    for _, (prompt, answer) in zip(range(100 * num_dev), made[True], strict=False):
        dev.setdefault(prompt, _row(prompt, answer))
        if len(dev) == num_dev:
            break
    train = (_row(prompt, answer) for prompt, answer in made[False] if prompt not in dev)
    return [next(train) for _ in range(num_train)], list(dev.values())


def _endless(skill: str, r: random.Random, is_dev: bool) -> Iterator[tuple[str, str]]:
    while True:
        for language in ("zh", "en"):
            yield SKILLS[skill](r, language, is_dev)


def _row(prompt: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
