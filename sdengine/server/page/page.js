"use strict";
// Model text reaches the document as text nodes only, never as markup.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const CELL = { width: 104, height: 30, box: 84, boxHeight: 22, margin: 8 };
const DATA = "data: ";
let running = null;

function show(id, text) {
  byId(id).textContent = text;
}

function headers() {
  const key = byId("key").value;
  const found = { "Content-Type": "application/json" };
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

async function connect() {
  const response = await fetch("playground/about", { headers: headers() });
  if (response.status === 401) {
    byId("key-label").hidden = false;
    show("model", "needs an API key");
    return;
  }
  const about = await response.json();
  show("model", about.model);
  byId("compare-label").hidden = !about.can_compare;
  if (!about.can_compare) show("verdict-text", "no comparison (serve --compare)");
}

// Yields the documents of a stream of server-sent events; a silent one has comments in between.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith(DATA)) yield JSON.parse(part.slice(DATA.length));
  }
}

async function* generate(isPlain) {
  const body = {
    prompt: byId("prompt").value,
    max_tokens: byId("max-tokens").valueAsNumber,
    temperature: byId("temperature").valueAsNumber,
    seed: byId("seed").valueAsNumber,
    is_plain: isPlain,
  };
  const options = { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal };
  const response = await fetch("playground/generate", options);
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const item of events(response)) {
    if (item.error) throw new Error(item.error.message);
    yield item;
  }
}

function appendPieces(pieces) {
  const output = byId("output");
  for (const piece of pieces) {
    if (!piece.text) continue;
    const span = document.createElement("span");
    span.className = piece.draft ? "token draft" : "token own";
    span.textContent = piece.text;
    output.append(span);
  }
}

const speedOf = (end) => (end.decode_seconds > 0 ? (end.num_tokens - 1) / end.decode_seconds : 0);

async function runSpeculative() {
  let text = "", numTokens = 0, numSteps = 0, firstAt = 0, numFirst = 0, speed = 0;
  for await (const item of generate(false)) {
    appendPieces(item.pieces);
    text += item.pieces.map((piece) => piece.text).join("");
    const tokens = item.end ? item.pieces.slice(0, -1) : item.pieces;
    numTokens += tokens.length;
    numSteps += tokens.filter((piece) => !piece.draft).length;
    const now = performance.now();
    if (!firstAt) { firstAt = now; numFirst = numTokens; }
    if (now > firstAt) show("speed", (1000 * (numTokens - numFirst) / (now - firstAt)).toFixed(0));
    show("acceptance", (numTokens / Math.max(numSteps, 1)).toFixed(2));
    if (item.tree && (item.tree.nodes.length || !byId("tree").childNodes.length)) drawTree(item.tree);
    if (item.end) speed = finish(item.end);
  }
  return { text, speed };
}

function finish(end) {
  const speed = speedOf(end);
  show("speed", speed.toFixed(0));
  if (end.acceptance_length !== null) show("acceptance", end.acceptance_length.toFixed(2));
  return speed;
}

async function runPlain() {
  let text = "", speed = 0;
  for await (const item of generate(true)) {
    text += item.pieces.map((piece) => piece.text).join("");
    if (item.end) speed = speedOf(item.end);
  }
  show("plain-speed", speed.toFixed(0));
  return { text, speed };
}

async function run() {
  const speculative = await runSpeculative();
  if (byId("compare-label").hidden || !byId("compare").checked) return;
  const plain = await runPlain();
  if (plain.speed > 0) show("verdict", `${(speculative.speed / plain.speed).toFixed(2)}\u00d7`);
  const isSame = plain.text === speculative.text;
  show("verdict-text", isSame ? "against plain, identical text" : "against plain, DIFFERENT text");
}

function setRunning(isRunning) {
  running = isRunning ? new AbortController() : null;
  byId("go").textContent = isRunning ? "Stop" : "Generate";
  byId("go").className = isRunning ? "stop" : "";
  document.body.dataset.state = isRunning ? "running" : "done";
}

function clear() {
  for (const id of ["speed", "acceptance", "plain-speed", "verdict"]) show(id, "\u2013");
  byId("error").hidden = true;
  byId("tree").replaceChildren();
  const prompt = document.createElement("span");
  prompt.className = "prompt";
  prompt.textContent = byId("prompt").value;
  byId("output").replaceChildren(prompt);
}

async function submit(event) {
  event.preventDefault();
  if (running) return running.abort();
  clear();
  setRunning(true);
  try {
    await run();
  } catch (error) {
    if (error.name !== "AbortError") {
      show("error", error.message);
      byId("error").hidden = false;
    }
  } finally {
    setRunning(false);
  }
}

// Rows from the leaves: a leaf takes the next free row, a parent the middle of its children's.
function layOut(tree) {
  const children = [[], ...tree.nodes.map(() => [])];
  tree.parents.forEach((parent, node) => children[parent + 1].push(node + 1));
  const last = tree.accepted.length ? tree.accepted[tree.accepted.length - 1] + 1 : 0;
  const own = tree.nodes.length + 1;
  children.push([]);
  children[last].push(own);
  const places = [];
  let nextRow = 0;
  const place = (node, depth) => {
    for (const child of children[node]) place(child, depth + 1);
    const rows = children[node].map((child) => places[child].row);
    const row = rows.length ? (rows[0] + rows[rows.length - 1]) / 2 : nextRow++;
    places[node] = { depth, row };
  };
  place(0, 0);
  return { places, children, own, numRows: nextRow };
}

const visible = (text) => {
  const shown = text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/ /g, "\u00b7");
  return shown.length > 10 ? `${shown.slice(0, 9)}\u2026` : shown;
};

function svgElement(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function drawTree(tree) {
  const { places, children, own, numRows } = layOut(tree);
  const accepted = new Set([0, ...tree.accepted.map((node) => node + 1)]);
  const kind = (node) => (node === own ? "own" : accepted.has(node) ? "accepted" : "other");
  const x = (place) => CELL.margin + place.depth * CELL.width;
  const y = (place) => CELL.margin + place.row * CELL.height;
  const svg = byId("tree");
  svg.replaceChildren();
  svg.setAttribute("width", CELL.margin * 2 + CELL.width * (1 + Math.max(...places.map((p) => p.depth))));
  svg.setAttribute("height", CELL.margin * 2 + CELL.height * numRows);
  places.forEach((place, node) => {
    for (const child of children[node]) {
      const from = [x(place) + CELL.box, y(place) + CELL.boxHeight / 2];
      const to = [x(places[child]), y(places[child]) + CELL.boxHeight / 2];
      const middle = (from[0] + to[0]) / 2;
      const d = `M${from} C${middle} ${from[1]} ${middle} ${to[1]} ${to}`;
      svgElement("path", { d, class: kind(child) === "other" ? "other" : "accepted" }, svg);
    }
  });
  places.forEach((place, node) => {
    const group = svgElement("g", { class: kind(node) }, svg);
    svgElement("rect", { x: x(place), y: y(place), width: CELL.box, height: CELL.boxHeight }, group);
    const label = svgElement("text", { x: x(place) + CELL.box / 2, y: y(place) + 15 }, group);
    label.textContent = node === 0 ? "root" : visible(node === own ? tree.own : tree.nodes[node - 1]);
  });
  const drafted = `${tree.nodes.length} drafted, ${tree.accepted.length} accepted, 1 of the target's own`;
  show("tree-text", drafted);
}

byId("form").addEventListener("submit", submit);
byId("key").addEventListener("change", () => connect());
connect().catch(() => show("model", "not reachable"));
