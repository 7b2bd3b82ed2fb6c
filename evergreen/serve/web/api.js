// The server, as the page knows it. Paths are relative, so the page also works behind a path prefix.
//
// The key lives in sessionStorage and goes out in a header only. Everything that goes wrong is a Failure whose kind the
// page can say in its language: key, forbidden, busy, unavailable, context, limit, model, refused, broken, lost, cut.

let key = readKey();

export class Failure extends Error {
  constructor(kind, { seconds = 0, detail = "" } = {}) {
    super(detail || kind);
    Object.assign(this, { kind, seconds, detail });
  }
}

export const hasKey = () => Boolean(key);

export function setKey(value) {
  key = value;
  try {
    sessionStorage.setItem("evergreen.key", value);
  } catch {
    // kept until the page is closed
  }
}

/** The names that a request may choose, the server's default first. */
export async function models() {
  const { data } = await (await request("v1/models")).json();
  return data.map((model) => model.id);
}

/** The chunks of an answer as they arrive. Ends with Failure "cut" when the connection does before the answer. */
export async function* chat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    body: { ...body, stream: true, stream_options: { include_usage: true } },
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure(kindOf(500, chunk.error), { detail: chunk.error.message });
    yield chunk;
  }
  throw new Failure("cut");
}

/** Stores what a user thinks of an answer; `keepalive` lets it arrive after the page is closed. */
export async function feedback(rating) {
  return (await request("v1/feedback", { method: "POST", body: rating, keepalive: true })).json();
}

/** A knowledge route's answer; they want an admin key. */
export async function knowledge(path = "", options = {}) {
  return (await request(`v1/knowledge${path}`, options)).json();
}

async function request(path, { method = "GET", body, signal, keepalive } = {}) {
  const headers = { Accept: "application/json, text/event-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, keepalive, body: body && JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("lost");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  const error = await response.json().then((body) => body.error ?? {}, () => ({}));
  const seconds = Math.ceil(Number(response.headers.get("Retry-After"))) || 0;
  return new Failure(kindOf(response.status, error), { seconds, detail: String(error.message ?? response.status) });
}

const KINDS = {
  context_length_exceeded: "context", request_too_large: "context", model_not_found: "model", invalid_api_key: "key",
  rate_limit_exceeded: "busy", engine_unavailable: "unavailable",
  401: "key", 403: "forbidden", 413: "context", 429: "busy", 502: "unavailable", 503: "unavailable", 504: "unavailable",
};

/** By OpenAI's code, which is all that an error in the middle of a stream has, or by the status. */
function kindOf(status, { code, param }) {
  if (code === "context_length_exceeded" && param === "max_tokens") return "limit";
  return KINDS[code] ?? KINDS[status] ?? (status < 500 ? "refused" : "broken");
}

/** The data of server-sent events: fields line by line, an empty line ends an event. */
async function* events(body) {
  let data = [];
  for await (const line of lines(body)) {
    if (line === "" && data.length) {
      yield data.join("\n");
      data = [];
    } else if (line.startsWith("data:")) {
      data.push(line.slice(5).replace(/^ /, ""));
    }
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split(/\r?\n/);
      rest = parts.pop();
      yield* parts;
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("cut");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function readKey() {
  try {
    return sessionStorage.getItem("evergreen.key") ?? "";
  } catch {
    return "";
  }
}
