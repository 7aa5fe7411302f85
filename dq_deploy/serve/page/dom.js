// Elements are built here, out of text nodes and attributes: nothing that was sent ever becomes markup.

/** An element with attributes, or handlers (`onclick`), and children: elements or plain text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets text only where it changed, so that screen readers and selections are left alone. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function byId(id) {
  return document.getElementById(id);
}

const announcer = byId("announcer");

/** Reads a short sentence out to those who do not see the page. */
export function announce(text) {
  say(announcer, text);
}

/** A button that copies what `text()` gives at that moment. */
export function copyButton(label, text) {
  const button = make("button", { type: "button", class: "small", "aria-label": label }, "Copy");
  makeCopy(button, text);
  return button;
}

export function makeCopy(button, text) {
  button.addEventListener("click", async () => {
    const done = await copy(text());
    say(button, done ? "Copied" : "Not copied");
    announce(done ? "Copied" : "The browser did not let this be copied");
    setTimeout(() => say(button, "Copy"), 1500);
  });
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // without TLS browsers offer the clipboard on this machine only
    const field = make("textarea", { class: "aside", "aria-hidden": "true" });
    field.value = text;
    const before = document.activeElement;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    before?.focus();
    return done;
  }
}

/** "1 picture", "4 pictures". */
export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Seconds as people say them: "0.84 s", "12 s", "3 min 20 s"; a number and its unit stay on one line. */
export function seconds(value) {
  if (value < 10) return `${value.toFixed(value < 1 ? 2 : 1)}\u00a0s`;
  if (value < 90) return `${Math.round(value)}\u00a0s`;
  return `${Math.floor(value / 60)}\u00a0min ${Math.round(value % 60)}\u00a0s`;
}
