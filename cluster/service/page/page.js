// The page of the service: asks for answers as the sliders move, draws them, builds checkpoints and follows them.

const $ = (id) => document.getElementById(id);
const WAYS = {
  kept: { name: "Share of the blocks that is kept", request: (v) => ({ kept: v }), shown: (v) => v.toFixed(2) },
  max_kl: { name: "Largest KL from the dense model, nats per token", request: (v) => ({ max_kl: v }), shown: (v) => v.toPrecision(2) },
  max_latency_ms: { name: "Longest time, milliseconds", request: (v) => ({ max_latency_ms: v }), shown: (v) => `${v.toPrecision(3)} ms` },
  preference: { name: "How much size counts against quality", request: (v) => ({ preference: [v, 1 - v] }), shown: (v) => v.toFixed(2) },
  latency: { name: "How much speed counts against quality", request: (v) => ({ preference: faster(v) }), shown: (v) => v.toFixed(2) },
};
let policies = [], front = null, answer = null, asked = 0;
const following = new Map();

function headers(more = {}) {
  const key = $("key").value.trim();
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function call(path, options = {}) {
  const reply = await fetch(path, { ...options, headers: headers(options.headers) });
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => ({ detail: `${reply.status} ${reply.statusText}` }));
  throw new Error(told.detail);
}

const post = (path, body, more = {}) =>
  call(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...more } }).then((r) => r.json());

function tell(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
}

const guarded = (work) => async (...given) => {
  try { await work(...given); } catch (error) { tell(error); }
};

// -- asking -----------------------------------------------------------------------------------------------------

const way = () => document.querySelector("input[name=way]:checked").value;

function amount() {
  const at = Number($("amount").value);
  return way() === "max_kl" ? Math.exp(at) : at; // quality spans decades
}

const described = () => policies.find((p) => p.name === $("policy").value);
const table = () => described().latency.find((t) => t.name === $("table").value);
const named = () => (table() ? { latency: table().name } : {});

// Latency by its weight, and every quality that the policy was trained on by an equal share of the rest.
function faster(weight) {
  const qualities = described().objectives.filter((name) => name !== "size" && name !== "latency");
  return { latency: weight, ...Object.fromEntries(qualities.map((name) => [name, (1 - weight) / qualities.length])) };
}

// What was measured of this policy: milliseconds are of one table.
function offerTables() {
  const tables = described().latency;
  $("speed").hidden = $("table-part").hidden = !tables.length;
  $("balance").hidden = !described().objectives.includes("latency");
  if ((!tables.length && way() === "max_latency_ms") || ($("balance").hidden && way() === "latency")) document.querySelector("input[value=kept]").checked = true;
  $("table").replaceChildren(...tables.map((t) => Object.assign(document.createElement("option"), { value: t.name, textContent: `${t.name}: ${t.workload}` })));
}

function setUp() {
  const slide = $("amount"), low = front.promised.at(-1);
  const ranges = {
    kept: [Math.ceil(100 * low.kept) / 100, 1, 0.01, 0.7],
    max_kl: [Math.log(0.02), Math.log(Math.max(low.kl_high, 0.1)), 0.02, Math.log(Math.max(low.kl, 0.1) / 3)],
    preference: [0.02, 0.98, 0.02, 0.5],
    latency: [0.02, 0.98, 0.02, 0.5],
  };
  if (table()) {
    const { fastest_ms, dense_ms } = table();
    ranges.max_latency_ms = [fastest_ms, dense_ms, (dense_ms - fastest_ms) / 200, 0.75 * dense_ms].map((v) => Number(v.toPrecision(6)));
  }
  [slide.min, slide.max, slide.step, slide.value] = ranges[way()];
  $("amount-name").textContent = WAYS[way()].name;
}

async function ask() {
  const mine = ++asked;
  $("amount-shown").textContent = WAYS[way()].shown(amount());
  const reply = await post("/v1/answers", { policy: $("policy").value, requests: [{ ...WAYS[way()].request(amount()), ...named() }] });
  if (mine !== asked) return; // the slider has moved on
  answer = reply.answers[0];
  tell(null);
  $("build").disabled = !answer.feasible;
  $("answer").replaceChildren(facts());
  drawFront();
  drawBlocks();
}

function facts() {
  const list = document.createElement("dl");
  const rows = [
    ["Size", `${(answer.bytes / 1e6).toFixed(answer.bytes < 1e7 ? 2 : 0)} MB, ${answer.params.toLocaleString("en")} parameters`],
    ["Kept", `${answer.kept.toFixed(3)} of the blocks, ${answer.ratio.toFixed(3)} of all`],
    ["Predicted KL", `${answer.kl.toFixed(3)} (${answer.kl_low.toFixed(3)} to ${answer.kl_high.toFixed(3)}, 90 %)`],
    ...Object.entries(answer.domains).map(([name, p]) => [`KL, ${name}`, `${p.kl.toFixed(3)} (${p.kl_low.toFixed(3)} to ${p.kl_high.toFixed(3)})`]),
  ];
  if (answer.latency_ms !== null) {
    const error = answer.latency_error === null ? "" : ` (±${(100 * answer.latency_error).toFixed(0)} %)`;
    rows.push(["Latency", `${answer.latency_ms.toPrecision(3)} ms${error}, ${table().workload}`]);
  }
  if (answer.note) rows.push(["Note", answer.note]);
  for (const [name, value] of rows) {
    list.append(Object.assign(document.createElement("dt"), { textContent: name }));
    list.append(Object.assign(document.createElement("dd"), { textContent: value }));
  }
  return list;
}

// -- pictures ---------------------------------------------------------------------------------------------------

function shape(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawFront() {
  const svg = $("front"), left = 44, right = 500, top = 10, bottom = 282;
  const low = Math.min(...front.promised.map((p) => p.kept), answer.kept);
  const high = 1.05 * Math.max(...front.promised.map((p) => p.kl_high), answer.kl_high, 1e-3);
  const x = (kept) => left + ((kept - low) / (1 - low)) * (right - left);
  const y = (kl) => bottom - (Math.min(kl, high) / high) * (bottom - top);
  const path = (points) => points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
  const parts = [];
  for (let i = 0; i <= 4; i++) {
    const kl = (high * i) / 4, kept = low + ((1 - low) * i) / 4;
    parts.push(shape("line", { class: "axis", x1: left, x2: right, y1: y(kl), y2: y(kl) }));
    parts.push(shape("text", { x: left - 4, y: y(kl) + 4, "text-anchor": "end" }, kl.toFixed(high < 2 ? 2 : 1)));
    parts.push(shape("text", { x: x(kept), y: bottom + 16, "text-anchor": "middle" }, kept.toFixed(2)));
  }
  parts.push(shape("text", { x: right, y: bottom + 32, "text-anchor": "end" }, "kept share of the blocks; up: KL, nats per token"));
  const p = front.promised;
  parts.push(shape("polygon", { class: "band", points: path([...p.map((q) => [q.kept, q.kl_high]), ...p.map((q) => [q.kept, q.kl_low]).reverse()]) }));
  parts.push(shape("polyline", { class: "promised", points: path(p.map((q) => [q.kept, q.kl])) }));
  for (const [kept, kl] of front.measured) if (kept >= low && kl <= high) parts.push(shape("circle", { class: "measured", cx: x(kept), cy: y(kl), r: 3 }));
  parts.push(shape("line", { class: "interval", x1: x(answer.kept), x2: x(answer.kept), y1: y(answer.kl_low), y2: y(answer.kl_high) }));
  parts.push(shape("circle", { class: "mine", cx: x(answer.kept), cy: y(answer.kl), r: 5 }));
  svg.replaceChildren(...parts);
}

function drawBlocks() {
  const svg = $("blocks"), blocks = answer.groups.length, left = 30, right = 515, top = 8, bottom = 190;
  const dense = policies.find((p) => p.name === $("policy").value);
  const room = (right - left) / blocks, bar = Math.max(1, room * 0.4);
  const parts = [];
  for (let i = 0; i < blocks; i++) {
    const at = left + i * room;
    for (const [offset, kind, value, whole] of [[0, "attention", answer.groups[i], dense.groups[i]], [bar, "mlp", answer.neurons[i], dense.neurons[i]]]) {
      const share = whole ? value / whole : 0, tall = share * (bottom - top);
      parts.push(shape("rect", { class: "whole", x: at + offset, y: top, width: bar * 0.9, height: bottom - top }));
      const drawn = shape("rect", { class: kind, x: at + offset, y: bottom - tall, width: bar * 0.9, height: tall });
      drawn.append(shape("title", {}, `block ${i}, ${kind}: ${value} of ${whole}`));
      parts.push(drawn);
    }
    if (i % Math.ceil(blocks / 15) === 0) parts.push(shape("text", { x: at + bar, y: bottom + 16, "text-anchor": "middle" }, i));
  }
  parts.push(shape("text", { x: left - 4, y: top + 8, "text-anchor": "end" }, "all"));
  parts.push(shape("text", { x: left - 4, y: bottom, "text-anchor": "end" }, "0"));
  svg.replaceChildren(...parts);
}

// -- checkpoints ------------------------------------------------------------------------------------------------

async function build() {
  $("build").disabled = true;
  try {
    const made = await post(
      "/v1/checkpoints",
      { policy: $("policy").value, request: answer.request, layout: $("layout").value },
      { "Idempotency-Key": crypto.randomUUID ? crypto.randomUUID() : String(Math.random()) },
    );
    show(made);
    follow(made.id);
  } finally {
    $("build").disabled = false;
  }
}

function show(made) {
  let item = $(made.id);
  if (!item) {
    item = Object.assign(document.createElement("li"), { id: made.id });
    $("made").prepend(item);
  }
  const line = document.createElement("div");
  const stage = made.stage ? `: ${made.stage}` : made.error ? `: ${made.error}` : "";
  line.textContent = `${made.policy}, kept ${made.answer.kept.toFixed(3)}, ${made.layout}: ${made.state}${stage}`;
  const parts = [line];
  if (made.state === "queued" || made.state === "running") {
    const button = Object.assign(document.createElement("button"), { textContent: "Cancel" });
    button.addEventListener("click", guarded(async () => show(await (await call(`/v1/checkpoints/${made.id}`, { method: "DELETE" })).json())));
    parts.push(button);
  }
  if (made.state === "done") {
    const measured = made.result.measured.kl_heldout;
    const speed = made.result.measured.latency_ms;
    if (speed !== undefined) line.textContent += `; ${speed.toPrecision(3)} ms measured`;
    if (measured !== undefined) line.textContent += `; KL ${measured.toFixed(3)} measured on fresh text`;
    const details = document.createElement("details"), list = document.createElement("ul");
    details.append(Object.assign(document.createElement("summary"), { textContent: `${made.result.files.length} files` }), list);
    for (const file of made.result.files) {
      const link = Object.assign(document.createElement("a"), { textContent: file.name, href: `/v1/checkpoints/${made.id}/files/${encodeURIComponent(file.name)}`, download: file.name });
      link.addEventListener("click", guarded((event) => fetchWithKey(event, link)));
      const entry = document.createElement("li");
      entry.append(link, ` ${(file.bytes / 1e6).toFixed(2)} MB`);
      list.append(entry);
    }
    parts.push(details);
  }
  item.replaceChildren(...parts);
}

// A link sends no key: with one, the file is fetched here and handed over.
async function fetchWithKey(event, link) {
  if (!$("key").value.trim()) return;
  event.preventDefault();
  const blob = await (await call(link.getAttribute("href"))).blob();
  const url = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href: url, download: link.download }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

async function follow(id) {
  if (following.has(id)) return;
  following.set(id, true);
  let last = 0;
  while (following.has(id)) {
    try {
      const reply = await call(`/v1/checkpoints/${id}/events`, { headers: { "Last-Event-ID": String(last) } });
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const whole = text.lastIndexOf("\n\n");
        if (whole < 0) continue;
        for (const event of text.slice(0, whole).split("\n\n")) {
          const number = /^id: (\d+)/m.exec(event);
          if (number) last = Number(number[1]);
        }
        text = text.slice(whole + 2);
        show(await (await call(`/v1/checkpoints/${id}`)).json());
      }
      const now = await (await call(`/v1/checkpoints/${id}`)).json();
      show(now);
      if (!["queued", "running"].includes(now.state)) following.delete(id);
    } catch (error) {
      tell(error);
      await new Promise((again) => setTimeout(again, 3000));
    }
  }
}

// -- beginning --------------------------------------------------------------------------------------------------

async function choose() {
  const chosen = described();
  offerTables();
  $("about").textContent = `${chosen.model}: ${chosen.blocks} blocks, ${chosen.evaluations} evaluations, version ${chosen.version}`;
  front = await (await call(`/v1/policies/${chosen.name}/front`)).json();
  setUp();
  await ask();
}

async function begin() {
  policies = (await (await call("/v1/policies")).json()).policies;
  tell(null);
  $("policy").replaceChildren(...policies.map((p) => Object.assign(document.createElement("option"), { value: p.name, textContent: p.name })));
  for (const made of (await (await call("/v1/checkpoints?limit=20")).json()).checkpoints.reverse()) {
    show(made);
    if (["queued", "running"].includes(made.state)) follow(made.id);
  }
  await choose();
}

$("key").value = sessionStorage.getItem("unicuco-key") || "";
$("key").addEventListener("change", guarded(async () => { sessionStorage.setItem("unicuco-key", $("key").value); await begin(); }));
$("policy").addEventListener("change", guarded(choose));
$("table").addEventListener("change", guarded(async () => { setUp(); await ask(); }));
$("amount").addEventListener("input", guarded(ask));
$("ways").addEventListener("change", guarded(async () => { setUp(); await ask(); }));
$("build").addEventListener("click", guarded(build));
guarded(begin)();
