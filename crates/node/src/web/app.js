"use strict";
// What the agent says is text: it is never put into the page as markup.
const $ = (id) => document.getElementById(id);
const EVERY_MS = 2000;
let before = null;
let order = { peers: ["state", 1], pods: ["name", 1], devices: ["", 1] };
let shown = null;

function make(tag, attributes, ...children) {
  const svg = ["circle", "line", "text", "title", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const natural = new Intl.Collator("en", { numeric: true }).compare;

function time(us) {
  if (us === null || us === undefined) return "";
  if (us < 1000) return `${us} µs`;
  return us < 100000 ? `${(us / 1000).toFixed(1)} ms` : `${Math.round(us / 1000)} ms`;
}

function ago(ms) {
  const s = Math.floor(ms / 1000);
  return s < 100 ? `${s} s` : s < 6000 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
}

function short(number) {
  if (number === null || number === undefined) return "–";
  for (const unit of ["", "k", "M", "G", "T"]) {
    if (number < 999.5 || unit === "T") return number.toFixed(unit === "" || number >= 99.95 ? 0 : 1) + unit;
    number /= 1000;
  }
}

const worst = (peer, of, than) => peer.paths.map(of).filter((v) => v !== null).reduce(than, null);
const rtt = (peer) => worst(peer, (p) => p.rtt_us, (a, b) => (a === null || b > a ? b : a));
const mtu = (peer) => worst(peer, (p) => p.mtu, (a, b) => (a === null || b < a ? b : a));
const seen = (peer) => worst(peer, (p) => p.ago_ms, (a, b) => (a === null || b > a ? b : a));
const loss = (peer) =>
  peer.paths.filter((p) => p.echoes > 0).reduce((a, p) => (!a || p.lost / p.echoes > a.lost / a.echoes ? p : a), null);
const lossText = (peer) => (loss(peer) ? `${loss(peer).lost}/${loss(peer).echoes}` : "");
const name = (peer) => peer.node || peer.subnets.join(" ");
const STATES = ["bad", "unknown", "stale", "good"];
const MARKS = { good: "✓", bad: "✗", stale: "·", unknown: "?" };

function says(peer) {
  if (peer.left_out) return `left out: ${peer.left_out}`;
  const bad = peer.paths.find((path) => path.bad) || peer.paths[0];
  return bad ? bad.text : "not probed yet";
}

// Counters become rates with the look before.
function rates(look) {
  const ms = before ? look.at_ms - before.at_ms : 0;
  for (const [kind, key] of [["pods", "device"], ["devices", "name"]]) {
    const old = new Map((before ? before[kind] : []).map((row) => [row[key], row.traffic.counters]));
    for (const row of look[kind]) {
      const was = old.get(row[key]);
      row.rates = {};
      for (const [counter, now] of Object.entries(row.traffic.counters))
        row.rates[counter] = was && ms > 0 && now >= was[counter] ? ((now - was[counter]) * 1000) / ms : null;
    }
  }
}

function table(id, columns, rows) {
  const [by, way] = order[id];
  const column = columns.find((c) => c.id === by);
  if (column) {
    const value = (row) => (column.sort || column.text)(row);
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return 0;
      if (x === null || x === undefined || x === "") return 1;
      if (y === null || y === undefined || y === "") return -1;
      return (typeof x === "number" ? x - y : natural(x, y)) * way;
    };
    rows = [...rows].sort(compare);
  }
  const used = columns.filter((c) => rows.length === 0 || rows.some((row) => c.text(row) !== ""));
  const head = used.map((c) => {
    const arrow = c.id === by ? (way > 0 ? " ▴" : " ▾") : "";
    const button = make("button", { type: "button" }, c.head + arrow);
    button.addEventListener("click", () => {
      order[id] = [c.id, c.id === by ? -way : c.first || 1];
      draw();
    });
    return make("th", { class: c.number ? "number" : "" }, button);
  });
  const body = rows.map((row) =>
    make("tr", {}, ...used.map((c) => make("td", { class: (c.number ? "number " : "") + (c.style ? c.style(row) : "") }, String(c.text(row))))),
  );
  $(id).replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

const TRAFFIC = [
  ["in_packets", "in pkt/s"],
  ["in_bytes", "in B/s"],
  ["out_packets", "out pkt/s"],
  ["out_bytes", "out B/s"],
  ["dropped", "drop/s"],
].map(([id, head]) => ({ id, head, number: true, first: -1, text: (row) => short(row.rates[id]), sort: (row) => row.rates[id] }));

const PEERS = [
  { id: "state", head: "node", text: (p) => `${MARKS[p.state]} ${name(p)}`, sort: (p) => `${STATES.indexOf(p.state)} ${name(p)}`, style: (p) => p.state },
  { id: "subnets", head: "subnet", text: (p) => (p.node ? p.subnets.join(" ") : "") },
  { id: "public", head: "address", text: (p) => p.public.join(" ") },
  { id: "backend", head: "backend", text: (p) => p.backend },
  { id: "rtt", head: "round trip", number: true, first: -1, text: (p) => time(rtt(p)), sort: rtt },
  { id: "loss", head: "loss", number: true, first: -1, text: lossText, sort: (p) => loss(p) && loss(p).lost / loss(p).echoes, style: (p) => (loss(p) && loss(p).lost ? "bad" : "") },
  { id: "mtu", head: "MTU", number: true, text: (p) => mtu(p) || "", sort: mtu },
  { id: "seen", head: "probed", number: true, text: (p) => (seen(p) === null ? "" : `${ago(seen(p))} ago`), sort: seen },
  { id: "says", head: "", text: says, style: (p) => `text ${p.state === "bad" ? "bad" : "dim"}` },
];
const PODS = [
  { id: "pod", head: "pod", text: (p) => p.pod || "" },
  { id: "name", head: "address", text: (p) => p.addresses.join(" ") || "not heard lately" },
  { id: "device", head: "device", text: (p) => p.device },
  ...TRAFFIC,
];
const DEVICES = [
  { id: "name", head: "device", text: (d) => d.name },
  { id: "kind", head: "kind", text: (d) => d.kind },
  { id: "role", head: "for", text: (d) => ({ hosts: "to hosts", tunnel: "tunnel", pods: "to pods" })[d.role] || "" },
  { id: "up", head: "state", text: (d) => (d.up ? "up" : "down"), style: (d) => (d.up ? "" : "bad") },
  { id: "mtu", head: "MTU", number: true, text: (d) => d.mtu, sort: (d) => d.mtu },
  ...TRAFFIC,
];

// Distance from the centre by the logarithm of the round trip, 50 µs to 200 ms.
const [NEAR, FAR, EDGE] = [110, 330, 352];
function radius(us) {
  const part = (Math.log(us) - Math.log(50)) / (Math.log(200000) - Math.log(50));
  return NEAR + (FAR - NEAR) * Math.min(1, Math.max(0, part));
}

function map(look) {
  const peers = [...look.peers].sort((a, b) => natural(name(a), name(b)));
  const few = peers.length <= 40;
  // A dozen have their labels beside them, more have theirs all round.
  const wide = peers.length <= 12;
  $("map").setAttribute("viewBox", wide ? "-640 -430 1280 860" : "-560 -560 1120 1120");
  $("map").classList.toggle("wide-map", wide);
  const back = [];
  const texts = [];
  const ways = [];
  const dots = [];
  for (const [us, text] of [[100, "100 µs"], [1000, "1 ms"], [10000, "10 ms"], [100000, "100 ms"]]) {
    back.push(make("circle", { class: "guide", r: radius(us) }));
    texts.push(make("text", { class: "guide-text", "text-anchor": "middle", y: -radius(us) + 7 }, text));
  }
  let labels = 0;
  // A little off the vertical, where the guides have their texts.
  const turn = 0.13;
  peers.forEach((peer, at) => {
    const angle = ((at + 0.5) / peers.length) * 2 * Math.PI - Math.PI / 2 + (few ? turn : 0);
    const us = rtt(peer);
    const r = us === null ? EDGE : radius(us);
    const [x, y] = [Math.cos(angle), Math.sin(angle)];
    const lost = loss(peer) && loss(peer).lost > 0;
    ways.push(make("line", { class: `way ${peer.state}${lost ? " lossy" : ""}${few || peer.state === "bad" ? "" : " faint"}`, x1: 30 * x, y1: 30 * y, x2: r * x, y2: r * y, "stroke-width": 2 }));
    const about = [name(peer), peer.public.join(" "), time(us), lossText(peer) && `lost ${lossText(peer)}`, says(peer)];
    const dot = make("circle", { class: `dot ${peer.state}`, cx: r * x, cy: r * y, r: peers.length > 120 ? 6 : few ? 12 : 8 });
    dot.append(make("title", {}, about.filter((part) => part).join("\n")));
    dot.addEventListener("click", () => {
      $("filter").value = name(peer);
      draw();
    });
    dots.push(dot);
    if (few || (peer.state === "bad" && labels < 12)) {
      labels += 1;
      const left = x < 0;
      const degrees = (angle * 180) / Math.PI + (left ? 180 : 0);
      const out = EDGE + 22;
      const many = !wide;
      const place = many
        ? { transform: `rotate(${degrees}) translate(${left ? -out : out} 6)`, "text-anchor": left ? "end" : "start" }
        : { x: out * x * 0.98, y: out * y + 7, "text-anchor": Math.abs(x) < 0.35 ? "middle" : left ? "end" : "start" };
      const parts = name(peer).replace(/\/\d+$/, "");
      // Beside the circle there is room for so many letters.
      const most = many ? 16 : 14;
      const text = parts.length > most ? `${parts.slice(0, most - 1)}…` : parts;
      const label = make("g", {}, make("text", { class: `label ${peer.state}${many ? " many" : ""}`, ...place }, text));
      if (!many && us !== null)
        label.append(make("text", { class: "guide-text", ...place, y: out * y + 38 }, `${time(us)}${lost ? `, lost ${lossText(peer)}` : ""}`));
      dots.push(label);
    }
  });
  const self = make("circle", { class: "self", r: 20 });
  self.append(make("title", {}, look.host));
  $("map").replaceChildren(...back, ...ways, self, ...dots, ...texts);
  const count = (state) => look.peers.filter((peer) => peer.state === state).length;
  const counts = STATES.map((state) => [state, count(state)]).filter(([, n]) => n > 0).map(([state, n]) => `${n} ${state}`);
  $("map-count").textContent = look.peers.length ? counts.join(", ") : "no other node";
}

function facts(look) {
  const status = look.status;
  const rows = [];
  const row = (head, text, style) => text && rows.push(make("dt", {}, head), make("dd", style ? { class: style } : {}, text));
  row("verdict", status.verdict, status.verdict);
  row("lease", status.lease ? status.lease.subnets.join(" ") : "none yet", status.lease ? "" : "bad");
  row("others send to", status.lease && status.lease.public.join(" "));
  row("backend", status.backend && `${status.backend.kind}${status.backend.carrier ? ` in ${status.backend.carrier}` : ""}, MTU ${status.backend.mtu} for pods`);
  row("store", status.store && `${status.store.name}${status.store.heard_ms === null ? ", not heard yet" : `, heard ${(status.store.heard_ms / 1000).toFixed(1)} s ago`}`);
  if (status.interface) {
    row("interface", status.interface.name ? `${status.interface.name}, MTU ${status.interface.mtu}, ${status.interface.addresses.join(" ")}` : "none fits", status.interface.name ? "" : "bad");
    row("", status.interface.trouble, "bad");
    row("because", status.interface.why.filter((step) => step.taken).map((step) => `${step.candidate}: ${step.because}`).join("; "), "dim");
  }
  if (status.fast_path) row("fast path", status.fast_path.why || (status.fast_path.on ? `on ${status.fast_path.devices.join(", ")}, ${short(status.fast_path.fast_packets)} packets` : "not yet"));
  if (status.peers) row("peers", `${status.peers.programmed} in the kernel${status.peers.left_out.length ? `, ${status.peers.left_out.length} left out` : ""}`, status.peers.left_out.length ? "bad" : "");
  if (status.probes && status.probes.off) row("probes", status.probes.off, "bad");
  if (status.objects) row("objects", `${status.objects.wanted} wanted, ${status.objects.actual} there, ${status.objects.differences.length} different, compared ${ago(look.compared_ms)} ago`, status.objects.differences.length ? "bad" : "");
  row("repairs", look.repairs.map((repair) => `${repair.kind} ${repair.cause} ${repair.times}`).join(", ") || "none since the agent started");
  const strangers = status.dropped.reduce((sum, dropped) => sum + dropped.packets, 0);
  row("strangers", strangers > 0 && `${short(strangers)} packets dropped`);
  $("node").replaceChildren(...rows);
}

function troubles(look) {
  const now = look.status.troubles.filter((trouble) => !trouble.over);
  const over = look.status.troubles.filter((trouble) => trouble.over);
  $("troubles-section").hidden = now.length + over.length === 0;
  $("troubles").replaceChildren(
    ...now.map((t) => make("li", { class: "bad" }, t.text, make("span", { class: "dim" }, ` since ${t.first}`))),
    ...over.map((t) => make("li", { class: "dim" }, `over: ${t.text} (${t.first} to ${t.last})`)),
  );
}

function draw() {
  const look = shown;
  if (!look) return;
  const status = look.status;
  document.title = `${look.host} · Loden`;
  $("host").textContent = look.host;
  const reasons = [
    status.troubles.filter((trouble) => !trouble.over).map((trouble) => trouble.text)[0],
    look.peers.filter((peer) => peer.state === "bad").map((peer) => `${name(peer)}: ${says(peer)}`)[0],
  ].filter((reason) => reason);
  const unknown = "whether packets arrive is not known yet";
  $("verdict").textContent = status.verdict === "healthy" ? "✓ healthy" : status.verdict === "unknown" ? `? ${unknown}` : `✗ ${reasons[0] || "not ready"}`;
  $("verdict").className = `badge ${status.verdict}`;
  $("agent").textContent = status.agent ? `loden ${status.agent.version}, process ${status.agent.pid}, up ${ago(status.agent.uptime_s * 1000)}` : "";
  troubles(look);
  map(look);
  facts(look);
  const wanted = $("filter").value.toLowerCase();
  const texts = (peer) => [name(peer), ...peer.subnets, ...peer.public, peer.backend, peer.state, says(peer)].join("\n").toLowerCase();
  const peers = look.peers.filter((peer) => texts(peer).includes(wanted));
  $("peers-count").textContent = peers.length === look.peers.length ? `${peers.length}` : `${peers.length} of ${look.peers.length}`;
  table("peers", PEERS, peers);
  $("pods-count").textContent = look.pods.length;
  table("pods", PODS, look.pods);
  table("devices", DEVICES, look.devices);
  const sources = [{ value: "host" }, ...look.pods.flatMap((pod) => pod.addresses.map((value) => (pod.pod ? { value, label: pod.pod } : { value })))];
  $("sources").replaceChildren(...sources.map((source) => make("option", source)));
  document.body.dataset.ready = "yes";
}

async function get(address) {
  const answer = await fetch(address, { cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

let asking = false;
async function look() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const now = await get("/api/v1/look");
    rates(now);
    // A look that came from the agent's memory is the one before.
    if (!before || now.at_ms > before.at_ms) before = shown = now;
    $("notice").hidden = true;
    draw();
  } catch (error) {
    $("notice").textContent = `The agent does not answer (${error.message}); what is shown may be old. Tried again every two seconds.`;
    $("notice").hidden = false;
  }
  asking = false;
}

async function trace(event) {
  event.preventDefault();
  const query = new URLSearchParams({ from: $("from").value.trim(), to: $("to").value.trim() });
  $("trace-says").textContent = "…";
  $("trace-says").className = "dim";
  $("trace-picture").hidden = true;
  try {
    const found = await get(`/api/v1/trace?${query}`);
    $("trace-says").textContent = found.verdict;
    $("trace-says").className = found.fine ? "" : "bad";
    $("trace-picture").src = `data:image/svg+xml,${encodeURIComponent(found.svg)}`;
    $("trace-picture").alt = `${found.verdict}: ${found.model.map((step) => `${step.device} (${step.by})`).join(", then ")}`;
    $("trace-picture").hidden = false;
  } catch (error) {
    $("trace-says").textContent = error.message;
    $("trace-says").className = "bad";
  }
}

$("filter").addEventListener("input", draw);
$("trace").addEventListener("submit", trace);
document.addEventListener("visibilitychange", look);
// A link can hold a question: ?from=host&to=10.244.2.1
const asked = new URLSearchParams(location.search);
if (asked.has("to")) {
  $("from").value = asked.get("from") || "host";
  $("to").value = asked.get("to");
  $("trace").requestSubmit();
}
look();
// Rates take two looks.
setTimeout(look, EVERY_MS / 2);
setInterval(look, EVERY_MS);
