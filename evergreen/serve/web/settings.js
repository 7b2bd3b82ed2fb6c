// What a request is sent with: the model, the system prompt, the sampling, the key.

import * as api from "./api.js";
import { $, make } from "./dom.js";
import { offer } from "./knowledge.js";
import { read, write } from "./stored.js";
import { say, sayFailure } from "./words.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const WILL_PASS = new Set(["busy", "unavailable", "lost"]);
const drawer = $("#settings");
const keyDialog = $("#key");
const models = $("#model");

let loading = null;
let kept = { system: "", ...read("settings", {}) };

/** Fields of a chat request, once the models are known; what has no value is the server's to choose. */
export async function requestFields() {
  if (loading || !models.value) await loadModels();
  const numbers = NUMBERS.filter((name) => Number.isFinite(kept[name])).map((name) => [name, kept[name]]);
  return { model: models.value || undefined, ...Object.fromEntries(numbers) };
}

export const systemPrompt = () => String(kept.system).trim();

/** Asks the server which models it has. The first is its default, which follows promotions unless another was chosen. */
export function loadModels() {
  loading ??= fillModels().finally(() => (loading = null));
  return loading;
}

async function fillModels() {
  try {
    const names = await api.models();
    models.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
    models.value = names.includes(kept.model) ? kept.model : (names[0] ?? "");
    notify("");
  } catch (error) {
    if (!(error instanceof api.Failure)) throw error;
    notify(sayFailure(error));
    if (WILL_PASS.has(error.kind)) setTimeout(() => document.hidden || loadModels(), 1000 * Math.max(error.seconds, 5));
    if (error.kind === "key" && (await askKey())) await fillModels();
  }
}

/** True when a key was entered. Two who ask at a time get one dialog. */
export function askKey(isWrong = api.hasKey()) {
  if (!keyDialog.open) {
    $("#key-wrong").hidden = !isWrong;
    keyDialog.returnValue = "";
    keyDialog.showModal();
  }
  return new Promise((resolve) => keyDialog.addEventListener("close", () => resolve(keyDialog.returnValue === "key"), { once: true }));
}

export function notify(text) {
  $("#notice").textContent = text;
  $("#notice").hidden = !text;
}

export function start() {
  models.addEventListener("change", () => keep("model", models.selectedIndex === 0 ? undefined : models.value));
  $("#open-settings").addEventListener("click", openDrawer);
  drawer.addEventListener("input", ({ target }) => take(target));
  drawer.addEventListener("click", (event) => event.target === drawer && drawer.close());
  $("form", drawer).addEventListener("submit", (event) => {
    event.preventDefault();
    drawer.close();
  });
  $("form", drawer).addEventListener("reset", () => {
    kept = { system: "", model: kept.model };
    write("settings", kept);
    setTimeout(openDrawer); // the fields are empty only after the event
  });
  $("form", keyDialog).addEventListener("submit", useKey);
  $("#change-key").addEventListener("click", changeKey);
  $("#cancel-key").addEventListener("click", () => keyDialog.close());
}

/** Another key for the one in use, such as an admin's for a user's. */
async function changeKey() {
  drawer.close();
  if (await askKey(false)) await loadModels();
}

function openDrawer() {
  $("#change-key").hidden = !api.hasKey();
  const fields = $("form", drawer).elements;
  fields.system.value = kept.system;
  for (const name of NUMBERS) {
    fields[name].value = kept[name] ?? "";
    explain(fields[name]);
  }
  if (!drawer.open) drawer.showModal();
}

function take(field) {
  if (field.name === "system") return keep("system", field.value);
  explain(field);
  keep(field.name, field.validity.valid && field.value !== "" ? Number(field.value) : undefined);
}

/** Below a number: what it does, or why it is not used. */
function explain(field) {
  const help = field.parentElement.querySelector("small");
  help.textContent = field.validity.valid ? say(help.dataset.word) : say("outOfRange", { wanted: wantedOf(field) });
  help.classList.toggle("failure", !field.validity.valid);
}

/** Which numbers a field takes, in the page's language, which need not be the browser's. */
function wantedOf({ min, max, step }) {
  return step === "1" ? say("wholeNumber", { min }) : say("numberBetween", { min, max });
}

function keep(name, value) {
  kept[name] = value;
  write("settings", kept);
}

function useKey(event) {
  event.preventDefault();
  api.setKey(event.currentTarget.elements.key.value.trim());
  event.currentTarget.reset(); // emptied by hand, it would be marked as wrong when it is asked for next
  keyDialog.close("key");
  offer();
}
