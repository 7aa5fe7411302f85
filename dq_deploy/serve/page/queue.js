// The queue: a row for each request, changed in place so that a button under the finger stays where it is.
import { byId, count, make, say, seconds } from "./dom.js";

const ROWS = 12;
const rows = new Map();

/** Shows the server's answer of GET v1/requests; `mine` has the ids of this page's own requests. */
export function showQueue(answer, mine, onCancel) {
  const waiting = answer.waiting ?? 0;
  const running = answer.running ?? 0;
  say(byId("queue-count"), running + waiting ? `${running} running, ${waiting} waiting` : "");
  const order = [...answer.data].sort((a, b) => (a.position ?? -1) - (b.position ?? -1));
  const own = order.filter((entry) => mine.has(entry.id));
  const others = order.filter((entry) => !mine.has(entry.id)).slice(0, Math.max(0, ROWS - own.length));
  const shown = order.filter((entry) => own.includes(entry) || others.includes(entry));
  const ids = new Set(shown.map((entry) => entry.id));
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.element.remove();
    rows.delete(id);
  }
  const list = byId("queue");
  shown.forEach((entry, index) => {
    if (!rows.has(entry.id)) rows.set(entry.id, newRow(entry.id, mine.has(entry.id), onCancel));
    const { element } = rows.get(entry.id);
    update(rows.get(entry.id), entry, 1 + order.indexOf(entry) - order.findIndex((other) => other.status === "waiting"));
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
  const hidden = order.length - shown.length;
  byId("queue-empty").hidden = shown.length > 0 && hidden === 0;
  say(byId("queue-empty"), hidden ? `And ${hidden} more.` : "Nobody is drawing.");
}

/** Empties the list while nobody can say what is in it. */
export function forgetQueue() {
  showQueue({ running: 0, waiting: 0, data: [] }, new Map(), () => {});
  say(byId("queue-empty"), "Not known while the server does not answer.");
}

function newRow(id, own, onCancel) {
  const state = make("span", { class: "place" });
  const what = make("span", { class: "what" });
  const bar = make("progress", { max: 1, "aria-hidden": "true" });
  const time = make("span");
  const cancel = own ? make("button", { type: "button", class: "small", "aria-label": "Cancel this request", onclick: () => onCancel(id) }, "Cancel") : null;
  const second = make("p", { class: "hint" }, own ? "yours, " : null, time);
  const element = make("li", own ? { class: "own" } : {}, state, make("div", {}, make("p", {}, what), bar, second), cancel);
  return { element, state, what, bar, time };
}

function update(row, entry, place) {
  const running = entry.status === "running";
  say(row.state, running ? "▶" : String(place));
  row.state.setAttribute("title", running ? "running" : "place in the queue");
  say(row.what, wordsOf(entry, running));
  row.bar.hidden = !running;
  row.bar.value = entry.steps ? Math.min(1, entry.step / entry.steps) : 0; // steps of all its pictures together
  say(row.time, running ? `running ${seconds(entry.running_s)}` : `waiting ${seconds(entry.waited_s)}`);
}

function wordsOf(entry, running) {
  if (entry.kind === "denoise") return "One call of the denoiser";
  if (!running) return count(entry.n, "picture");
  if (entry.n > 1) return `${entry.images_done} of ${entry.n} pictures done`;
  return entry.steps ? `Step ${entry.step} of ${entry.steps}` : "Step 0";
}
