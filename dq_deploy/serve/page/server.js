// What is asked of the server, and how its errors are told apart. Paths are relative: a proxy may put the page anywhere.

/** An answer that is no success; `message` is the server's own. */
export class Refused extends Error {
  constructor(status, error, retryAfter = null) {
    super(error.message ?? `The server answered ${status}.`);
    this.status = status;
    this.param = error.param ?? null;
    this.code = error.code ?? null;
    this.retryAfter = retryAfter;
  }
}

/** No answer at all: the server is not there, or the connection broke. */
export class Gone extends Error {}

let token = sessionStorage.getItem("token") ?? "";

export function hasToken() {
  return token !== "";
}

export function keepToken(value) {
  token = value;
  sessionStorage.setItem("token", value);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Gone("The server does not answer.");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, body.error ?? {}, answer.headers.get("retry-after"));
}

export async function getJson(path) {
  const answer = await ask(path);
  try {
    return await answer.json();
  } catch {
    throw new Gone("The server's answer broke off.");
  }
}

export async function cancelRequest(id) {
  await ask(`v1/requests/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/**
 * Asks for pictures and gives every event of the stream to `onEvent(name, data)`, the request's id to `onId`.
 * `data.seed`, where there is one, stays text: JavaScript's numbers end at 2^53.
 */
export async function stream(body, signal, onId, onEvent) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  const answer = await ask("v1/images/generations", { method: "POST", headers, body, signal });
  onId(answer.headers.get("dq-request-id") ?? answer.headers.get("x-request-id"));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Gone("The connection to the server broke.");
    }
    if (part.done) return;
    pending += part.value;
    const events = pending.split(/\r?\n\r?\n/);
    pending = events.pop();
    for (const text of events) {
      const event = parseEvent(text);
      if (event) onEvent(event.name, event.data);
    }
  }
}

function parseEvent(text) {
  let name = "message";
  const lines = [];
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) lines.push(line.slice(5).replace(/^ /, ""));
  }
  const json = lines.join("\n");
  if (!json.startsWith("{")) return null; // a comment that keeps the connection open, or [DONE]
  const data = JSON.parse(json);
  const seed = /"seed":\s*(-?\d+)/.exec(json);
  if (seed) data.seed = seed[1];
  return { name: data.type ?? name, data };
}

/** JSON of a request; the seed goes in as it was typed, digit for digit. */
export function bodyText(request) {
  const { seed, ...rest } = request;
  const text = JSON.stringify(rest);
  return seed === undefined ? text : text.replace(/}$/, `,"seed":${seed}}`);
}
