// A conversation's turns as elements.

import { icon, iconButton, make, onSubmit } from "./dom.js";
import { draw, originOf, safeAddress } from "./markdown.js";
import { say, sayDate, sayFailure } from "./words.js";

export function questionView(turn) {
  return make("article", { class: "question", "aria-label": say("you") }, make("div", { class: "bubble", dir: "auto" }, turn.text));
}

/**
 * An assistant's turn; `update()` draws it again from its data, as often as that grows. `acts` does what its buttons say:
 * copy, rate, correct, regenerate, show, click.
 */
export function answerView(turn, acts) {
  const thought = make("details", { class: "thought", hidden: true }, make("summary"), make("div", { class: "prose" }));
  const prose = make("div", { class: "prose", onclick: ({ target }) => target.closest("a.chip") && acts.click() });
  const after = make("div", { class: "after" });
  const element = make("article", { class: "answer", "aria-label": say("answer") }, thought, prose, after);
  let drawn;

  function update() {
    const answer = turn.answers[turn.shown];
    const isRunning = answer.state === "running";
    element.classList.toggle("waiting", isRunning && !answer.text && !answer.thought);
    element.classList.toggle("thinking", isRunning && !answer.text && Boolean(answer.thought));
    drawThought(thought, answer, isRunning);
    draw(prose, answer.text, answer.sources);
    const state = [answer.state, answer.thumb, answer.corrected, turn.shown, turn.answers.length].join();
    if (state !== drawn) replaceKeepingFocus(after, isRunning ? [] : afterwards(turn, answer, acts));
    drawn = state;
  }
  update();
  return { element, update, closeCorrection: () => closeCorrection(element) };
}

/** New buttons take over the focus of those with their label. */
function replaceKeepingFocus(box, children) {
  const focused = box.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  box.replaceChildren(...children);
  if (focused) box.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

function drawThought(thought, answer, isRunning) {
  thought.hidden = !answer.thought;
  if (!answer.thought) return;
  thought.firstChild.textContent = isRunning && !answer.text ? say("thinking") : say("thought");
  draw(thought.lastChild, answer.thought);
}

/** What stands below a finished answer. */
function afterwards(turn, answer, acts) {
  const notes = notesOn(answer).map((text) => make("p", { class: "note" }, text));
  const failure = answer.state === "failed" ? failed(answer.failure, acts) : null;
  const hasActions = answer.state !== "failed" || answer.text || answer.thought;
  return [
    sourcesOf(answer, acts), ...notes, failure,
    hasActions ? make("div", { class: "actions" }, pager(turn, acts), buttons(answer, acts), meta(answer)) : null,
    answer.corrected ? make("p", { class: "note" }, say(answer.corrected)) : null,
  ].filter(Boolean);
}

function failed(failure, acts) {
  return make("p", { class: "failure", role: "alert" }, make("span", {}, sayFailure(failure)),
    make("button", { type: "button", class: "plain", onclick: acts.regenerate }, say("retry")));
}

function notesOn(answer) {
  const names = [answer.caveat, answer.trimmed && "trimmed", answer.state === "stopped" && "stopped", answer.finish === "length" && "length"];
  return names.filter(Boolean).map((name) => say(name));
}

function pager(turn, acts) {
  if (turn.answers.length < 2) return null;
  const [n, all] = [turn.shown + 1, turn.answers.length];
  return make("span", { class: "pager" },
    iconButton("left", say("older"), () => acts.show(turn.shown - 1), { disabled: n === 1 }),
    make("span", {}, say("count", { n, all })),
    iconButton("right", say("newer"), () => acts.show(turn.shown + 1), { disabled: n === all }));
}

function buttons(answer, acts) {
  const thumb = (value, name) => iconButton(`thumb-${value}`, say(name), () => acts.rate(value),
    { "aria-pressed": String(answer.thumb === value), class: "quiet thumb" });
  const again = [iconButton("copy", say("copyAnswer"), acts.copy, { class: "quiet copy-answer" }), iconButton("again", say("regenerate"), acts.regenerate)];
  if (!answer.id) return again;
  const wrong = make("button", { type: "button", class: "quiet wrong", onclick: (event) => correct(event.currentTarget, acts) },
    icon("flag"), make("span", {}, say("wrong")));
  wrong.setAttribute("aria-expanded", "false");
  return [...again, thumb("up", "good"), thumb("down", "bad"), wrong];
}

/** Opens the box for the right answer below the answer, or closes it. */
function correct(button, acts) {
  const view = button.closest(".answer");
  if (closeCorrection(view)) return;
  button.setAttribute("aria-expanded", "true");
  const right = make("textarea", { rows: 3, required: true, name: "correction", placeholder: say("correctionHint") });
  const comment = make("input", { name: "comment", autocomplete: "off" });
  const form = make("form", { class: "correction" },
    make("label", {}, make("span", {}, say("correction")), right),
    make("label", {}, make("span", {}, say("comment")), comment),
    make("div", { class: "row" },
      make("button", { type: "button", class: "plain", onclick: () => closeCorrection(view) }, say("cancel")),
      make("button", { type: "submit", class: "primary" }, say("sendCorrection"))));
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    event.stopPropagation();
    closeCorrection(view);
  });
  onSubmit(form, async () => right.value.trim() && acts.correct(right.value.trim(), comment.value.trim()));
  view.append(form);
  right.focus();
  form.scrollIntoView({ block: "nearest" });
}

/** True when it was open. */
function closeCorrection(view) {
  const form = view.querySelector(".correction");
  if (!form) return false;
  form.remove();
  const button = view.querySelector(".wrong");
  button?.setAttribute("aria-expanded", "false");
  button?.focus();
  return true;
}

function meta(answer) {
  const parts = [answer.model];
  if (answer.release && answer.release !== answer.model) parts.push(say("release", { release: short(answer.release) }));
  if (answer.snapshot) parts.push(say("snapshotUsed", { n: answer.snapshot }));
  if (answer.speed) parts.push(say("speed", { n: answer.speed }));
  if (answer.seconds) parts.push(say("seconds", { n: answer.seconds.toFixed(1) }));
  if (answer.cached) parts.push(say("cached"));
  const title = [answer.release, answer.usage && say("tokens", answer.usage)].filter(Boolean).join("\n");
  return make("span", { class: "meta", title }, parts.filter(Boolean).map((part) => make("span", {}, part)));
}

const short = (release) => (/^[0-9a-f-]{16,}$/i.test(release) ? release.slice(0, 12) : release);

function sourcesOf(answer, acts) {
  if (!answer.sources?.length) return null;
  const rows = answer.sources.map((source) => {
    const address = safeAddress(source.url);
    const title = source.title || address || source.id || String(source.number);
    const link = address
      ? make("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow", dir: "auto", onclick: acts.click }, title)
      : make("span", { dir: "auto" }, title);
    const facts = [originOf(source.url), sayDate(source.date)].filter(Boolean).join(" · ");
    return make("li", {}, make("span", { class: "number" }, String(source.number)), link, make("span", { class: "facts" }, facts));
  });
  return make("section", { class: "sources", "aria-label": say("sources") }, make("h2", {}, say("sources")), make("ol", {}, rows));
}
