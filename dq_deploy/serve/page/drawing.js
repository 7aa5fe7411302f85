// One request and its pictures, from the queue to the gallery.
import { announce, count, make, say, seconds } from "./dom.js";
import { bodyText, cancelRequest, Gone, Refused, stream } from "./server.js";
import { fill, stepsOf, streamed, titleOf } from "./settings.js";

const SMALL = 64; // pictures up to this wide and high are shown as pixels
const REMEMBERED = 100; // pictures whose bytes are kept for that
const drawnBefore = new Map(); // base64 by request and seed: whether the same question gave the same bytes

// A browser opens six connections to a server: some stay free for the queue, for cancelling and for another tab.
const STREAMS = 4;
let open = 0;
const line = [];

async function enter() {
  if (open >= STREAMS) await new Promise((go) => line.push(go));
  else open += 1;
}

function leave() {
  if (line.length) line.shift()();
  else open -= 1;
}

export class Drawing {
  /** `onChange(drawing)` is called whenever it begins, ends or learns its id. */
  constructor(wanted, model, onChange) {
    this.wanted = wanted;
    this.model = model;
    this.onChange = onChange;
    this.id = null;
    this.state = "waiting"; // waiting, drawing, done, cancelled, failed
    this.steps = stepsOf(wanted);
    this.n = wanted.n ?? 1;
    this.abort = new AbortController();
    this.asked = performance.now();
    this.began = null;
    this.quarter = 0;
    this.pictures = Array.from({ length: this.n }, () => newPicture());
    this.done = 0;
    this.build();
  }

  get going() {
    return this.state === "waiting" || this.state === "drawing";
  }

  build() {
    this.where = make("p", { class: "where" }, open < STREAMS ? "Asking the server…" : "Waiting for this page's other drawings");
    this.bar = make("progress", { max: this.n * this.steps, "aria-label": "Steps done" });
    this.button = make("button", { type: "button", class: "small", onclick: () => this.cancel() }, "Cancel");
    const title = make("h3", {}, titleOf(this.wanted));
    this.grid = make("div", { class: "pictures" }, ...this.pictures.map((p) => p.figure));
    this.element = make("article", { class: this.n === 1 ? "drawing panel" : "drawing many panel", "data-state": this.state },
      make("div", { class: "heading" }, title, this.button), make("div", { class: "progress" }, this.bar, this.where), this.grid);
  }

  /** Draws until the pictures are there; throws what the server refused. */
  async run() {
    await enter();
    try {
      if (!this.going) return; // cancelled before its turn
      const body = bodyText(streamed(this.wanted));
      await stream(body, this.abort.signal, (id) => this.learnId(id), (name, data) => this.take(name, data));
      if (this.going && this.done < this.n) throw new Gone("The server ended before the pictures were done.");
    } catch (error) {
      if (this.state === "cancelled") return;
      const told = error instanceof Refused || this.began === null;
      this.end("failed", told ? error.message : `${error.message} ${this.progressText()}`);
      throw error;
    } finally {
      leave();
    }
  }

  learnId(id) {
    if (!id || this.id) return;
    this.id = id;
    this.onChange(this);
  }

  take(name, data) {
    if (!this.going) return;
    if (data.request_id) this.learnId(data.request_id);
    if (name === "error") throw new Refused(200, data.error ?? {});
    if (name.endsWith(".queued")) this.place(data.position);
    if (name.endsWith(".step")) this.step(data);
    if (name.endsWith(".completed")) this.complete(data);
  }

  /** Where the request stands in the queue: how many pictures are before its own. */
  place(before) {
    if (this.state !== "waiting") return;
    const text = before > 0 ? `Waiting, ${count(before, "picture")} before it` : "Waiting, next in the queue";
    say(this.where, text);
    announce(text);
  }

  begin() {
    if (this.began !== null) return;
    this.began = performance.now();
    this.become("drawing");
    announce("Drawing");
  }

  step(data) {
    this.begin();
    const picture = this.pictures[data.image_index ?? 0];
    if (!picture || picture.done) return;
    picture.step = data.step;
    this.steps = data.steps ?? this.steps; // some schedulers take more than were asked for
    this.bar.max = this.n * this.steps;
    if (data.b64_json) showPreview(picture, this.blob(data.b64_json), data.step, data.steps);
    this.showProgress();
  }

  stepsDone() {
    return this.pictures.reduce((sum, picture) => sum + (picture.done ? this.steps : picture.step), 0);
  }

  showProgress() {
    const done = this.stepsDone();
    this.bar.value = done;
    const quarter = Math.floor((4 * done) / (this.n * this.steps));
    if (quarter > this.quarter && quarter < 4) {
      this.quarter = quarter;
      announce(this.progressText());
    }
    say(this.where, this.progressText() + this.left(done / (this.n * this.steps)));
  }

  progressText() {
    if (this.n === 1) return `Step ${this.pictures[0].step} of ${this.steps}`;
    return `${this.done} of ${this.n} pictures done, ${Math.floor((100 * this.stepsDone()) / (this.n * this.steps))} % of all steps`;
  }

  left(part) {
    const passed = (performance.now() - this.began) / 1000;
    if (part < 0.1 || passed < 2) return "";
    return `, about ${seconds(Math.max(1, Math.round((passed / part) * (1 - part))))} left`;
  }

  complete(data) {
    this.begin();
    const picture = this.pictures[data.image_index ?? 0];
    if (!picture || picture.done) return;
    picture.done = true;
    picture.step = this.steps;
    this.done += 1;
    const took = (performance.now() - this.asked) / 1000;
    this.showPicture(picture, data, took);
    this.showProgress();
    if (this.done < this.n) return;
    const waited = (this.began - this.asked) / 1000;
    const queued = waited > 0.5 && waited > took / 10 ? `, ${seconds(waited)} of them in the queue` : "";
    this.end("done", `${count(this.n, "picture")} in ${seconds(took)}${queued}`);
  }

  showPicture(picture, data, took) {
    const url = picture.keep(this.blob(data.b64_json));
    const format = data.output_format ?? this.wanted.output_format ?? "png";
    const title = titleOf(this.wanted);
    const index = data.image_index ?? 0;
    const said = data.seed === undefined ? "" : `Seed ${data.seed}${this.n > 1 ? `, picture ${index + 1}` : ""}`;
    show(picture, url, said ? `${title}, ${said.toLowerCase()}` : title);
    picture.frame.classList.remove("growing");
    if (picture.previewed < this.steps) addToStrip(picture, url, this.steps);
    const name = [this.model, data.seed, this.n > 1 ? index + 1 : undefined].filter((part) => part !== undefined).join("-").replace(/[^\w.-]+/g, "_");
    const download = make("a", { class: "button small", href: url, download: `${name}.${format === "jpeg" ? "jpg" : format}` }, "Download");
    const use = make("button", { type: "button", class: "small", onclick: () => fill(this.wanted, data.seed) }, "Use seed");
    const time = this.n === 1 ? null : make("span", { class: "hint" }, seconds(took));
    const actions = make("span", { class: "actions" }, data.seed === undefined ? null : use, download);
    const warnings = data.warnings?.length ? make("span", { class: "hint" }, data.warnings.join(" ")) : null;
    const parts = [make("span", { class: "seed" }, said), time, this.sameAsBefore(data), actions, warnings];
    picture.caption.replaceChildren(...parts.filter(Boolean));
  }

  /** A mark where this page asked the same before: the bytes are compared, all of them. */
  sameAsBefore(data) {
    if (data.seed === undefined) return null;
    const { n, seed, ...rest } = this.wanted;
    const key = JSON.stringify([rest, data.seed, data.image_index ?? 0]);
    const before = drawnBefore.get(key);
    drawnBefore.set(key, data.b64_json);
    if (drawnBefore.size > REMEMBERED) drawnBefore.delete(drawnBefore.keys().next().value);
    if (before === undefined) return null;
    const same = before === data.b64_json;
    return make("span", { class: same ? "badge good" : "badge warn" }, same ? "✓ same bytes as before" : "other bytes than before");
  }

  blob(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return new Blob([bytes], { type: `image/${this.wanted.output_format ?? "png"}` });
  }

  become(state) {
    this.state = state;
    this.element.dataset.state = state;
    this.onChange(this);
  }

  end(state, text) {
    this.button.remove();
    say(this.where, text);
    announce(text);
    for (const picture of this.pictures) picture.frame.classList.remove("growing");
    this.become(state);
  }

  /** Leaves the queue, or stops within a step. */
  async cancel() {
    if (!this.going) return;
    this.end("cancelled", this.state === "waiting" ? "Cancelled" : `Cancelled. ${this.progressText()}`);
    const soon = new Promise((resolve) => setTimeout(resolve, 1000));
    try {
      if (this.id) await Promise.race([cancelRequest(this.id), soon]);
    } catch {
      // closing the connection, below, cancels too
    }
    this.abort.abort();
  }

  /** Takes it off the page, and its pictures out of the memory. */
  remove() {
    this.element.remove();
    for (const picture of this.pictures) picture.forget();
  }
}

function newPicture() {
  const urls = [];
  const image = make("img", { alt: "", hidden: true });
  const frame = make("div", { class: "frame growing" }, image);
  const strip = make("div", { class: "strip", "aria-hidden": "true" });
  const caption = make("figcaption", {});
  return {
    image, frame, strip, caption, step: 0, previewed: Infinity, done: false,
    figure: make("figure", {}, frame, strip, caption),
    keep(blob) {
      urls.push(URL.createObjectURL(blob));
      return urls.at(-1);
    },
    forget() {
      for (const url of urls) URL.revokeObjectURL(url);
    },
  };
}

function show(picture, url, alt) {
  const { image, frame } = picture;
  image.onload = () => {
    image.classList.toggle("pixels", image.naturalWidth <= SMALL && image.naturalHeight <= SMALL);
    frame.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
    image.hidden = false;
  };
  image.src = url;
  image.alt = alt;
}

function showPreview(picture, blob, step, steps) {
  const url = picture.keep(blob);
  show(picture, url, `Preview at step ${step} of ${steps}`);
  addToStrip(picture, url, step);
}

function addToStrip(picture, url, step) {
  picture.previewed = step;
  picture.strip.append(make("img", { src: url, alt: "", title: `Step ${step}` }));
}
