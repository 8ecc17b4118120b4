// Sorts, filters and extends tables by the text that they show; draws a run's curves on demand. Text is only ever set as text.
"use strict";
const VISIBLE_ROWS = 100; // as in table.py
const $ = (id) => document.getElementById(id);
const read = (id) => JSON.parse($(id)?.textContent ?? "null");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------- tables
const number = (text) => {
  const found = text.replace(/[,\u202f]/g, "").replaceAll("\u2212", "-").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN; // of an interval its lower end
};

function builder(heads) { // a row of texts -> <tr>, as table.py writes it
  return (texts) => element("tr", {}, ...texts.map((text, i) => {
    const inner = "link" in heads[i].dataset ? element("a", { href: `../${encodeURIComponent(text)}/` }, text) : text;
    return element("td", { className: heads[i].className }, inner);
  }));
}

function term(word, heads) { // "rank>=8" or a part of any text -> a test of a row's texts
  const [, name, sign, value] = word.match(/^([^<>=]+)(<=|>=|=|<|>)(.+)$/) ?? [];
  const plain = (text) => text.toLowerCase().replaceAll(" ", "_");
  const at = heads.findIndex((head) => name && [plain(head.title_), head.dataset.key].includes(plain(name)));
  if (at < 0) return (texts) => texts.some((text) => text.toLowerCase().includes(word.toLowerCase()));
  const asked = number(value);
  if (sign === "=") return (texts) => texts[at].toLowerCase() === value.toLowerCase() || (!isNaN(asked) && number(texts[at]) === asked);
  const test = { "<": (x) => x < asked, ">": (x) => x > asked, "<=": (x) => x <= asked, ">=": (x) => x >= asked }[sign];
  return (texts) => test(number(texts[at]));
}

function sorted(rows, at, numeric, way) {
  const key = numeric ? (row) => number(row.texts[at]) : (row) => row.texts[at];
  const order = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, undefined, { numeric: true });
  const keyed = rows.map((row) => [key(row), row]);
  const known = keyed.filter(([k]) => numeric ? !isNaN(k) : k !== "\u2013").sort(([a], [b]) => way * order(a, b));
  return [...known, ...keyed.filter(([k]) => numeric ? isNaN(k) : k === "\u2013")].map(([, row]) => row); // the missing last
}

function live(holder) {
  const body = holder.querySelector("tbody");
  const heads = [...holder.querySelectorAll("thead th")];
  heads.forEach((head) => { head.title_ = head.textContent; });
  const rows = [...body.rows].map((tr) => ({ tr, texts: [...tr.cells].map((cell) => cell.textContent) }));
  rows.push(...(read(`${holder.id}-rows`) ?? []).map((texts) => ({ tr: null, texts })));
  rows.forEach((row, index) => { row.index = index; });
  const build = builder(heads);
  const state = { at: -1, way: 1, query: "", shown: VISIBLE_ROWS };
  const status = element("span", { role: "status" });
  const more = element("button", { type: "button", textContent: "Show 100 more" });
  const foot = element("p", { className: "more" }, more);

  function show() {
    const tests = state.query.split(/\s+/).filter(Boolean).map((word) => term(word, heads));
    const kept = rows.filter((row) => tests.every((test) => test(row.texts)));
    const order = state.at < 0 ? kept : sorted(kept, state.at, heads[state.at].classList.contains("n"), state.way);
    const seen = order.slice(0, state.shown);
    body.replaceChildren(...seen.flatMap((row) => {
      row.tr ??= build(row.texts);
      holder.dispatchEvent(new CustomEvent("row", { detail: row }));
      return row.detail ? [row.tr, row.detail] : [row.tr];
    }));
    foot.hidden = seen.length === kept.length;
    const part = foot.hidden ? "" : `, the first ${seen.length.toLocaleString("en")} shown`;
    status.textContent = `${kept.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows${part}`;
  }

  heads.forEach((head, at) => {
    if (head.className === "plot" || rows.length < 2) return;
    const button = element("button", { type: "button", textContent: head.title_ });
    button.onclick = () => {
      state.way = state.at === at ? -state.way : 1;
      state.at = at;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", state.way > 0 ? "ascending" : "descending");
      show();
    };
    head.replaceChildren(button);
  });
  if (rows.length > 12) {
    const input = element("input", { type: "search", placeholder: holder.id === "runs-table" ? "rank=1 gain<0" : "", spellcheck: false });
    input.oninput = () => { Object.assign(state, { query: input.value, shown: VISIBLE_ROWS }); show(); };
    const label = element("label", {}, "Filter", input);
    holder.prepend(element("div", { className: "tools" }, label, status));
    holder.append(foot);
    more.onclick = () => { state.shown += VISIBLE_ROWS; show(); };
  }
  holder.querySelector(".rest")?.remove();
  return { rows, show };
}

// ---------------------------------------------------------------- curves
const NS = "http://www.w3.org/2000/svg";
const about = read("curves");
const chunks = new Map();

function chunk(i) { // base64 of deflated JSON -> its runs
  if (!chunks.has(i)) {
    const bytes = Uint8Array.from(atob($(`curves-${i}`).textContent), (c) => c.charCodeAt(0));
    chunks.set(i, new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json());
  }
  return chunks.get(i);
}

const run = async (index) => (await chunk(Math.floor(index / about.runs)))[index % about.runs];

function points(curves, name) {
  const [low, high, levels] = curves[name] ?? [0, 0, []];
  const all = levels.map((level, i) => level === null ? null : [curves.step[i], low + level * (high - low) / about.levels]);
  return all.filter((point) => point && point[0] !== null);
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(NS, tag);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.append(...children);
  return made;
}

function chart(title, own, others) {
  const all = [own, ...others].flat();
  const [x0, x1] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  const [y0, y1] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
  const x = (v) => 38 + 196 * (v - x0) / (x1 - x0 || 1);
  const y = (v) => 86 - 78 * (v - y0) / (y1 - y0 || 1);
  const line = (curve, kind) => svg("polyline", { class: kind, points: curve.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") });
  const text = (at, up, anchor, value) => svg("text", { x: at, y: up, "text-anchor": anchor }, String(value));
  const short = (v) => v && Math.abs(v) < 1e-3 ? v.toExponential(1) : String(Number(v.toPrecision(3)));
  const label = `${title}: from ${short(own[0][1])} at step ${own[0][0]} to ${short(own.at(-1)[1])} at step ${own.at(-1)[0]}`;
  const drawing = svg("svg", { viewBox: "0 0 240 102", role: "img", "aria-label": label },
    svg("path", { class: "axis", d: "M38 8V86H234" }), ...others.map((curve) => line(curve, "seed")), line(own, "own"),
    text(34, 12, "end", short(y1)), text(34, 88, "end", short(y0)), text(38, 98, "start", `step ${x0}`), text(234, 98, "end", x1));
  return element("div", {}, element("h3", { textContent: title }), drawing);
}

async function drawn(row, rows) { // this run thick, the other seeds of its cell thin
  const cell = (other) => other.texts[0].replace(/-s\d+$/, "");
  const mates = rows.filter((other) => other !== row && cell(other) === cell(row)).slice(0, 30);
  const [own, ...others] = await Promise.all([row, ...mates].map((one) => run(one.index)));
  const charts = Object.entries(about.series).filter(([name]) => points(own, name).length > 1)
    .map(([name, title]) => chart(title, points(own, name), others.map((other) => points(other, name)).filter((c) => c.length)));
  const words = charts.length ? `${row.texts[0]}, and the ${mates.length} other seeds of its cell, thin.` : "This run has left no curves.";
  return element("div", { className: "curves" }, element("p", { textContent: words }), ...charts);
}

function expandable(holder, table) {
  holder.addEventListener("row", ({ detail: row }) => {
    if (row.button) return;
    row.button = element("button", { type: "button", className: "open", textContent: "curves" });
    row.button.setAttribute("aria-expanded", "false");
    row.button.setAttribute("aria-label", `Curves of ${row.texts[0]}`);
    row.button.onclick = async () => {
      const open = !row.detail;
      const cell = open && element("td", { colSpan: row.tr.cells.length }, await drawn(row, table.rows));
      row.detail?.remove();
      row.detail = open ? element("tr", { className: "detail" }, cell) : null;
      if (open) row.tr.after(row.detail);
      row.button.setAttribute("aria-expanded", String(open));
    };
    row.tr.cells[0].append(row.button);
  });
}

// ---------------------------------------------------------------- figures
function enlargeable(figure, dialog) {
  const drawing = figure.querySelector(".drawing");
  const button = element("button", { type: "button", textContent: "Enlarge" });
  button.setAttribute("aria-label", `Enlarge: ${figure.querySelector("strong").textContent}`);
  button.onclick = () => {
    figure.style.minHeight = `${figure.offsetHeight}px`;
    dialog.append(drawing);
    dialog.showModal();
    dialog.addEventListener("close", () => { figure.prepend(drawing); figure.style.minHeight = ""; }, { once: true });
  };
  figure.querySelector(".files").prepend(button);
}

for (const holder of document.querySelectorAll(".table")) {
  const table = live(holder);
  if (holder.id === "runs-table" && about) expandable(holder, table);
  table.show();
}
document.querySelectorAll("figure").forEach((figure) => enlargeable(figure, document.querySelector("dialog")));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
