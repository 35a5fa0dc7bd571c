// The frame: who is logged in, which page is shown, and when it is drawn anew.

import { h, plain } from "./dom.js";
import { get, post, remove, setCsrf, Refused } from "./rest.js";
import { open, close, onEvent } from "./stream.js";
import { overview } from "./overview.js";
import { seals, seal } from "./seals.js";
import { files, file, holders, holder } from "./files.js";
import { filesystems } from "./filesystems.js";
import { exportsList, exported } from "./exports.js";
import { integrity, attachment } from "./integrity.js";
import { copies, job } from "./copies.js";
import { timeline } from "./timeline.js";

const PAGES = { "": overview, seals, files, holders, filesystems, exports: exportsList, integrity, copies, events: timeline };
const DETAILS = { seals: seal, files: file, holders: holder, exports: exported, integrity: attachment, copies: job };
const GATHER = 250, LOOK = 3000; // milliseconds

const at = (id) => document.getElementById(id);
const main = at("main");
let session = null, drawing = 0, due = null, shown = null, picture = null, late = false;

const app = {
  get name() { return session?.name; },
  may: (action) => session?.actions.includes(action) ?? false,
  refresh: () => draw(),
  // What cannot be taken back is asked first, with what it will do.
  async asks(question, label, done, work) {
    if (await confirmed(question, label)) await app.does(done, work);
  },
  // `done` is a text, or a function that makes it once the work is done.
  async does(done, work) {
    try {
      await work();
      say(typeof done === "function" ? done() : done);
    } catch (error) {
      say(error instanceof Refused ? `${error.message} ${error.advice}` : String(error));
    }
    draw();
  },
};

function confirmed(question, label) {
  return new Promise((settled) => {
    const dialog = h("dialog", { "aria-labelledby": "question", onclose: () => {
      settled(dialog.returnValue === "yes");
      dialog.remove();
    } }, h("p", { id: "question" }, question), h("form", { method: "dialog", class: "answers" },
      h("button", { value: "no", autofocus: true }, "Cancel"), h("button", { value: "yes", class: "danger" }, label)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

function say(text) {
  const shown = plain(text);
  at("said").textContent = shown;
  setTimeout(() => { if (at("said").textContent === shown) at("said").textContent = ""; }, 6000);
}

function tellLink(how) {
  at("link").className = `link ${how}`;
  at("link").textContent = how === "lost" ? "down, trying again" : how;
}

function banner(text) {
  at("banner").hidden = !text;
  at("banner").textContent = plain(text ?? "");
}

function draw() {
  const mine = picture = paint().finally(() => {
    if (picture !== mine) return;
    picture = null;
    if (late) soon();
    late = false;
  });
}

// By time or events: never instead of a picture that takes longer to make, which would never be seen.
function redraw() {
  if (picture) late = true;
  else draw();
}

async function paint() {
  if (!session) return;
  const turn = ++drawing;
  const [page, detail] = location.hash.replace(/^#\//, "").split("/").map(decodeURIComponent);
  const view = detail ? DETAILS[page] : PAGES[page ?? ""];
  let nodes;
  try {
    if (!view) throw new Refused({ code: "no-such-page", detail: "There is no such page.", advice: "The pages that there are stand above.", status: 404 });
    nodes = await view(app, detail);
    banner("");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (!session) return;
    if (error.code === "service-unavailable") {
      banner("The service does not answer. Seals stay in force; this page comes back by itself.");
      if (shown === location.hash) return; // what was last seen stays to be read
    }
    nodes = [h("h1", { tabindex: "-1" }, "Not to be shown"), h("p", { class: "bad", id: "refused" }, error.message), h("p", {}, error.advice)];
  }
  if (turn !== drawing) return;
  const fresh = shown !== location.hash;
  shown = location.hash;
  replace(nodes, fresh);
  for (const a of document.querySelectorAll("#nav a")) {
    if (a.hash === `#/${page ?? ""}`) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
}

// What an element is called, to find it again when it was drawn anew.
const called = (e) => `${e.tagName} ${e.id || e.getAttribute("aria-label") || e.getAttribute("href") || ""}`;
const alike = (name) => [...main.querySelectorAll("a, button, input, select, [tabindex]")].filter((e) => called(e) === name);

// The one who types, reads the heading, or has the focus on a button or a link, must not lose it to
// an update.
function replace(nodes, fresh) {
  const focused = document.activeElement;
  const name = focused && focused !== main && main.contains(focused) ? called(focused) : null;
  const place = name ? alike(name).indexOf(focused) : -1;
  const [from, to] = [focused?.selectionStart, focused?.selectionEnd];
  main.replaceChildren(...nodes.flat(Infinity).filter(Boolean));
  document.title = `${main.querySelector("h1")?.textContent ?? "sealsvc"} – sealsvc`;
  if (fresh) { main.querySelector("h1")?.focus(); return; }
  if (!name) return;
  const again = alike(name)[place] ?? alike(name)[0];
  again?.focus({ preventScroll: true });
  if (from !== undefined && from !== null) again?.setSelectionRange?.(from, to);
}

function soon() {
  due ??= setTimeout(() => { due = null; redraw(); }, GATHER);
}

function login(problem) {
  session = null;
  drawing += 1; // what is being drawn must not come over the form
  close();
  setCsrf(null);
  banner("");
  at("nav").hidden = at("logout").hidden = at("link").hidden = true;
  at("who").textContent = "";
  const token = h("input", { id: "token", type: "password", autocomplete: "current-password", required: true });
  shown = null;
  main.replaceChildren(h("form", { class: "login", onsubmit: async (event) => {
    event.preventDefault();
    try {
      begin(await post("/v1/session", { token: token.value }));
    } catch (error) {
      login(error.message);
    }
  } }, h("h1", {}, "Log in"), h("label", {}, "Token", token), h("button", { type: "submit" }, "Log in"),
  problem && h("p", { class: "bad", role: "alert" }, problem)));
  token.focus();
}

function begin(found) {
  session = found;
  setCsrf(found.csrf);
  at("nav").hidden = at("logout").hidden = at("link").hidden = false;
  at("who").textContent = `${found.name} (${found.role})`;
  open(tellLink);
  draw();
}

at("logout").addEventListener("click", async () => {
  await remove("/v1/session").catch(() => {});
  login();
});
at("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");

window.addEventListener("hashchange", () => draw());
window.addEventListener("logged-out", () => { if (session) login("The session is over."); });
onEvent(soon);
setInterval(() => { if (session && !document.hidden) redraw(); }, LOOK);

get("/v1/session").then(begin, () => login());
