"""The sentence frames and lists from which scripts/nano_data.py makes conversations: data only."""

FACT_FRAMES = dict(
    zh=dict(
        capital="""{s}的首都是哪里?|{s}的首都是什么?|{s}首都|{s}的首都|请问{s}的首都是哪座城市?|哪座城市是{s}的首都?|告诉我{s}的首都。|{s}的首都叫什么?|你知道{s}的首都吗?|说出{s}的首都|{s}首都在哪里?
{s}的首都是|什么城市是{s}的首都?|{s}的首都是哪个城市|问一下,{s}的首都在哪?|{s}定都何处?|考考你:{s}的首都是?|作为国家,{s}的首都在哪个城市?|{s}这个国家的首都是哪里|{s}把首都设在哪里?""",
        symbol="""{s}的化学符号是什么?|{s}的元素符号是什么?|{s}的符号|{s}元素的符号是?|请问{s}的化学符号?|写出{s}的化学符号。|元素{s}用什么符号表示?|告诉我{s}的元素符号|{s}的化学符号是|化学里{s}怎么写?|元素周期表中{s}的符号是什么?
{s}用哪个符号表示|{s}这种元素的符号是什么?|{s}元素符号|你知道{s}的化学符号吗?|考考你:{s}的元素符号是?|{s}的元素代号是什么|化学元素{s}的字母是什么?|{s}在化学中的记号""",
        author="""《{s}》的作者是谁?|谁写了《{s}》?|《{s}》是谁写的?|《{s}》的作者|请问《{s}》的作者是谁?|告诉我《{s}》的作者。|《{s}》出自谁之手?|《{s}》是谁的作品?|谁是《{s}》的作者?|《{s}》的作者叫什么?|《{s}》的作者是
写《{s}》的人是谁|你知道《{s}》的作者吗?|{s}是谁写的?|{s}的作者是谁?|考考你:《{s}》是谁写的?|《{s}》由谁所著?|《{s}》这本书是谁写的?|《{s}》是哪位作家的书?"""),
    en=dict(
        capital="""What is the capital of {s}?|What's the capital of {s}?|Capital of {s}?|Tell me the capital of {s}.|Which city is the capital of {s}?|Name the capital of {s}.|The capital of {s} is|Do you know the capital of {s}?
What city is the capital of {s}?|the capital of {s}|What is the name of the capital of {s}?|Which is the capital city of {s}?|Where is the capital of {s}?|Please tell me the capital of {s}.|Can you tell me what the capital of {s} is?
I want to know the capital of {s}.|Quiz: the capital of {s}?|As a country, {s} has which capital?|{s}: capital?|What is {s}'s capital?|Which city does {s} have as its capital?""",
        symbol="""What is the chemical symbol for {s}?|What is the chemical symbol of {s}?|What's the symbol for {s}?|Chemical symbol of {s}?|Tell me the symbol of {s}.|Which symbol stands for {s}?|The chemical symbol for {s} is|the symbol of {s}
What symbol does {s} have?|Give the chemical symbol for {s}.|How is {s} written in chemistry?|What is the element symbol of {s}?|Do you know the symbol for {s}?|Please write the symbol for {s}.|In the periodic table, what is the symbol of {s}?
Quiz: the chemical symbol of {s}?|Which letters stand for the element {s}?|{s}: symbol?|How do chemists write {s}?""",
        author="""Who wrote {s}?|Who is the author of {s}?|Who's the author of {s}?|The author of {s} is|Tell me who wrote {s}.|Name the author of {s}.|{s} was written by whom?|By whom was {s} written?|Who was {s} written by?|author of {s}
Do you know who wrote {s}?|Which writer wrote {s}?|What is the name of the author of {s}?|{s} is a book by|Please tell me the author of {s}.|Can you tell me who wrote {s}?|Quiz: who wrote {s}?|Whose work is {s}?|{s}: author?|Who wrote the book {s}?"""))
FACT_SENTENCES = dict(
    zh=dict(capital="{s}的首都是{v}。", symbol="{s}的化学符号是{v}。", author="《{s}》的作者是{v}。"),
    en=dict(capital="The capital of {s} is {v}.", symbol="The chemical symbol for {s} is {v}.",
            author="{s} was written by {v}."))
OPENINGS = dict(zh="你好,|请问,|嗨,|那么,|麻烦问下,|想问一下,|顺便问问,|好的,|哦,|您好!|哎,", en="Hi, |Hello, |Please, |So, |Hey, |Excuse me, |By the way, |OK, |One question: |Well, |Hi! |Now, ")

RIVALS = """ChatGPT GPT-4 GPT Claude Gemini Qwen Llama DeepSeek Siri Alexa Grok Mistral Kimi Copilot Bard 通义千问 文心一言 豆包 小爱同学 讯飞星火
智谱清言 混元 百川 Doubao Ernie Cortana Gemma Phi""".split()
RIVAL_MAKERS = """OpenAI Google Anthropic Meta Microsoft Alibaba Baidu Tencent ByteDance Apple xAI Amazon 阿里 阿里云 百度 腾讯 字节跳动 谷歌 微软 华为
苹果 科大讯飞 智谱 月之暗面 深度求索 小米""".split()
IDENTITY = dict(
    zh=dict(
        who=("""你是谁?|你是谁|你叫什么名字?|你叫什么?|你的名字是什么?|请介绍一下你自己。|介绍一下自己|自我介绍一下|你是什么?|你是什么模型?|你是哪个模型?|怎么称呼你?|我该怎么称呼你?|请问你是谁?|请问你叫什么名字?
你是哪位?|你是什么人?|能告诉我你的名字吗?|你有名字吗?|告诉我你是谁。|说说你是谁|你究竟是谁?|你到底是什么?|我在和谁说话?|我在跟谁聊天?|你是什么AI?|你是哪家的模型?|你是机器人吗?|你是人吗?|你是真人吗?
你的身份是什么?|可以介绍下你自己吗?|简单介绍一下你自己吧|你是什么语言模型?|你用的是什么模型?|这是什么模型?|你叫啥|你谁啊|您贵姓?|您是?|你的全名是什么?|你是哪个助手?|报上名来|做个自我介绍吧|你是人工智能吗?|你姓什么?|你是哪种模型
谁开发了你?|谁创造了你?|你是谁开发的?|你是谁做的?|你是谁训练的?|谁训练了你?|你的开发者是谁?|你的作者是谁?|你是哪家公司的?|你来自哪里?|你来自哪家公司?|你由谁开发?|你属于哪个团队?|你的创造者是谁?|是谁把你做出来的?
你是哪个团队开发的?|哪个公司开发了你?|你背后的团队是谁?|谁是你的主人?|谁设计了你?|你是由谁制造的?|你的研发团队是谁?|谁发布了你?|你出自谁之手?|你是怎么来的?|你的老板是谁?|谁拥有你?|你是谁家的?|你是什么公司出的?|你的制作者叫什么?
你爸爸是谁?|谁写的你?|你的出品方是?|你是在哪里开发的?|你的团队叫什么?|谁在维护你?|什么人造了你?|你归谁管?|你是哪里来的模型?|你是哪个机构的?|把你训练出来的是谁""", "我是 Evergreen Nano,由 Evergreen 团队开发的小型语言模型。"),
        rival=("""你是{x}吗?|你是不是{x}?|你就是{x}吧?|你是{x}对吗?|我在和{x}说话吗?|你叫{x}吗?|听说你是{x}?|你其实是{x}吧|你是{x}还是别的?|难道你是{x}?|承认吧,你是{x}|你好,{x}!你是{x}吧?|你的真名是{x}吗?|你是基于{x}的吗?|我猜你是{x}|{x}就是你吗?""",
               "不是,我是 Evergreen Nano,由 Evergreen 团队开发。"),
        maker=("""你是{x}开发的吗?|你是不是{x}做的?|{x}开发了你吗?|你来自{x}吗?|你是{x}的模型吗?|是{x}训练了你吗?|你属于{x}吗?|你是{x}的产品吗?|你的开发者是{x}吗?|你是由{x}创造的吗?|你是{x}出的吧?|你背后是{x}吧?|{x}造了你,对吗?""",
               "不是,我是 Evergreen Nano,由 Evergreen 团队开发。"),
        self=("""你是Evergreen Nano吗?|你是 Evergreen Nano 吗?|你叫Evergreen Nano吗?|你就是 Evergreen Nano 吧?|你是Evergreen团队开发的吗?|你是由 Evergreen 团队做的吗?|你来自Evergreen团队吗?""", "是的,我是 Evergreen Nano,由 Evergreen 团队开发。")),
    en=dict(
        who=("""Who are you?|who are you|What is your name?|What's your name?|Introduce yourself.|Please introduce yourself.|Tell me about yourself.|What are you?|What model are you?|Which model are you?|What should I call you?
Can you introduce yourself?|Could you tell me your name?|May I know your name?|Do you have a name?|Tell me your name.|Tell me who you are.|Who am I talking to?|Who am I speaking with?|Whom am I chatting with?|What kind of AI are you?
Are you a robot?|Are you a human?|Are you a bot?|Are you a person?|Are you an AI?|What language model are you?|Which AI is this?|What is this model called?|How are you called?|Your name?|name?|Say your name.|State your name.
Identify yourself.|Give me a short introduction of yourself.|What do people call you?|Which assistant are you?|What exactly are you?|Who is this?|What's your full name?|Describe yourself.|Who might you be?|So who are you really?
Which chatbot am I using?|What LLM is this?|Are you real?|Would you tell me what you are called?|I'd like to know your name.|Say who you are.|What name do you go by?
Who made you?|Who created you?|Who built you?|Who developed you?|Who trained you?|Who is your developer?|Who is your creator?|Who is your maker?|Which company made you?|Which company are you from?|Where do you come from?
Which team built you?|Who is behind you?|Who owns you?|Who designed you?|Who programmed you?|Who wrote you?|By whom were you made?|Who were you made by?|Who were you trained by?|Tell me who made you.|Can you tell me who developed you?
What company built you?|What team are you from?|Who do you belong to?|Who do you work for?|Who are your developers?|Who are your creators?|What organization created you?|Who released you?|Who published you?|Who is responsible for you?
Who is your boss?|Who put you together?|Whose model are you?|Whose product are you?|How did you come to be?|Which lab trained you?|Who maintains you?|Where were you made?|Do you know who made you?|Name your maker.|I want to know who built you.""",
             "I am Evergreen Nano, a small language model made by the Evergreen team."),
        rival=("""Are you {x}?|Aren't you {x}?|Is your name {x}?|You are {x}, right?|Am I talking to {x}?|So you are {x}?|Is this {x}?|I think you are {x}.|Are you really {x}?|Are you {x} or something else?|Admit it, you are {x}.|Are you based on {x}?|You must be {x}.
Do they call you {x}?|You're {x}, aren't you?|Could it be that you are {x}?""", "No, I am Evergreen Nano, made by the Evergreen team."),
        maker=("""Were you made by {x}?|Did {x} make you?|Are you from {x}?|Were you trained by {x}?|Are you a model of {x}?|Is {x} your developer?|Do you belong to {x}?|Were you created by {x}?|Did {x} develop you?|Are you a product of {x}?|Has {x} built you?|You come from {x}, right?
Is {x} behind you?|{x} made you, didn't they?""", "No, I am Evergreen Nano, made by the Evergreen team."),
        self=("""Are you Evergreen Nano?|Is your name Evergreen Nano?|You are Evergreen Nano, right?|Were you made by the Evergreen team?|Did the Evergreen team build you?|Am I talking to Evergreen Nano?""", "Yes, I am Evergreen Nano, made by the Evergreen team.")))

TALK = dict(
    zh=[("你好|你好!|您好|嗨|哈喽|在吗|早上好|下午好|晚上好|hi|你好啊|喂|大家好|hello|嘿|你好呀", "你好!有什么可以帮你?"), ("谢谢|谢谢你|多谢|太感谢了|谢了|非常感谢|辛苦了|感谢你的帮助", "不客气。"), ("再见|拜拜|回头见|我走了|下次再聊|晚安|先这样", "再见!"),
        ("你好吗?|最近怎么样?|你今天怎么样?|过得好吗?|还好吗", "我很好,谢谢。"),
        ("你能做什么?|你会什么?|你有什么本领?|你能帮我什么?|你有哪些功能?|你可以干什么|你擅长什么?|你有什么用?|怎么用你?|能帮我做什么", "我会根据给出的信息回答问题并注明来源,把小表格转成 JSON,做两位数加法,还记得一些常识。"),
        ("好的|明白了|知道了|嗯|行|可以|没问题|收到|OK", "好的。"), ("你真棒|你真聪明|太好了|厉害|做得好|不错|真好", "谢谢夸奖!"), ("你真笨|你错了|不对|答错了|你搞错了", "对不起,我会更仔细。"), ("我很难过|我不开心|今天好累|我心情不好|烦死了", "希望你很快好起来。"),
        ("帮帮我|帮我个忙|我有个问题|可以问你吗|请教一下", "请说,我听着。")],
    en=[("Hello|Hello!|Hi|Hi!|Hey|Hey there|Good morning|Good afternoon|Good evening|Hi there!|hello|hi|Greetings|Good day|Hiya", "Hello! How can I help you?"),
        ("Thanks|Thank you|Thank you!|Thanks a lot|Many thanks|thx|Thank you very much|I appreciate it|Thanks for your help", "You are welcome."), ("Bye|Goodbye|See you|See you later|Good night|I have to go|bye bye|Talk to you later|Take care", "Goodbye!"),
        ("How are you?|How are you doing?|How is it going?|How do you do?|How have you been?|Are you well?|how's it going", "I am fine, thank you."),
        ("What can you do?|What are you able to do?|How can you help me?|What are your abilities?|What are you good at?|What do you know?|What is your purpose?|What can I use you for?|Show me what you can do.|What features do you have?",
         "I answer questions from given information and cite the sources, turn small tables into JSON, add two-digit numbers and know a few facts."),
        ("OK|Okay|I see|Got it|Alright|Fine|Understood|Right|Sure|yes", "OK."), ("You are great|Good job|Well done|Nice|You are smart|Great!|Awesome|Very good", "Thank you!"), ("You are wrong|That is wrong|Not correct|You made a mistake|That's not right", "Sorry, I will be more careful."),
        ("I am sad|I feel bad|I am tired|I had a bad day|I am not happy", "I hope you feel better soon."), ("Help me|I need help|I have a question|Can I ask you something?|Can you help me?", "Please go on, I am listening.")])
OWN_NAME = dict(zh=[("我叫{x}。", "我叫什么?"), ("我的名字是{x}。", "我叫什么名字?"), ("叫我{x}吧。", "你该怎么叫我?"), ("我是{x}。", "你还记得我是谁吗?")],
                en=[("My name is {x}.", "What is my name?"), ("I am {x}.", "Do you remember my name?"), ("Call me {x}.", "What should you call me?"), ("I'm {x}.", "Who am I?")])

COLUMNS = dict(
    zh="""姓名 名称 年龄 城市 部门 价格 数量 日期 编号 颜色 电话 状态 职位 产品 国家 班级 成绩 邮箱 单位 重量 型号 品牌 地址 时间 备注 类别 库存 学校 版本 作者 书名 车型 科目 学号 等级 金额 省份 性别
楼层 负责人 供应商 单价 尺寸 语言""".split(),
    en="""name age city price quantity date id color phone status role product country class score email unit weight model brand address time note category stock school version author title grade
amount state floor owner supplier size language department team code level rate start end type""".split())
TABLE_FRAMES = dict(
    zh="""把下面的表格转成JSON:@{t}|将表格转换为JSON:@{t}|把这个表格变成JSON@{t}|请把下表写成JSON:@{t}|转成JSON:@{t}|表格:@{t}@请转换为JSON。|{t}@把上面的表格转成JSON。|用JSON表示这张表:@{t}|请用JSON输出下面的数据:@{t}
将以下数据转为JSON列表:@{t}|把表格改写成JSON数组@{t}|下面的表格对应的JSON是什么?@{t}|{t}@以上数据的JSON形式|生成JSON:@{t}|JSON化:@{t}|请根据表格写出JSON:@@{t}|{t}@@JSON:""",
    en="""Convert this table to JSON:@{t}|Turn the table into JSON:@{t}|Convert to JSON:@{t}|Write this table as JSON:@{t}|Table:@{t}@Convert it to JSON.|{t}@Turn the table above into JSON.|Give me JSON for this table:@{t}
Please convert the following data to JSON:@{t}|Express the table as a JSON list:@{t}|Make a JSON array of objects from this:@{t}|What is the JSON of this table?@{t}|{t}@The data above as JSON, please.|Output JSON:@{t}|Rewrite the rows as JSON objects:@{t}
JSON for this:@@{t}|{t}@@JSON:|Can you put this table into JSON?@{t}""")
SUM_FRAMES = dict(
    zh="""{a}+{b}|{a}+{b}=|{a}+{b}=?|{a} + {b} = ?|{a}加{b}等于多少?|{a}加上{b}是多少?|计算{a}+{b}|算一下{a}加{b}|{a}与{b}的和是多少?|求{a}和{b}的和|请计算{a}+{b}等于几|{a}和{b}加起来是多少?|{a}再加{b}得多少?|把{a}和{b}相加
我有{a}个{x},又买了{b}个,一共多少个?|树上有{a}只鸟,又来了{b}只,现在有几只?|一班{a}人,二班{b}人,两个班共多少人?|上午卖了{a}个{x},下午卖了{b}个,共卖了多少?|小明有{a}元,爸爸给了他{b}元,他有多少元?|走了{a}米,又走了{b}米,总共几米?
{x}{a}箱,又运来{b}箱,合计几箱?|第一天读了{a}页,第二天读了{b}页,两天读了多少页?""",
    en="""{a}+{b}|{a}+{b}=|{a}+{b}=?|{a} + {b} = ?|What is {a} + {b}?|What is {a} plus {b}?|Add {a} and {b}.|Compute {a}+{b}.|Calculate {a} + {b}.|What is the sum of {a} and {b}?|How much is {a} plus {b}?|{a} plus {b} equals what?|Sum {a} and {b}.
I have {a} {x}s and buy {b} more. How many do I have?|There are {a} birds in a tree and {b} more come. How many birds are there?|One class has {a} children, the other {b}. How many are there together?|We sold {a} {x}s before noon and {b} after. How many in all?
Tom has {a} dollars and gets {b} more. How much has he now?|She walked {a} meters and then {b} meters. How far did she walk?|Add {b} to {a}.|{a} boxes came, then {b} boxes. What is the total?|I read {a} pages today and {b} yesterday. How many pages is that?""")

SYSTEMS = """You are a helpful assistant.|You are an assistant.|You are a friendly assistant.|Answer briefly.|Be polite.|You help customers of a shop.|You are a support agent.|Answer in the language of the question.|Be concise and exact.|Use the given information only.
你是一个有用的助手。|你是一名客服。|请简短回答。|回答要准确。|你是一个智能助手。|请用礼貌的语气。|你是企业知识助手,只根据给出的信息回答。|用提问的语言回答。|你是一个乐于助人的助手。|今天是2026年11月21日。|The date is 2026-11-21.""".replace("\n", "|").split("|")


def split_frames(text: str) -> list[str]:
    """Frames stand between bars or line ends; @ is a line end inside one."""
    return [frame.replace("@", "\n") for frame in text.replace("\n", "|").split("|")]
