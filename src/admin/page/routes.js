// The list of routes: each row is made once and then only changed.

import { Chip, byId, charts, endpointsOf, inWords, make, milliseconds, plural, rate, serving, setHidden, setText, size, trouble } from "./parts.js";
import { open } from "./drawer.js";

export const rows = new Map();
const body = byId("routes").tBodies[0];

/** How long the percentiles look back, in seconds. */
const WINDOW = 60;

/** How long answers took in the last minute, from the differences of the histogram's counters. */
class Latency {
  constructor() {
    this.seen = [];
  }

  add(now, counts) {
    const newest = this.seen.at(-1);
    // Of another process.
    if (newest && newest.counts.some((count, bucket) => count > counts[bucket])) this.seen = [];
    this.seen.push({ now, counts });
    while (this.seen.length > 2 && now - this.seen[1].now >= WINDOW) this.seen.shift();
  }

  /** The bound of the bucket with this quantile, in seconds; `undefined` without answers. */
  quantile(quantile, bounds) {
    if (this.seen.length < 2) return undefined;
    const [{ counts: before }, { counts }] = [this.seen[0], this.seen.at(-1)];
    const fresh = counts.map((count, bucket) => count - before[bucket]);
    const all = fresh.reduce((sum, count) => sum + count, 0);
    if (all === 0) return undefined;
    let sum = 0;
    const bucket = fresh.findIndex((count) => (sum += count) >= quantile * all);
    return bounds[bucket] ?? Infinity;
  }
}

/** Buckets are coarse: their bound is all that is known. */
function atMost(seconds, bounds) {
  const short = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds} s`);
  return seconds === Infinity ? `> ${short(bounds.at(-1))}` : `≤ ${short(seconds)}`;
}

/** More endpoints than these are in the drawer only. */
const MAX_CHIPS = 8;

/** Rows that are out of sight draw no charts. */
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    for (const chart of Object.values(target.row.charts)) chart.hide(!isIntersecting);
  }
}, { rootMargin: "200px" });

class Row {
  constructor(name) {
    this.element = make("tr");
    this.element.row = this;
    this.head = make("th");
    this.head.scope = "row";
    this.name = make("button", name, "name");
    this.name.type = "button";
    this.name.addEventListener("click", () => open(this));
    this.sni = make("small");
    this.head.append(this.name, this.sni);
    this.chips = [];
    this.list = make("ul", undefined, "endpoints");
    this.more = make("button", "", "more");
    this.more.type = "button";
    this.more.addEventListener("click", () => open(this));
    this.serving = make("span", "", "serving");
    const endpoints = make("td");
    endpoints.append(this.list, this.more, this.serving);
    this.charts = charts(false);
    this.open = this.number("Open");
    this.fresh = this.number("New per second", this.charts.new_per_second);
    this.bytes = this.number("Bytes per second", this.charts.bytes_per_second);
    this.answer = this.number("First answer", this.charts.answer_milliseconds);
    this.element.append(this.head, endpoints, this.open.cell, this.fresh.cell, this.bytes.cell, this.answer.cell);
    this.latency = new Latency();
    this.values = { route: name, endpoints: 0, open: 0, fresh: 0, bytes: 0, answer: -1 };
    this.mean = null;
    this.searched = "";
    for (const chart of Object.values(this.charts)) chart.isHidden = true;
    sight.observe(this.element);
  }

  number(label, chart) {
    const cell = make("td", undefined, "number");
    cell.dataset.label = label;
    const text = make("span", "–");
    cell.append(text);
    if (chart) cell.append(chart.element);
    return { cell, text };
  }

  show(route, seconds, now, bounds) {
    const before = this.route;
    this.route = route;
    this.sniText = route.sni.length === 0 ? "any other name, or no SNI" : route.sni.join(", ");
    setText(this.sni, this.sniText === route.name ? "" : this.sniText);
    this.showEndpoints(route);
    setText(this.open.text, String(route.connections));
    this.values.open = route.connections;
    if (before && seconds > 0) {
      const per = (key) => Math.max(0, (route[key] - before[key]) / seconds);
      this.showRates(per("accepted"), per("bytes_received") + per("bytes_sent"));
      const answers = route.answers - before.answers;
      if (answers > 0) this.mean = (route.answer_micros - before.answer_micros) / answers / 1e3;
    }
    // Without a connection there are none yet.
    this.latency.add(now, route.answer_counts ?? [...bounds, Infinity].map(() => 0));
    this.bounds = bounds;
    this.showAnswer();
  }

  showEndpoints(route) {
    const endpoints = endpointsOf(route);
    this.endpoints = endpoints;
    this.values.endpoints = trouble(route, endpoints);
    const rank = String(this.values.endpoints);
    if (this.element.dataset.trouble !== rank) this.element.dataset.trouble = rank;
    const shown = endpoints.slice(0, MAX_CHIPS);
    while (this.chips.length > shown.length) this.chips.pop().element.remove();
    shown.forEach((endpoint, number) => {
      if (!this.chips[number]) {
        this.chips[number] = new Chip("li");
        this.list.append(this.chips[number].element);
      }
      this.chips[number].show(endpoint, endpoints.length === 1);
    });
    setHidden(this.more, shown.length === endpoints.length);
    const wrong = endpoints.slice(MAX_CHIPS).filter(({ state }) => state === "dead" || state === "unready").length;
    setText(this.more, `and ${endpoints.length - shown.length} more${wrong > 0 ? `, ${wrong} of them not ready` : ""}`);
    this.served = serving(route, endpoints);
    setText(this.serving, this.served);
    setHidden(this.serving, this.served === "");
    const states = endpoints.map((endpoint) => `${endpoint.address} ${endpoint.state} ${inWords(endpoint)}`);
    this.searched = [route.name, this.sniText, ...states, this.served].join(" ").toLowerCase();
  }

  showRates(fresh, bytes) {
    Object.assign(this.values, { fresh, bytes });
    setText(this.fresh.text, rate(fresh));
    setText(this.bytes.text, size(bytes));
  }

  showAnswer() {
    const { bounds } = this;
    const [half, most] = [0.5, 0.99].map((quantile) => this.latency.quantile(quantile, bounds));
    this.values.answer = most ?? -1;
    this.quantiles = most === undefined ? "" : `p50 ${atMost(half, bounds)}, p99 ${atMost(most, bounds)}`;
    // Before the first difference, the mean of the last answers is known.
    const mean = this.mean === null ? "–" : `mean ${milliseconds(this.mean)}`;
    setText(this.answer.text, this.quantiles.replace(", ", "\n") || mean);
  }

  remember(steps, isAll, now) {
    for (const [name, chart] of Object.entries(this.charts)) chart.add(steps[name], isAll, now);
    if (isAll) this.showRates(steps.new_per_second.at(-1) ?? 0, steps.bytes_per_second.at(-1) ?? 0);
    this.mean = steps.answer_milliseconds.findLast((one) => one !== null) ?? this.mean;
    this.showAnswer();
  }

  remove() {
    sight.unobserve(this.element);
    this.element.remove();
  }
}

/** What is sorted by; as long as it is `null`, what is wrong comes first, in the order of the configuration. */
let sorted = null;

const natural = new Intl.Collator("en", { numeric: true });

function compare(one, other) {
  if (!sorted) return other.values.endpoints - one.values.endpoints;
  const [left, right] = [one.values[sorted.by], other.values[sorted.by]];
  const order = sorted.by === "route" ? natural.compare(left, right) : left - right;
  return sorted.direction === "ascending" ? order : -order;
}

/** A row does not move away from under a mouse, and one that moves would lose the focus. */
function isInUse() {
  const isPointedAt = matchMedia("(hover: hover)").matches && body.matches(":hover");
  return isPointedAt || body.contains(document.activeElement);
}

function arrange() {
  // `rows` has the order of the configuration.
  const order = [...rows.values()].sort(compare);
  order.forEach((row, number) => {
    if (body.rows[number] !== row.element) body.insertBefore(row.element, body.rows[number] ?? null);
  });
}

for (const button of document.querySelectorAll("#routes thead button")) {
  button.addEventListener("click", () => {
    const { by, first } = button.dataset;
    const second = first === "ascending" ? "descending" : "ascending";
    if (sorted?.by !== by) sorted = { by, direction: first };
    else sorted = sorted.direction === first ? { by, direction: second } : null;
    for (const head of document.querySelectorAll("#routes thead th")) {
      head.setAttribute("aria-sort", sorted && head.contains(button) ? sorted.direction : "none");
    }
    arrange();
  });
}

/** Hides the routes that do not have all words of the filter, so that the few in question are found among hundreds. */
function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const onlyWrong = byId("wrong").checked;
  let shown = 0;
  for (const { element, searched, values } of rows.values()) {
    const isHidden = !words.every((word) => searched.includes(word)) || (onlyWrong && values.endpoints === 0);
    setHidden(element, isHidden);
    if (!isHidden) shown += 1;
  }
  const isAll = words.length === 0 && !onlyWrong;
  setText(byId("matches"), isAll ? "" : `${shown} of ${plural(rows.size, "route", "routes")}`);
}

byId("filter").addEventListener("input", filter);
byId("wrong").addEventListener("change", filter);

/** With so many routes, the list can be filtered. */
const MANY = 10;

/** Shows the routes of this status, which is this many seconds newer than the last one of the same process. */
export function showRoutes(status, seconds, now) {
  const before = new Map(rows);
  let isNew = false;
  rows.clear();
  for (const route of status.routes) {
    let row = before.get(route.name);
    before.delete(route.name);
    if (!row) {
      row = new Row(route.name);
      body.append(row.element);
      isNew = true;
    }
    rows.set(route.name, row);
    row.show(route, seconds, now, status.answer_bounds_seconds);
  }
  for (const row of before.values()) row.remove();
  if (isNew || !isInUse()) arrange();
  const search = byId("search");
  setHidden(search, status.routes.length < MANY);
  if (search.hidden) {
    byId("filter").value = "";
    byId("wrong").checked = false;
  }
  filter();
  setHidden(byId("no-routes"), status.routes.length > 0);
  setHidden(byId("routes"), status.routes.length === 0);
  const note = byId("routes-note");
  setHidden(note, status.routes_total <= status.routes.length);
  setText(note, `Showing ${status.routes.length} of ${status.routes_total} routes; api/status lists all.`);
}
