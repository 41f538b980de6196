// What the stream of events says, above and below the list of routes.

import { SOON, refresh, refusalRow } from "./drawer.js";
import { byId, duration, make, plural, rate, setHidden, setText, size, span } from "./parts.js";
import { rows, showRoutes } from "./routes.js";

let last = null;

function verdict(status) {
  // Of all routes, including those that are not listed.
  const { ready, unready, dead, drained, failing_open: failing, without_address: nowhere } = status.summary;
  const troubles = [];
  if (status.draining) troubles.push("draining: no new connections");
  if (failing > 0) troubles.push(`${plural(failing, "route has", "routes have")} no ready endpoint`);
  if (nowhere > 0) troubles.push(`${plural(nowhere, "route has", "routes have")} no address`);
  if (dead > 0) troubles.push(`${plural(dead, "endpoint is", "endpoints are")} dead`);
  if (unready > 0) troubles.push(`${plural(unready, "endpoint is", "endpoints are")} unready`);
  if (!status.config.last_reload_successful) troubles.push("the last reload failed");
  const endpoints = ready + unready + dead + drained;
  const all = `${plural(status.routes_total, "route", "routes")}, ${plural(endpoints, "endpoint", "endpoints")}`;
  const line = byId("verdict");
  setText(line, troubles.length === 0 ? `Healthy: ${all}.` : `${troubles.join("; ")}. (${all})`);
  const className = troubles.length === 0 ? "well" : "unwell";
  if (line.className !== className) line.className = className;
  const title = `snigate on ${status.host}`;
  document.title = troubles.length === 0 ? title : `(!) ${troubles[0]} – ${title}`;
}

function banner(id, text) {
  setHidden(byId(id), !text);
  setText(byId(id), text || "");
}

/** What the operator should know besides the verdict. Not announced: the verdict says what is wrong. */
function banners(status) {
  const { last_error: error, last_reload_successful: isCurrent } = status.config;
  banner("error", error && `The last reload failed; the configuration before it still runs. ${error}`);
  banner("reload", !error && !isCurrent && "The last reload failed; the configuration before it still runs.");
  banner("draining", status.draining && `This process drains: ${plural(status.connections.open, "connection is", "connections are")} still open.`);
  const old = status.predecessor_connections;
  banner("upgrade", old > 0 && `Upgraded: ${plural(old, "connection", "connections")} still open in old processes.`);
  const { drained } = status.summary;
  banner("drained", drained > 0 && `${plural(drained, "endpoint is", "endpoints are")} drained by an operator: no new connections.`);
}

function facts(status) {
  setText(byId("version"), `${status.version} on ${status.host}, process ${status.process}`);
  const taken = new Date(status.config.last_success_timestamp_seconds * 1000).toISOString().replace(".000", "");
  const listeners = status.listeners.map((listener) => listener.address).join(", ");
  setText(byId("facts"), `Up ${span(status.uptime_seconds)}, listening on ${listeners}; configuration applied ${taken}.`);
}

/** Sums over the listed routes and the clients without one. */
function totals(status) {
  const sum = (key) => status.routes.reduce((sum, route) => sum + route[key], status.unrouted[key] ?? 0);
  return { accepted: sum("accepted"), rejected: sum("rejected"), bytes: sum("bytes_received") + sum("bytes_sent") };
}

function showTotals(status, now, seconds, before) {
  const { open, parked, limit } = status.connections;
  setText(byId("open"), String(open));
  setText(byId("limit"), `of ${limit}`);
  setText(byId("parked"), String(parked));
  const all = totals(status);
  if (seconds > 0) {
    const per = (key) => Math.max(0, (all[key] - before[key]) / seconds);
    setText(byId("new"), rate(per("accepted")));
    setText(byId("rejected"), rate(per("rejected")));
    setText(byId("bytes"), size(per("bytes")));
  }
  return all;
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
  replace("certificates", lines, (line) => make("li", line));
  setHidden(byId("no-certificates"), lines.length > 0);
}

const shown = new Map();

/** Replaces the children of an element, if they are others than before. */
function replace(id, list, make) {
  const text = JSON.stringify(list);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  byId(id).replaceChildren(...list.map(make));
}

function refusals(list) {
  replace("refusals-body", list, refusalRow);
  setHidden(byId("refusals"), list.length === 0);
  setHidden(byId("no-refusals"), list.length > 0);
}

const events = new EventSource("api/events");

events.onmessage = (event) => {
  const { time, status, refusals: list } = JSON.parse(event.data);
  const now = Date.parse(time) / 1000;
  // The counters of another process are others.
  const seconds = last?.process === status.process ? now - last.now : 0;
  verdict(status);
  banners(status);
  facts(status);
  const all = showTotals(status, now, seconds, last?.totals);
  showRoutes(status, seconds, now);
  certificates(status, now);
  refusals(list);
  last = { now, process: status.process, totals: all };
  refresh(rows, list, now);
};

for (const name of ["history", "steps"]) {
  events.addEventListener(name, (event) => {
    for (const [route, steps] of Object.entries(JSON.parse(event.data).routes)) {
      rows.get(route)?.remember(steps, name === "history", last.now);
    }
    const steps = Math.max(0, ...Array.from(rows.values(), (row) => row.charts.new_per_second.samples.length));
    setText(byId("window"), steps > 0 ? `Charts are of the last ${duration(steps)}, first answers of the last minute.` : "");
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
