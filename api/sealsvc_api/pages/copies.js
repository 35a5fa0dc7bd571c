// Copies and relocations, which are jobs; and how far offloads are trusted.

import { h, table, state, link, bytes, duration, facts, paged } from "./dom.js";
import { get, remove } from "./rest.js";

const command = (text) => h("code", {}, text);
const NO_COPY = ["No copy was made in this run of the service. Begin with ", command("sealctl copy SOURCE DESTINATION"), "."];
const NO_RELOCATION = ["No file was relocated in this run of the service. Begin with ", command("sealctl relocate FILE --defrag"), "."];

const took = (job) => (job.ended_at ?? Date.now() / 1000) - job.started_at;
const rate = (count, seconds) => count && seconds > 0 ? `${bytes(Math.round(count / seconds))}/s` : "–";

function progress(job) {
  const said = job.total ? `${bytes(job.done)} of ${bytes(job.total)}` : job.state === "running" ? "begins" : "–";
  if (job.state !== "running") return said;
  return [h("progress", { max: job.total || 1, value: job.done, "aria-label": `Progress of the ${job.kind} of ${job.path}` }), ` ${said}`];
}

function cancel(job, app) {
  const [action, noun] = job.kind === "copy" ? ["copies", "copies"] : ["jobs.run", "jobs"];
  if (job.state !== "running" || !app.may(action)) return "–";
  return h("button", { type: "button", class: "danger", "aria-label": `Cancel the ${job.kind} of ${job.path}`,
    onclick: () => app.asks(`The ${job.kind} ${job.kind === "copy" ? "to" : "of"} ${job.path} is ended where it is: ${progressText(job)}. Its result says how far it came${job.kind === "copy" ? ", and has a token to go on with" : ""}.`,
      "Cancel it", `The ${job.kind} is cancelled.`, () => remove(`/v1/${noun}/${job.id}`)) }, "Cancel");
}

const progressText = (job) => job.total ? `${bytes(job.done)} of ${bytes(job.total)} are done` : "it has just begun";
const told = (job) => [state(job.state), job.error && h("div", { class: "bad" }, job.error)];
const begun = (job) => new Date(job.started_at * 1000).toLocaleString();

const copyRows = (jobs, app) => table("Copies, the newest first",
  [["copy"], ["state"], ["from", "path"], ["to", "path"], ["progress"], ["by"], ["rate", "number"], ["begun", "optional"], ["actions", "actions"]],
  jobs.map((job) => [link(`/copies/${job.id}`, h("span", { class: "id" }, `…${job.id.slice(-6)}`)), told(job), job.source ?? "–", job.path ?? "–", progress(job), job.step || "–",
    rate(job.done, took(job)), begun(job), cancel(job, app)]), NO_COPY);

const relocationRows = (jobs, app) => table("Relocations, the newest first",
  [["relocation"], ["state"], ["file", "path"], ["progress"], ["step"], ["took", "number"], ["begun", "optional"], ["actions", "actions"]],
  jobs.map((job) => [link(`/copies/${job.id}`, h("span", { class: "id" }, `…${job.id.slice(-6)}`)), told(job), job.path ?? "–", progress(job), job.step || "–",
    duration(took(job)), begun(job), cancel(job, app)]), NO_RELOCATION);

const TESTED = { verified: "good", lied: "bad" };
const trustRows = (rows) => table("Strategies, by pair of file systems",
  [["pair", "path"], ["strategy"], ["measured", "number"], ["self-test"], ["when"], ["note", "path"]],
  rows.map((r) => [r.pair, r.strategy, r.rate === null ? "–" : `${bytes(Math.round(r.rate))}/s`,
    r.self_test ? h("span", { class: TESTED[r.self_test] ?? "" }, r.self_test === "lied" ? "lied: not used here" : r.self_test) : "–",
    r.at ? new Date(r.at * 1000).toLocaleString() : "–", r.note || "–"]),
  "No strategy was measured yet: a copy does it.");

export async function copies(app) {
  const every = app.may("jobs.read");
  if (!every && !app.may("copies")) {
    return [h("h1", { tabindex: "-1" }, "Copies"), h("p", { class: "empty" }, "Copies are shown to operators, and to whoever sees everything (the scope /).")];
  }
  const [{ jobs }, trust] = await Promise.all([get(every ? "/v1/jobs" : "/v1/copies"), every ? get("/v1/copy-trust") : null]);
  return [h("h1", { tabindex: "-1" }, "Copies"),
    paged("copies", app, jobs.filter((job) => job.kind === "copy"), (some) => copyRows(some, app)),
    every && [h("h2", {}, "Relocations"), paged("relocations", app, jobs.filter((job) => job.kind === "relocate"), (some) => relocationRows(some, app))],
    trust && [h("h2", {}, "Trust in offloads"), paged("strategies", app, trust.rows, trustRows)]];
}

const span = (r) => [String(r.source), String(r.destination), bytes(r.length)];

function copied(app, result) {
  const parts = Object.entries(result.bytes_by_strategy ?? {});
  return [
    h("h2", {}, "Result"),
    facts([
      ["copied", [`${bytes(result.done)} of ${bytes(result.requested)}: `, h("span", { class: result.whole ? "good" : "bad" }, result.whole ? "whole" : "not whole")]],
      ["by", parts.map(([name, n]) => `${name} ${bytes(n)}`).join(", ") || "–"],
      ["rate", rate(result.done, result.seconds)],
      ["under seals", result.sealed ? "yes" : `no: ${result.unsealed_why || "none were needed"}`],
      ["durable", result.durable ? "yes" : "no"], ["compared", result.verified ? "yes, equal" : "no"],
      ["source", result.source_changed ? h("span", { class: "warn" }, "changed meanwhile: the copy is of no single state") : "as it was"],
      ["failed with", result.error || "–"], ["to go on", result.whole || !result.token ? "–" : command(`sealctl copy --resume ${result.token} …`)]]),
    h("h2", {}, "Which bytes by which strategy"),
    paged("parts", app, result.rows ?? [], (some) => table("Parts of the copy", [["from", "number"], ["to", "number"], ["length", "number"], ["strategy"]],
      some.map((r) => [...span(r), r.strategy]), "No byte was copied.")),
    result.more_rows > 0 && h("p", { class: "warn" }, `${result.more_rows} more parts are not told.`),
    result.fell_back?.length > 0 && [h("h2", {}, "Why not another"), table("Strategies that gave up", [["from", "number"], ["strategy"], ["reason", "path"]],
      result.fell_back.map((f) => [String(f.source), f.strategy, f.reason]))]];
}

function planned(app, result) {
  return [h("h2", {}, "Plan"), h("p", {}, result.sealed ? "It would be made under seals." : `It would be made without seals: ${result.unsealed_why}.`),
    paged("parts", app, result.plan, (some) => table("Parts of the plan", [["from", "number"], ["to", "number"], ["length", "number"], ["strategy"], ["then"], ["not taken", "path"]],
      some.map((p) => [...span(p), p.strategy, p.then.join(", ") || "–", reasons(p.not_taken) || "–"]))),
    Object.keys(result.not_used).length > 0 && h("p", {}, `Not used at all: ${reasons(result.not_used)}.`)];
}

const reasons = (found) => Object.entries(found).map(([name, why]) => `${name}: ${why}`).join("; ");
const extents = (x) => `${x.extents} extents, the first at ${x.first}`;

function relocated(result) {
  return [h("h2", {}, "Result"), facts([["moved", result.moved ? "yes" : `no${result.reason ? `: ${result.reason}` : ""}`],
    ...["before", "after"].filter((name) => result[name]).map((name) => [name, extents(result[name])]),
    ["writes followed by", result.tracking || "–"],
    ["pauses of holders", result.pauses?.map(duration).join(", ") || "none"]])];
}

function resultOf(app, { kind, result }) {
  if (!Object.keys(result).length) return null;
  if (kind === "relocate") return relocated(result);
  return result.plan ? planned(app, result) : copied(app, result);
}

export async function job(app, id) {
  const x = await get(`/v1/${app.may("jobs.read") ? "jobs" : "copies"}/${encodeURIComponent(id)}`);
  return [
    h("h1", { tabindex: "-1" }, x.kind === "copy" ? "Copy " : "Relocation ", h("span", { class: "id" }, x.id)),
    facts([["state", told(x)], x.kind === "copy" ? ["from", x.source ?? "–"] : null, [x.kind === "copy" ? "to" : "file", x.path ?? "–"],
      ["progress", progress(x)], ["step", x.step || "–"], ["rate", rate(x.done, took(x))], ["asked for by", x.principal || "–"],
      ["begun", begun(x)], ["took", duration(took(x))]].filter(Boolean)),
    h("p", {}, cancel(x, app)),
    resultOf(app, x),
  ];
}
