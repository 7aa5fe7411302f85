// Starts the page: asks for the model card, watches the queue, and gives the form's requests to drawings.
import { showCard } from "./card.js";
import { announce, byId, makeCopy, say } from "./dom.js";
import { Drawing } from "./drawing.js";
import { forgetQueue, showQueue } from "./queue.js";
import { cancelRequest, getJson, Gone, hasToken, keepToken, Refused } from "./server.js";
import { markField, request, showCurl, showSettings } from "./settings.js";

const KEPT = 30; // drawings on the page; older ones leave
const EACH = 1000; // milliseconds between two looks at the queue
const SOON = 150; // and after a change of this page's own

const drawings = []; // the newest first
let model = null;
let gone = false;
let timer = null;

// ---- the form

function showError(error) {
  const box = byId("error");
  box.hidden = error === null;
  markField(error?.param);
  if (error === null) return;
  const wait = error.status === 429 && error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  say(box, error.message + wait);
  intoView(box, "nearest");
}

/** On a phone pictures and form are above one another: what just changed is scrolled to. */
function intoView(element, block) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block, behavior: calm ? "auto" : "smooth" });
}

async function draw() {
  if (model === null) return;
  showError(null);
  const drawing = new Drawing(request(), model, changed);
  drawings.unshift(drawing);
  byId("drawings").prepend(drawing.element);
  drop();
  changed();
  const { top, bottom } = drawing.element.getBoundingClientRect();
  if (bottom < 40 || top > innerHeight / 2) intoView(drawing.element, "start");
  try {
    await drawing.run();
  } catch (error) {
    if (error instanceof Refused && drawing.began === null) {
      remove(drawing); // refused at the door: the form says why
      showError(error);
      if (error.status === 401) askForToken();
    } else if (error instanceof Refused) showError(error);
    else lost(error);
  }
}

function changed() {
  const going = drawings.filter((drawing) => drawing.going).length;
  byId("cancel").disabled = going === 0;
  say(byId("cancel"), going > 1 ? `Cancel all ${going}` : "Cancel");
  byId("empty").hidden = drawings.length > 0;
  byId("clear").hidden = drawings.length === going;
  if (timer === null) return;
  clearTimeout(timer); // the queue has changed too
  timer = setTimeout(watch, SOON);
}

function remove(drawing) {
  const index = drawings.indexOf(drawing);
  if (index < 0) return;
  drawings.splice(index, 1);
  drawing.remove();
  changed();
}

function drop() {
  const finished = drawings.filter((drawing) => !drawing.going);
  for (const drawing of finished.slice(Math.max(0, finished.length - (drawings.length - KEPT)))) {
    if (drawings.length > KEPT) remove(drawing);
  }
}

// ---- the server: there, gone, or closed

function mine() {
  return new Map(drawings.filter((drawing) => drawing.going && drawing.id).map((drawing) => [drawing.id, drawing]));
}

function lost(error) {
  if (!(error instanceof Gone)) {
    console.error(error);
    return;
  }
  gone = true;
  say(byId("gone"), "The server does not answer. This page tries again each second.");
  byId("gone").hidden = false;
  byId("status").dataset.state = "gone";
  say(byId("status"), "Not reachable");
  forgetQueue();
}

function found() {
  if (gone) announce("The server is back");
  gone = false;
  byId("gone").hidden = true;
}

async function loadCard() {
  const card = (await getJson("v1/models")).data[0];
  model = card.id;
  document.title = `${card.id} · dq-serve`;
  say(byId("model"), card.id);
  showSettings(card);
  showCard(card);
  showCurl();
}

async function look() {
  if (model === null || gone) await loadCard();
  const own = mine();
  const answer = await getJson("v1/requests");
  showQueue(answer, own, (id) => (own.get(id) ? own.get(id).cancel() : cancelRequest(id)));
  for (const entry of answer.data) if (entry.status === "waiting") own.get(entry.id)?.place(entry.position);
  found();
  const busy = answer.running + answer.waiting;
  byId("status").dataset.state = busy ? "busy" : "ready";
  say(byId("status"), busy ? `${answer.running} running, ${answer.waiting} waiting` : "Ready");
}

/** Looks at the queue, again and again while somebody looks at the page. */
async function watch() {
  clearTimeout(timer);
  timer = null; // while it looks, and while nobody looks at the page
  if (document.visibilityState === "hidden" || byId("token-dialog").open) return;
  try {
    await look();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return askForToken();
    if (error instanceof Refused) say(byId("status"), error.message);
    else lost(error);
  }
  clearTimeout(timer);
  timer = setTimeout(watch, EACH);
}

function askForToken() {
  const dialog = byId("token-dialog");
  if (dialog.open) return;
  const error = byId("token-error");
  error.hidden = !hasToken();
  say(error, "That token was not accepted.");
  byId("token").value = "";
  dialog.showModal();
}

// ---- light and dark

const THEMES = ["system", "light", "dark"];
const theme = () => document.documentElement.dataset.theme ?? "system";

function switchTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // storage is switched off: the theme lasts as long as the page
  }
  say(byId("theme"), `Theme: ${next}`);
}

// ---- what the user does

byId("theme").addEventListener("click", switchTheme);
say(byId("theme"), `Theme: ${theme()}`);
byId("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
byId("settings").addEventListener("input", showCurl);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("settings").requestSubmit();
});
byId("random").addEventListener("click", () => {
  byId("seed").value = "";
  showCurl();
});
byId("cancel").addEventListener("click", () => drawings.filter((drawing) => drawing.going).forEach((drawing) => drawing.cancel()));
byId("clear").addEventListener("click", () => drawings.filter((drawing) => !drawing.going).forEach(remove));
makeCopy(byId("copy-curl"), () => byId("curl").textContent);
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(byId("token").value.trim());
  byId("token-dialog").close();
  showCurl();
  watch();
});
byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
document.addEventListener("visibilitychange", watch);
watch();
