// Joins the parts: the side list, the composer, the keyboard, language and appearance.

import * as chats from "./chats.js";
import * as conversation from "./conversation.js";
import { $, iconButton, make } from "./dom.js";
import * as knowledge from "./knowledge.js";
import * as settings from "./settings.js";
import { onChange, read, write, writeText } from "./stored.js";
import { language, say, setLanguage, translate } from "./words.js";

const root = document.documentElement;
const message = $("#message");
const isNarrow = matchMedia("(max-width: 800px)");

function startSide() {
  conversation.onChange(drawChats);
  $("#new-chat").addEventListener("click", () => open());
  $("#open-side").addEventListener("click", () => setSide(true));
  $("#close-side").addEventListener("click", () => setSide(false));
  $("#scrim").addEventListener("click", () => setSide(false));
  isNarrow.addEventListener("change", placeSide);
  placeSide();
  onChange((name) => {
    if (!name.startsWith("chat.")) return;
    const id = name.slice("chat.".length);
    if (conversation.isRunning(id)) return;
    chats.loadOne(name);
    drawChats();
    if (id === conversation.shownId() && chats.get(id)) conversation.show(chats.get(id));
  });
}

const placeSide = () => showSide(!isNarrow.matches && read("side", true));

function setSide(isOpen) {
  if (!isNarrow.matches) write("side", isOpen);
  showSide(isOpen);
  $(isOpen ? "#close-side" : "#open-side").focus();
}

function showSide(isOpen) {
  root.dataset.side = isOpen ? "open" : "closed";
  $("#side").inert = !isOpen;
  $("#open-side").hidden = isOpen && !isNarrow.matches;
  $("#open-side").setAttribute("aria-expanded", String(isOpen));
  const isOver = isOpen && isNarrow.matches;
  $("#scrim").hidden = !isOver;
  $("#page").inert = isOver;
}

function open(chat) {
  conversation.show(chat);
  drawChats();
  if (isNarrow.matches) showSide(false);
  else message.focus(); // on a phone that would bring up the keyboard
}

function drawChats() {
  const all = chats.newestFirst();
  $("#no-chats").hidden = all.length > 0;
  const rows = all.map((chat) => {
    const title = chat.title || say("untitled");
    const isShown = chat.id === conversation.shownId();
    const link = make("button", { type: "button", class: "chat", title, onclick: () => open(chat) }, title);
    if (isShown) link.setAttribute("aria-current", "true");
    return make("li", { class: conversation.isRunning(chat.id) ? "running" : "" }, link,
      iconButton("trash", say("deleteChat", { title }), () => drop(chat)));
  });
  $("#chats").replaceChildren(...rows);
}

function drop(chat) {
  conversation.stop(chat.id);
  chats.drop(chat.id);
  if (chat.id === conversation.shownId()) conversation.show();
  drawChats();
  toast(say("deleted"), say("undo"), () => {
    chats.restore(chat);
    open(chat);
  });
  $("#new-chat").focus();
}

let toastTimer = 0;

function toast(text, action, onclick) {
  const box = $("#toast");
  const hide = () => (box.hidden = true);
  const button = make("button", { type: "button", class: "plain", onclick: () => (hide(), onclick()) }, action);
  box.replaceChildren(make("span", {}, text), button);
  box.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hide, 8000);
}

function startComposer() {
  message.addEventListener("input", fitComposer);
  message.addEventListener("keydown", (event) => {
    const isComposing = event.isComposing || event.keyCode === 229; // Enter picks a word of the input method
    if (event.key !== "Enter" || event.shiftKey || isComposing) return;
    event.preventDefault();
    send();
  });
  $("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("#stop").addEventListener("click", () => {
    conversation.stop();
    message.focus();
  });
}

function send() {
  const text = message.value;
  if (!text.trim() || conversation.isRunning()) return;
  message.value = "";
  fitComposer();
  conversation.send(text);
}

/** The box grows with its text; style.css says how far. */
function fitComposer() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
  $("#send").disabled = !message.value.trim();
}

function startKeyboard() {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || $("dialog[open]")) return;
    if (event.key === "Escape") {
      if (isNarrow.matches && root.dataset.side === "open") setSide(false);
      else conversation.stop();
    }
    const isTyping = event.target.closest("input, textarea, select");
    if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      message.focus();
    }
  });
}

function startLooks() {
  $("#language").value = language();
  $("#language").addEventListener("change", ({ target }) => {
    setLanguage(target.value);
    drawChats();
    knowledge.redraw();
    conversation.redraw();
  });
  $("#theme").value = root.dataset.theme ?? "";
  $("#theme").addEventListener("change", ({ target }) => {
    writeText("theme", target.value);
    if (target.value) root.dataset.theme = target.value;
    else delete root.dataset.theme;
  });
}

translate();
chats.load();
settings.start();
knowledge.start();
conversation.start();
startSide();
startComposer();
startKeyboard();
startLooks();
conversation.show();
drawChats();
if (!isNarrow.matches) message.focus();
settings.loadModels().then(knowledge.offer);
document.addEventListener("visibilitychange", () => document.hidden || settings.loadModels());
addEventListener("online", settings.loadModels);
