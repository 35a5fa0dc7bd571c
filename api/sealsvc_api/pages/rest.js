// Requests of the session, and the refusals of the service as errors.

export class Refused extends Error {
  constructor(problem) {
    super(problem.detail ?? "no answer");
    this.code = problem.code ?? "internal";
    this.advice = problem.advice ?? "";
    this.status = problem.status ?? 0;
  }
}

let csrf = null;
export const setCsrf = (token) => { csrf = token; };

async function ask(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (csrf && method !== "GET") headers["X-CSRF-Token"] = csrf;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused({ code: "service-unavailable", detail: "The API does not answer." });
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    if (answer.status === 401 && path !== "/v1/session") window.dispatchEvent(new Event("logged-out"));
    throw new Refused({ status: answer.status, ...told });
  }
  return told;
}

export const get = (path, query) => {
  const said = Object.entries(query ?? {}).filter(([, v]) => v !== "" && v !== null && v !== undefined);
  return ask("GET", said.length ? `${path}?${new URLSearchParams(said)}` : path);
};
export const post = (path, body = {}) => ask("POST", path, body);
export const remove = (path) => ask("DELETE", path);

// At least `most` of a list, or all of it: `found.more` says whether there are others.
export async function all(path, query, field, most = 2000) {
  const found = [];
  let after;
  do {
    const page = await get(path, { ...query, after, limit: Math.min(1000, most) });
    found.push(...page[field]);
    after = page.next;
  } while (after && found.length < most);
  found.more = Boolean(after);
  return found;
}
