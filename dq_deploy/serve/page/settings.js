// The form: its fields follow the model card, and its values become a request.
import { byId, make, say } from "./dom.js";
import { bodyText, hasToken } from "./server.js";

const TILES = 64; // more labels than that become a list
const field = (name) => byId(name);

let dq = null; // the model card's own part
let model = null;

/** Shows the fields that the model has, with its own values where the user has none yet. */
export function showSettings(card) {
  const first = model !== card.id;
  model = card.id;
  dq = card.dq;
  byId("takes-prompt").hidden = dq.takes !== "prompt";
  byId("takes-label").hidden = dq.takes !== "label";
  byId("takes-nothing").hidden = dq.takes !== "nothing";
  byId("field-guidance").hidden = dq.guidance === null;
  byId("field-negative_prompt").hidden = !dq.negative_prompt;
  byId("field-size").hidden = !dq.sizes_vary;
  field("size").placeholder = dq.size;
  if (first) {
    field("steps").value = dq.steps;
    field("guidance").value = dq.guidance ?? "";
  }
  if (dq.takes === "label") showLabels(dq.labels);
  byId("all").disabled = dq.draws === false;
  byId("takes-picture").hidden = dq.draws !== false;
  if (first && dq.takes === "prompt") field("prompt").focus({ preventScroll: true });
}

function showLabels({ low, high, names }) {
  const before = chosenLabel();
  const all = Array.from({ length: high - low + 1 }, (_, i) => String(low + i));
  const name = (label) => nameOf(label, { low, names });
  const few = all.length <= TILES;
  byId("labels").hidden = !few;
  byId("label-list").hidden = few;
  byId("labels").classList.toggle("long", few && all.some((label) => name(label).length > 3));
  if (few) byId("labels").replaceChildren(...all.map((label) => tile(label, name(label))));
  else {
    const options = all.map((value) => make("option", { value }, name(value) === value ? value : `${value} ${name(value)}`));
    byId("label-list").replaceChildren(...options);
  }
  chooseLabel(all.includes(before) ? before : all[0]);
}

/** A label's name: names come as a list that begins with the lowest label, or as numbers by name. */
function nameOf(label, { low, names }) {
  if (!names) return label;
  if (Array.isArray(names)) return names[Number(label) - low] ?? label;
  return Object.keys(names).find((name) => names[name] === Number(label)) ?? label;
}

function tile(value, name) {
  return make("label", { class: "tile" }, make("input", { type: "radio", name: "label", value }), make("span", {}, name));
}

function chosenLabel() {
  const list = byId("label-list");
  return list.hidden ? document.querySelector("input[name=label]:checked")?.value : list.value;
}

function chooseLabel(value) {
  byId("label-list").value = value;
  for (const radio of document.querySelectorAll("input[name=label]")) radio.checked = radio.value === value;
}

/** What to call the thing that is drawn. */
export function titleOf(request) {
  if (dq.takes === "nothing") return "Picture";
  if (dq.takes === "prompt") return request.prompt || "(empty prompt)";
  const name = nameOf(request.prompt, dq.labels);
  return name !== request.prompt ? `${name} (${request.prompt})` : `Label ${request.prompt}`;
}

/** The request that the form stands for: what differs from the server's own choice, and the prompt. */
export function request() {
  const wanted = { prompt: "" };
  if (dq.takes === "prompt") wanted.prompt = field("prompt").value.trim();
  if (dq.takes === "label") wanted.prompt = chosenLabel() ?? "";
  const number = (name) => (field(name).value === "" ? null : Number(field(name).value));
  if (number("n") !== null && number("n") !== 1) wanted.n = number("n");
  if (number("steps") !== null && number("steps") !== dq.steps) wanted.steps = number("steps");
  if (dq.guidance !== null && number("guidance") !== null && number("guidance") !== dq.guidance) wanted.guidance = number("guidance");
  if (dq.negative_prompt && field("negative_prompt").value.trim()) wanted.negative_prompt = field("negative_prompt").value.trim();
  if (dq.sizes_vary && field("size").value.trim()) wanted.size = field("size").value.trim();
  if (field("output_format").value !== "png") wanted.output_format = field("output_format").value;
  if (field("seed").value.trim()) wanted.seed = field("seed").value.trim();
  return wanted;
}

export function stepsOf(wanted) {
  return wanted.steps ?? dq.steps;
}

/** The same request with what the page needs besides: every step told, and a preview about ten times. */
export function streamed(wanted) {
  const every = dq.previews ? Math.max(1, Math.ceil(stepsOf(wanted) / 10)) : 0;
  return { ...wanted, stream: true, step_events: true, preview_every: every };
}

/** Puts a drawing's settings back into the form, with the seed that it got. */
export function fill(wanted, seed) {
  if (dq.takes === "prompt") field("prompt").value = wanted.prompt;
  if (dq.takes === "label") chooseLabel(wanted.prompt);
  field("steps").value = stepsOf(wanted);
  field("guidance").value = wanted.guidance ?? dq.guidance ?? "";
  field("negative_prompt").value = wanted.negative_prompt ?? "";
  field("size").value = wanted.size ?? "";
  field("output_format").value = wanted.output_format ?? "png";
  field("n").value = wanted.n ?? 1;
  field("seed").value = seed;
  showCurl();
  field("seed").focus();
}

/** The fields that an error of the server may name. */
export function markField(name) {
  for (const element of document.querySelectorAll("[aria-invalid]")) element.removeAttribute("aria-invalid");
  for (const element of document.querySelectorAll("[aria-describedby=error]")) element.removeAttribute("aria-describedby");
  const element = name && document.querySelector(`#settings [name="${CSS.escape(name)}"]`);
  if (!element) return;
  element.setAttribute("aria-invalid", "true");
  element.setAttribute("aria-describedby", "error");
}

const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export function showCurl() {
  if (dq === null) return;
  const url = new URL("v1/images/generations", document.baseURI).href;
  const lines = [`curl -s ${quote(url)}`, `-H 'Content-Type: application/json'`];
  if (hasToken()) lines.push(`-H "Authorization: Bearer $TOKEN"`);
  lines.push(`-d ${quote(bodyText(request()))}`);
  say(byId("curl"), lines.join(" \\\n  "));
}
