// Files and holders: what is sealed, and by whom. A file's page draws its extent map.

import { h, table, link, bytes, facts, paged } from "./dom.js";
import { get, all, post } from "./rest.js";
import { extentMap } from "./pictures.js";
import { rows } from "./seals.js";

const SEALS = 20, MOST = 4000; // drawn of a file, and extents of each
const PIECE = 400; // as many extents as an answer has; of a longer map, pieces that are spread over it

const counts = (states) => Object.entries(states).map(([name, n]) => `${n} ${name}`).join(", ");

export async function files(app) {
  const found = await all("/v1/files", {}, "files", 5000);
  return [h("h1", { tabindex: "-1" }, "Files"),
    paged("files", app, found, (some) => table("Sealed files", [["path", "path"], ["file system", "optional"], ["seals", "number"], ["sealed", "number"], ["states"]],
      some.map((f) => [link(`/files/${f.key}`, f.path), `${f.filesystem} ${f.mount}`, String(f.seals), bytes(f.sealed_bytes), counts(f.states)]),
      "No file is sealed."))];
}

// The first of a seal's extents, `total` of which there are: more than a picture can show are not fetched.
function whose(seals) {
  const names = [...new Set(seals.map((x) => `${x.holder.comm} ${x.holder.pid}`))];
  return names.slice(0, 5).join(", ") + (names.length > 5 ? ` and ${names.length - 5} more` : "");
}

async function extents(seal, now) {
  const ask = (start) => get(`/v1/seals/${seal.id}/extents`, { start, limit: PIECE, now: now || undefined });
  const first = await ask(0), { total } = first;
  const count = Math.max(0, Math.ceil(Math.min(total, MOST) / PIECE) - 1);
  const step = total > MOST ? (total - PIECE) / count : PIECE;
  const starts = Array.from({ length: count }, (_, i) => Math.round((i + 1) * step));
  const pages = [first, ...await Promise.all(starts.map(ask))].map((page) => page.extents);
  const found = pages.flat();
  found.total = total;
  found.holds = (e) => total <= MOST || pages.some((page) => page.length && e.logical >= page[0].logical && e.logical <= page.at(-1).logical);
  return found;
}

export async function file(app, key) {
  const found = await get(`/v1/files/${key}`);
  const own = await all("/v1/seals", { path: found.path }, "seals", 5000);
  const drawn = own.slice(0, SEALS);
  const maps = await Promise.all(drawn.map((x) => extents(x, false)));
  const recorded = maps.flat();
  const total = maps.reduce((sum, x) => sum + x.total, 0);
  const left = [
    own.length > drawn.length && `${own.length - drawn.length} of ${own.length} seals`,
    total > recorded.length && `${total - recorded.length} of ${total} extents`].filter(Boolean);
  const now = await Promise.allSettled(drawn.map((x) => extents(x, true)));
  // Of a map that is drawn in pieces, what lies between them is not known to be anywhere else.
  const present = now.flatMap((r, i) => r.status === "fulfilled" ? r.value.filter(maps[i].holds) : []);
  const unreadable = now.filter((r) => r.status === "rejected").length;
  const map = recorded.length ? extentMap(recorded, present, drawn) : null;
  const driftedAt = new Set((map?.drifted ?? []).map((e) => e.logical));
  return [
    h("h1", { tabindex: "-1" }, found.path),
    facts([["file system", `${found.filesystem} at ${found.mount}`], ["inode", `${found.file.inode}, generation ${found.file.generation}`],
      ["seals", `${found.seals}, ${bytes(found.sealed_bytes)} sealed`]]),
    h("h2", {}, "Extent map"),
    map && map.drifted.length > 0 && h("p", { class: "bad", id: "drift" }, `Not where they were sealed: ${map.drifted.length} of ${recorded.length} extents.`),
    unreadable > 0 && h("p", { class: "warn" }, `The present map of ${unreadable} seals cannot be read.`),
    left.length > 0 && h("p", { class: "warn", id: "left-out" }, `Not drawn: ${left.join(" and ")}${total > recorded.length ? ", in equal gaps" : ""}. All of them: sealctl show --extents ID, or GET /v1/seals/ID/extents.`),
    map?.picture,
    app.may("recall") && h("p", {}, h("button", { type: "button", class: "danger",
      onclick: () => app.asks(`The holders of all ${own.length} seals of ${found.path} are asked to give them back, each within its grace: ${whose(own)}.`, "Recall them", "Recalled all seals of the file.", () => post("/v1/recalls", { path: found.path, reason: "dashboard" })) }, "Recall every seal of this file")),
    h("h2", {}, "Seals"), paged("seals of the file", app, own, (some) => rows(some, app)),
    h("h2", {}, "Extents"),
    paged("extents", app, recorded, (some) => table("Recorded extents", [["logical", "number"], ["physical", "number"], ["length", "number"], ["flags"], ["now"]],
      some.map((e) => [String(e.logical), String(e.physical), bytes(e.length), e.flags.join(", ") || "–",
        driftedAt.has(e.logical) ? h("span", { class: "bad" }, "drifted") : h("span", { class: "good" }, "as sealed")]))),
  ];
}

export async function holders(app) {
  const found = await all("/v1/holders", {}, "holders", 5000);
  return [h("h1", { tabindex: "-1" }, "Holders"),
    paged("holders", app, found, (some) => table("Processes that hold seals", [["pid", "number"], ["name"], ["user", "number"], ["seals", "number"], ["sealed", "number"], ["states"], ["process"]],
      some.map((x) => [link(`/holders/${x.pid}`, String(x.pid)), x.comm, String(x.uid), String(x.seals), bytes(x.sealed_bytes), counts(x.states),
        h("span", { class: x.alive ? "good" : "bad" }, x.alive ? "alive" : "gone")]), "Nobody holds a seal."))];
}

export async function holder(app, pid) {
  const found = await get(`/v1/holders/${pid}`);
  const own = await all("/v1/seals", { pid }, "seals", 5000);
  return [h("h1", { tabindex: "-1" }, `Holder ${found.comm} ${found.pid}`),
    facts([["process", found.alive ? "alive" : "gone"], ["user", String(found.uid)], ["started", found.started_at ? new Date(found.started_at * 1000).toLocaleString() : "not known"],
      ["seals", `${found.seals}, ${bytes(found.sealed_bytes)}`], ["states", counts(found.states)]]),
    app.may("recall.wide") && h("p", {}, h("button", { type: "button", class: "danger",
      onclick: () => app.asks(`${found.comm} (process ${found.pid}) is asked to give back all of its ${found.seals} seals, each within its grace.`, "Recall them", "Recalled all seals of the holder.", () => post("/v1/recalls", { pid: found.pid, reason: "dashboard" })) }, "Recall every seal of this holder")),
    h("h2", {}, "Seals"), paged("seals of the holder", app, own, (some) => rows(some, app))];
}
