// Elements from values. Strings become text nodes: nothing here parses markup.

export const $ = (selector, inside = document) => inside.querySelector(selector);

/** An element; `properties` are DOM properties, or attributes when their name has a dash or is `role`. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/** One of the symbols of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows a symbol and says its label. */
export function iconButton(name, label, onclick, properties = {}) {
  return make("button", { type: "button", class: "quiet", title: label, "aria-label": label, onclick, ...properties }, icon(name));
}

/** Does `act` when the form is sent, and lets it be sent again only when that is done. */
export function onSubmit(form, act) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const sends = $("[type=submit]", form);
    if (sends.getAttribute("aria-disabled") === "true") return;
    sends.setAttribute("aria-disabled", "true"); // `disabled` would lose the focus
    try {
      await act();
    } finally {
      sends.removeAttribute("aria-disabled");
    }
  });
}

/** Puts text on the clipboard; `navigator.clipboard` is missing on plain http, so there is the old way too. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text, class: "unseen", "aria-hidden": "true" });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("copying was refused");
}

/** A random name for a chat; `crypto.randomUUID` is missing on plain http. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
