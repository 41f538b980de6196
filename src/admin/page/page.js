"use strict";

// How many steps of five seconds a sparkline has: at least two minutes, at most a quarter of an hour.
const MIN_STEPS = 24;
const MAX_STEPS = 180;
const SOON = 14 * 24 * 3600;

const byId = (id) => document.getElementById(id);
const rows = new Map();
let last = null;

function make(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function plural(count, one, many) {
  return `${count} ${count === 1 ? one : many}`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

function milliseconds(value) {
  if (value < 10) return `${value.toFixed(1)} ms`;
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

function span(seconds) {
  const days = Math.floor(seconds / 86400);
  const hours = Math.floor((seconds % 86400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min` : `${seconds} s`;
}

class Sparkline {
  constructor() {
    const space = "http://www.w3.org/2000/svg";
    this.samples = [];
    this.line = document.createElementNS(space, "polyline");
    this.element = document.createElementNS(space, "svg");
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true");
    this.element.append(this.line);
  }

  // A missing sample repeats the previous one.
  add(samples, isAll) {
    this.samples = (isAll ? samples : this.samples.concat(samples)).slice(-MAX_STEPS);
    const top = Math.max(...this.samples, 1e-9);
    const width = Math.max(this.samples.length, MIN_STEPS) - 1;
    this.element.setAttribute("viewBox", `0 0 ${width} 20`);
    const from = width + 1 - this.samples.length;
    let last = 0;
    const points = this.samples.map((sample, number) => {
      last = sample ?? last;
      return `${from + number},${(19 - (18 * last) / top).toFixed(1)}`;
    });
    this.line.setAttribute("points", points.join(" "));
  }
}

/** Which endpoints of a route get connections, where these are not the usual ones. */
const SERVING = {
  backup: "backups serve: no other endpoint is ready",
  all: "no endpoint is ready: connections are sent to all",
};

/** What is special about an endpoint's part in new connections. */
function share({ weight, backup }) {
  const parts = [backup ? "backup" : "", weight === 1 ? "" : `weight ${weight}`].filter(Boolean);
  return parts.length > 0 ? ` (${parts.join(", ")})` : "";
}

class Row {
  constructor() {
    this.element = make("tr");
    this.head = make("th");
    this.head.scope = "row";
    this.name = make("span");
    this.sni = make("small");
    this.head.append(this.name, this.sni);
    this.endpoints = make("ul", undefined, "endpoints");
    this.serving = make("span", "", "open");
    const endpoints = make("td");
    endpoints.append(this.endpoints, this.serving);
    this.open = this.number("Open");
    this.fresh = this.number("New per second", new Sparkline());
    this.bytes = this.number("Bytes per second", new Sparkline());
    this.answer = this.number("First answer", new Sparkline());
    this.element.append(this.head, endpoints, this.open.cell, this.fresh.cell, this.bytes.cell, this.answer.cell);
    this.shown = "";
    this.searched = "";
  }

  number(label, sparkline) {
    const cell = make("td", undefined, "number");
    cell.dataset.label = label;
    const text = make("span");
    cell.append(text);
    if (sparkline) cell.append(sparkline.element);
    return { cell, text, sparkline };
  }

  show(route, before, seconds) {
    setText(this.name, route.name);
    const names = route.sni.length === 0 ? "any other name, or no SNI" : route.sni.join(", ");
    setText(this.sni, names === route.name ? "" : names);
    const endpoints = route.upstream.flatMap((destination) =>
      destination.endpoints.length > 0
        ? destination.endpoints.map((endpoint) => ({ ...endpoint, share: share(destination) }))
        : [{ address: destination.destination, state: "dead", cause: "no address", share: share(destination) }],
    );
    const shown = JSON.stringify(
      endpoints.map(({ address, state, cause, known, share }) => [address, state, cause, known, share]),
    );
    if (shown !== this.shown) {
      this.shown = shown;
      const states = endpoints.map(({ address, state, known }) => `${address} ${known === false ? "unknown" : state}`);
      this.searched = [route.name, names, ...states, SERVING[route.serving] ?? ""].join(" ").toLowerCase();
      this.endpoints.replaceChildren(
        ...endpoints.map(({ address, state, cause, known, share }) => {
          if (known === false) return make("li", `${address}${share} not contacted yet`, "unknown");
          const why = state === "ready" ? "" : ` ${state}${cause ? `: ${cause}` : ""}`;
          return make("li", `${address}${share}${why}`, state);
        }),
      );
    }
    setText(this.serving, SERVING[route.serving] ?? "");
    this.serving.hidden = route.serving === "primary";
    setText(this.open.text, String(route.connections));
    if (before && seconds > 0) {
      const rate = (key) => Math.max(0, (route[key] - before[key]) / seconds);
      const fresh = rate("accepted");
      const bytes = rate("bytes_received") + rate("bytes_sent");
      setText(this.fresh.text, fresh.toFixed(1));
      setText(this.bytes.text, size(bytes));
      const answers = route.answers - before.answers;
      if (answers > 0) setText(this.answer.text, milliseconds((route.answer_micros - before.answer_micros) / answers / 1e3));
    }
  }

  remember(steps, isAll) {
    this.fresh.sparkline.add(steps.new_per_second, isAll);
    this.bytes.sparkline.add(steps.bytes_per_second, isAll);
    this.answer.sparkline.add(steps.answer_milliseconds, isAll);
    if (isAll) {
      setText(this.fresh.text, (steps.new_per_second.at(-1) ?? 0).toFixed(1));
      setText(this.bytes.text, size(steps.bytes_per_second.at(-1) ?? 0));
    }
    const answer = steps.answer_milliseconds.findLast((one) => one !== null);
    if (answer !== undefined) setText(this.answer.text, milliseconds(answer));
  }
}

function verdict(status) {
  // Of all routes, including those that are not listed.
  const { ready, unready, dead, failing_open: failing, without_address: nowhere } = status.summary;
  const troubles = [];
  if (status.draining) troubles.push("draining: no new connections");
  if (failing > 0) troubles.push(`${plural(failing, "route has", "routes have")} no ready endpoint`);
  if (nowhere > 0) troubles.push(`${plural(nowhere, "route has", "routes have")} no address`);
  if (dead > 0) troubles.push(`${plural(dead, "endpoint is", "endpoints are")} dead`);
  if (unready > 0) troubles.push(`${plural(unready, "endpoint is", "endpoints are")} unready`);
  if (!status.config.last_reload_successful) troubles.push("the last reload failed");
  const error = byId("error");
  error.hidden = !status.config.last_error;
  setText(error, status.config.last_error || "");
  const left = status.predecessor_connections;
  const before = left > 0 ? `, ${plural(left, "connection", "connections")} still open in old processes` : "";
  const all = `${plural(status.routes_total, "route", "routes")}, ${plural(ready + unready + dead, "endpoint", "endpoints")}${before}`;
  const line = byId("verdict");
  setText(line, troubles.length === 0 ? `Healthy: ${all}.` : `${troubles.join("; ")}. (${all})`);
  line.className = troubles.length === 0 ? "well" : "unwell";
  const title = `snigate on ${status.host}`;
  document.title = troubles.length === 0 ? title : `(!) ${troubles[0]} – ${title}`;
}

function facts(status) {
  setText(byId("version"), `${status.version} on ${status.host}, process ${status.process}`);
  const taken = new Date(status.config.last_success_timestamp_seconds * 1000).toISOString().replace(".000", "");
  const listeners = status.listeners.map((listener) => listener.address).join(", ");
  setText(byId("facts"), `Up ${span(status.uptime_seconds)}, listening on ${listeners}; configuration applied ${taken}.`);
}

/** What is wrong with a route, from 0 (nothing) to 3 (nobody is served); what is worse comes first in the list. */
function trouble(route) {
  const states = route.upstream.flatMap((one) => (one.endpoints.length > 0 ? one.endpoints.map(({ state }) => state) : ["dead"]));
  if (route.failing_open || states.length === 0 || states.every((state) => state === "dead")) return 3;
  if (route.serving !== "primary") return 2;
  return states.every((state) => state === "ready") ? 0 : 1;
}

/** Hides the routes that do not have all words of the filter, so that the few in question are found among hundreds. */
function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows.values()) {
    const text = row.searched;
    row.element.hidden = !words.every((word) => text.includes(word));
    if (!row.element.hidden) shown += 1;
  }
  setText(byId("matches"), words.length === 0 ? "" : `${shown} of ${plural(rows.size, "route", "routes")}`);
}

byId("filter").addEventListener("input", filter);

/** With so many routes, the list can be filtered. */
const MANY = 10;

function routes(status, seconds) {
  const before = new Map(last ? last.routes.map((route) => [route.name, route]) : []);
  // The order of the configuration, but for what needs attention.
  const sorted = status.routes.toSorted((one, other) => trouble(other) - trouble(one));
  const body = byId("routes").tBodies[0];
  const names = new Set(status.routes.map((route) => route.name));
  for (const [name, row] of rows) {
    if (!names.has(name)) {
      row.element.remove();
      rows.delete(name);
    }
  }
  sorted.forEach((route, number) => {
    let row = rows.get(route.name);
    if (!row) {
      row = new Row();
      rows.set(route.name, row);
    }
    if (body.rows[number] !== row.element) body.insertBefore(row.element, body.rows[number] || null);
    row.show(route, before.get(route.name), seconds);
  });
  const search = byId("search");
  search.hidden = status.routes.length < MANY;
  if (search.hidden) byId("filter").value = "";
  filter();
  byId("no-routes").hidden = status.routes.length > 0;
  byId("routes").hidden = status.routes.length === 0;
  const note = byId("routes-note");
  note.hidden = status.routes_total <= status.routes.length;
  setText(note, `Showing ${status.routes.length} of ${status.routes_total} routes; api/status lists all.`);
}

function certificates(status, now) {
  const lines = [];
  for (const route of status.routes) {
    for (const endpoint of route.upstream.flatMap((one) => one.endpoints)) {
      const certificate = endpoint.certificate;
      if (!certificate) continue;
      const left = certificate.expires_timestamp_seconds - now;
      if (left <= 0) lines.push(`${route.name}, ${endpoint.address}: expired ${span(Math.floor(-left))} ago`);
      else if (left < SOON) lines.push(`${route.name}, ${endpoint.address}: expires in ${span(Math.floor(left))}`);
      if (certificate.not_covered.length > 0) {
        const names = certificate.not_covered.join(", ");
        lines.push(`${route.name}, ${endpoint.address}: does not cover ${names}; clients need tls-server-name`);
      }
    }
  }
  byId("certificates").replaceChildren(...lines.map((line) => make("li", line)));
  byId("no-certificates").hidden = lines.length > 0;
}

function refusals(list) {
  const row = (refusal) => {
    const element = make("tr");
    const time = refusal.time.replace("T", " ").replace(/\.\d+Z$/, " UTC");
    const whole = (text) => make("td", text, "whole");
    element.append(whole(time), whole(refusal.client), make("td", refusal.server_name || "no SNI"));
    element.append(whole(refusal.outcome), make("td", refusal.reason || ""));
    return element;
  };
  byId("refusals").tBodies[0].replaceChildren(...list.map(row));
  byId("refusals").hidden = list.length === 0;
  byId("no-refusals").hidden = list.length > 0;
}

const events = new EventSource("api/events");

events.onmessage = (event) => {
  const { time, status, refusals: list } = JSON.parse(event.data);
  const now = Date.parse(time) / 1000;
  const seconds = last ? now - last.now : 0;
  verdict(status);
  facts(status);
  routes(status, seconds);
  certificates(status, now);
  refusals(list);
  last = { now, routes: status.routes };
};

for (const name of ["history", "steps"]) {
  events.addEventListener(name, (event) => {
    for (const [route, steps] of Object.entries(JSON.parse(event.data).routes)) {
      const row = rows.get(route);
      if (row) row.remember(steps, name === "history");
    }
  });
}

events.onerror = () => {
  // The page reconnects once a minute; only report a lasting failure.
  setTimeout(() => {
    if (events.readyState !== EventSource.OPEN) {
      setText(byId("verdict"), "No connection to snigate.");
      byId("verdict").className = "unwell";
    }
  }, 5000);
};
