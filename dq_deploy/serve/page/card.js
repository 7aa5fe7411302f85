// The model card: what runs here, in how many bits, and what proves it.
import { byId, copyButton, make } from "./dom.js";

export function showCard(card) {
  const { dq } = card;
  const rows = [
    ["Quantized by", dq.method ?? "not said"],
    ["Bits", dq.weight_bits ? `${dq.weight_bits} for weights, ${dq.activation_bits ?? "?"} for activations` : "not said"],
    ["In integers", share(dq.integer_share ?? dq.proof?.integer_share)],
    ["Engine", dq.engine_version?.startsWith(dq.engine) ? dq.engine_version : [dq.engine, dq.engine_version].filter(Boolean).join(" ")],
    ["Proof", proof(dq.proof)],
    ["Record", hash("record", dq.record_sha256)],
    ["Same bytes", sameBytes(dq.same_bytes)],
    ["Pipeline", [dq.pipeline, dq.denoiser, dq.scheduler].filter(Boolean).join(", ")],
    ["Size and steps", `${dq.size}${dq.sizes_vary ? " or as asked" : ""}, ${dq.steps} steps`],
    ["Limits", `${dq.max_batch} in a batch, ${dq.queue} in the queue`],
  ];
  byId("card").replaceChildren(
    ...rows.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, ...[value].flat()))),
  );
}

function share(value) {
  if (value === null || value === undefined) return "not said";
  const text = `${(100 * value).toFixed(1)} % of all multiply-adds`;
  return [make("span", {}, text), make("meter", { min: 0, max: 1, value, "aria-hidden": "true" })];
}

function proof(found) {
  if (!found) return [make("span", { class: "badge warn" }, "none"), " no report of dq-verify is at hand"];
  const badge = make("span", { class: found.exact ? "badge good" : "badge warn" }, found.exact ? "✓ exact" : "not exact");
  return [badge, " ", hash("proof", found.sha256), make("span", { class: "hint block" }, found.file)];
}

function sameBytes(found) {
  if (!found) return "not said";
  const sure = found.holds && found.proven;
  const badge = make("span", { class: sure ? "badge good" : "badge warn" }, sure ? "✓ yes" : found.holds ? "not proven" : "no");
  const text = sure ? " alone and in every batch" : found.holds ? " no difference was seen" : " they may depend on the batch";
  return [badge, text, make("span", { class: "hint block" }, found.how ?? "")];
}

function hash(what, value) {
  if (!value) return "none";
  const short = make("code", { title: value }, `${value.slice(0, 12)}…`);
  return make("span", { class: "hash" }, short, copyButton(`Copy the ${what}'s SHA-256`, () => value));
}
