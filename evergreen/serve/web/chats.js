// Conversations, kept one by one in the browser.
//
// A chat is {id, title, updated, turns}; a turn is {role: "user", text} or {role: "assistant", answers, shown}. Answering
// again adds an answer, so none is lost. An answer is {text, thought, state, ...}; its state is running, done, stopped or
// failed, and `failure` then is {kind, seconds, detail}.

import { randomId } from "./dom.js";
import { names, read, remove, write } from "./stored.js";

const chats = new Map();
const dropped = new Set(); // an answer that still runs must not bring its chat back

export function load() {
  for (const name of names("chat.")) loadOne(name);
}

/** Reads one chat again, after another tab has written it. */
export function loadOne(name) {
  const chat = read(name);
  const id = name.slice("chat.".length);
  if (!isChat(chat)) return chats.delete(id);
  for (const turn of chat.turns) for (const answer of turn.answers ?? []) settle(answer);
  chats.set(id, chat);
}

export const get = (id) => chats.get(id);

export const newestFirst = () => [...chats.values()].sort((a, b) => b.updated - a.updated);

export const create = () => ({ id: randomId(), title: "", updated: Date.now(), turns: [] });

/** False when the browser's storage is full; the chat then lives until the page is closed. */
export function save(chat) {
  if (dropped.has(chat.id)) return true;
  chats.set(chat.id, chat);
  return write(`chat.${chat.id}`, chat);
}

export function drop(id) {
  dropped.add(id);
  chats.delete(id);
  remove(`chat.${id}`);
}

export function restore(chat) {
  dropped.delete(chat.id);
  return save(chat);
}

export function ask(chat, text) {
  chat.title ||= text.trim().replace(/\s+/g, " ").slice(0, 80);
  chat.updated = Date.now();
  chat.turns.push({ role: "user", text });
}

/** A new, running answer to the last question. A failed one without a word makes way for it. */
export function startAnswer(chat) {
  const last = chat.turns.at(-1);
  const turn = last.role === "assistant" ? last : { role: "assistant", answers: [], shown: 0 };
  if (turn !== last) chat.turns.push(turn);
  const answer = { text: "", thought: "", state: "running" };
  turn.answers = [...turn.answers.filter((old) => old.text || old.thought), answer];
  turn.shown = turn.answers.length - 1;
  return answer;
}

export const shownAnswer = (turn) => turn.answers[turn.shown];

/** The messages of the chat for the server, without the last turn when that is an answer being made. A question that never
 * got an answer is left out, since templates want roles in turns. */
export function messages(chat, system) {
  const sent = system ? [{ role: "system", content: system }] : [];
  const last = chat.turns.findLastIndex((turn) => turn.role === "user");
  for (let i = 0; i < last; i += 1) {
    const [question, reply] = [chat.turns[i], chat.turns[i + 1]];
    const text = reply?.answers && shownAnswer(reply).text;
    if (question.role !== "user" || !text) continue;
    sent.push({ role: "user", content: question.text }, { role: "assistant", content: text });
  }
  return [...sent, { role: "user", content: chat.turns[last].text }];
}

function isChat(value) {
  const isTurn = (turn) => turn?.role === "user" ? typeof turn.text === "string" : Boolean(turn?.answers?.[turn.shown]);
  return typeof value?.id === "string" && Array.isArray(value.turns) && value.turns.every(isTurn);
}

/** An answer that was running when the page went away was cut off. */
function settle(answer) {
  if (answer.state !== "running") return;
  answer.state = "failed";
  answer.failure = { kind: "cut" };
}
