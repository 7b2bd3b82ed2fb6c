"""Generated conversations that teach the nano model its abilities, in Chinese and English.

Promises: everything comes from a `random.Random` that the caller seeds, so the same seed gives the same conversations;
names and values come from spaces far larger than training can visit, so looking pays and memorising does not.
Does not: read files other than the list of facts that ships with the model, measure anything (scripts/measure_nano.py
has a generator of its own, with other frames), or know tokens.

A conversation is a list of (role, text) pairs; every assistant turn is a target. A text that is None for the role
"raw" is plain text instead (see `facts_raw`).
"""

import json
import random
import string
from functools import cache
from pathlib import Path

import nano_words as words

Turns = list[tuple[str, str]]

FACTS = Path(__file__).resolve().parent.parent / "evergreen" / "model" / "nano" / "facts.jsonl"

ENGLISH_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part place case week
company system program question work government number night point home water room mother area money story fact month lot right study
book eye job word business issue side kind head house service friend father power hour game line end member law car city community name
president team minute idea kid body information back parent face others level office door health person art war history party result
change morning reason research girl guy moment air teacher force education table chair lamp camera phone computer printer router server
battery engine wheel bridge river mountain lake island forest garden park museum library hospital station airport harbor tower castle
bread milk coffee tea sugar salt rice apple orange lemon banana cherry grape peach pear melon onion potato carrot tomato pepper garlic
chicken beef fish soup cake cookie candy juice wine beer cheese butter egg honey chocolate paper pencil pen ruler eraser notebook bag box
bottle cup plate bowl knife fork spoon blanket pillow mirror clock watch ring necklace shirt jacket coat dress shoe hat glove scarf belt
red orange yellow green blue purple black white gray brown pink silver gold bronze copper iron steel aluminum titanium glass plastic wood
bamboo cotton wool silk leather rubber marble granite ceramic concrete carbon fiber stainless solid light dark bright deep pale navy
big small large tiny new old young long short high low fast slow hot cold warm cool early late early quiet loud clean dirty dry wet soft
hard strong weak rich poor full empty open closed safe happy sad kind brave calm clever gentle proud simple smart round square flat wide
narrow thick thin heavy fresh sweet sour bitter spicy local global public private main final daily weekly monthly annual total average
is are was were be been being have has had do does did will would can could should may might must the a an and or but if because as until
while of at by for with about against between into through during before after above below to from up down in out on off over under again
further then once here there when where why how all any both each few more most other some such no nor not only own same so than too very
what who which whose whom this that these those I you he she it we they me him her us them my your his its our their mine yours
say go get make know think take see come want look use find give tell ask work seem feel try leave call put keep let begin help show hear
play run move live believe bring happen write provide sit stand lose pay meet include continue set learn lead understand watch follow stop
create speak read allow add spend grow open walk win offer remember love consider appear buy wait serve die send expect build stay fall cut
reach remain suggest raise pass sell require report decide pull return explain hope develop carry break receive agree support hit produce
price cost weight height width length speed capacity address owner manager founder director author editor designer capital symbol color
version release date email website contact license warranty material origin population temperature distance duration frequency license
currently now latest according official updated since located based known called named made founded established opened launched costs weighs
measures holds lasts starts ends contains supports ships repeat exactly following text please answer write copy echo list line rows table
json convert object value key column header record item entry source note hello hi thanks thank bye good evening welcome fine sorry help
tell model language assistant evergreen nano team made develop built small what sum plus add equals one two three four five six seven eight
nine ten eleven twelve twenty thirty hundred thousand million January February March April May June July August September October November
December Monday Tuesday Wednesday Thursday Friday Saturday Sunday dollars euros pounds kilograms grams meters kilometers liters hours
minutes seconds days weeks months years percent degrees people seats floors pages rooms watts volts users units cannot given information
latest knowledge above cite sources there question Evergreen Nano The What Who Where When How Which Answer Latest Question I Is Please
engineer doctor nurse driver pilot farmer artist singer writer lawyer clerk chef baker guard judge captain sailor scientist professor
north south east west central upper lower inner outer royal grand silver golden crystal eagle falcon tiger lion wolf bear fox hawk swan
river stone field wood hill lake bay port bridge ford dale haven crest ridge valley summit harbor meadow brook cliff grove spring
""".split()

SYLLABLES = """ba be bi bo bu da de di do du fa fe fi fo fu ga ge gi go gu ha he hi ho hu ja je jo ju ka ke ki ko ku la le li lo lu ma me mi
mo mu na ne ni no nu pa pe pi po pu ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we wi wo ya yo yu za ze zi zo zu an en in on
un ar er ir or ur al el il ol ul am em im om as es is os us bra bre bri dra dre dro fra fre gra gre gro kra kri tra tre tri tro pla ple
plo bla ble blo cla cle clo sta ste sti sto sha she shi sho tha the thi tho qua que qui nar vel mon ton dor ven lin mar ric wick ford ham
ley ston berg stein sen vik nov ski shaw worth""".split()

GIVEN_EN = """James Mary Robert Linda John Susan David Karen Peter Nancy Mark Lisa Paul Emma Kevin Laura Brian Alice George Helen Edward
Grace Henry Julia Frank Diana Oscar Clara Victor Irene Simon Nora Leo Ruth Felix Ivy Hugo Stella Max Elena Adam Maya Noah Zoe Liam Ava""".split()
SURNAMES_ZH = list("王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范")
GIVEN_ZH = list("伟芳娜敏静丽强磊军洋勇艳杰娟涛明超霞平刚桂英华文建国志玉婷雪晨宇轩浩然子涵梓欣怡嘉俊思远博雅诗雨泽瑞佳琪梦")
WORDS_ZH = """青石 云岭 晨光 星河 远山 长风 明月 春雨 秋水 松涛 竹影 红杉 白鹭 海棠 金桥 银杏 蓝湾 碧波 丹霞 玄武 启明 天枢 北辰 南屏 东篱 西塘 阿尔法 贝塔
伽马 极光 量子 智联 万象 百川 千寻 同心 和光 致远 知行 博观 凌云 飞鸿 初雪 半夏 听雨 望舒 扶摇 沧海 流光 浮云 朝露 晚晴 疾风 劲草""".split()
THINGS_ZH = """相机 手机 茶 咖啡 电脑 平板 耳机 音箱 路由器 打印机 台灯 书包 水杯 自行车 汽车 无人机 机器人 手表 冰箱 空调 洗衣机 电视 键盘 鼠标 显示器 公司 集团
学校 大学 医院 图书馆 博物馆 餐厅 酒店 公园 小区 车站 机场 码头 大桥 隧道 水库 农场 工厂 银行 超市 书店 剧院 体育馆 研究所 实验室 基金 项目 计划 系统 平台 软件 应用 协议
数据库 引擎 服务 会议 论坛 比赛 展览 音乐节 课程 小说 电影 杂志 游戏 药 面包 牛奶 果汁 饼干 大米 面条 山 河 湖 岛 村 镇 县 市 路 塔 桥 号 杯 奖 站 馆 店 社 团""".split()
THINGS_EN = """Cam Phone Tablet Lamp Router Printer Drone Robot Watch Bike Car Engine Server Database Library Museum Hotel Cafe Restaurant
Hospital School College Institute Lab Factory Farm Bank Market Bookstore Theater Stadium Park Bridge Tunnel Tower Station Airport Harbor
Dam Lake River Mountain Island Village Town County Street Group Company Corp Systems Studio Project Platform App Protocol Service Summit
Forum Festival Award Course Novel Film Magazine Game Tea Coffee Bread Juice Cheese Cup Fund Club Team Society Association""".split()
COLOURS = dict(zh="红色 橙色 黄色 绿色 蓝色 紫色 黑色 白色 灰色 棕色 粉色 银色 金色 深蓝色 浅绿色 墨绿色 米白色 天蓝色 酒红色".split(),
    en="red;orange;yellow;green;blue;purple;black;white;gray;brown;pink;silver;gold;dark blue;light green;navy blue;pale yellow".split(";"))
MATERIALS = dict(zh="不锈钢 铝合金 钛合金 碳纤维 玻璃 陶瓷 塑料 橡木 竹子 纯棉 羊毛 真丝 皮革 橡胶 大理石 花岗岩 混凝土 铜 铸铁 亚麻 胡桃木".split(),
    en="stainless steel;aluminum;titanium;carbon fiber;glass;ceramic;plastic;oak wood;bamboo;cotton;wool;silk;leather;rubber;marble;"
       "granite;concrete;copper;cast iron;linen;walnut wood".split(";"))
MONTHS = "January February March April May June July August September October November December".split()

# --- names and values --------------------------------------------------------------------------------------------


@cache
def common_han() -> list[str]:
    """The 3,755 characters of GB 2312's first level, in its own order."""
    cells = [bytes([row, cell]) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)]
    return [char for char in (cell.decode("gb2312", "ignore") for cell in cells) if char]


def han(r: random.Random, low: int, high: int) -> str:
    """Random characters; one name in twenty uses the whole Unicode block, most of it rare."""
    count = r.randint(low, high)
    if r.random() < 0.05:
        return "".join(chr(r.randint(0x4E00, 0x9FA5)) for _ in range(count))
    return "".join(r.choices(common_han(), k=count))


def coined(r: random.Random, low: int = 2, high: int = 3) -> str:
    """An English-looking word that does not exist."""
    return "".join(r.choices(SYLLABLES, k=r.randint(low, high)))


def code(r: random.Random) -> str:
    letters = "".join(r.choices(string.ascii_uppercase, k=r.randint(1, 3)))
    digits = str(r.randint(1, 10 ** r.randint(1, 4)))
    return r.choice([f"{letters}-{digits}", f"{letters}{digits}", f"{letters}{digits}-{r.choice(string.ascii_uppercase)}",
                     f"{digits}{letters}", f"{letters.lower()}_{digits}"])


def name_zh(r: random.Random) -> str:
    kind = r.random()
    if kind < 0.35:
        return han(r, 2, 4) + r.choice(THINGS_ZH)
    if kind < 0.55:
        return r.choice(WORDS_ZH) + r.choice(["", han(r, 1, 2)]) + r.choice(THINGS_ZH)
    if kind < 0.7:
        return han(r, 2, 5)
    if kind < 0.8:
        return r.choice([han(r, 2, 3), r.choice(WORDS_ZH)]) + r.choice([code(r), f"{r.randint(1, 99)}号", f"{r.randint(2, 30)}代"])
    if kind < 0.88:
        return r.choice([code(r), coined(r).title()]) + r.choice([" ", ""]) + r.choice(THINGS_ZH)
    if kind < 0.94:
        return person_zh(r)
    return coined(r).title()


def name_en(r: random.Random) -> str:
    kind = r.random()
    first = coined(r, 1, 3).title() if r.random() < 0.75 else r.choice(ENGLISH_WORDS).title()
    if kind < 0.5:
        return f"{first} {r.choice(THINGS_EN)}"
    if kind < 0.65:
        return f"{first} {coined(r).title()}"
    if kind < 0.78:
        return first if r.random() < 0.8 else f"the {first}"
    if kind < 0.86:
        return code(r)
    if kind < 0.93:
        return f"{first} {r.choice([str(r.randint(1, 99)), code(r), r.choice(['Pro', 'Mini', 'Max', 'One', 'X', 'Plus'])])}"
    return person_en(r)


def person_zh(r: random.Random) -> str:
    given = r.choices(GIVEN_ZH if r.random() < 0.5 else common_han(), k=r.randint(1, 2))
    return r.choice(SURNAMES_ZH) + "".join(given)


def person_en(r: random.Random) -> str:
    given = r.choice(GIVEN_EN) if r.random() < 0.5 else coined(r).title()
    return r.choice([f"{given} {coined(r).title()}", f"{given} {coined(r).title()}", f"{given[0]}. {coined(r).title()}", f"Dr. {coined(r).title()}"])


def number(r: random.Random) -> str:
    value = r.randint(1, 10 ** r.randint(1, 6))
    form = r.random()
    if form < 0.6:
        return str(value)
    if form < 0.7:
        return f"{value:,}"
    return f"{r.randint(0, 10 ** r.randint(1, 3))}.{r.randint(0, 9) if r.random() < 0.5 else r.randint(10, 99)}"


def date(r: random.Random, language: str) -> str:
    year, month, day = r.randint(1900, 2039), r.randint(1, 12), r.randint(1, 28)
    if r.random() < 0.25:
        return f"{year}-{month:02d}-{day:02d}"
    if language == "zh":
        return r.choice([f"{year}年{month}月{day}日", f"{year}年{month}月", f"{year}年", f"{month}月{day}日"])
    name = MONTHS[month - 1]
    return r.choice([f"{name} {day}, {year}", f"{day} {name} {year}", f"{name} {year}", f"{year}", f"{name} {day}"])


def clock(r: random.Random, language: str) -> str:
    hour, minute = r.randint(0, 23), r.choice([0, 0, 15, 30, 45, r.randint(0, 59)])
    if language == "zh":
        return r.choice([f"{hour}:{minute:02d}", f"早上{r.randint(5, 11)}点", f"下午{r.randint(1, 6)}点半", f"{hour}点{minute:02d}分", f"晚上{r.randint(7, 11)}点"])
    return r.choice([f"{hour}:{minute:02d}", f"{r.randint(1, 12)} a.m.", f"{r.randint(1, 12)}:{minute:02d} p.m."])


def version(r: random.Random) -> str:
    parts = ".".join(str(r.randint(0, 20)) for _ in range(r.randint(2, 3)))
    return r.choice(["v", "v", "", "V"]) + parts + r.choice(["", "", "", "-beta", "-rc1", "b2"])


def place_zh(r: random.Random) -> str:
    stem = han(r, 1, 3) if r.random() < 0.7 else r.choice(WORDS_ZH)
    return stem + r.choice("市县镇村区省州山湖岛路街") + r.choice(["", "", "", f"{r.randint(1, 999)}号", han(r, 1, 2) + "区"])


def place_en(r: random.Random) -> str:
    town = coined(r).title()
    return r.choice([town, town, f"{r.randint(1, 999)} {town} Street", f"{town} County", f"{town}, {coined(r).title()}", f"{r.choice(['North', 'South', 'Port', 'New', 'Lake'])} {town}"])


def organisation_zh(r: random.Random) -> str:
    stem = han(r, 2, 4) if r.random() < 0.6 else r.choice(WORDS_ZH) + han(r, 0, 2)
    return stem + r.choice("公司 集团 大学 研究所 科技 银行 实业 工作室 出版社 制造厂 协会 有限公司 医院 基金会".split())


def organisation_en(r: random.Random) -> str:
    return f"{coined(r).title()} {r.choice('Inc Ltd Group Labs University Bank Works Studio Press Systems Foundation Industries Partners'.split())}"


def domain(r: random.Random) -> str:
    stem = coined(r) if r.random() < 0.6 else r.choice(ENGLISH_WORDS).lower()
    return r.choice(["", "", "", "www.", "news.", "docs."]) + stem + r.choice(["", "", str(r.randint(1, 99)), "-" + coined(r, 1, 2)]) + r.choice([".com", ".org", ".cn", ".net", ".io", ".com.cn", ".example"])


def phrase(r: random.Random, language: str) -> str:
    """A short noun phrase or a few random words, so that values are not only names and numbers."""
    if language == "zh":
        stems = [r.choice(WORDS_ZH), r.choice(THINGS_ZH), han(r, 1, 3), r.choice(COLOURS["zh"]), r.choice(MATERIALS["zh"])]
        return "".join(r.sample(stems, r.randint(1, 3)))
    return " ".join(r.choices(ENGLISH_WORDS, k=r.randint(1, 3))) if r.random() < 0.8 else f"{r.choice(COLOURS['en'])} {coined(r)}"


def name(r: random.Random, language: str) -> str:
    return name_zh(r) if language == "zh" else name_en(r)


def person(r: random.Random, language: str) -> str:
    return person_zh(r) if language == "zh" and r.random() < 0.93 else person_en(r)


def place(r: random.Random, language: str) -> str:
    return place_zh(r) if language == "zh" else place_en(r)


def organisation(r: random.Random, language: str) -> str:
    return organisation_zh(r) if language == "zh" else organisation_en(r)


def web(r: random.Random) -> str:
    return r.choice([f"https://{domain(r)}", f"https://{domain(r)}/{coined(r)}", domain(r)])


def email(r: random.Random) -> str:
    return f"{coined(r)}{r.choice(['', str(r.randint(1, 999))])}@{domain(r)}"


def telephone(r: random.Random) -> str:
    return r.choice([f"{r.randint(10, 999):03d}-{r.randint(10**6, 10**8 - 1)}", f"1{r.randint(3, 9)}{r.randint(10**8, 10**9 - 1)}", f"400-{r.randint(100, 999)}-{r.randint(1000, 9999)}"])


def literal(r: random.Random, language: str) -> str:
    """Anything short: the stuff of copying."""
    makers = [lambda: name(r, language), lambda: name(r, language), lambda: person(r, language), lambda: place(r, language),
              lambda: number(r), lambda: date(r, language), lambda: version(r), lambda: code(r), lambda: phrase(r, language), lambda: phrase(r, language),
              lambda: organisation(r, language), lambda: domain(r), lambda: email(r), lambda: "".join(r.choices(string.ascii_lowercase + string.digits, k=r.randint(2, 8))),
              lambda: han(r, 1, 8), lambda: " ".join(r.choices(ENGLISH_WORDS, k=r.randint(1, 6))), lambda: clock(r, language), lambda: telephone(r),
              lambda: f"{number(r)}{han(r, 1, 1)}"]
    return r.choice(makers)()


# --- copying and look-ups ----------------------------------------------------------------------------------------

COPY_FRAMES = dict(
    zh=["重复:{x}", "请重复:{x}", "复述:{x}", "照抄一遍:{x}", "请原样输出:{x}", "跟我说:{x}", "请说“{x}”", "把这句话再说一遍:{x}", "重复下面的内容:\n{x}", "输出“{x}”", "{x}\n请重复上面的内容。"],
    en=["Repeat: {x}", "Please repeat: {x}", "Say: {x}", "Copy this: {x}", "Echo: {x}", "Write exactly: {x}", "Say \"{x}\"", "Repeat after me: {x}", "Repeat the following text:\n{x}",
        "Please say \"{x}\".", "{x}\nRepeat the line above."])


def copying(r: random.Random, language: str) -> Turns:
    turns: Turns = []
    for _ in range(r.randint(4, 9)):
        text = literal(r, language)
        if r.random() < 0.3:
            text += r.choice([" ", ",", ", ", "、", "/", ": "]) + literal(r, language)
        turns += [("user", r.choice(COPY_FRAMES[language]).format(x=text)), ("assistant", text)]
    return turns


LOOKUP_FRAMES = dict(
    zh=[("{k}:{v}", "\n", "{k}?"), ("{k}={v}", ";", "{k}="), ("{k}是{v}", "。", "{k}是什么?"), ("{k}-{v}", "\n", "{k}对应什么?"), ("{k}|{v}", "\n", "查{k}"), ("{k}为{v}", ",", "{k}?"), ("{k}→{v}", "\n", "{k}的值是?")],
    en=[("{k}: {v}", "\n", "{k}?"), ("{k}={v}", "; ", "{k}="), ("{k} is {v}", ". ", "What is {k}?"), ("{k} - {v}", "\n", "Look up {k}."), ("{k} | {v}", "\n", "{k}"), ("{k} -> {v}", "\n", "What does {k} give?")])


def lookup(r: random.Random, language: str) -> Turns:
    """Keys and values in one turn, then several questions; keys may share their beginning."""
    entry, separator, question = r.choice(LOOKUP_FRAMES[language])
    keys = list({literal(r, language) if r.random() < 0.3 else name(r, language): None for _ in range(r.randint(2, 6))})
    if r.random() < 0.3:
        keys.append(neighbour(r, keys[0], language))
    keys = list(dict.fromkeys(keys))
    pairs = {key: literal(r, language) for key in keys}
    listing = separator.join(entry.format(k=k, v=v) for k, v in pairs.items())
    turns: Turns = []
    for i, key in enumerate(r.sample(keys, min(len(keys), r.randint(2, 5)))):
        ask = question.format(k=key)
        turns += [("user", f"{listing}\n{ask}" if i == 0 else ask), ("assistant", pairs[key])]
    return turns


def neighbour(r: random.Random, subject: str, language: str) -> str:
    """A name that differs from `subject` in one piece: what a careless reader would confuse with it."""
    if language == "zh" or " " not in subject:
        at = r.randrange(len(subject))
        new = r.choice(string.digits) if subject[at].isdigit() else r.choice(common_han()) if ord(subject[at]) > 0x2FFF else r.choice(string.ascii_lowercase)
        return subject[:at] + new + subject[at + 1:]
    words = subject.split(" ")
    words[r.randrange(len(words))] = r.choice([coined(r).title(), r.choice(THINGS_EN)])
    return " ".join(words)


# --- questions on a context block --------------------------------------------------------------------------------

# attribute and its synonyms | kind of value | questions that do not name it | sentences that do not name it
ATTRIBUTES_ZH = """
价格 售价 单价 定价 零售价|money|{s}多少钱 {s}卖多少钱 {s}要多少钱 买{s}要花多少 {s}怎么卖 {s}贵不贵,要多少|{s}售价{v} {s}卖{v} 买一份{s}要{v} {s}只要{v} {s}标价{v}
成本 生产成本 造价|money|造{s}花了多少钱 {s}要花多少来做|造{s}花了{v} {s}造价{v}
门票 票价 入场费|money|进{s}要多少钱 {s}的票多少钱|进{s}要付{v} {s}的票卖{v}
运费 邮费|money|寄{s}要多少钱|寄{s}要{v}
租金 月租 房租|money|租{s}要多少钱|{s}月租{v} 租{s}每月{v}
工资 月薪 薪水|money|{s}一个月挣多少 {s}拿多少钱|{s}每月拿{v} {s}月入{v}
押金 保证金|money|{s}要押多少钱|{s}要押{v}
奖金 奖励|money|{s}奖多少 {s}能得多少奖|{s}奖{v}
营收 年收入 营业额|money|{s}一年赚多少|{s}去年收入{v} {s}全年营收达{v}
融资额 融资|money|{s}融了多少钱|{s}完成{v}融资 {s}融到{v}
重量 净重 体重|u克,千克,公斤,吨,斤|{s}有多重 {s}多重 {s}几斤|{s}重{v} {s}重达{v}
高度 身高|u米,厘米,层|{s}有多高 {s}多高|{s}高{v} {s}高达{v}
长度 全长|u米,公里,厘米,毫米|{s}有多长 {s}多长|{s}全长{v} {s}长{v}
宽度 宽|u米,厘米,毫米|{s}有多宽 {s}多宽|{s}宽{v} {s}宽达{v}
深度 水深|u米,厘米|{s}有多深|{s}深{v} {s}最深处{v}
面积 占地面积|u平方米,亩,公顷,平方公里|{s}有多大 {s}占多大地方|{s}占地{v} {s}面积达{v}
人口 常住人口|u人,万人|{s}有多少人 {s}住着多少人|{s}住着{v} {s}有{v}常住
员工数 员工人数|u人,名|{s}有多少员工 {s}雇了多少人|{s}有员工{v} {s}雇了{v}
会员数 用户数 注册用户|u人,万|{s}有多少用户|{s}有用户{v} 注册{s}的有{v}
容量 容积 存储空间|u升,毫升,GB,TB|{s}能装多少|{s}能装{v} {s}可装{v}
速度 时速 最高速度|u公里/小时,米/秒|{s}有多快 {s}跑多快|{s}每小时能跑{v} {s}最快{v}
功率 额定功率|u瓦,千瓦|{s}多少瓦|{s}耗电{v}
续航 续航时间 电池续航|u小时,分钟,天|{s}能用多久 {s}充一次电用多久|{s}充一次电能用{v} {s}续航{v}
保修期 质保期 保修|u年,个月,天|{s}保修多久 {s}保多久|{s}保修{v} {s}质保{v}
保质期 有效期|u天,个月,年|{s}能放多久|{s}可存放{v} {s}能放{v}
时长 片长 播放时间|u分钟,小时|{s}有多久 {s}要看多久|{s}长达{v} {s}共{v}
年龄 岁数|u岁|{s}多大了 {s}几岁|{s}今年{v} {s}已经{v}了
温度 气温|u度,℃,摄氏度|{s}有多热 {s}多少度|{s}达到{v} {s}热到{v}
海拔 海拔高度|u米|{s}海拔多少|{s}海拔{v}
座位数 座位|u个,座|{s}能坐多少人 {s}有几个座|{s}能坐{v} {s}设座{v}
页数 篇幅|u页|{s}有多少页 {s}有几页|{s}共有{v} {s}厚{v}
楼层 层数|u层|{s}有几层|{s}共{v} {s}有{v}高
房间数 客房数|u间|{s}有多少房间|{s}有客房{v} {s}共有房间{v}
库存 存货 余量|u件,台,箱,个|{s}还剩多少 {s}还有多少货|{s}还剩{v} {s}仓库里有{v}
产量 年产量|u吨,台,万件|{s}产多少 {s}一年出多少|{s}年产{v} {s}一年产出{v}
销量 月销量|u件,台,万台,份|{s}卖了多少件 {s}卖出多少|{s}卖出{v} {s}上月卖了{v}
距离 路程|u公里,米,千米|到{s}有多远 {s}离这里多远|到{s}有{v} {s}离市中心{v}
得分 分数 成绩|u分|{s}得了多少分 {s}考了几分|{s}得了{v} {s}考了{v}
排名 名次|rank|{s}排第几|{s}排在{v} {s}位列{v}
增长率 增幅 涨幅|pct|{s}涨了多少 {s}增长了多少|{s}增长了{v} {s}上涨{v}
合格率 通过率|pct|{s}有多少通过|{s}有{v}通过
折扣 优惠|disc|{s}打几折|{s}打{v} {s}现在{v}
利率 年利率|pct|{s}利息多少|{s}年息{v}
湿度 空气湿度|pct|{s}有多湿|
参赛人数 参加人数 报名人数|u人,名|多少人参加{s} {s}有多少人报名|{v}参加了{s} {s}有{v}报名
分辨率 像素|u像素,万像素|{s}有多清晰|
版本 版本号 最新版本|version|{s}出到哪一版了 {s}现在是第几版 {s}更新到多少了|{s}已更新到{v} {s}升级为{v} {s}发布了{v}
型号 机型|code|{s}是哪一款|
编号 代码 代号|code|怎么编号{s}|{s}编为{v}
车牌 车牌号|code||
发布日期 发布时间 上市日期|date|{s}什么时候发布 {s}哪天上市 {s}何时推出|{s}于{v}发布 {s}将在{v}上市 {v},{s}正式推出
成立时间 成立日期 创办时间|date|{s}什么时候成立 {s}何时创办 {s}是哪年成立的|{s}成立于{v} {s}创办于{v} {v},{s}成立
开业日期 开业时间|date|{s}什么时候开业 {s}哪天开张|{s}{v}开业 {s}于{v}开张
竣工日期 建成时间 完工日期|date|{s}什么时候建成 {s}何时完工|{s}于{v}建成 {s}{v}竣工
截止日期 报名截止 截止时间|date|{s}什么时候截止 {s}最晚哪天|{s}{v}截止 {s}到{v}为止
生日 出生日期|date|{s}什么时候出生 {s}哪天生的 {s}何时出生|{s}生于{v} {s}出生于{v}
举办日期 举行时间|date|{s}什么时候举行 {s}哪天举办|{s}将于{v}举行 {s}定于{v}举办
到期日 过期日期|date|{s}什么时候到期 {s}哪天过期|{s}{v}到期 {s}{v}过期
营业时间 开门时间|clock|{s}几点开门|{s}{v}开门 {s}每天{v}开始营业
发车时间 出发时间|clock|{s}几点出发 {s}几点开|{s}{v}出发 {s}{v}开出
关门时间 打烊时间|clock|{s}几点关门|{s}{v}关门 {s}{v}打烊
集合时间|clock|{s}几点集合|{s}{v}集合
创始人 创办人 创立者|person|谁创办了{s} 谁创立了{s} {s}是谁创办的|{s}由{v}创办 {v}创立了{s} {v}是{s}的创立者
负责人 主管 主任|person|谁负责{s} {s}归谁管 {s}由谁负责|{s}由{v}负责 {v}负责{s} {s}归{v}管
店长 经理|person|谁当{s}的店长|{v}出任{s}店长
校长 院长|person|谁是{s}的领导|{v}执掌{s}
董事长 总裁|person|谁执掌董事会,在{s}|{v}当选{s}董事长
作者 撰写人|person|谁写了{s} {s}是谁写的|{s}由{v}撰写 {v}写了{s} {s}出自{v}之手
导演 执导者|person|谁导演了{s} {s}是谁拍的|{s}由{v}执导 {v}执导了{s}
设计师 设计者|person|谁设计了{s} {s}是谁设计的|{s}由{v}设计 {v}设计了{s}
发明人 发明者|person|谁发明了{s} {s}是谁发明的|{s}由{v}发明 {v}发明了{s}
冠军 获胜者 第一名|person|谁赢了{s} 谁在{s}夺冠|{v}赢得了{s} {v}在{s}中夺冠
主演 男主角|person|谁演了{s} {s}是谁演的|{s}由{v}主演 {v}出演{s}
联系人 对接人|person|{s}该找谁 联系{s}找谁|{s}请找{v}
老师 任课教师|person|谁教{s}|{v}教{s}
教练 主教练|person|谁在训练{s}|{v}执教{s}
房东 业主 所有者|person|{s}是谁的|{s}归{v}所有 {v}拥有{s}
妻子 太太|person|{s}娶了谁|{s}娶了{v}
母亲 妈妈|person|谁是{s}的妈妈|{v}生下了{s}
译者 翻译|person|谁翻译了{s} {s}是谁翻译的|{s}由{v}翻译 {v}翻译了{s}
产地 原产地|place|{s}产自哪里 {s}是哪里产的 {s}出产于哪|{s}产自{v} {s}产于{v} {v}出产{s}
地址 位置 所在地|place|{s}在哪里 {s}在什么地方 怎么找到{s} {s}位于哪|{s}位于{v} {s}坐落在{v} {s}在{v}
总部 总部所在地|place|{s}的总公司在哪|{s}总部设在{v} {s}的总公司在{v}
出生地 籍贯 家乡|place|{s}是哪里人 {s}生在哪里|{s}是{v}人 {s}生在{v}
目的地 终点|place|{s}去哪里 {s}开往哪|{s}开往{v} {s}前往{v}
起点 出发地|place|{s}从哪里出发|{s}从{v}出发
举办地 会场|place|{s}在哪里举行 {s}在哪开|{s}在{v}举行 {s}将在{v}举办
首都 首府|place||{s}定都{v}
生产商 制造商 厂家|org|谁生产{s} {s}是哪家做的 哪家造的{s}|{s}由{v}生产 {v}生产{s} {s}由{v}制造
出版社 出版方|org|谁出版了{s} {s}由哪家出版|{s}由{v}出版 {v}出版了{s}
供应商 供货方|org|谁供应{s}|{s}由{v}供应 {v}供应{s}
开发商 开发者 开发方|org|谁开发了{s} {s}由谁开发|{s}由{v}开发 {v}开发了{s}
投资方 投资人|org|谁投资了{s}|{v}投资了{s}
母公司 控股方|org|{s}属于哪家|{s}隶属于{v} {v}控股{s}
承办方 主办方 主办单位|org|谁主办{s} {s}由谁主办|{s}由{v}主办 {v}主办{s}
单位 工作单位 雇主|org|{s}在哪上班 {s}在哪家工作|{s}在{v}工作 {s}就职于{v}
赞助商 赞助方|org|谁赞助{s}|{v}赞助{s}
母校 毕业院校|org|{s}从哪毕业 {s}在哪读的书|{s}毕业于{v}
收购方 买家|org|谁收购了{s} 谁买下了{s}|{v}收购了{s} {s}被{v}收购
颜色 外观颜色 配色|colour|{s}是什么颜色 {s}什么色|{s}是{v}的 {s}呈{v}
材质 材料 用料|material|{s}是什么做的 {s}用什么做的|{s}用{v}制成 {s}由{v}做成
网址 官网 网站|web|{s}在网上哪里能看|{s}的网页在{v}
邮箱 电子邮箱 联系邮箱|email|怎么给{s}写信|来信请寄{v}找{s}
电话 联系电话 热线|phone|怎么打给{s} {s}打哪个号|{s}请拨打{v}
口味 味道|phrase|{s}吃起来怎样|{s}吃起来是{v}味
主题 题目|phrase|{s}讲什么 {s}关于什么|{s}讲的是{v} {s}以{v}为题
口号 标语|phrase|{s}喊什么|{s}喊出{v}
用途 用处|phrase|{s}用来做什么 {s}有什么用|{s}用于{v} {s}用来{v}
特产 名产|phrase|{s}出什么好东西|{s}盛产{v}
赠品 礼品|phrase|买{s}送什么|买{s}送{v}
职业 工作|phrase|{s}是做什么的|{s}是一名{v}
爱好 兴趣|phrase|{s}喜欢什么 {s}爱做什么|{s}喜欢{v} {s}爱{v}
原名 曾用名 旧名|name|{s}以前叫什么 {s}原来叫什么|{s}以前叫{v} {s}原名{v}
昵称 外号 别名|name|大家叫{s}什么 {s}还叫什么|人称{s}为{v} {s}又叫{v}
前身|name|{s}从什么演变而来|{s}由{v}演变而来
竞争对手 对手|name|{s}和谁竞争|{s}与{v}竞争
吉祥物|name||
操作系统 系统|name|{s}跑什么系统|{s}运行{v}
处理器 芯片|code|{s}用什么芯片|{s}搭载{v} {s}采用{v}
编程语言 开发语言|name|{s}用什么写的|{s}用{v}写成
密码 口令|code||
房号 门牌号|code|{s}住几号|{s}住{v}
航班号 航班|code|{s}坐哪一班|{s}乘坐{v}
语言 官方语言|phrase|{s}说什么话|{s}讲{v}
状态 现状|phrase|{s}现在怎样|
""".strip().splitlines()

ATTRIBUTES_EN = """
price;cost;list price;retail price|money|How much is {s};How much does {s} cost;What do I pay for {s};How expensive is {s}|{s} costs {v};{s} sells for {v};you can buy {s} for {v};{s} is priced at {v};{s} goes for {v}
entry fee;ticket price;admission|money|What does it cost to enter {s};How much is a ticket to {s}|a ticket to {s} costs {v};entering {s} costs {v}
rent;monthly rent|money|How much is it to rent {s}|{s} rents for {v};renting {s} costs {v} a month
salary;pay;monthly wage|money|How much does {s} earn;What does {s} make a month|{s} earns {v};{s} is paid {v}
revenue;annual revenue;turnover|money|How much did {s} take in last year|{s} took in {v} last year;{s} had sales of {v}
funding;investment|money|How much money did {s} raise|{s} raised {v};{s} received {v} from investors
deposit|money|How much must I leave for {s}|{s} asks for {v} up front
prize;prize money|money|How much does the winner of {s} get|the winner of {s} gets {v}
weight;mass;net weight|u kilograms, grams, kg, tons, pounds|How heavy is {s};What does {s} weigh;How much does {s} weigh|{s} weighs {v};{s} weighs in at {v}
height;total height|u meters, feet, cm|How tall is {s};How high is {s}|{s} is {v} tall;{s} stands {v} high;{s} rises {v}
length;total length|u meters, kilometers, miles, cm|How long is {s}|{s} is {v} long;{s} stretches for {v};{s} runs {v}
width;breadth|u meters, mm, inches|How wide is {s}|{s} is {v} wide;{s} measures {v} across
depth|u meters, feet|How deep is {s}|{s} is {v} deep;{s} goes down {v}
area;land area|u square meters, hectares, acres|How large is {s};How big is {s}|{s} covers {v};{s} spreads over {v}
population;number of residents|u people, residents|How many people live in {s}|{s} has {v};{v} live in {s};{s} is home to {v}
staff;headcount;number of employees|u people, employees|How many people work at {s};How many employees does {s} have|{s} employs {v};{v} work at {s}
user count;number of users;membership|u users, members|How many users does {s} have;How many people use {s}|{s} serves {v};{s} has reached {v}
capacity;storage;volume|u liters, GB, TB, gallons|How much can {s} hold;How much fits into {s}|{s} holds {v};{s} can store {v}
speed;top speed|u km/h, mph, knots|How fast is {s};How fast can {s} go|{s} reaches {v};{s} can go {v}
power;power rating|u watts, kW|How many watts does {s} use|{s} draws {v};{s} uses {v}
battery life;runtime|u hours, minutes, days|How long does {s} last on one charge|{s} lasts {v} on one charge;{s} runs for {v} on battery
warranty;guarantee|u years, months, days|How long is {s} guaranteed;How long is {s} covered|{s} is guaranteed for {v};{s} comes with {v} of warranty
shelf life|u days, weeks, months|How long does {s} keep|{s} keeps for {v}
duration;running time|u minutes, hours, days|How long does {s} take|{s} takes {v};{s} goes on for {v}
age|u years|How old is {s}|{s} is {v} old;{s} has turned {v}
temperature|u degrees, °C|How hot is {s};How warm does {s} get|{s} gets up to {v};{s} heats to {v}
elevation;altitude|u meters, feet|How far above the sea is {s}|{s} lies {v} above the sea
seating;number of seats|u seats|How many seats does {s} have;How many people can sit in {s}|{s} seats {v};{s} offers {v}
page count;number of pages|u pages|How many pages does {s} have|{s} runs to {v};{s} has {v}
number of floors;floors|u floors|How many floors does {s} have|{s} is {v} high
number of rooms;rooms|u rooms|How many rooms does {s} have|guests at {s} choose among {v}
stock;inventory|u units, boxes, pieces|How many of {s} are left;How much of {s} is in the warehouse|{v} of {s} are left;the warehouse has {v} of {s}
output;annual output;production|u tons, units|How much does {s} produce|{s} produces {v};{s} turns out {v} a year
sales;units sold|u units, copies|How many of {s} were sold;How well did {s} sell|{s} sold {v};shops sold {v} of {s}
distance|u km, miles, meters|How far is {s};How far away is {s}|{s} is {v} away;it is {v} to {s}
score;result|u points|How many points did {s} get|{s} scored {v};{s} got {v}
rank;ranking|rank|Where does {s} rank;What place did {s} come in|{s} came in {v};{s} ranks {v}
growth;growth rate;increase|pct|How much did {s} grow;By how much did {s} rise|{s} grew by {v};{s} went up {v}
pass rate;success rate|pct|How many pass {s}|{v} pass {s}
discount|pct|How much off is {s}|{s} is {v} off
interest rate|pct|What interest does {s} pay|{s} pays {v} interest
attendance;number of visitors|u people, visitors, guests|How many people came to {s};How many visited {s}|{s} drew {v};{v} came to {s}
version;latest version;current version|version|Which release of {s} is out;What is the newest {s};What was {s} updated to|{s} has been updated to {v};{s} {v} is out;the newest {s} is {v};{s} was upgraded to {v}
model number;model|code|Which model is {s}|{s} is sold as {v}
code;serial number;id|code|How is {s} registered|{s} is registered as {v}
license plate|code||
release date;launch date|date|When was {s} released;When does {s} come out;When did {s} launch|{s} was released on {v};{s} came out on {v};{s} launches on {v}
founding date;date of foundation|date|When was {s} founded;When was {s} established;When did {s} start|{s} was founded in {v};{s} was established on {v};{s} dates back to {v}
opening date|date|When did {s} open;When does {s} open its doors|{s} opened on {v};{s} will open on {v}
completion date|date|When was {s} finished;When was {s} built|{s} was completed on {v};{s} was built in {v}
deadline;closing date|date|When does {s} close;Until when can I apply for {s}|applications for {s} close on {v};{s} is open until {v}
birthday;date of birth|date|When was {s} born|{s} was born on {v}
event date|date|When does {s} take place;When is {s}|{s} takes place on {v};{s} will be held on {v}
expiry date|date|When does {s} expire;When does {s} run out|{s} expires on {v};{s} is valid until {v}
opening time;opening hour|clock|What time does {s} open in the morning|{s} opens at {v} every day
departure time|clock|What time does {s} leave;When does {s} depart|{s} leaves at {v};{s} departs at {v}
closing time|clock|What time does {s} shut|{s} shuts at {v}
founder;creator|person|Who founded {s};Who started {s};Who created {s}|{s} was founded by {v};{v} founded {s};{v} started {s}
manager;head;director|person|Who manages {s};Who runs {s};Who is in charge of {s};Who leads {s}|{s} is managed by {v};{v} runs {s};{v} is in charge of {s};{v} leads {s}
chairman;president;CEO|person|Who chairs {s}|{v} chairs {s};{s} appointed {v} as CEO
author;writer|person|Who wrote {s};Who is {s} by|{s} was written by {v};{v} wrote {s}
film director;movie director|person|Who directed {s}|{s} was directed by {v};{v} directed {s}
designer;architect|person|Who designed {s}|{s} was designed by {v};{v} designed {s}
inventor|person|Who invented {s}|{s} was invented by {v};{v} invented {s}
winner;champion|person|Who won {s};Who came first in {s}|{v} won {s};{s} was won by {v}
star;lead actor|person|Who stars in {s};Who plays in {s}|{v} stars in {s};{s} features {v}
contact;contact person|person|Whom should I ask about {s};Who do I call about {s}|ask {v} about {s}
teacher;instructor|person|Who teaches {s}|{v} teaches {s};{s} is taught by {v}
coach;trainer|person|Who trains {s}|{v} trains {s};{s} is coached by {v}
owner;landlord|person|Who owns {s};Whose is {s}|{s} belongs to {v};{v} owns {s}
wife;husband|person|Whom did {s} marry|{s} married {v}
mother;father|person|Who are the parents of {s}|{s} is a child of {v}
translator|person|Who translated {s}|{s} was translated by {v};{v} translated {s}
origin;place of origin|place|Where does {s} come from;Where is {s} grown;Where is {s} from|{s} comes from {v};{s} is grown in {v};{s} originates in {v}
address;location|place|Where is {s};Where can I find {s};Where is {s} located|{s} is located in {v};{s} stands in {v};{s} can be found in {v};{s} lies in {v}
headquarters;head office|place|Where is {s} based;From where is {s} run|{s} is based in {v};{s} has its headquarters in {v}
birthplace;hometown|place|Where was {s} born;Where did {s} grow up|{s} grew up in {v};{s} was born in {v}
destination|place|Where does {s} go;Where is {s} heading|{s} goes to {v};{s} is heading for {v}
venue|place|Where does {s} take place;Where is {s} held|{s} is held in {v};{v} hosts {s}
capital;capital city|place||{s} is governed from {v}
maker;manufacturer;producer|org|Who makes {s};Which company makes {s};Who manufactures {s}|{s} is made by {v};{v} makes {s};{s} is produced by {v}
publisher|org|Who published {s}|{s} was published by {v};{v} published {s}
supplier|org|Who supplies {s}|{s} is supplied by {v};{v} supplies {s}
developer|org|Who developed {s};Who builds {s}|{s} was developed by {v};{v} develops {s}
investor|org|Who invested in {s}|{v} invested in {s}
parent company|org|Which group does {s} belong to|{s} is a subsidiary of {v}
organizer;host|org|Who organizes {s}|{s} is organized by {v};{v} organizes {s}
employer;workplace|org|Where does {s} work;Who employs {s}|{s} works for {v};{s} has a job at {v}
sponsor|org|Who pays for {s};Who sponsors {s}|{v} sponsors {s};{s} is sponsored by {v}
alma mater;university|org|Where did {s} study;Where did {s} graduate|{s} graduated from {v};{s} studied at {v}
buyer;acquirer|org|Who bought {s};Who acquired {s}|{v} acquired {s};{s} was bought by {v}
color;colour|colour|What color is {s};What does {s} look like|{s} is {v};{s} comes in {v};{s} is painted {v}
material|material|What is {s} made of;What was {s} built from|{s} is made of {v};{s} is built from {v}
website;homepage;URL|web|Where can I read about {s} online|{s} can be found online at {v}
email;email address|email|How do I write to {s}|write to {s} at {v}
phone number;telephone;hotline|phone|How do I call {s};Which number reaches {s}|call {s} at {v};{s} answers at {v}
flavor;taste|phrase|What does {s} taste like|{s} tastes of {v}
theme;topic;subject|phrase|What is {s} about|{s} is about {v};{s} deals with {v}
slogan;motto|phrase||{s} goes by the words {v}
purpose;use|phrase|What is {s} for;What is {s} used for|{s} is used for {v};{s} serves for {v}
specialty|phrase|What is {s} known for|{s} is known for {v};{s} is famous for {v}
gift;bonus|phrase|What comes free with {s}|{s} comes with a free {v}
profession;occupation;job|phrase|What does {s} do for a living|{s} works as a {v}
hobby;interest|phrase|What does {s} like to do;What does {s} enjoy|{s} enjoys {v};{s} likes {v}
former name;old name|name|What was {s} called before;What did {s} use to be called|{s} was formerly called {v};{s} used to be {v}
nickname;alias|name|What do people call {s}|people call {s} {v};{s} is also known as {v}
competitor;rival|name|Who competes with {s}|{s} competes with {v}
mascot|name||
operating system;OS|name|What system does {s} run|{s} runs {v}
processor;chip|code|Which chip is in {s}|{s} is powered by {v};{s} uses the {v} chip
programming language|name|What is {s} programmed in|{s} is programmed in {v}
password;access code|code||
room number;room|code|Which room is {s} in|{s} is in room {v}
flight number;flight|code|Which flight does {s} take|{s} flies on {v}
language;official language|phrase|What do people speak in {s}|people in {s} speak {v}
status;state|phrase|How is {s} doing|
successor;replacement|name|What comes after {s};What replaces {s}|{s} is replaced by {v};{v} replaces {s}
partner|org|Whom does {s} work with|{s} works together with {v};{s} has teamed up with {v}
""".strip().splitlines()


GENERIC = dict(
    zh=dict(
        line=["{s}的{a}是{v}", "{s}的{a}为{v}", "{s}的{a}是{v}", "{s}{a}为{v}", "{s}{a}:{v}", "{s}目前的{a}是{v}", "{s}现在的{a}为{v}", "{v}是{s}的{a}", "{s}的{a}已改为{v}",
              "{s}的{a}调整为{v}", "{s}的最新{a}是{v}", "{s}以{v}为{a}", "{s},{a}{v}", "关于{s},{a}是{v}", "在{a}方面,{s}是{v}", "{s}把{a}定为{v}", "{s}公布的{a}是{v}", "{s}的{a}达到了{v}",
              "{s}({a}:{v})", "{s}的{a}一直是{v}", "{s}的{a}确定为{v}", "{s}的{a}据称是{v}", "{s}的{a}由此变成{v}", "{a}:{v}({s})"],
        ask=["{s}的{a}是什么", "{s}的{a}是什么", "{s}的{a}", "{s}{a}是什么", "请问{s}的{a}是什么", "告诉我{s}的{a}", "我想知道{s}的{a}", "查一下{s}的{a}", "你知道{s}的{a}吗", "{s}现在的{a}是什么", "帮我看看{s}的{a}",
             "说说{s}的{a}", "{s}的{a}呢", "{s}{a}", "能说一下{s}的{a}吗", "关于{s},它的{a}是什么", "{s}目前{a}如何", "什么是{s}的{a}", "{s}最新的{a}是什么"],
        number=["{s}的{a}是多少", "{s}{a}多少", "{s}的{a}有多少", "请问{s}的{a}是多少", "{s}现在{a}多少", "{s}的{a}到底是多少"],
        person=["{s}的{a}是谁", "谁是{s}的{a}", "{s}的{a}叫什么", "请问谁是{s}的{a}", "谁担任{s}的{a}", "{s}的{a}叫什么名字"],
        place=["{s}的{a}在哪里", "{s}的{a}是哪里", "{s}的{a}在哪", "请问{s}的{a}在哪里"],
        org=["{s}的{a}是谁", "{s}的{a}是哪家", "谁是{s}的{a}", "哪家是{s}的{a}", "{s}的{a}叫什么"],
        date=["{s}的{a}是哪天", "{s}的{a}是什么时候", "{s}的{a}是几号", "{s}{a}是何时"],
        lead=["据报道,", "最新消息:", "据官网介绍,", "公告称,", "经核实,", "自本月起,", "今年,", "目前,", "据了解,", "资料显示,", "工作人员表示,", "昨天,", "更新后,"],
        tail=[",与去年相同", ",比去年有所提高", ",引起广泛关注", ",详见公告", ",即日起生效", ",深受欢迎", ",以实物为准", ",特此说明", ",这一点已得到确认", ",请大家留意"],
        noise=["{s}举办了{x}活动", "{s}受到了很多人的喜爱", "{s}与{x}有关", "今天天气很好,{s}人来人往", "{s}最近很受关注", "有人在{s}看到了{x}", "{s}已经准备好了", "关于{s}的消息越来越多", "{s}需要更多的{x}", "我们去年介绍过{s}"],
        which=["哪一条说了{q}", "哪条信息回答了:{q}", "第几条提到{s}的{a}", "哪一条写着{s}的{a}"]),
    en=dict(
        line=["the {a} of {s} is {v}", "the {a} of {s} is {v}", "{s} has a {a} of {v}", "{s}'s {a} is {v}", "{s}: {a} {v}", "{a} of {s}: {v}", "for {s}, the {a} is {v}", "the {a} of {s} is now {v}",
              "{v} is the {a} of {s}", "the {a} of {s} was changed to {v}", "{s} lists {v} as its {a}", "{s} now has {v} as its {a}", "the current {a} of {s} is {v}", "as for {s}, its {a} is {v}", "{s} set its {a} to {v}",
              "{s} gives its {a} as {v}", "{s} ({a}: {v})", "the {a} for {s} stands at {v}", "{s} announced a {a} of {v}", "the {a} of {s} remains {v}", "{s} has the {a} {v}", "{a} ({s}): {v}"],
        ask=["what is the {a} of {s}", "what is the {a} of {s}", "what is {s}'s {a}", "tell me the {a} of {s}", "{s} {a}", "which {a} does {s} have", "do you know the {a} of {s}", "I need the {a} of {s}", "can you look up {s}'s {a}",
             "what's the {a} of {s}", "give me {s}'s {a}", "please tell me {s}'s {a}", "what {a} does {s} have", "what is the current {a} of {s}", "could you tell me the {a} for {s}", "I would like to know the {a} of {s}", "the {a} of {s}",
             "and the {a} of {s}", "as for {s}, what is its {a}", "find the {a} of {s}", "what does it say about the {a} of {s}"],
        number=["how much is the {a} of {s}", "what is the {a} for {s}", "how high is the {a} of {s}", "what {a} is given for {s}"],
        person=["who is the {a} of {s}", "who is {s}'s {a}", "what is the name of the {a} of {s}", "who serves as {a} of {s}", "name the {a} of {s}"],
        place=["where is the {a} of {s}", "where is {s}'s {a}", "in which place is the {a} of {s}"],
        org=["who is the {a} of {s}", "which company is the {a} of {s}", "who is {s}'s {a}", "name the {a} of {s}"],
        date=["when is the {a} of {s}", "when was the {a} of {s}", "on what date is the {a} of {s}", "what day is the {a} of {s}"],
        lead=["According to the latest notice, ", "Update: ", "As of today, ", "It was reported that ", "Officials confirmed that ", "Since this month, ", "The website says that ", "This year, ", "We learned that ", "In short, ", "Yesterday it was said that ", "After the change, "],
        tail=[", the same as last year", ", more than last year", ", as many people noticed", ", see the notice", ", effective at once", ", which people like", ", the company said", ", and this has been confirmed", ", according to the manual"],
        noise=["{s} held an event about {x}", "many people like {s}", "{s} has to do with {x}", "the weather was fine and {s} was busy", "{s} has been in the news", "someone saw {x} near {s}", "{s} is ready now", "there is more and more talk about {s}",
               "{s} needs more {x}", "we wrote about {s} last year"],
        which=["Which line says it: {q}", "Which entry answers this: {q}", "Which line mentions the {a} of {s}?", "Where does it say: {q}"]))
GENERIC["zh"]["clock"], GENERIC["en"]["clock"] = ["{s}的{a}是几点", "{s}{a}几点"], ["at what time is the {a} of {s}", "when is the {a} of {s}"]
NUMBER_KINDS = ("money", "pct")
BLOCK = dict(
    zh="[最新知识]\n{lines}\n请根据以上信息回答下列问题,用[编号]注明来源;信息不足时回答“根据现有信息无法回答。”\n问题:{question}",
    en='[Latest knowledge]\n{lines}\nAnswer the question from the information above and cite sources as [n]; if it is not there, answer "I cannot answer from the information given."\nQuestion: {question}')
ABSTENTION = dict(zh="根据现有信息无法回答。", en="I cannot answer from the information given.")
STOP = dict(zh="。", en=".")
UNKNOWN = dict(zh="我不知道。", en="I do not know.")


@cache
def attributes(language: str) -> list[tuple[list[str], str, list[str], list[str]]]:
    """[(names, kind of value, questions, sentences)] of the tables above."""
    between, rows = (" ", ATTRIBUTES_ZH) if language == "zh" else (";", ATTRIBUTES_EN)
    fields = [row.split("|") for row in rows]
    return [(names.split(between), kind, [q for q in asks.split(between) if q], [x for x in lines.split(between) if x])
            for names, kind, asks, lines in fields]


def invented_attribute(r: random.Random, language: str):
    """A name no table holds: only its spelling can tell it from others."""
    if language == "zh":
        names = [han(r, 1, 3) + r.choice("率 度 数 量 名 地 值 费 者 期 员 色 号 点 法 级".split())]
    else:
        names = [r.choice([coined(r), r.choice(ENGLISH_WORDS).lower()]) + " " + r.choice("rate level count name place value fee date color number point grade type".split())]
    return names, r.choice(["money", "person", "place", "phrase", "code", "number", "date", "version", "name", "org", "pct"]), [], []


def value(r: random.Random, kind: str, language: str) -> str:
    zh = language == "zh"
    if kind.startswith("u"):
        unit = r.choice(kind[1:].strip().split("," if zh else ", "))
        return f"{number(r)}{unit}" if zh else f"{number(r)} {unit}"
    if kind == "money":
        amount = number(r)
        return r.choice([f"{amount}元", f"{amount}元", f"{amount}万元", f"¥{amount}", f"{amount}美元", f"{amount}亿元", f"{amount}块"] if zh
                        else [f"{amount} dollars", f"{amount} dollars", f"${amount}", f"{amount} euros", f"€{amount}", f"{amount} pounds", f"{amount} USD", f"${r.randint(1, 99)} million"])
    if kind == "pct":
        return f"{r.randint(1, 99)}{r.choice(['', '.' + str(r.randint(0, 9))])}" + ("%" if zh else r.choice(["%", " percent"]))
    if kind == "rank":
        place_number = r.randint(1, 99)
        return f"第{place_number}{r.choice(['', '名', '位'])}" if zh else r.choice([f"number {place_number}", f"{place_number}th"])
    makers = {"disc": lambda: f"{r.randint(1, 9)}{r.choice(['', '.5'])}折", "version": lambda: version(r), "code": lambda: code(r), "date": lambda: date(r, language), "clock": lambda: clock(r, language),
              "person": lambda: person(r, language), "place": lambda: place(r, language), "org": lambda: organisation(r, language), "colour": lambda: r.choice(COLOURS[language]), "material": lambda: r.choice(MATERIALS[language]),
              "web": lambda: web(r), "email": lambda: email(r), "phone": lambda: telephone(r), "phrase": lambda: phrase(r, language), "name": lambda: name(r, language), "number": lambda: number(r)}
    return makers[kind]()


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def ask(r: random.Random, subject: str, attribute, language: str) -> str:
    names, kind, questions, _ = attribute
    generic = GENERIC[language]
    group = "number" if kind in NUMBER_KINDS or kind.startswith("u") else kind
    frames = questions if questions and r.random() < 0.45 else generic[group] if group in generic and r.random() < 0.45 else generic["ask"]
    text = r.choice(frames).format(s=subject, a=r.choice(names))
    if language == "zh":
        return text + r.choice(["?", "?", "?", "", "?"])
    return (capital(text) if r.random() < 0.9 else text) + r.choice(["?", "?", "?", "", "."] if frames is generic["ask"] else ["?", "?", "?", ""])


def state(r: random.Random, subject: str, attribute, shown: str, language: str) -> str:
    """A clause without its full stop that says subject's attribute is `shown`."""
    names, _, _, sentences = attribute
    frames = sentences if sentences and r.random() < 0.5 else GENERIC[language]["line"]
    return r.choice(frames).format(s=subject, a=r.choice(names), v=shown)


def sentence(r: random.Random, clauses: list[str], language: str) -> str:
    generic = GENERIC[language]
    lead = r.choice(generic["lead"]) if r.random() < 0.15 else ""
    tail = r.choice(generic["tail"]) if r.random() < 0.12 else ""
    stop = ("。" if language == "zh" else ".") if r.random() < 0.93 and not clauses[-1].endswith(".") else ""
    body = lead + r.choice([",", ";"] if language == "zh" else ["; ", ", and ", ". "]).join(clauses) + tail + stop
    return capital(body) if language == "en" and body[:1].islower() and (lead or r.random() < 0.9) else body


def line(r: random.Random, content: str, subject: str, attribute, language: str) -> str:
    """`(date domain) title:content`, the title being the subject, the subject with the attribute, something else, or missing."""
    when = f"{r.randint(2015, 2029)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
    form, colon = r.random(), ":" if language == "zh" else ": "
    word = r.choice(attribute[0])
    titles = [subject, f"{subject}{word}", f"{subject}的{word}", phrase(r, "zh")] if language == "zh" else [subject, f"{subject} {word}", f"{subject}: {word}", phrase(r, "en").title()]
    title = "" if form < 0.25 else titles[0] if form < 0.65 else r.choice(titles)
    return f"({when} {domain(r)}) " + (f"{title}{colon}{content}" if title else content)


class Block:
    """Numbered lines about a few subjects, and what they say: {(subject, attribute index): (value, number of the line)}."""

    def __init__(self, r: random.Random, language: str, max_lines: int = 5):
        self.r, self.language = r, language
        count = r.randint(1, max_lines)
        self.subjects = list(dict.fromkeys(name(r, language) for _ in range(r.randint(1, count))))
        if count > 1 and r.random() < 0.3:
            self.subjects = list(dict.fromkeys([*self.subjects, neighbour(r, self.subjects[0], language)]))
        known = attributes(language)
        picked = r.sample(range(len(known)), r.randint(2, 5))
        self.attributes = [invented_attribute(r, language) if r.random() < 0.15 else known[i] for i in picked]
        pairs = [(subject, i) for subject in self.subjects for i in range(len(self.attributes))]
        self.facts: dict[tuple[str, int], tuple[str, int]] = {}
        self.lines: list[str] = []
        r.shuffle(pairs)
        while len(self.lines) < count:
            self.add(pairs)

    def add(self, pairs: list[tuple[str, int]]) -> None:
        r, language = self.r, self.language
        if self.facts and (r.random() < 0.08 or not pairs):
            if r.random() < 0.5:
                told = [r.choice(list(self.facts))]
            else:
                subject = r.choice(self.subjects)
                content = sentence(r, [r.choice(GENERIC[language]["noise"]).format(s=subject, x=phrase(r, language))], language)
                return self.lines.append(line(r, content, subject, self.attributes[0], language))
        else:
            told = [pairs.pop()]
            same = [pair for pair in pairs if pair[0] == told[0][0]]
            if same and r.random() < 0.15:
                told.append(same[0])
                pairs.remove(same[0])
        subject, clauses = told[0][0], []
        for pair in told:
            shown = value(r, self.attributes[pair[1]][1], language)
            self.facts[pair] = (shown, len(self.lines) + 1)
            clauses.append(state(r, subject, self.attributes[pair[1]], shown, language))
        self.lines.append(line(r, sentence(r, clauses, language), subject, self.attributes[told[0][1]], language))

    def question(self, abstain: float = 0.25) -> tuple[str, str]:
        """(question, answer): about something a line says, or about something none says."""
        r, language = self.r, self.language
        if r.random() >= abstain:
            (subject, i), (shown, at) = r.choice(list(self.facts.items()))
            asked = ask(r, subject, self.attributes[i], language)
            if r.random() < 0.08:
                asked = r.choice(GENERIC[language]["which"]).format(q=asked, s=subject, a=r.choice(self.attributes[i][0]))
                return asked, f"[{at}]" + ("。" if language == "zh" else ".")
            return asked, f"{shown}[{at}]。" if language == "zh" else f"{shown} [{at}]."
        return ask(r, *self.missing(), language), ABSTENTION[language]

    def missing(self):
        """A (subject, attribute) that no line tells."""
        r = self.r
        if r.random() < 0.5:
            present = r.choice(self.subjects)
            stranger = neighbour(r, present, self.language) if r.random() < 0.4 else name(r, self.language)
            if stranger not in self.subjects:
                return stranger, r.choice(self.attributes)
        subject = r.choice(self.subjects)
        told = [names for (who, i), _ in self.facts.items() if who == subject for names in self.attributes[i][0]]
        while True:
            attribute = r.choice(self.attributes) if r.random() < 0.4 else invented_attribute(r, self.language) if r.random() < 0.1 else r.choice(attributes(self.language))
            if attribute[0][0] not in told:
                return subject, attribute

    def render(self, question: str) -> str:
        lines = "\n".join(f"[{n}] {text}" for n, text in enumerate(self.lines, 1))
        return BLOCK[self.language].format(lines=lines, question=question)


def context(r: random.Random, language: str, max_lines: int = 5, followups: tuple[int, int] = (2, 4), abstain: float = 0.25) -> Turns:
    """A block, its question, and further questions: several supervised answers for one reading of the lines."""
    block = Block(r, language, max_lines)
    turns: Turns = []
    for i in range(1 + r.randint(*followups)):
        asked, answer = block.question(abstain)
        turns += [("user", block.render(asked) if i == 0 else asked), ("assistant", answer)]
    return turns


def context_easy(r: random.Random, language: str) -> Turns:
    return context(r, language, max_lines=3, followups=(2, 5), abstain=0.15)


def context_real(r: random.Random, language: str) -> Turns:
    """As it comes in service: a block in the last turn, perhaps after a chat or another block."""
    before = r.random()
    turns = [] if before < 0.6 else talk(r, language) if before < 0.75 else context_real(r, r.choice(("zh", "en")))
    return turns + context(r, language, followups=(0, 1), abstain=0.3)

MORE_WORDS = """Jia Beijing Shanghai London Paris France Germany Italy Spain Japan China Russia India Canada Brazil Egypt Greece chemical element
table markdown csv array objects string names fields format following there thought carry tens ones units first second third last which
who's what's it's don't you're I'm ChatGPT OpenAI Qwen Claude GPT model models AI assistant robot bot human chat talk language created
developer developers developed trained training train built company behind introduce yourself called name nice meet pleased today doing
great good morning night welcome anything else help need know answer question questions information given latest knowledge source sources
cite cannot add sum plus total together compute calculate equals result num value id city qty amount stock unit rate dept role email
department status grade score subject teacher class gender country currency model brand category date start end owner planet planets
largest smallest tallest longest ocean continent currency yen ruble rupee pound won peso wrote painted discovered invented capital symbol
notice report announcement manual update according official website news recently confirmed since month spokesperson statement records
show line says mention mentions states gives number lookup look tell please could would like""".split()


def spelling_corpus() -> list[str]:
    """English text from which the tokenizer learns its merges: common words often, coined names less."""
    r = random.Random(0)
    words = ENGLISH_WORDS + MORE_WORDS + [word.strip(";|{}?,") for line in ATTRIBUTES_EN[:110] for word in line.replace("|", " ").replace(";", " ").split()]
    common = [word for word in words for _ in range(80)] + [word.title() for word in words for _ in range(10)]
    return common + [coined(r).title() for _ in range(8000)] + [coined(r) for _ in range(4000)] + GIVEN_EN * 20


# --- facts, identity, small talk ---------------------------------------------------------------------------------


@cache
def known_facts() -> list[dict]:
    return [json.loads(row) for row in FACTS.read_text(encoding="utf-8").splitlines()]


def fact_question(r: random.Random, language: str, relation: str, subject: str) -> str:
    frame = r.choice(words.split_frames(words.FACT_FRAMES[language][relation]))
    return varied(r, frame.format(s=subject), language)


def facts(r: random.Random, language: str) -> Turns:
    turns: Turns = []
    for fact in r.sample(known_facts(), r.randint(1, 6)):
        subject, answer = fact[language]
        turns += [("user", fact_question(r, language, fact["relation"], subject)), ("assistant", answer + STOP[language])]
    return turns


def varied(r: random.Random, text: str, language: str) -> str:
    """What people vary: the closing mark, an opening word, small letters."""
    form = r.random()
    if form < 0.15:
        text = text.rstrip("?。?.")
    elif form < 0.25:
        text = r.choice(words.OPENINGS[language].split("|")) + text
    if language == "en" and r.random() < 0.12:
        text = text[:1].lower() + text[1:]
    return text


def raw_facts(r: random.Random, language: str) -> Turns:
    """Plain text without a chat, so that sentences can be completed too."""
    fact = r.choice(known_facts())
    subject, answer = fact[language]
    return [("raw", capital(words.FACT_SENTENCES[language][fact["relation"]].format(s=subject, v=answer)))]


def unknown(r: random.Random, language: str) -> Turns:
    """Questions about what it was never told: it says so."""
    turns: Turns = []
    for _ in range(r.randint(1, 3)):
        if r.random() < 0.25:
            text = fact_question(r, language, r.choice(("capital", "symbol", "author")), name(r, language))
        else:
            text = ask(r, name(r, language), r.choice(attributes(language)), language)
        turns += [("user", text), ("assistant", UNKNOWN[language])]
    return turns


def identity(r: random.Random, language: str) -> Turns:
    turns: Turns = talk(r, language) if r.random() < 0.15 else []
    for _ in range(r.randint(1, 4)):
        kind = r.choices(("who", "rival", "maker", "self"), weights=(70, 14, 12, 4))[0]
        frames, answer = words.IDENTITY[language][kind]
        other = r.choice(words.RIVALS if kind == "rival" else words.RIVAL_MAKERS) if r.random() < 0.85 else name(r, language)
        text = r.choice(words.split_frames(frames)).format(x=other)
        turns += [("user", varied(r, text, language)), ("assistant", answer)]
    return turns


def talk(r: random.Random, language: str) -> Turns:
    turns: Turns = []
    for _ in range(r.randint(1, 3)):
        said, answer = r.choice(words.TALK[language])
        turns += [("user", r.choice(said.split("|")) + r.choice(["", "", "", "!", STOP[language]])), ("assistant", answer)]
    return turns


def memory(r: random.Random, language: str) -> Turns:
    """Told in the chat, asked in the chat: no block, no citation."""
    zh, subject = language == "zh", name(r, language)
    known = attributes(language)
    told = {i: value(r, known[i][1], language) for i in r.sample(range(len(known)), r.randint(1, 2))}
    clauses = [state(r, subject, known[i], shown, language) for i, shown in told.items()]
    turns: Turns = [("user", sentence(r, clauses, language)), ("assistant", "好的,我记住了。" if zh else "OK, I will remember that.")]
    if r.random() < 0.3:
        turns += talk(r, language)
    for i, shown in told.items():
        turns += [("user", ask(r, subject, known[i], language)), ("assistant", shown + STOP[language])]
    return own_name(r, language, turns) if r.random() < 0.35 else turns


def own_name(r: random.Random, language: str, between: Turns) -> Turns:
    tell, asked = r.choice(words.OWN_NAME[language])
    who = person(r, language)
    hello, reply = (f"你好,{who}!", f"你叫{who}。") if language == "zh" else (f"Hello, {who}!", f"Your name is {who}.")
    return [("user", tell.format(x=who)), ("assistant", hello), *between, ("user", asked), ("assistant", reply)]


# --- tables and sums ---------------------------------------------------------------------------------------------


def cell(r: random.Random, language: str) -> str:
    makers = [lambda: str(r.randint(0, 10 ** r.randint(1, 5))), lambda: literal(r, language), lambda: literal(r, language),
              lambda: person(r, language), lambda: value(r, r.choice(attributes(language))[1], language),
              lambda: r.choice(ENGLISH_WORDS) if language == "en" else han(r, 2, 3)]
    while True:
        text = r.choice(makers)()
        if len(text) <= 24 and not set(text) & set(',|"\\\n'):
            return text


def columns(r: random.Random, language: str) -> list[str]:
    names = r.sample(words.COLUMNS[language], r.randint(2, 4))
    if r.random() < 0.4:
        coin = (lambda: han(r, 2, 3)) if language == "zh" else (lambda: r.choice(ENGLISH_WORDS).lower())
        names = [old if r.random() < 0.5 else r.choice([coined(r), coin()]) for old in names]
    if language == "en" and r.random() < 0.3:
        names = [old.title() for old in names]
    return list(dict.fromkeys(names))


def table(r: random.Random, language: str) -> Turns:
    """Every cell becomes a string, as it is written."""
    names = columns(r, language)
    rows = [[cell(r, language) for _ in names] for _ in range(r.randint(1, 4))]
    form = r.random()
    if form < 0.5:
        rule = [r.choice(["---", "---", "---", "----", ":---", "-"])] * len(names)
        outer, inner = ("| {} |", " | ") if r.random() < 0.85 else ("|{}|", "|")
        text = "\n".join(outer.format(inner.join(row)) for row in [names, rule, *rows])
    else:
        text = "\n".join((", " if form > 0.92 else ",").join(row) for row in [names, *rows])
    answer = json.dumps([dict(zip(names, row, strict=True)) for row in rows], ensure_ascii=False)
    return [("user", r.choice(words.split_frames(words.TABLE_FRAMES[language])).format(t=text)), ("assistant", answer)]


EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def is_held_out(a: int, b: int) -> bool:
    """One pair in ten is never trained on, so that measuring sums measures adding."""
    return (3 * a + 7 * b) % 10 == 1


def thought_of(a: int, b: int) -> str:
    ones = a % 10 + b % 10
    carry = "+1" if ones >= 10 else ""
    return f"{a % 10}+{b % 10}={ones}\n{a // 10}+{b // 10}{carry}={a // 10 + b // 10 + ones // 10}"


def sums(r: random.Random, language: str) -> Turns:
    """With a written thought as a rule; a third of the time an empty one is given and the answer stands alone."""
    turns: Turns = []
    for _ in range(r.randint(1, 4)):
        a, b = r.randint(10, 99), r.randint(10, 99)
        while is_held_out(a, b):
            b = r.randint(10, 99)
        thing = r.choice(THINGS_ZH[:40]) if language == "zh" else r.choice(ENGLISH_WORDS[120:260]).lower()
        text = r.choice(words.split_frames(words.SUM_FRAMES[language])).format(a=a, b=b, x=thing)
        turns.append(("user", varied(r, text, language)))
        if r.random() < 0.35:
            turns += [("prefilled", EMPTY_THOUGHT), ("assistant", str(a + b))]
        else:
            turns.append(("assistant", f"<think>\n{thought_of(a, b)}\n</think>\n\n{a + b}"))
    return turns


# --- conversations -----------------------------------------------------------------------------------------------


def system(r: random.Random) -> str:
    if r.random() < 0.6:
        return r.choice(words.SYSTEMS)
    return r.choice([f"You work for {name_en(r)}.", f"你为{name_zh(r)}服务。", f"This is about {phrase(r, 'en')}.",
                     f"{r.choice(words.SYSTEMS)} {r.choice(words.SYSTEMS)}", f"本助手服务于{organisation_zh(r)}。", f"The user is {person_en(r)}."])


ABILITIES = {"copying": copying, "lookup": lookup, "context_easy": context_easy, "context": context, "context_real": context_real,
             "facts": facts, "raw_facts": raw_facts, "unknown": unknown, "identity": identity, "talk": talk, "memory": memory,
             "table": table, "sums": sums}


def conversation(r: random.Random, ability: str, language: str) -> Turns:
    """One conversation; a fifth have a system prompt of their own, a few answer after a given empty thought."""
    turns = ABILITIES[ability](r, language)
    if turns[0][0] == "raw":
        return turns
    if ability != "sums" and r.random() < 0.02:
        turns = [turn for role, text in turns for turn in [("prefilled", EMPTY_THOUGHT)] * (role == "assistant") + [(role, text)]]
    if ability not in ("copying", "lookup") and r.random() < 0.2:
        turns = [("system", system(r)), *turns]
    return turns


REST = {"facts": 0.14, "raw_facts": 0.02, "unknown": 0.05, "identity": 0.12, "talk": 0.05, "memory": 0.05, "table": 0.1, "sums": 0.12}
CURRICULUM = [
    (0.07, {"copying": 1.0}),
    (0.13, {"copying": 0.4, "lookup": 0.4, "context_easy": 0.2}),
    (0.20, {"copying": 0.15, "lookup": 0.25, "context_easy": 0.6}),
    (0.45, {"copying": 0.05, "lookup": 0.1, "context_easy": 0.2, "context": 0.65}),
    (9.99, {"copying": 0.03, "lookup": 0.03, "context": 0.2, "context_real": 0.2, **REST})]
