// The page in two languages. HTML names its words by data-word (text), data-label (name and tooltip), data-hint (placeholder).

import { writeText } from "./stored.js";

export const WORDS = {
  en: {
    newChat: "New chat", chats: "Chats", noChats: "Your chats stay in this browser.", openChats: "Show chats", closeChats: "Hide chats",
    deleteChat: "Delete “{title}”", deleted: "Chat deleted.", undo: "Undo", untitled: "New chat",
    model: "Model", settings: "Settings", close: "Close", conversation: "Conversation",
    greeting: "How can I help?", hint: "Ask anything", message: "Your message", send: "Send", stop: "Stop (Esc)",
    keys: "Enter sends, Shift+Enter starts a line.", caution: "Answers can be wrong.", latest: "To the latest",
    language: "Language", theme: "Appearance", system: "System", light: "Light", dark: "Dark",
    systemPrompt: "System prompt", systemPromptHint: "What the model should always keep in mind", sampling: "Sampling",
    temperature: "Temperature", temperatureHelp: "0 always takes the likeliest word; higher is more varied",
    topP: "Top p", topPHelp: "Only the likeliest words that together reach this share",
    maxTokens: "Longest answer (tokens)", maxTokensHelp: "Answers end there, finished or not",
    seed: "Seed", seedHelp: "The same seed gives the same answer again", serverDefault: "server’s default", reset: "Reset", outOfRange: "Not used: it takes {wanted}.", numberBetween: "a number from {min} to {max}", wholeNumber: "a whole number from {min} on", changeKey: "Use another key",
    keyTitle: "This server asks for a key", keyText: "Kept until this tab is closed, and sent to this server only.", keyWrong: "The server did not accept that key.",
    key: "Key", useKey: "Continue", cancel: "Cancel",
    you: "You", answer: "Answer", thinking: "Thinking…", thought: "Thoughts", copy: "Copy", copied: "Copied", copyAnswer: "Copy the answer", copyFailed: "The browser refused to copy. Select the text instead.",
    regenerate: "Answer again", good: "Good answer", bad: "Bad answer", wrong: "This answer is wrong", table: "Table",
    older: "Earlier answer", newer: "Later answer", count: "{n} of {all}",
    correction: "What would be right?", correctionHint: "The answer as it should have been", comment: "Anything else? (optional)", sendCorrection: "Send", thanks: "Thank you. Your correction is stored with this answer.", thanksLive: "Thank you. The correction is already in use.",
    feedbackLost: "Your rating could not be stored. Please try again.",
    sources: "Sources", sourceNumber: "Source {n}: {title}", release: "release {release}", speed: "{n} tokens/s", seconds: "{n} s", tokens: "{prompt} tokens in, {completion} out", cached: "from cache",
    snapshotUsed: "knowledge snapshot {n}", late: "Sources could not be looked up in time, so this answer has none.", abstained: "The model’s answer did not agree with its sources and is not shown.",
    knowledge: "Knowledge", entries: "Entries", serving: "What answers use", searchEntries: "Search entries", addEntry: "Add", notInUse: "Withdrawn and expired entries", noEntries: "Nothing here yet.", more: "More",
    entryTitle: "Title", entryContent: "Content", entrySource: "Web address of the source", entryTags: "Tags, separated by commas", entryReason: "Why? (kept in the history)",
    save: "Save", correctEntry: "Correct", withdrawEntry: "Withdraw", withdrawn: "withdrawn", historyOf: "History", added: "added", updated: "corrected", redacted: "removed for good", version: "version {version}",
    usesNewest: "Answers use the newest entries.", usesSnapshot: "Answers use snapshot {n}; later entries are not in use.", usesCanary: "{share} of the users get snapshot {n}.", usesCanaryNewest: "{share} of the users get the newest entries.", noReleases: "This server answers from a model without releases: snapshots can be published, but not rolled back to.", notInAnswers: "This is stored, but answers do not show it yet: they use a snapshot.",
    publish: "Publish a snapshot", snapshots: "Snapshots ({n})", rollBack: "Use this one", goLive: "Use the newest entries", inUse: "in use",
    stopped: "You stopped this answer.", length: "The longest answer length was reached.", trimmed: "The oldest messages were left out, since the conversation is longer than the model can read.",
    answering: "Answering…", answered: "The answer is complete.", retry: "Try again", storageFull: "This browser’s storage is full. Delete old chats to keep new ones.",
    wait: "Try again in {seconds} s.", waitSome: "Try again in a moment.",
    failure: {
      key: "The server asks for a key. Enter one and try again.", forbidden: "This key may not do that. Use another key: the settings have a button for it.",
      busy: "The server is busy. {wait}", unavailable: "The model is not ready. {wait}",
      context: "This conversation is longer than the model can read. Start a new chat or ask something shorter.",
      limit: "The longest answer in the settings is more than the model has room for. Choose a smaller number.",
      model: "This model is no longer served. Choose another one above.", refused: "The server refused the request: {detail}",
      broken: "The server made an error. Try again; if it stays, look at its log.", lost: "The server cannot be reached. Check the connection and try again.",
      cut: "The connection was lost before the answer was complete. Try again.",
    },
  },
  zh: {
    newChat: "新对话", chats: "对话", noChats: "对话只保存在本浏览器中。", openChats: "显示对话列表", closeChats: "收起对话列表",
    deleteChat: "删除“{title}”", deleted: "对话已删除。", undo: "撤销", untitled: "新对话",
    model: "模型", settings: "设置", close: "关闭", conversation: "对话内容",
    greeting: "有什么可以帮您？", hint: "请输入问题", message: "您的消息", send: "发送", stop: "停止（Esc）",
    keys: "Enter 发送，Shift+Enter 换行。", caution: "回答可能有误。", latest: "回到最新",
    language: "语言", theme: "外观", system: "跟随系统", light: "浅色", dark: "深色",
    systemPrompt: "系统提示词", systemPromptHint: "希望模型始终遵循的要求", sampling: "采样参数",
    temperature: "温度", temperatureHelp: "0 总是选最可能的词，越高越多样",
    topP: "Top p", topPHelp: "只从累计概率达到该值的词中选择",
    maxTokens: "回答长度上限（token）", maxTokensHelp: "到此为止，无论是否说完",
    seed: "随机种子", seedHelp: "相同的种子得到相同的回答", serverDefault: "服务器默认值", reset: "恢复默认", outOfRange: "未生效：应为{wanted}。", numberBetween: "{min} 到 {max} 之间的数", wholeNumber: "不小于 {min} 的整数", changeKey: "更换密钥",
    keyTitle: "此服务器需要密钥", keyText: "密钥仅保留到关闭此标签页为止，只发送给本服务器。", keyWrong: "服务器未接受该密钥。",
    key: "密钥", useKey: "继续", cancel: "取消",
    you: "您", answer: "回答", thinking: "思考中…", thought: "思考过程", copy: "复制", copied: "已复制", copyAnswer: "复制回答", copyFailed: "浏览器拒绝复制，请手动选择文字。",
    regenerate: "重新回答", good: "回答得好", bad: "回答得不好", wrong: "回答有误", table: "表格",
    older: "上一个回答", newer: "下一个回答", count: "{n} / {all}",
    correction: "正确答案是什么？", correctionHint: "请写出应有的回答", comment: "补充说明（可选）", sendCorrection: "提交", thanks: "谢谢！您的更正已与该回答一起保存。", thanksLive: "谢谢！更正已经生效。",
    feedbackLost: "评价未能保存，请重试。",
    sources: "来源", sourceNumber: "来源 {n}：{title}", release: "版本 {release}", speed: "{n} token/秒", seconds: "{n} 秒", tokens: "输入 {prompt} token，输出 {completion} token", cached: "来自缓存",
    snapshotUsed: "知识快照 {n}", late: "未能及时查到来源，本回答没有引用来源。", abstained: "模型的回答与来源不符，未予显示。",
    knowledge: "知识库", entries: "条目", serving: "回答所用知识", searchEntries: "搜索条目", addEntry: "添加", notInUse: "已撤回和已过期的条目", noEntries: "这里还没有条目。", more: "更多",
    entryTitle: "标题", entryContent: "内容", entrySource: "来源网址", entryTags: "标签，用逗号分隔", entryReason: "原因（保留在历史中）",
    save: "保存", correctEntry: "更正", withdrawEntry: "撤回", withdrawn: "已撤回", historyOf: "历史", added: "添加", updated: "更正", redacted: "已永久移除", version: "版本 {version}",
    usesNewest: "回答使用最新条目。", usesSnapshot: "回答使用快照 {n}，其后的条目未生效。", usesCanary: "{share} 的用户使用快照 {n}。", usesCanaryNewest: "{share} 的用户使用最新条目。", noReleases: "此服务器直接使用模型而非发布版本：可以发布快照，但不能回滚。", notInAnswers: "已保存，但回答尚未体现：回答使用的是快照。",
    publish: "发布快照", snapshots: "快照（{n}）", rollBack: "使用此快照", goLive: "改用最新条目", inUse: "使用中",
    stopped: "您已停止此回答。", length: "已达到回答长度上限。", trimmed: "对话超出模型可读长度，最早的消息未被带上。",
    answering: "正在回答…", answered: "回答完毕。", retry: "重试", storageFull: "浏览器存储空间已满，请删除旧对话以保存新对话。",
    wait: "请在 {seconds} 秒后重试。", waitSome: "请稍后重试。",
    failure: {
      key: "服务器需要密钥，请输入后重试。", forbidden: "此密钥没有权限，请在设置中更换密钥。",
      busy: "服务器繁忙。{wait}", unavailable: "模型尚未就绪。{wait}",
      context: "对话超出模型可读长度。请新建对话，或缩短问题。",
      limit: "设置中的回答长度上限超出模型容量，请调小。",
      model: "该模型已停止服务，请在上方选择其他模型。", refused: "服务器拒绝了请求：{detail}",
      broken: "服务器出错。请重试；若仍出错，请查看服务器日志。", lost: "无法连接服务器。请检查网络后重试。",
      cut: "连接在回答完成前中断，请重试。",
    },
  },
};

const root = document.documentElement;

export const language = () => (root.lang.startsWith("zh") ? "zh" : "en");

/** Words by name, {places} filled. */
export function say(name, values = {}) {
  return fill(WORDS[language()][name], values);
}

/** One line on what went wrong and what to do. */
export function sayFailure({ kind, seconds, detail }) {
  const wait = seconds ? say("wait", { seconds }) : say("waitSome");
  return fill(WORDS[language()].failure[kind] ?? WORDS[language()].failure.broken, { wait, detail });
}

export function setLanguage(name) {
  root.lang = name === "zh" ? "zh-CN" : "en";
  writeText("language", root.lang);
  translate();
}

/** Fills in the words that the HTML names. */
export function translate() {
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = say(element.dataset.hint);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    if (element.matches("button, select")) element.title = say(element.dataset.label);
  }
}

/** A date as people of the language write it; what is no date stays as it is. */
export function sayDate(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? String(text ?? "") : date.toLocaleDateString(root.lang, { dateStyle: "medium" });
}

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
