// Elements from data. Text is only ever set as text: what others chose (paths, tags, names of
// processes) cannot become markup.

// Control, format (such as U+202E, which reverses what follows), private and unassigned characters are
// shown escaped, as sealsvc/core/display.py does it: no name may read as another.
export const plain = (text) => text.replace(/(?! )[\p{C}\p{Z}]/gu, (c) => {
  const code = c.codePointAt(0).toString(16);
  if (code.length < 3) return `\\x${code.padStart(2, "0")}`;
  return code.length < 5 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`;
});

const SVG = "http://www.w3.org/2000/svg";
const SHOWN = new Set(["title", "aria-label"]);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : SHOWN.has(name) ? plain(value) : value);
  }
  const shown = children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false);
  element.append(...shown.map((c) => (typeof c === "string" ? plain(c) : c)));
  return element;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export function table(caption, columns, rows, empty = "None.") {
  if (!rows.length) return h("div", { class: "scroll" }, h("p", { class: "empty" }, empty));
  const head = columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name));
  const body = rows.map((cells) => h("tr", {}, cells.map((cell, i) => {
    const [name, kind] = columns[i];
    // On a phone each row is a card, and the name stands before its value.
    return cell instanceof HTMLTableCellElement ? cell : h("td", { class: kind, "data-name": name }, cell);
  })));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

// A long table in pages, kept while the page is drawn anew. `key` names it; `app.refresh` turns a page.
const turned = new Map();
const EACH = 100;

export function paged(key, app, found, draw) {
  const last = Math.max(0, Math.ceil(found.length / EACH) - 1);
  const at = Math.min(turned.get(key) ?? 0, last);
  const shown = draw(found.slice(at * EACH, (at + 1) * EACH));
  if (last === 0 && !found.more) return shown;
  // From where it is by then: two clicks may come between two pictures.
  const turn = (by) => () => { turned.set(key, Math.min(last, Math.max(0, (turned.get(key) ?? 0) + by))); app.refresh(); };
  return [shown, h("nav", { class: "pages", "aria-label": `Pages of ${key}` },
    h("button", { type: "button", disabled: at === 0, "aria-label": `Previous page of ${key}`, onclick: turn(-1) }, "Previous"),
    h("span", { role: "status" }, `${at * EACH + 1} to ${Math.min(found.length, (at + 1) * EACH)} of ${found.length}${found.more ? ", and there are more: narrow the search" : ""}`),
    h("button", { type: "button", disabled: at === last, "aria-label": `Next page of ${key}`, onclick: turn(1) }, "Next"))];
}

export const state = (name) => h("span", { class: `state ${name}` }, name);
export const link = (where, text) => h("a", { href: `#${where}` }, text);
export const facts = (pairs) => h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) { count /= 1024; at += 1; }
  return `${Number.isInteger(count) ? count : count.toFixed(1)} ${units[at]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toPrecision(3)} ms`;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export const clock = (epoch) => new Date(epoch * 1000).toLocaleTimeString();
export const keyOf = (file) => `${file.device}-${file.inode}-${file.generation}`;
