// What users think of answers, sent to POST /v1/feedback: thumbs, corrections, and what they did with an answer.
//
// Each carries dwell_ms, how long the answer has stood finished on a visible page. When its reader goes on without a
// rating, the time alone is sent, once.

import * as api from "./api.js";

const reading = new Map(); // response id -> {milliseconds, since}; since is 0 while the page is hidden

/** The answer is complete and is being read from now on. */
export function startReading(id) {
  if (id) reading.set(id, { milliseconds: 0, since: document.hidden ? 0 : performance.now() });
}

/** Waits until the server has stored it; a Failure tells that it has not. */
export function rate(id, rating) {
  return api.feedback({ response_id: id, ...rating, ...dwell(id) });
}

/** Tells of a copy, a click or a regeneration; losing that is no harm. */
export function note(id, action) {
  if (id) rate(id, { action }).catch(() => {});
}

/** The reader goes on: says once how long each answer was read. */
export function stopReading() {
  for (const id of [...reading.keys()]) {
    const read = dwell(id);
    reading.delete(id);
    if (read.dwell_ms >= 1000) api.feedback({ response_id: id, ...read }).catch(() => {});
  }
}

function dwell(id) {
  const entry = reading.get(id);
  if (!entry) return {};
  return { dwell_ms: Math.round(entry.milliseconds + (entry.since ? performance.now() - entry.since : 0)) };
}

document.addEventListener("visibilitychange", () => {
  for (const entry of reading.values()) {
    if (document.hidden && entry.since) entry.milliseconds += performance.now() - entry.since;
    entry.since = document.hidden ? 0 : performance.now();
  }
});
addEventListener("pagehide", stopReading);
