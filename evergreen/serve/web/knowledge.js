// The knowledge panel, for those with an admin key: entries are added, corrected and withdrawn, their history is shown,
// snapshots are published and rolled back to. Every list is read anew after a change, since others change it too.

import * as api from "./api.js";
import { $, make, onSubmit } from "./dom.js";
import { originOf, safeAddress } from "./markdown.js";
import { say, sayDate, sayFailure } from "./words.js";

const TYPING_MS = 250;
const panel = $("#knowledge");
const entries = $("#entries");

let shown = []; // the entries in the list
let next = null; // where the list goes on
let state = null; // snapshots, and what is served
let typing = 0;

/** Shows the way in to those who may go in. */
export async function offer() {
  try {
    state = await api.knowledge("/snapshots");
    $("#open-knowledge").hidden = false;
  } catch (error) {
    if (!(error instanceof api.Failure)) throw error;
    $("#open-knowledge").hidden = true;
  }
}

export function start() {
  $("#open-knowledge").addEventListener("click", open);
  $("#close-knowledge").addEventListener("click", () => panel.close());
  panel.addEventListener("click", (event) => event.target === panel && panel.close());
  $("#add-entry").addEventListener("click", add);
  $("#more-entries").addEventListener("click", () => attempt(() => load(next)));
  $("#not-in-use").addEventListener("change", () => {
    $("#entry-query").value = ""; // which looks among those in use
    attempt(() => load());
  });
  $("#entry-query").addEventListener("input", () => {
    $("#not-in-use").checked = false;
    clearTimeout(typing);
    typing = setTimeout(() => attempt(() => load()), TYPING_MS);
  });
}

/** In the page's language. */
export function redraw() {
  if (panel.open) drawAll();
}

function open() {
  $("#entry-query").value = "";
  $("#not-in-use").checked = false;
  $("#new-entry").replaceChildren();
  panel.showModal();
  attempt(reload);
}

/** Does something that may fail, and says so where it does; true when it was done. */
async function attempt(act) {
  try {
    await act();
    $("#knowledge-problem").hidden = true;
    return true;
  } catch (error) {
    if (!(error instanceof api.Failure)) throw error;
    show(sayFailure(error));
    return false;
  }
}

function show(text) {
  const problem = $("#knowledge-problem");
  problem.textContent = text;
  problem.hidden = false;
  problem.scrollIntoView({ block: "nearest" });
}

/** Sends a change and reads all anew; says where answers do not show it, since they stand on a snapshot. */
async function change(path, method, body) {
  let warning;
  const isDone = await attempt(async () => {
    ({ warning } = await api.knowledge(path, { method, body }));
    await reload();
  });
  if (warning) show(say("notInAnswers"));
  return isDone;
}

async function reload() {
  state = await api.knowledge("/snapshots");
  await load();
}

/** The first page of the list, or the one behind `before`. */
async function load(before) {
  const query = $("#entry-query").value.trim();
  const isUnused = $("#not-in-use").checked;
  const wanted = new URLSearchParams({ ...(query && { query }), ...(before && { before }), ...(isUnused && { in_use: "false" }) });
  const page = await api.knowledge(`?${wanted}`);
  if (query !== $("#entry-query").value.trim() || isUnused !== $("#not-in-use").checked) return; // something else is wanted by now
  shown = before ? [...shown, ...page.data] : page.data;
  next = page.next;
  drawAll();
}

/** Draws all anew; who was at an entry or at the snapshots stays there. */
function drawAll() {
  const { activeElement: focused } = document;
  const entry = focused.closest(".entry");
  const place = entry ? [...entries.children].indexOf(entry) : -1;
  const isServing = Boolean(focused.closest("#serving"));
  drawLists();
  if (!entry && !isServing) return;
  const all = [...entries.children];
  const near = all.find((one) => one.dataset.id === entry?.dataset.id) ?? all[Math.min(place, all.length - 1)];
  const target = isServing ? $("#serving button") : near ? $("button", near) : $("#add-entry");
  target.focus({ preventScroll: true });
}

function drawLists() {
  $("#serving").replaceChildren(...serving());
  entries.replaceChildren(...shown.map(entryView));
  $("#no-entries").hidden = shown.length > 0;
  $("#more-entries").hidden = next === null;
}

// -- what is served

function serving() {
  const { stable, candidate, share } = state.serving;
  const isPinned = stable !== null && stable !== "live";
  const lines = [stable === null ? say("usesNewest") : isPinned ? say("usesSnapshot", { n: stable }) : say("usesNewest")];
  const part = `${Number((share * 100).toPrecision(3))}%`;
  if (share) lines.push(candidate === "live" ? say("usesCanaryNewest", { share: part }) : say("usesCanary", { share: part, n: candidate }));
  if (stable === null) lines.push(say("noReleases"));
  const publish = button("publish", () => change("/publish", "POST", {}));
  const live = isPinned || share ? button("goLive", () => change("/live", "POST", {})) : null;
  return [make("div", {}, make("div", {}, lines.map((line) => make("p", {}, line))), make("div", { class: "row" }, live, publish)), snapshots(stable)].filter(Boolean);
}

function snapshots(stable) {
  if (!state.data.length) return null;
  const rows = state.data.map(({ snapshot, at, author, reason }) => make("li", {},
    make("strong", {}, String(snapshot)), make("span", { class: "facts" }, facts(sayDate(at), author, reason)),
    stable === String(snapshot) ? make("span", { class: "facts" }, say("inUse"))
      : stable === null ? null : button("rollBack", () => change("/rollback", "POST", { snapshot }))));
  const box = make("details", {}, make("summary", {}, say("snapshots", { n: rows.length })), make("ol", {}, rows));
  box.open = $("#serving details")?.open ?? false;
  return box;
}

// -- entries

function entryView(entry) {
  const box = make("div");
  const isUnused = $("#not-in-use").checked;
  const address = safeAddress(entry.source_url);
  const origin = !address ? entry.source_url : make("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, originOf(address));
  return make("li", { class: "entry", "data-id": entry.id },
    make("h3", { dir: "auto" }, entry.title || entry.id),
    make("p", { class: "facts" }, facts(say("version", entry), sayDate(entry.update_time), entry.tags.join(", ")), origin && " · ", origin),
    make("p", { class: "content", dir: "auto" }, entry.content),
    make("div", { class: "actions" },
      isUnused ? null : button("correctEntry", () => edit(box, entry), "quiet", "edit"),
      button("historyOf", () => history(box, entry), "quiet", "history"),
      isUnused ? null : button("withdrawEntry", () => withdraw(box, entry), "quiet danger", "withdraw")),
    box);
}

function add() {
  const box = $("#new-entry");
  if (box.firstChild) return shut(box);
  showForm(box, entryFields(), "save", async (values) => {
    $("#not-in-use").checked = false; // the new one is to be seen
    if (await change("", "POST", given(values))) shut(box);
  });
}

function edit(box, entry) {
  if (toggled(box, "edit")) return;
  const fields = entryFields({ ...entry, tags: entry.tags.join(", ") });
  showForm(box, fields, "save", ({ reason, ...values }) => change(pathOf(entry), "PATCH", {
    ...values, tags: tagsOf(values.tags), update_time: new Date().toISOString(), ...(reason && { reason }),
  }));
}

function withdraw(box, entry) {
  if (toggled(box, "withdraw")) return;
  showForm(box, [field("reason", "entryReason")], "withdrawEntry",
    ({ reason }) => change(`${pathOf(entry)}?${new URLSearchParams({ reason })}`, "DELETE"));
}

async function history(box, entry) {
  if (toggled(box, "history")) return;
  await attempt(async () => {
    const { data } = await api.knowledge(`${pathOf(entry)}/history`);
    box.replaceChildren(make("ol", { class: "versions" }, data.reverse().map((one, place) => versionView(one, place === 0))));
  });
}

function versionView(one, isLast) {
  const did = say(one.op === "add" ? "added" : "updated");
  const ended = isLast && one.ended ? facts(say("withdrawn"), one.ended.author, one.ended.reason) : null;
  return make("li", {},
    make("span", { class: "facts" }, facts(say("version", one), did, sayDate(one.at), one.author, one.reason)),
    make("p", { dir: "auto" }, one.redacted ? say("redacted") : one.content),
    ended && make("span", { class: "facts" }, ended));
}

/** True when the box showed this already, and does not any more. */
function toggled(box, what) {
  const was = box.dataset.shows;
  box.replaceChildren();
  box.dataset.shows = was === what ? "" : what;
  return was === what;
}

/** Closes the form in the box; the focus goes back to the button that opened it. */
function shut(box) {
  const shows = box.dataset.shows;
  toggled(box, shows);
  (shows ? $(`.actions [data-opens="${shows}"]`, box.parentElement) : $("#add-entry")).focus();
}

// -- forms

function entryFields(entry = {}) {
  return [
    field("title", "entryTitle", entry.title),
    field("content", "entryContent", entry.content, { rows: 4, required: true }),
    field("source_url", "entrySource", entry.source_url, { type: !entry.source_url || safeAddress(entry.source_url) ? "url" : "text" }),
    field("tags", "entryTags", entry.tags),
    field("reason", "entryReason"),
  ];
}

function field(name, word, value = "", more = {}) {
  const input = make(more.rows ? "textarea" : "input", { name, value, autocomplete: "off", dir: "auto", ...more });
  return make("label", {}, make("span", {}, say(word)), input);
}

function showForm(box, fields, word, submit) {
  const form = make("form", { class: "entry-form" }, fields,
    make("div", { class: "row" },
      button("cancel", () => shut(box)),
      make("button", { type: "submit", class: "primary" }, say(word))));
  onSubmit(form, () => submit(Object.fromEntries(new FormData(form))));
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    event.preventDefault(); // the panel stays
    shut(box);
  });
  box.replaceChildren(form);
  form.elements[0].focus();
  form.scrollIntoView({ block: "nearest" });
}

/** What was filled in, as the server wants it. */
function given({ tags, ...values }) {
  const filled = Object.entries(values).filter(([, value]) => value.trim());
  return { ...Object.fromEntries(filled), ...(tagsOf(tags).length && { tags: tagsOf(tags) }) };
}

const tagsOf = (text) => text.split(/[,，]/).map((tag) => tag.trim()).filter(Boolean);
const pathOf = (entry) => `/${encodeURIComponent(entry.id)}`;
const facts = (...parts) => parts.filter(Boolean).join(" · ");
const button = (word, onclick, style = "plain", opens = "") => make("button", { type: "button", class: style, onclick, "data-opens": opens }, say(word));
