// A model's Markdown as safe elements, drawn again only where it has grown.
//
// Promises: no markup of a model's becomes markup of the page. Raw HTML is shown as the text it is, links lead to http(s)
// and mail only, pictures become links (loading one would tell a stranger what is being read), and what the renderer makes
// passes DOMPurify with a short list of elements. Blocks that have not changed keep their nodes, so a selection survives
// streaming, and a frame costs the reading of the text only: 2 ms for 1 KB of it, about 25 ms for 87 KB on a busy machine.

import DOMPurify from "./vendor/dompurify/purify.es.js";
import { Marked, Tokenizer } from "./vendor/marked/marked.esm.js";
import { icon, make } from "./dom.js";
import { say } from "./words.js";

const CJK = "\\u2e80-\\u9fff\\uac00-\\ud7af\\uf900-\\ufaff\\uff00-\\uffef\\u{20000}-\\u{3ffff}";
const STRONG = new RegExp(`^\\*\\*(?=[^\\s*])([^*\`\\n]*[^\\s*\`])\\*\\*(?=[${CJK}])`, "u");
const ADDRESS = new RegExp(`^(?:https?://|www\\.)[^\\s<${CJK}]+(?=[${CJK}])`, "iu");
// what the server's check of citations reads, too: [1], [1, 2], [1-3], 【1】, full-width digits
const CITATION = /[[【［〔]\s*([\d０-９]{1,3}(?:\s*[,，、;；–-]\s*[\d０-９]{1,3})*)\s*[\]】］〕]/;
const ALLOWED = {
  ALLOWED_TAGS: "p br hr h1 h2 h3 h4 h5 h6 strong em del ul ol li blockquote pre code table thead tbody tr th td a".split(" "),
  ALLOWED_ATTR: ["href", "title", "class", "align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["align", "class", "start"], // the others' values must be addresses
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escape = (text) => text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => (/^<br\s*\/?>$/i.test(text.trim()) ? "<br>" : escape(text)),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
  tokenizer: {
    // CommonMark closes no ** between a full-width mark and a character: **注意:**这里 stays as typed
    emStrong(src) {
      const match = STRONG.exec(src);
      return match ? { type: "strong", raw: match[0], text: match[1], tokens: this.lexer.inlineTokens(match[1]) } : false;
    },
    // a bare address ends where Chinese begins: 见 https://example.com。下一句
    url(src) {
      const match = ADDRESS.exec(src);
      return match ? Tokenizer.prototype.url.call(this, match[0]) : false;
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.hasAttribute("class") && !(node.tagName === "CODE" && /^language-[\w+#.-]+$/.test(node.className))) {
    node.removeAttribute("class");
  }
});

/**
 * Draws `text` into `element`, whose children are all its own; `sources` are those that [n] may stand for. Text nested
 * deeper than the renderer's stack, such as 3,000 quotes in one another, is shown as it is.
 */
export function draw(element, text, sources = []) {
  try {
    drawBlocks(element, marked.lexer(text), sources);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    element.replaceChildren(make("div", { class: "block verbatim", dir: "auto" }, text));
  }
}

function drawBlocks(element, tokens, sources) {
  const blocks = tokens.filter((block) => block.type !== "space" && block.type !== "def");
  const drawn = element.children;
  blocks.forEach((block, index) => {
    const id = `${sources.length} ${block.raw}`;
    if (drawn[index]?.markdown === id) return;
    const fresh = make("div", { class: "block", dir: "auto", markdown: id }, sanitized(block));
    dress(fresh, sources);
    if (drawn[index]) drawn[index].replaceWith(fresh);
    else element.append(fresh);
  });
  while (drawn.length > blocks.length) element.lastChild.remove();
}

const sanitized = (block) => DOMPurify.sanitize(marked.parser([block]), ALLOWED);

/** Code gets its bar, tables a frame that scrolls, [n] its source. */
function dress(block, sources) {
  for (const pre of block.querySelectorAll("pre")) {
    const language = pre.firstElementChild?.className.replace("language-", "") ?? "";
    const button = make("button", { type: "button", class: "quiet copy-code" }, icon("copy"), make("span", {}, say("copy")));
    const frame = make("div", { class: "code" }, make("div", { class: "code-bar" }, make("span", {}, language), button));
    pre.replaceWith(frame);
    pre.tabIndex = 0; // a box that scrolls must be reachable by keyboard
    frame.append(pre);
  }
  for (const table of block.querySelectorAll("table")) {
    const frame = make("div", { class: "table", tabIndex: 0, role: "region", "aria-label": say("table") });
    table.replaceWith(frame);
    frame.append(table);
  }
  if (sources.length) cite(block, sources);
}

function cite(block, sources) {
  const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) if (!walker.currentNode.parentElement.closest("pre, code, a, button")) texts.push(walker.currentNode);
  for (const node of texts) {
    const parts = node.data.split(CITATION); // text, numbers, text, numbers, ... text
    if (parts.length > 1) node.replaceWith(...parts.flatMap((part, index) => (index % 2 ? numbersIn(part).map((n) => chip(n, sources)) : part)));
  }
}

/** The numbers of "1, 2" or "1-3". */
function numbersIn(text) {
  const parts = text.normalize("NFKC").split(/[,、;]/);
  return parts.flatMap((part) => {
    const [first, last = first] = part.split(/[–-]/).map(Number);
    return Array.from({ length: Math.min(Math.max(last - first, 0), 99) + 1 }, (_, step) => first + step);
  });
}

function chip(n, sources) {
  const source = sources.find((one) => one.number === n);
  if (!source) return `[${n}]`;
  const address = safeAddress(source.url);
  const label = say("sourceNumber", { n, title: source.title ?? "" });
  const properties = { class: "chip", title: source.title ?? "", "aria-label": label };
  if (!address) return make("span", { ...properties, role: "note" }, String(n));
  return make("a", { ...properties, href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, String(n));
}

/** The address when it is a web page's, else "". */
export function safeAddress(address) {
  return URL.canParse(address ?? "") && /^https?:$/.test(new URL(address).protocol) ? new URL(address).href : "";
}

/** Where a source comes from, in short: the host of a web page, else what was given. */
export const originOf = (address) => (safeAddress(address) ? new URL(address).host : (address ?? ""));
