// The chat on the page: its turns, the answer that streams in, the place that is being read.

import * as api from "./api.js";
import * as chats from "./chats.js";
import { $, copyText, icon } from "./dom.js";
import * as ratings from "./ratings.js";
import { askKey, notify, requestFields, systemPrompt } from "./settings.js";
import { answerView, questionView } from "./turns.js";
import { say } from "./words.js";

const SAVE_EVERY_MS = 1000;
const NEAR_END_PX = 80;
const SHORTEST_S = 0.05; // what arrives at once has no speed

const list = $("#turns");
const scroller = $("#scroller");
const running = new Map(); // chat id -> AbortController of the answer being made
const changed = new EventTarget(); // "change" when the list of chats has something new to show

let chat = chats.create();
let views = new Map(); // turn -> view, of the chat that is shown
let followsEnd = true;

export const onChange = (callback) => changed.addEventListener("change", callback);
export const shownId = () => chat.id;
export const isRunning = (id = chat.id) => running.has(id);
export const stop = (id = chat.id) => running.get(id)?.abort();

export function show(next = chats.create()) {
  if (next.id !== chat.id) ratings.stopReading();
  chat = next;
  followsEnd = true;
  redraw();
}

/** Draws the whole chat, in the page's language. */
export function redraw() {
  views = new Map();
  list.replaceChildren();
  chat.turns.forEach(addView);
  drawState();
}

export function send(text) {
  ratings.stopReading();
  chats.ask(chat, text);
  addView(chat.turns.at(-1));
  followsEnd = true;
  reply(chat);
}

function addView(turn) {
  const view = turn.role === "user" ? { element: questionView(turn), update() {} } : answerView(turn, actsOn(chat, turn));
  views.set(turn, view);
  list.append(view.element);
}

/** Has the last question answered, once more where it was already. */
async function reply(to) {
  if (running.has(to.id)) return;
  const controller = new AbortController();
  running.set(to.id, controller);
  const answer = chats.startAnswer(to);
  const turn = to.turns.at(-1);
  keep(to);
  if (to === chat && !views.has(turn)) addView(turn);
  drawState(turn);
  $("#status").textContent = say("answering");
  await stream(to, turn, answer, controller.signal);
  running.delete(to.id);
  keep(to);
  drawState(turn);
  if (answer.state === "done") ratings.startReading(answer.id);
  $("#status").textContent = answer.state === "failed" ? "" : say(answer.state === "done" ? "answered" : "stopped");
  if (answer.failure?.kind === "key" && (await askKey())) reply(to);
}

/** Fills `answer` as it arrives; sets its state when it ends, however that is. */
async function stream(to, turn, answer, signal) {
  const times = { asked: performance.now(), first: 0, saved: performance.now() };
  try {
    const body = { ...(await requestFields()), messages: chats.messages(to, systemPrompt()) };
    times.asked = performance.now(); // a key may have been typed meanwhile
    for await (const chunk of api.chat(body, signal)) {
      take(chunk, answer, times);
      drawSoon(turn);
      if (performance.now() - times.saved > SAVE_EVERY_MS) {
        times.saved = performance.now();
        keep(to);
      }
    }
    answer.state = "done";
  } catch (error) {
    answer.state = signal.aborted ? "stopped" : "failed";
    if (answer.state === "failed") answer.failure = failureOf(error);
  }
  measure(answer, times);
}

function take(chunk, answer, times) {
  const choice = chunk.choices?.[0];
  const { content, reasoning_content: thought } = choice?.delta ?? {};
  if ((content || thought) && !times.first) times.first = performance.now();
  answer.text += content ?? "";
  answer.thought += thought ?? "";
  answer.id ??= chunk.id;
  answer.model = chunk.model ?? answer.model;
  answer.finish = choice?.finish_reason ?? answer.finish;
  if (chunk.usage) answer.usage = { prompt: chunk.usage.prompt_tokens, completion: chunk.usage.completion_tokens };
  const { release, trimmed, cached, snapshot, knowledge } = chunk.evergreen ?? {};
  if (release) answer.release = String(release);
  if (snapshot) answer.snapshot = snapshot;
  if (knowledge?.decision === "late" || knowledge?.outcome === "abstained") answer.caveat = knowledge.decision === "late" ? "late" : "abstained";
  const sources = sourcesOf(chunk.evergreen);
  if (sources.length) answer.sources = sources;
  if (trimmed) answer.trimmed = true;
  if (cached) answer.cached = true;
}

/** What the answer cites; of an answer that cites nothing, what it was given. */
function sourcesOf({ citations = [], sources = [] } = {}) {
  return (citations.length ? citations : sources).filter((source) => Number.isInteger(source?.number));
}

function measure(answer, { asked, first }) {
  const now = performance.now();
  answer.seconds = (now - asked) / 1000;
  const seconds = (now - first) / 1000;
  const later = (answer.usage?.completion ?? 0) - 1; // the first token's time is the prompt's
  if (first && later > 0 && seconds > SHORTEST_S) answer.speed = Number((later / seconds).toPrecision(2));
}

function failureOf(error) {
  if (error instanceof api.Failure) return { kind: error.kind, seconds: error.seconds, detail: error.detail };
  console.error(error);
  return { kind: "broken" };
}

function actsOn(of, turn) {
  const answer = () => chats.shownAnswer(turn);
  const redrawTurn = () => views.get(turn)?.update();
  const set = (values) => {
    const target = answer();
    const before = Object.fromEntries(Object.keys(values).map((name) => [name, target[name]]));
    Object.assign(target, values);
    redrawTurn();
    return () => Object.assign(target, before) && redrawTurn();
  };
  return {
    click: () => ratings.note(answer().id, "click"),
    regenerate() {
      if (turn !== of.turns.at(-1)) return fork(of, turn);
      if (answer().state !== "failed") ratings.note(answer().id, "regenerate");
      reply(of);
    },
    show(index) {
      turn.shown = index;
      keep(of);
      redrawTurn();
    },
    async copy() {
      if (await copied(views.get(turn).element.querySelector(".copy-answer"), answer().text)) ratings.note(answer().id, "copy");
    },
    async rate(thumb) {
      if (answer().thumb === thumb) return;
      const id = answer().id;
      const undo = set({ thumb });
      await stored(of, () => ratings.rate(id, { thumb }), undo);
    },
    async correct(correction, comment) {
      const id = answer().id;
      const result = await stored(of, () => ratings.rate(id, { thumb: "down", correction, ...(comment && { comment }) }), () => {});
      if (!result) return;
      views.get(turn)?.closeCorrection();
      set({ thumb: "down", corrected: result.patch ? "thanksLive" : "thanks" });
      keep(of);
    },
  };
}

/** An earlier question asked again: a chat of its own, so that what followed stays. */
function fork(of, turn) {
  const next = { ...chats.create(), title: of.title, turns: structuredClone(of.turns.slice(0, of.turns.indexOf(turn) + 1)) };
  ratings.note(chats.shownAnswer(turn).id, "regenerate");
  show(next);
  reply(next);
}

/** What the server says to a rating; null after a failure, which is said and undone. */
async function stored(of, rating, undo) {
  try {
    const result = await rating();
    notify("");
    keep(of);
    return result ?? {};
  } catch (error) {
    if (!(error instanceof api.Failure)) throw error;
    if (error.kind === "key" && (await askKey())) return stored(of, rating, undo);
    undo();
    notify(say("feedbackLost"));
    return null;
  }
}

/** Copies, and shows a tick on the button for a moment. */
async function copied(button, text) {
  try {
    await copyText(text);
  } catch {
    notify(say("copyFailed"));
    return false;
  }
  button.firstChild.replaceWith(icon("check"));
  setTimeout(() => button.firstChild.replaceWith(icon("copy")), 1500);
  return true;
}

function keep(what) {
  if (!chats.save(what)) notify(say("storageFull"));
  changed.dispatchEvent(new Event("change"));
}

const grown = new Set(); // turns to draw at the next frame

function drawSoon(turn) {
  if (!grown.size) requestAnimationFrame(drawGrown);
  grown.add(turn);
}

function drawGrown() {
  for (const turn of grown) views.get(turn)?.update();
  grown.clear();
  followEnd();
}

function drawState(turn) {
  views.get(turn)?.update();
  $("#greeting").hidden = chat.turns.length > 0;
  $("#stop").hidden = !isRunning();
  $("#send").hidden = isRunning();
  list.setAttribute("aria-busy", String(isRunning()));
  $("#title").textContent = chat.title || "Evergreen";
  document.title = chat.title ? `${chat.title} · Evergreen` : "Evergreen";
  followEnd();
}

function followEnd() {
  if (followsEnd) scroller.scrollTop = scroller.scrollHeight;
  markPlace();
}

function markPlace() {
  const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  $("#latest").hidden = below < NEAR_END_PX;
  return below;
}

export function start() {
  scroller.addEventListener("scroll", () => {
    followsEnd = markPlace() < NEAR_END_PX;
  }, { passive: true });
  $("#latest").addEventListener("click", () => {
    followsEnd = true;
    followEnd();
  });
  list.addEventListener("click", (event) => {
    const button = event.target.closest(".copy-code");
    if (button) copied(button, button.closest(".code").querySelector("pre").textContent);
  });
  addEventListener("pagehide", () => running.has(chat.id) && chats.save(chat));
}
