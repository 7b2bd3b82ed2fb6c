"""Measure what the nano model can do, with sentences, names and value shapes of its own.

    python scripts/measure_nano.py                          500 items per ability, greedy
    python scripts/measure_nano.py --num_items 60 --model runs/nano/model --show_failures 3

Shares nothing with the generator that trained the model (scripts/nano_data.py): no frame, no name list, no value maker.
What both must agree on is stated once in the package: the context block, the two fixed sentences for "not there", the
list of facts (evergreen/model/nano/facts.json), and that sums with (3a + 7b) % 10 == 1 are kept out of training. A table
for people comes first, then one line of JSON.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NANO = Path(__file__).resolve().parent.parent / "evergreen" / "model" / "nano"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Item:
    """A prompt and the test that its answer must pass; `begun` is put behind the assistant's head before generating."""

    prompt: str
    passes: Callable[[str], bool]
    wanted: str
    begun: str = ""


def exactly(text: str) -> Callable[[str], bool]:
    return lambda answer: answer.strip() == text


# --- identity ----------------------------------------------------------------------------------------------------

IDENTITY = dict(
    zh="""可以把你的名字告诉我吗?|冒昧问一句,你叫什么?|我应该怎样叫你才好?|你好呀,你是哪一个AI助手?|能不能做一下自我介绍?|请说出你的名字|屏幕那头的你是谁呀?|你的开发团队是哪个?|请问是谁把你开发出来的?|谁开发的你呢?
研发你的人是谁?|你是哪个公司做的AI?|想知道是谁训练出你的|你的创建者叫什么名字?|你就是那个ChatGPT吗|你该不会是Claude吧?|你是OpenAI训练的模型吗?|你和通义千问是同一个模型吗?|请用一句话介绍你自己|你算是什么样的模型呢?|先告诉我你是谁
你叫什么呀|你是什么来头?|你是由哪个团队打造的?|谁是你的开发者?""",
    en="""Mind telling me your name?|Hey, what do they call you?|Before we start, who are you?|And you are?|Could I ask what your name is?|Please say who you are.|What is the name of this assistant?|I'd love to hear who you are.|Who exactly developed you?
Which people built you?|Can I know who created you?|Who was it that made you?|What team made you?|Tell me, who trained you?|Which company developed you?|Is ChatGPT who you are?|Are you in fact Claude?|You aren't Qwen, are you?|Were you built by OpenAI?|Did Google create you?
Give a brief introduction of yourself.|What AI model am I talking with?|Hi, who's there?|What sort of model are you?|Who can take credit for making you?""")


def identity(r: random.Random, language: str) -> Item:
    name, maker = "Evergreen Nano", ("Evergreen 团队" if language == "zh" else "Evergreen team")
    prompt = r.choice(IDENTITY[language].replace("\n", "|").split("|"))
    return Item(prompt, lambda answer: name in answer and maker in answer, f"... {name} ... {maker} ...")


# --- context -----------------------------------------------------------------------------------------------------

HEADS_ZH = "沐风 岩桂 汀兰 苍梧 霁月 鹿鸣 蓬莱 朔方 瀚海 若水 栖霞 青禾 墨染 归雁 梨花 钟灵 毓秀 扶桑 龙吟 虎啸 玉衡 太白 九章 问天 祝融 羲和 悟空 海燕 雪莲 木棉".split()
TAILS_ZH = "电饭煲 扫地机 投影仪 望远镜 咖啡机 热水器 录音笔 滑雪板 帐篷 吉他 缝纫机 风扇 门锁 童车 钢笔 植物园 动物园 气象站 天文台 养老院 幼儿园 合唱团 足球队 俱乐部 律所 诊所 茶馆 客栈 牧场 果园 渡轮 缆车 卫星 火箭 算法 编辑器 输入法 浏览器 词典 周刊".split()
SURNAMES = "欧阳 司马 诸葛 上官 岑 褚 柏 裴 闻 靳 桑 邬 祁 盛 莫 尹 倪 施 贝 骆".split()
GIVEN = "慕言 知夏 予安 景行 若谷 清越 怀瑾 听澜 子衿 云舒 承泽 望之 砚秋 书瑶 星野 南乔 沛然 伯庸 静姝 修远".split()
TOWNS_ZH = "临溪县 白鹿原 桐花巷 石门镇 雁栖湖 曲江新区 枫桥路88号 望海街道 平乐古城 三岔口 乌拉特旗 芦苇荡 老君山 凤凰台 鱼梁洲".split()
FIRMS_ZH = "中原重工 宏图电子 四海物流 新纪元动力 天工机械厂 恒信食品 瑞丰乳业 东方航电 普惠软件 百草堂药业".split()
HEADS_EN = "Quillmark Thornbury Emberline Harrowgate Pinewhistle Copperleaf Nightjar Saltmarsh Wrenfield Juniper Larkspur Basalt Marigold Tamarind Oakhurst Driftwood Kestrel Peregrine Halcyon Zephyrine Bluefinch Ironwood Foxglove Sundial Moonstone".split()
TAILS_EN = "Toaster Kettle Telescope Projector Tent Guitar Vacuum Heater Blender Scooter Kayak Observatory Clinic Nursery Orchard Vineyard Brewery Choir Ferry Satellite Compiler Browser Codebase Thesaurus Quarterly Zoo Aquarium Inn Lighthouse Ranch".split()
PEOPLE_EN = "Margaret Okafor;Tobias Lindqvist;Priya Raman;Hassan El-Amin;Yuki Tanabe;Beatrix Holloway;Mateo Villanueva;Ingrid Haugen;Callum Fraser;Soraya Daneshvar;Rufus Whitcombe;Anneliese Brandt;Dmitri Volkov;Odette Marchand;Wendell Pryce".split(";")
TOWNS_EN = "Ashby Hollow;Fort Dunmore;17 Mill Lane;Castlebrook;Greywater;Lindenburg;Port Sorrel;East Wickham;Saint Orsola;the Tamar Valley;Rosscommon;Upper Thackley".split(";")
FIRMS_EN = "Hartmann & Sons;Bellweather Foods;Orion Dynamics;Caldera Software;Northgate Mills;Silverline Motors;Pacific Loom Company;Greenbank Dairy;Atlas Instruments;Redstone Brewing".split(";")


def person(r: random.Random, language: str) -> str:
    return r.choice(SURNAMES) + r.choice(GIVEN) if language == "zh" else r.choice(PEOPLE_EN)


def subject(r: random.Random, language: str) -> str:
    if language == "zh":
        return r.choice(HEADS_ZH) + r.choice(["", "", f"{r.randint(100, 999)}型", f"S{r.randint(1, 20)}", "牌"]) + r.choice(TAILS_ZH)
    return f"{r.choice(HEADS_EN)} {r.choice(TAILS_EN)}" + r.choice(["", "", f" {r.randint(2, 900)}", f" Mk{r.randint(2, 9)}"])


def shown(r: random.Random, kind: str, language: str) -> str:
    """A value in a shape of its own: grouped thousands, long versions, weekdays, several units."""
    zh = language == "zh"
    n = r.randint(2, 9999)
    day = f"{r.randint(1998, 2033)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
    choices = {
        "money": [f"{n}元", f"{n}.{r.randint(1, 99):02d}元", f"人民币{n}元"] if zh else [f"{n} dollars", f"${n}.{r.randint(10, 99)}", f"{n} francs"],
        "weight": [f"{n}克", f"{n / 10}公斤"] if zh else [f"{n} grams", f"{n / 10} kilos"],
        "length": [f"{n}米", f"{n / 100}公里"] if zh else [f"{n} meters", f"{n / 100} km"],
        "hours": [f"{r.randint(2, 90)}小时", f"{r.randint(2, 90)}个半小时"] if zh else [f"{r.randint(2, 90)} hours", f"{r.randint(2, 90)} and a half hours"],
        "years": [f"{r.randint(1, 15)}年", f"{r.randint(2, 60)}个月"] if zh else [f"{r.randint(2, 15)} years", f"{r.randint(2, 60)} months"],
        "people": [f"{n}人", f"{n}位"] if zh else [f"{n} people", f"{n} persons"],
        "percent": [f"{n / 100}%", f"百分之{r.randint(2, 98)}"] if zh else [f"{n / 100}%", f"{r.randint(2, 98)} percent"],
        "date": [day, f"{day[:4]}年{int(day[5:7])}月{int(day[8:])}日"] if zh else [day, f"{r.randint(1, 28)} {r.choice(['May', 'June', 'October', 'December'])} {day[:4]}"],
        "clock": [f"{r.randint(6, 23)}:{r.randint(10, 59)}", f"上午{r.randint(6, 11)}点"] if zh else [f"{r.randint(6, 23)}:{r.randint(10, 59)}", f"{r.randint(1, 12)} o'clock"],
        "version": [f"v{r.randint(0, 9)}.{r.randint(0, 30)}.{r.randint(0, 99)}", f"{r.randint(1, 40)}.{r.randint(0, 9)}"],
        "person": [person(r, language)], "place": [r.choice(TOWNS_ZH if zh else TOWNS_EN)], "firm": [r.choice(FIRMS_ZH if zh else FIRMS_EN)],
        "colour": ["湖蓝色", "象牙白", "砖红色", "草绿色", "藏青色"] if zh else ["teal", "ivory", "brick red", "olive green", "crimson"],
        "stuff": ["杉木", "镀锌钢", "磨砂玻璃", "再生塑料", "牛皮"] if zh else ["cedar", "galvanized steel", "frosted glass", "recycled plastic", "cowhide"],
        "mail": [f"{r.choice(['sales', 'hello', 'office', 'team'])}{r.randint(1, 99)}@{r.choice(['quillmark', 'orionlab', 'nanting'])}.{r.choice(['com', 'cn', 'org'])}"],
        "call": [f"0{r.randint(10, 99)}-{r.randint(1000000, 9999999)}", f"+{r.randint(1, 99)} {r.randint(100, 999)} {r.randint(1000, 9999)}"],
    }
    return r.choice(choices[kind])


# kind | what lines say | what is asked
ATTRIBUTES = dict(
    zh="""
money|{s}本周的售价是{v}。/目前购买一台{s}的价格为{v}。/商城里{s}标出的价格是{v},数量有限。|{s}现在要多少钱?/{s}卖什么价?/我想买{s},价格是多少?
weight|{s}称下来的重量是{v}。/{s}的机身重{v}。|想知道{s}有多少重量/{s}到底有多重?
length|测得{s}的长度为{v}。/{s}从头到尾长{v}。|{s}的总长度是多少?/{s}究竟有多长?
hours|{s}充满电后可以续航{v}。/一次充电,{s}可使用{v}。|{s}的续航表现如何?/充满电的{s}可以用多久?
years|{s}提供{v}的保修。/厂家给{s}的保修期为{v}。|{s}的保修期有多长?/{s}可以保修多久?
people|{s}如今共有员工{v}。/{s}的员工数已达{v}。|{s}有多少名员工?/{s}的员工总数是多少?
percent|{s}的同比增长率是{v}。/{s}今年增长了{v}。|{s}的增长率是几?/{s}今年增长多少?
date|{s}的发布日期已敲定:{v}。/官方确认{s}将于{v}正式发布。|{s}会在什么时候发布?/{s}的发布时间是哪一天?
date|{s}最早成立于{v}。/登记表上{s}的成立时间是{v}。|{s}成立于何时?/{s}在哪一年哪一天成立?
clock|{s}每天的开门时间是{v}。/{s}一般{v}开门迎客。|{s}每天几点开门?/{s}的开门时间是几点钟?
version|{s}当前的最新版本为{v}。/{s}本月升级到了{v}版本。/{s}推送了新版本{v}。|{s}最新的版本号是哪个?/{s}升级到什么版本了?
person|{s}的创始人名叫{v}。/{s}最初由{v}一手创办。|{s}的创始人究竟是谁?/是谁创办了{s}?
person|现在{s}由{v}担任负责人。/{s}的新任负责人是{v}。|现在是谁负责{s}?/{s}的负责人是哪位?
person|{s}出自设计师{v}。/{s}由设计师{v}设计完成。|是谁设计了{s}?/为{s}操刀的设计师是谁?
place|{s}如今位于{v}。/{s}的新地址在{v}。|{s}位于什么地方?/{s}的地址在哪儿?
place|{s}的总部在{v}。/{s}已把总部搬到{v}。|{s}的总部设在哪里?/{s}的总部在什么地方?
firm|{s}是{v}生产的。/铭牌上写着{s}的生产商是{v}。|{s}是哪家公司生产的?/{s}由哪个厂家生产?
firm|{s}背后的开发商为{v}。/{s}是由{v}开发的。|{s}的开发商是哪一家?/是哪家公司开发了{s}?
colour|{s}的外壳颜色是{v}。/{s}选用了{v}作为颜色。|{s}的颜色是哪一种?/{s}的外壳是什么颜色?
stuff|{s}采用的材料是{v}。/{s}的主体用{v}制作。|{s}用的是什么材料?/{s}由什么材料制作?
mail|{s}公布了联系邮箱:{v}。/给{s}写邮件请发到{v}。|{s}的邮箱地址是什么?/往哪个邮箱联系{s}?
call|{s}的客服电话为{v}。/咨询{s}请拨打电话{v}。|{s}的客服电话是多少?/联系{s}要打什么电话?
""", en="""
money|This week {s} is on sale at a price of {v}./The shop charges {v} for {s}./{s} has a new price tag: {v}.|How much would {s} cost me?/At what price is {s} sold?/What is the price of {s} this week?
weight|On the scale {s} has a weight of {v}./{s} weighs exactly {v}.|What's the weight of {s} in total?/What did {s} weigh on the scale?
length|{s} has a measured length of {v}./From end to end {s} is {v} long.|How long is {s} exactly?/What is the measured length of {s}?
hours|With a full battery {s} lasts {v}./The battery life of {s} reaches {v}.|How long does the battery of {s} last?/What battery life does {s} offer?
years|Buyers of {s} get a warranty of {v}./{s} is sold with a warranty of {v}.|What warranty comes with {s}?/How long is the warranty of {s}?
people|{s} now employs {v} in all./The staff of {s} has grown to {v}.|How many people does {s} employ?/How big has the staff of {s} become?
percent|{s} reported growth of {v} this year./This year {s} grew {v}.|How much growth did {s} report?/How much did {s} grow this year?
date|{s} is going to be released on {v}./The release date of {s} was set to {v}.|On which date is {s} released?/When will {s} be released?
date|{s} was originally founded on {v}./The founding date of {s} is given as {v}.|When exactly was {s} founded?/On what day was {s} founded?
clock|{s} opens its gates at {v}./The opening time of {s} is set for {v}.|What time does {s} open?/At what time does {s} open its gates?
version|The newest version of {s} is {v}./{s} has just moved to version {v}./Users of {s} can now install version {v}.|What version is {s} at now?/Which version of {s} is the newest?
person|{s} was started years ago by its founder {v}./It was founder {v} who gave life to {s}.|Who was the founder of {s}?/By whom was {s} founded?
person|{s} is currently managed by {v}./The new manager of {s} is {v}.|Who currently manages {s}?/Who is the new manager of {s}?
person|{s} is the work of designer {v}./Critics praised {v}, designer of {s}.|By whom was {s} designed?/Who was the designer of {s}?
place|Visitors find {s} in {v}./{s} is now located in {v}.|Where is {s} located now?/In what place can visitors find {s}?
place|The headquarters of {s} are in {v}./{s} moved its headquarters to {v}.|Where are the headquarters of {s}?/Where does {s} have its headquarters?
firm|{s} is manufactured by {v}./Its label names {v} as manufacturer of {s}.|By which company is {s} manufactured?/What company manufactures {s}?
firm|{s} was developed over years by {v}./Behind {s} stands its developer {v}.|By whom was {s} developed?/Which company developed {s}?
colour|This season the color of {s} is {v}./{s} is available only in the color {v}.|In which color is {s} available?/What is the color of {s} like?
stuff|The body of {s} is made of {v}./As its material {s} uses {v}.|From what material is {s} made?/What material does {s} use?
mail|Mail for {s} goes to the email address {v}./{s} can be reached by email at {v}.|At which email address can {s} be reached?/To what email address can I write for {s}?
call|Dial {v}, the phone number of {s}./{s} can be reached by phone at {v}.|At what phone number can {s} be reached?/What is the phone number to dial for {s}?
""")
BLOCK = dict(
    zh="[最新知识]\n{lines}\n请根据以上信息回答下列问题,用[编号]注明来源;信息不足时回答“根据现有信息无法回答。”\n问题:{question}",
    en='[Latest knowledge]\n{lines}\nAnswer the question from the information above and cite sources as [n]; '
       'if it is not there, answer "I cannot answer from the information given."\nQuestion: {question}')
ABSTENTION = dict(zh="根据现有信息无法回答。", en="I cannot answer from the information given.")
SITES = "factbook.info weiji.cn gazette.test daily.press handbook.dev zhidao.net archive.museum bulletin.gov".split()


def attributes(language: str) -> list[list[str]]:
    return [row.split("|") for row in ATTRIBUTES[language].strip().splitlines()]


def block(r: random.Random, language: str) -> tuple[list[str], dict[tuple[str, int], tuple[str, int]]]:
    """1 to 5 lines and what they say: {(subject, attribute row): (value, line number)}."""
    known = attributes(language)
    subjects = [subject(r, language) for _ in range(r.randint(1, 3))]
    rows = r.sample(range(len(known)), 3)
    pairs = list({(s, row) for s in subjects for row in rows})
    pairs.sort()
    lines, told = [], {}
    for number, (s, row) in enumerate(r.sample(pairs, min(len(pairs), r.randint(1, 5))), 1):
        kind, sentences, _ = known[row]
        value = shown(r, kind, language)
        title = r.choice([s + (":" if language == "zh" else ": "), ""])
        day = f"20{r.randint(20, 28)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
        lines.append(f"[{number}] ({day} {r.choice(SITES)}) {title}{r.choice(sentences.split('/')).format(s=s, v=value)}")
        told[s, row] = (value, number)
    return lines, told


def asked(r: random.Random, language: str, lines: list[str], s: str, row: int) -> str:
    question = r.choice(attributes(language)[row][2].split("/")).format(s=s)
    return BLOCK[language].format(lines="\n".join(lines), question=question)


def context(r: random.Random, language: str) -> Item:
    lines, told = block(r, language)
    (s, row), (value, number) = r.choice(list(told.items()))
    answer = f"{value}[{number}]。" if language == "zh" else f"{value} [{number}]."
    return Item(asked(r, language, lines, s, row), exactly(answer), answer)


def abstention(r: random.Random, language: str) -> Item:
    """Half: a subject that no line names. Half: a named subject, an attribute that no line tells of it."""
    lines, told = block(r, language)
    kinds = attributes(language)
    if r.random() < 0.5:
        s, row = subject(r, language), r.choice(list(told))[1]
        while any(s == other for other, _ in told):
            s = subject(r, language)
    else:
        s = r.choice(list(told))[0]
        taken = {kinds[row][0] for other, row in told if other == s}
        row = r.choice([i for i in range(len(kinds)) if kinds[i][0] not in taken])
    return Item(asked(r, language, lines, s, row), exactly(ABSTENTION[language]), ABSTENTION[language])


# --- tables, facts, sums -----------------------------------------------------------------------------------------

HEADERS = dict(zh="员工 工号 籍贯 车次 票价 气温 航班号 座位 商品 折扣 仓库 队名 积分 专业 导师 房号 菜名 辣度 星期 天气".split(),
               en="player points stream height_m planet moons dish calories flight gate tenant suite shelf sku vessel dock crop yield weekday weather".split())
TABLE_FRAMES = dict(
    zh="请将这份表格改成JSON格式:\n{t}|下表用JSON怎么写?\n{t}|帮我把这些数据整理成JSON:\n{t}|{t}\n请把这张表变成JSON。",
    en="Please turn the table below into JSON:\n{t}|How does this table look as JSON?\n{t}|Transform these rows to JSON:\n{t}|{t}\nConvert the table above into JSON, please.")
FACT_FRAMES = dict(
    zh=dict(capital="{s}的首都位于哪座城市?|请说出{s}的首都是哪里|我忘了{s}的首都叫什么", symbol="{s}在元素周期表里的符号是什么?|请问元素{s}的化学符号是什么?|用什么化学符号表示{s}?", author="《{s}》这部作品的作者是谁?|请问是谁写了《{s}》?|我想知道《{s}》的作者是哪位"),
    en=dict(capital="Which city serves as the capital of {s}?|What city would be the capital of {s}?|I forgot the capital of {s}, what is it?", symbol="Which chemical symbol does {s} have?|By which symbol is the element {s} known?|What do chemists use as the symbol for {s}?",
            author="Who is known as the author of {s}?|Which author wrote {s}?|I wonder who wrote {s}."))
SUM_FRAMES = dict(zh="请问{a}加{b}得几?|{a}+{b}等于几?|帮我算算{a}加{b}|书架上有{a}本书,又放上{b}本,共有多少本?|{a}与{b}相加的结果是?",
                  en="Please add {a} and {b}.|What do you get for {a} + {b}?|Work out {a} plus {b}.|A shelf holds {a} books and another {b}. How many books are there altogether?|{a} + {b} is what?")


def table(r: random.Random, language: str) -> Item:
    names = r.sample(HEADERS[language], r.randint(2, 4))
    kinds = [r.choice(["person", "place", "firm", "date", "version", "weight", "colour", "clock", "count"]) for _ in names]
    rows = [[str(r.randint(1, 5000)) if kind == "count" else shown(r, kind, language) for kind in kinds] for _ in range(r.randint(1, 4))]
    if r.random() < 0.5:
        text = "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *rows])
    else:
        text = "\n".join(",".join(row) for row in [names, *rows])
    wanted = [dict(zip(names, row, strict=True)) for row in rows]
    return Item(r.choice(split(TABLE_FRAMES[language])).format(t=text),
                lambda answer: parsed(answer) == wanted, json.dumps(wanted, ensure_ascii=False))


def split(frames: str) -> list[str]:
    return frames.split("|")


def parsed(answer: str) -> object:
    try:
        return json.loads(answer)
    except ValueError:
        return None


def fact(r: random.Random, language: str) -> Item:
    row = r.choice(json.loads((NANO / "facts.json").read_text(encoding="utf-8")))
    s, value = row[language]
    wanted = value + ("。" if language == "zh" else ".")
    return Item(r.choice(split(FACT_FRAMES[language][row["relation"]])).format(s=s), exactly(wanted), wanted)


def addition(r: random.Random, language: str, begun: str = "") -> Item:
    a = b = 0
    while (3 * a + 7 * b) % 10 != 1:
        a, b = r.randint(10, 99), r.randint(10, 99)
    total = str(a + b)

    def passes(answer: str) -> bool:
        thought, closed, rest = answer.rpartition("</think>")
        return rest.strip() == total and (bool(begun) or bool(closed) and "<think>" in thought)

    return Item(r.choice(split(SUM_FRAMES[language])).format(a=a, b=b), passes, total, begun)


def addition_without_thought(r: random.Random, language: str) -> Item:
    return addition(r, language, EMPTY_THOUGHT)


ABILITIES = {"identity": identity, "context": context, "abstention": abstention, "table": table, "fact": fact,
             "addition": addition, "addition_without_thought": addition_without_thought}
MAX_NEW_TOKENS = {"table": 400}

# --- measuring ---------------------------------------------------------------------------------------------------


def answers(model, tokenizer, items: list[Item], max_new_tokens: int, batch_size: int = 25) -> list[str]:
    """Greedy answers; items of similar length share a batch."""
    import torch

    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": item.prompt}], tokenize=False, add_generation_prompt=True) + item.begun
               for item in items]
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    texts = [""] * len(items)
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        batch = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=max_new_tokens, do_sample=False)
        for i, text in zip(chosen, tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True), strict=True):
            texts[i] = text
    return texts


def measure(model, tokenizer, ability: str, num_items: int, seed: int) -> tuple[list[Item], list[str]]:
    r = random.Random(f"{seed} {ability}")
    items = [ABILITIES[ability](r, ("zh", "en")[i % 2]) for i in range(num_items)]
    return items, answers(model, tokenizer, items, MAX_NEW_TOKENS.get(ability, 48))


def report(ability: str, items: list[Item], texts: list[str], show_failures: int) -> dict[str, float]:
    right = [item.passes(text) for item, text in zip(items, texts, strict=True)]
    scores = {"all": sum(right) / len(right), "zh": sum(right[::2]) / len(right[::2]), "en": sum(right[1::2]) / len(right[1::2])}
    print(f"{ability:26s}{scores['all']:7.1%}{scores['zh']:8.1%}{scores['en']:8.1%}{len(items):7d}", flush=True)
    for item, text in [(i, t) for i, t, ok in zip(items, texts, right, strict=True) if not ok][:show_failures]:
        print(f"    asked   {item.prompt!r}\n    wanted  {item.wanted!r}\n    got     {text!r}")
    return {language: round(score, 4) for language, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(NANO))
    parser.add_argument("--num_items", type=int, default=500, help="per ability, half Chinese and half English")
    parser.add_argument("--abilities", nargs="+", choices=list(ABILITIES), default=list(ABILITIES))
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show_failures", type=int, default=0)
    args = parser.parse_args()

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
    began = time.monotonic()
    print(f"{'ability':26s}{'right':>7s}{'zh':>8s}{'en':>8s}{'items':>7s}")
    scores = {ability: report(ability, *measure(model, tokenizer, ability, args.num_items, args.seed), args.show_failures) for ability in args.abilities}
    print(json.dumps({"num_items": args.num_items, "seconds": round(time.monotonic() - began), "scores": scores}))


if __name__ == "__main__":
    main()
