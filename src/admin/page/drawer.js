// What there is to know of one route, beside the list.

import { Chip, byId, charts, make, setHidden, setText, span } from "./parts.js";

/** A certificate that expires within these seconds is shown as a fault. */
export const SOON = 14 * 24 * 3600;

const drawer = byId("drawer");
const large = charts(true);
let row = null;
let cards = [];
/** The newest refusal when the refusals were asked for. */
let seen = null;
let time = 0;

for (const chart of Object.values(large)) {
  const figure = make("figure");
  const value = make("b", "");
  const caption = make("figcaption", `${chart.label} `);
  caption.append(value);
  figure.append(caption, chart.element);
  byId("drawer-charts").append(figure);
}

/** An endpoint with all that is known of it. */
class Card {
  constructor() {
    this.element = make("li");
    this.chip = new Chip("p");
    this.facts = make("dl");
    this.values = new Map();
    this.element.append(this.chip.element, this.facts);
  }

  fact(name, text, className = "") {
    let value = this.values.get(name);
    if (!value) {
      value = { name: make("dt", name), text: make("dd") };
      this.values.set(name, value);
      this.facts.append(value.name, value.text);
    }
    for (const part of [value.name, value.text]) setHidden(part, text === "");
    if (value.text.className !== className) value.text.className = className;
    setText(value.text, text);
  }

  show(endpoint, now) {
    const { address, destination, connections, share, last_check: check, certificate } = endpoint;
    this.chip.show(endpoint, true);
    this.fact("Configured as", destination === address ? "" : destination);
    this.fact("Open connections", `${connections}${share === null ? "" : ` (${share} %)`}`);
    const ago = (check) => span(Math.max(0, now - Date.parse(check.time) / 1000));
    this.fact("Last check", check ? `${ago(check)} ago, took ${(check.seconds * 1000).toFixed(1)} ms` : "not checked");
    const left = certificate ? certificate.expires_timestamp_seconds - now : 0;
    const date = certificate ? new Date(certificate.expires_timestamp_seconds * 1000).toISOString().slice(0, 10) : "";
    const expiry = left > 0 ? `expires ${date}, in ${span(left)}` : `expired ${date}, ${span(-left)} ago`;
    this.fact("Certificate", certificate ? expiry : "", left < SOON ? "fault" : "");
    this.fact("Issuer", certificate?.issuer ?? "");
    const more = certificate ? certificate.names_total - certificate.names.length : 0;
    this.fact("Names", certificate ? certificate.names.join(", ") + (more > 0 ? ` and ${more} more` : "") : "");
    this.fact("Not covered", certificate?.not_covered.join(", ") ?? "", "fault");
  }
}

/** A row of a table of refusals. */
export function refusalRow(refusal) {
  const element = make("tr");
  const time = refusal.time.replace("T", " ").replace(/\.\d+Z$/, " UTC");
  const whole = (text) => make("td", text, "whole");
  element.append(whole(time), whole(refusal.client), make("td", refusal.server_name || "no SNI"));
  element.append(whole(refusal.outcome), make("td", refusal.reason || ""));
  return element;
}

async function showRefusals() {
  const { name } = row.route;
  const response = await fetch("api/refusals").catch(() => null);
  if (!response?.ok || row?.route.name !== name) return;
  const own = (await response.json()).filter(({ route }) => route === name).slice(0, 20);
  byId("drawer-refusals").tBodies[0].replaceChildren(...own.map(refusalRow));
  setHidden(byId("drawer-refusals"), own.length === 0);
  setHidden(byId("drawer-no-refusals"), own.length > 0);
}

function showRow() {
  const { route, endpoints, served, sniText } = row;
  setText(byId("drawer-title"), route.name);
  setText(byId("drawer-sni"), sniText === route.name ? "" : sniText);
  setText(byId("drawer-serving"), served);
  drawer.dataset.trouble = row.values.endpoints;
  const answers = row.quantiles ? ` First answers of the last minute: ${row.quantiles}.` : "";
  setText(byId("drawer-facts"), `${route.connections} open, ${route.rejected} rejected since the start.${answers}`);
  while (cards.length > endpoints.length) cards.pop().element.remove();
  endpoints.forEach((endpoint, number) => {
    if (!cards[number]) {
      cards[number] = new Card();
      byId("drawer-endpoints").append(cards[number].element);
    }
    cards[number].show(endpoint, time);
  });
  for (const [name, chart] of Object.entries(large)) {
    const { samples, end } = row.charts[name];
    if (chart.samples !== samples) chart.show(samples, end);
    const last = samples.at(-1);
    setText(chart.element.previousSibling.lastChild, last === null || last === undefined ? "" : chart.write(last));
  }
}

/** Opens it for the route of this row. */
export function open(of) {
  row = of;
  seen = null;
  byId("explain-name").value = row.route.sni.find((name) => !name.startsWith("*")) ?? "";
  setText(byId("explanation"), "");
  for (const id of ["drawer-refusals", "drawer-no-refusals"]) setHidden(byId(id), true);
  showRow();
  showRefusals();
  drawer.showModal();
  drawer.scrollTop = 0;
}

/** Shows what is new, if it is open; `rows` has the routes that there are. */
export function refresh(rows, refusals, now) {
  time = now;
  if (!row) return;
  const current = rows.get(row.route.name);
  setHidden(byId("drawer-gone"), current !== undefined);
  if (current) {
    row = current;
    showRow();
  }
  const newest = refusals[0]?.time ?? null;
  if (newest !== seen) showRefusals();
  seen = newest;
}

drawer.addEventListener("close", () => {
  row = null;
});
byId("drawer-close").addEventListener("click", () => drawer.close());
drawer.addEventListener("click", (event) => {
  // Beside it.
  if (event.target === drawer) drawer.close();
});

function inWords({ route, matched, outcome, reason }) {
  if (route === null) return `Refused with ${outcome}: ${reason}.`;
  const by = matched === null ? "as no other route matches (catch-all)" : `by ${matched}`;
  return `Route ${route}, ${by}${route === row?.route.name ? "" : " – not this one"}.`;
}

byId("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [name, alpn] = ["explain-name", "explain-alpn"].map((id) => byId(id).value.trim());
  const query = new URLSearchParams();
  if (name) query.set("name", name);
  if (alpn) query.set("alpn", alpn.replace(/[\s,]+/g, ","));
  const response = await fetch(`api/explain?${query}`).catch(() => null);
  const text = !response ? "No connection to snigate." : response.ok ? inWords(await response.json()) : await response.text();
  setText(byId("explanation"), text);
});
