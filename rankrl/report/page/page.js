// Sorts, filters, extends and saves tables by the text that they show; draws a run's curves on demand; shows words and figures.
// Text is only ever set as text.
"use strict";
const VISIBLE_ROWS = 100, LONG = 32; // as in table.py
const RUNS = "runs-table";
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
    const long = text.length > LONG && heads[i].className !== "n";
    return element("td", { className: long ? "long" : heads[i].className }, long ? element("div", {}, inner) : inner);
  }));
}

const said = (cell) => (cell.querySelector("details")?.lastChild ?? cell).textContent;

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
  const rows = [...body.rows].map((tr) => ({ tr, texts: [...tr.cells].map(said) }));
  rows.push(...(read(`${holder.id}-rows`) ?? []).map((texts) => ({ tr: null, texts })));
  rows.forEach((row, index) => { row.index = index; });
  const build = builder(heads);
  const state = { at: -1, way: 1, query: "", shown: VISIBLE_ROWS };
  const status = element("span", { role: "status" });
  const more = element("button", { type: "button", textContent: "Show 100 more" });
  const foot = element("p", { className: "more" }, more);

  let kept = rows;

  function show() {
    const tests = state.query.split(/\s+/).filter(Boolean).map((word) => term(word, heads));
    kept = rows.filter((row) => tests.every((test) => test(row.texts)));
    if (state.at >= 0) kept = sorted(kept, state.at, heads[state.at].classList.contains("n"), state.way);
    const seen = kept.slice(0, state.shown);
    body.replaceChildren(...seen.flatMap((row) => {
      row.tr ??= build(row.texts);
      holder.dispatchEvent(new CustomEvent("row", { detail: row }));
      return row.detail ? [row.tr, row.detail] : [row.tr];
    }));
    foot.hidden = seen.length === kept.length;
    const part = foot.hidden ? "" : `, the first ${seen.length.toLocaleString("en")} shown`;
    status.textContent = `${kept.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows${part}`;
  }

  function sort(at, way) { // at -1: the order of the file
    Object.assign(state, { at, way });
    heads.forEach((head, i) => i === at ? head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending") : head.removeAttribute("aria-sort"));
    show();
  }

  function filter(query) {
    Object.assign(state, { query, shown: VISIBLE_ROWS });
    show();
  }

  const changed = () => holder.dispatchEvent(new Event("changed"));
  heads.forEach((head, at) => {
    if (head.className === "plot" || rows.length < 2) return;
    const button = element("button", { type: "button", textContent: head.title_ });
    button.onclick = () => { sort(at, state.at === at ? -state.way : 1); changed(); };
    head.replaceChildren(button);
  });
  const input = element("input", { type: "search", placeholder: holder.id === RUNS ? "rank=1 gain<0" : "", spellcheck: false });
  input.oninput = () => { filter(input.value); changed(); };
  if (rows.length > 12) {
    holder.prepend(element("div", { className: "tools" }, element("label", {}, "Filter", input), status));
    holder.append(foot);
    more.onclick = () => { state.shown += VISIBLE_ROWS; show(); };
  }
  holder.querySelector(".rest")?.remove();
  return { holder, heads, rows, state, input, show, sort, filter, kept: () => kept };
}

// ---------------------------------------------------------------- files
const cleaned = (text, head) => head.className === "n" ? text.replaceAll("\u2212", "-").replace(/(\d),(?=\d{3})/g, "$1") : text;
const quoted = (text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const plain = (text) => text.replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll("<", "&lt;").replace(/\s+/g, " ");
const rules = (heads) => heads.map((head) => head.className === "n" ? "---:" : "---");
const FORMATS = {
  CSV: (heads, lines) => [heads.map((head) => head.title_), ...lines.map((line) => line.map((text, i) => cleaned(text, heads[i])))]
    .map((line) => line.map(quoted).join(",")),
  Markdown: (heads, lines) => [heads.map((head) => head.title_), rules(heads), ...lines].map((line) => `| ${line.map(plain).join(" | ")} |`),
};

function savable(table) { // the links save what is shown, so that the page needs no file beside it
  const at = table.heads.flatMap((head, i) => head.className === "plot" ? [] : [i]);
  table.holder.querySelectorAll("caption .files a").forEach((link) => {
    link.download = link.getAttribute("href").split("/").at(-1);
    link.onclick = () => {
      const lines = FORMATS[link.textContent](at.map((i) => table.heads[i]), table.kept().map((row) => at.map((i) => row.texts[i])));
      link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`]));
    };
  });
}

// ---------------------------------------------------------------- address: #runs?filter=rank%3D1&sort=-gain
const split = () => { const [, anchor, query] = location.hash.match(/^#?([^?]*)\??(.*)$/s); return [anchor, query]; };

function addressed(table) {
  let timer;
  const query = () => {
    const { at, way } = table.state;
    const values = { filter: table.input.value, sort: at < 0 ? "" : (way < 0 ? "-" : "") + table.heads[at].dataset.key };
    return new URLSearchParams(Object.entries(values).filter(([, value]) => value)).toString();
  };
  const write = () => {
    const [anchor] = split(), asked = query();
    const hash = asked ? `#${anchor}?${asked}` : anchor && `#${anchor}`;
    if (hash !== location.hash) history.replaceState(null, "", hash || location.href.split("#")[0]);
  };
  const restore = () => {
    const [anchor, text] = split(), asked = new URLSearchParams(text), sort = asked.get("sort") ?? "";
    if (!text) return write(); // a link of the page has been followed: the filter stays
    table.input.value = table.input.isConnected ? asked.get("filter") ?? "" : "";
    table.filter(table.input.value);
    table.sort(table.heads.findIndex((head) => head.dataset.key && head.dataset.key === sort.replace("-", "")), sort.startsWith("-") ? -1 : 1);
    const fold = table.holder.closest("details");
    if (fold) fold.open = true;
    (anchor && $(anchor) || table.holder).scrollIntoView();
  };
  table.holder.addEventListener("changed", () => { clearTimeout(timer); timer = setTimeout(write, 200); });
  addEventListener("hashchange", restore);
  restore();
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
  return [element("p", { textContent: words }), ...charts];
}

function expandable(table) { // a row below a run: its long texts in full, and its curves
  const long = (row) => row.texts.flatMap((text, i) => text.length > LONG ? [element("p", { className: "whole" }, element("strong", {}, table.heads[i].title_), ` ${text}`)] : []);
  table.holder.addEventListener("row", ({ detail: row }) => {
    if (row.button || !about && !long(row).length) return;
    row.button = element("button", { type: "button", className: "open", textContent: "details" });
    row.button.setAttribute("aria-expanded", "false");
    row.button.setAttribute("aria-label", `Details of ${row.texts[0]}`);
    row.button.onclick = async () => {
      const open = !row.detail;
      const inside = open && element("div", { className: "curves" }, ...long(row), ...about ? await drawn(row, table.rows) : []);
      row.detail?.remove();
      row.detail = open ? element("tr", { className: "detail" }, element("td", { colSpan: row.tr.cells.length }, inside)) : null;
      if (open) row.tr.after(row.detail);
      row.button.setAttribute("aria-expanded", String(open));
    };
    (row.tr.cells[0].querySelector("div") ?? row.tr.cells[0]).append(row.button);
  });
}

// ---------------------------------------------------------------- figures
function enlargeable(figure, dialog) {
  const drawing = figure.querySelector(".drawing"), pan = dialog.querySelector(".pan");
  const button = element("button", { type: "button", textContent: "Enlarge" });
  button.setAttribute("aria-label", `Enlarge: ${figure.querySelector("strong").textContent}`);
  button.onclick = () => {
    figure.style.minHeight = `${figure.offsetHeight}px`;
    pan.replaceChildren(drawing);
    dialog.showModal();
    pan.scrollTo(0, 0);
    dialog.addEventListener("close", () => { figure.prepend(drawing); figure.style.minHeight = ""; }, { once: true });
  };
  figure.querySelector(".files").prepend(button);
}

// ---------------------------------------------------------------- words
function explains(link, card) { // shows a word's meaning beside it; without this the link leads to it
  link.onclick = (event) => {
    event.preventDefault();
    const box = link.getBoundingClientRect();
    card.replaceChildren(...$(link.hash.slice(1)).cloneNode(true).childNodes);
    card.togglePopover(true);
    const { offsetWidth: width, offsetHeight: height } = card;
    card.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8))}px`;
    card.style.top = `${box.bottom + height + 12 < innerHeight ? box.bottom + 6 : Math.max(8, box.top - height - 6)}px`;
  };
}

// ---------------------------------------------------------------- a sweep that is going on
function reloads(seconds) {
  const folds = [...document.querySelectorAll("section")].flatMap((section) => // named by their place: the next page may have more
    [...section.querySelectorAll("details")].map((fold, i) => [`${section.id} ${i}`, fold]));
  const { top, open } = history.state ?? {};
  if (open) {
    folds.forEach(([name, fold]) => { fold.open = open.includes(name); });
    scrollTo(0, top);
    history.replaceState(null, "");
  }
  let typed = false;
  addEventListener("input", () => { typed = true; });
  setInterval(() => {
    const busy = typed || document.querySelector("dialog[open], .detail, .card:popover-open");
    typed = false;
    if (busy) return;
    history.replaceState({ top: scrollY, open: folds.flatMap(([name, fold]) => fold.open ? [name] : []) }, "");
    location.reload();
  }, 1000 * seconds);
}

for (const holder of document.querySelectorAll(".table")) {
  const table = live(holder);
  savable(table);
  if (holder.id === RUNS) expandable(table);
  table.show();
  if (holder.id === RUNS) addressed(table);
}
document.querySelectorAll("figure").forEach((figure) => enlargeable(figure, document.querySelector("dialog")));
const card = element("div", { className: "card", popover: "auto" });
document.body.append(card);
if (card.togglePopover) document.querySelectorAll("a.word").forEach((link) => explains(link, card));
const going = document.querySelector(".live");
if (going) reloads(Number(going.dataset.reloadS));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
