// What the page is made of: texts, charts and the chips of endpoints.

export const byId = (id) => document.getElementById(id);

export function make(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** Screen readers and selections are disturbed by text that is only written again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setHidden(element, isHidden) {
  if (element.hidden !== isHidden) element.hidden = isHidden;
}

export function plural(count, one, many) {
  return `${count} ${count === 1 ? one : many}`;
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

export function rate(value) {
  return value < 100 ? value.toFixed(1) : String(Math.round(value));
}

export function milliseconds(value) {
  if (value < 10) return `${value.toFixed(1)} ms`;
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

export function span(seconds) {
  const days = Math.floor(seconds / 86400);
  const hours = Math.floor((seconds % 86400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

/** How many steps of five seconds a chart has: at least two minutes, at most a quarter of an hour. */
const STEP = 5;
const MIN_STEPS = 24;
const MAX_STEPS = 180;

const svg = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);

/** How long this many steps of a chart are. */
export const duration = (steps) => span(steps * STEP);

/** What the chart that is pointed at has there. */
const tip = make("span", "", "tip");
tip.setAttribute("aria-hidden", "true");

/**
 * A line over the last minutes, with its maximum as the scale. The value at a moment is shown where a mouse points at, and
 * for a large one also where the arrow keys lead to: hundreds of small ones would be as many stops for the Tab key.
 */
export class Chart {
  constructor(label, write, isLarge) {
    this.label = label;
    this.write = write;
    this.samples = [];
    this.end = 0;
    this.line = svg("polyline");
    this.mark = svg("line");
    this.mark.setAttribute("y2", "20");
    this.plot = svg("svg");
    this.plot.setAttribute("preserveAspectRatio", "none");
    this.plot.setAttribute("aria-hidden", "true");
    this.plot.append(this.line);
    this.scale = make("small", "", "scale");
    this.element = make("div", undefined, isLarge ? "chart large" : "chart");
    this.element.append(this.plot, this.scale);
    this.plot.addEventListener("pointermove", (event) => {
      const { left, width } = this.plot.getBoundingClientRect();
      this.point(Math.round(((event.clientX - left) / width) * this.width) - this.from);
    });
    this.plot.addEventListener("pointerleave", () => this.leave());
    if (isLarge) this.listen();
  }

  listen() {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -12, PageUp: 12, Home: -Infinity, End: Infinity };
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "slider");
    this.element.setAttribute("aria-label", this.label);
    this.element.setAttribute("aria-valuemin", "0");
    this.element.addEventListener("focus", () => this.say(this.samples.length - 1));
    this.element.addEventListener("blur", () => this.leave());
    this.element.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      this.say(this.index + steps[event.key]);
    });
  }

  add(samples, isAll, end) {
    this.show((isAll ? samples : this.samples.concat(samples)).slice(-MAX_STEPS), end);
  }

  /** Draws these samples, of which the last one is of this time. A missing one repeats the one before it. */
  show(samples, end) {
    this.samples = samples;
    this.end = end;
    if (this.isHidden) return;
    const most = samples.reduce((most, sample) => Math.max(most, sample ?? 0), 0);
    this.width = Math.max(samples.length, MIN_STEPS) - 1;
    this.from = this.width + 1 - samples.length;
    this.plot.setAttribute("viewBox", `0 0 ${this.width} 20`);
    let last = null;
    const points = samples.map((sample, number) => {
      last = sample ?? last;
      return last === null ? "" : `${this.from + number},${(19 - (18 * last) / Math.max(most, 1e-9)).toFixed(1)}`;
    });
    this.line.setAttribute("points", points.filter(Boolean).join(" "));
    setText(this.scale, most > 0 ? `max ${this.write(most)}` : "");
  }

  /** One that is out of sight is drawn when it comes into sight. */
  hide(isHidden) {
    this.isHidden = isHidden;
    if (!isHidden) this.show(this.samples, this.end);
  }

  /** What there was at this step. */
  point(index) {
    if (this.samples.length === 0) return "";
    this.index = Math.max(0, Math.min(index, this.samples.length - 1));
    const at = new Date((this.end - (this.samples.length - 1 - this.index) * STEP) * 1000);
    const value = this.samples[this.index];
    const text = `${at.toISOString().slice(11, 19)} UTC: ${value === null ? "none" : this.write(value)}`;
    const place = (this.from + this.index) / this.width;
    for (const end of ["x1", "x2"]) this.mark.setAttribute(end, String(this.from + this.index));
    setText(tip, text);
    tip.style.left = place < 0.5 ? `${100 * place}%` : "";
    tip.style.right = place < 0.5 ? "" : `${100 * (1 - place)}%`;
    if (tip.parentNode !== this.element) this.element.append(tip);
    if (!this.mark.parentNode) this.plot.append(this.mark);
    return text;
  }

  say(index) {
    const text = this.point(index);
    this.element.setAttribute("aria-valuemax", String(Math.max(0, this.samples.length - 1)));
    this.element.setAttribute("aria-valuenow", String(this.index ?? 0));
    this.element.setAttribute("aria-valuetext", text || "no data yet");
  }

  leave() {
    this.mark.remove();
    if (tip.parentNode === this.element) tip.remove();
  }
}

/** The charts of a route, by the names that the history has for them. */
export function charts(isLarge) {
  return {
    new_per_second: new Chart("New connections per second", rate, isLarge),
    bytes_per_second: new Chart("Bytes per second", size, isLarge),
    answer_milliseconds: new Chart("Mean time to the first answer", milliseconds, isLarge),
  };
}

/** What is worse has a higher number; a drained endpoint is as its operator wants it. */
const SEVERITY = { dead: 3, unready: 2, unknown: 0, drained: 0, ready: 0 };

/** The endpoints of a route, what is wrong first; a destination without an address counts as a dead one. */
export function endpointsOf(route) {
  const all = route.upstream.flatMap(({ destination, weight, backup, endpoints }) => {
    const common = { destination, weight, backup };
    if (endpoints.length === 0) {
      return [{ ...common, address: destination, state: "dead", health: "dead", cause: "no address", connections: 0 }];
    }
    return endpoints.map((endpoint) => {
      const state = endpoint.known === false && endpoint.state !== "drained" ? "unknown" : endpoint.state;
      return { ...common, ...endpoint, state };
    });
  });
  const open = all.reduce((sum, one) => sum + one.connections, 0);
  for (const one of all) one.share = open > 0 ? Math.round((100 * one.connections) / open) : null;
  return all.sort((one, other) => SEVERITY[other.state] - SEVERITY[one.state]);
}

const isDrained = ({ state }) => state === "drained";

/** What is wrong with a route, from 0 (nothing) to 3 (nobody is served). */
export function trouble(route, endpoints) {
  const wanted = endpoints.filter((endpoint) => !isDrained(endpoint));
  const primary = wanted.filter(({ backup }) => !backup);
  if (route.failing_open || endpoints.length === 0) return 3;
  if (wanted.length > 0 && wanted.every(({ state }) => state === "dead")) return 3;
  if (route.serving === "backup" && primary.length > 0) return 2;
  return wanted.some(({ state }) => SEVERITY[state] > 0) ? 1 : 0;
}

/** Which endpoints of a route get connections, where these are not the usual ones. */
export function serving(route, endpoints) {
  if (endpoints.length > 0 && endpoints.every(isDrained)) return "all endpoints are drained: new connections are refused";
  if (route.serving === "all") return "no endpoint is ready: connections are sent to all";
  if (route.serving !== "backup") return "";
  const isWanted = endpoints.some((endpoint) => !endpoint.backup && !isDrained(endpoint));
  return isWanted ? "backups serve: no other endpoint is ready" : "backups serve: the other endpoints are drained";
}

/** What an endpoint is besides its address, in words. */
export function inWords({ state, health, cause, weight, backup }) {
  const part = [backup ? "backup" : "", weight === 1 ? "" : `weight ${weight}`].filter(Boolean).join(", ");
  const why = cause ? `: ${cause}` : "";
  const words = {
    ready: "",
    unknown: "not contacted yet",
    drained: `drained${health === "ready" ? "" : `, ${health}${why}`}`,
    unready: `unready${why}`,
    dead: `dead${why}`,
  };
  return [part && `(${part})`, words[state] ?? state].filter(Boolean).join(" ");
}

/** The chip of an endpoint: its state as a colour, a sign and a word, and its share of the route's open connections. */
export class Chip {
  constructor(name) {
    this.element = make(name);
    this.address = make("b");
    this.words = make("span");
    this.share = make("i");
    this.element.append(this.address, this.words, this.share);
  }

  show(endpoint, isOnly) {
    const words = inWords(endpoint);
    const className = `chip ${endpoint.state}`;
    if (this.element.className !== className) this.element.className = className;
    setText(this.address, endpoint.address);
    setText(this.words, words && ` ${words}`);
    if (this.element.title !== words) this.element.title = words;
    // Of what is out of service it goes without saying, unless there are some left.
    const isUsual = endpoint.share === 0 && (endpoint.state === "dead" || endpoint.state === "unready");
    const share = isOnly || isUsual ? null : endpoint.share;
    setText(this.share, share === null ? "" : ` ${share} %`);
    this.element.style.setProperty("--share", `${share ?? 0}%`);
  }
}
