// What the browser keeps: values by name in localStorage. Where storage is off, the page works and forgets.

const PREFIX = "evergreen.";

/** The value under `name`, or `fallback` when there is none or it cannot be read. */
export function read(name, fallback = null) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** False when the browser's storage is full. */
export function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch (error) {
    return error.name !== "QuotaExceededError";
  }
}

/** Plain text, as boot.js reads it. */
export function writeText(name, text) {
  try {
    if (text) localStorage.setItem(PREFIX + name, text);
    else localStorage.removeItem(PREFIX + name);
  } catch {
    // storage is off: the choice holds until the page is closed
  }
}

export function remove(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // nothing was kept
  }
}

/** The names that begin with `start`. */
export function names(start) {
  try {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(PREFIX + start))
      .map((key) => key.slice(PREFIX.length));
  } catch {
    return [];
  }
}

/** Calls back with the name when another tab changes it. */
export function onChange(callback) {
  addEventListener("storage", ({ key }) => key?.startsWith(PREFIX) && callback(key.slice(PREFIX.length)));
}
