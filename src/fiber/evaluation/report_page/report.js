// Draws the page from REPORT (data.js). All words of the data go through text nodes: none is ever read as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999933", "#7F7F7F"];
const AT_ONCE = 60; // tiles that are added at a time

function make(space, name, attributes, children) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...(children || []).flat(Infinity).filter((child) => child !== null && child !== undefined).map((child) =>
    child instanceof Node ? child : document.createTextNode(String(child))));
  return node;
}
const html = (name, attributes, ...children) => make(null, name, attributes, children);
const svg = (name, attributes, ...children) => make(SVG, name, attributes, children);

function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toFixed(Math.abs(value) < 10 ? 3 : 1);
}

// ------------------------------------------------------------------------------------------------ tables and charts

function table({ title, columns, rows }) {
  const body = html("tbody");
  const fill = (ordered) => body.replaceChildren(...ordered.map((row) =>
    html("tr", {}, row.map((cell) => html("td", {}, number(cell))))));
  let last = -1, up = true;
  const sort = (column) => {
    up = column === last ? !up : true;
    last = column;
    const compare = (a, b) => (a === null) - (b === null) ||
      (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    fill([...rows].sort((a, b) => (up ? 1 : -1) * compare(a[column], b[column])));
  };
  fill(rows);
  const head = html("tr", {}, columns.map((name, column) =>
    html("th", { title: "sort", click: () => sort(column) }, name)));
  return html("div", {}, html("h3", {}, title), html("div", { class: "scroll" }, html("table", {}, html("thead", {}, head), body)));
}

function ticks(low, high) {
  const span = high - low || 1;
  const step = 10 ** Math.floor(Math.log10(span / 4)) * ([1, 2, 5, 10].find((n) => span / (10 ** Math.floor(Math.log10(span / 4)) * n) <= 5) || 10);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(6)));
  return found;
}

function lines({ title, x, y, series, choice, range }, marks) {
  const width = 420, height = 230, left = 46, right = 10, top = 18, bottom = 32;
  const holder = html("div"), legend = html("div", { class: "legend" });
  function draw(shown) {
    const points = shown.flatMap((one) => one.points);
    if (!points.length) return;
    const bounds = (values) => values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    let [x0, x1] = bounds(points.map((p) => p[0])), [y0, y1] = range || bounds(points.map((p) => p[1]));
    if (range) [x0, x1] = range;
    if (y0 > 0 && y0 < y1 / 2) y0 = 0;
    if (y0 === y1) y1 = y0 + (Math.abs(y0) || 1);
    const px = (value) => left + (value - x0) / (x1 - x0 || 1) * (width - left - right);
    const py = (value) => height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom);
    const parts = [];
    for (const at of ticks(y0, y1)) {
      parts.push(svg("line", { x1: left, x2: width - right, y1: py(at), y2: py(at), stroke: "var(--line)" }));
      parts.push(svg("text", { x: left - 5, y: py(at) + 4, "text-anchor": "end" }, Math.abs(at) < 1e-3 && at ? at.toExponential() : at));
    }
    for (const at of ticks(x0, x1).filter((at) => x !== "step" || Number.isInteger(at))) parts.push(svg("text", { x: px(at), y: height - bottom + 14, "text-anchor": "middle" }, at));
    for (const [index, [step, words]] of (marks || []).filter(([step]) => step > x0 && step < x1).entries()) {
      parts.push(svg("line", { x1: px(step), x2: px(step), y1: top, y2: height - bottom, stroke: "var(--quiet)", "stroke-dasharray": "3 3" }));
      parts.push(svg("text", { x: px(step) + 3, y: top + 8 + 12 * index, class: "mark" }, words));
    }
    parts.push(svg("text", { x: width - right, y: height - 4, "text-anchor": "end" }, x));
    if (y) parts.push(svg("text", { x: 2, y: 11 }, y));
    shown.forEach((one, index) => {
      const path = one.points.map((p, i) => `${i ? "L" : "M"}${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`).join("");
      const colour = COLOURS[index % COLOURS.length];
      const style = { fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": index < COLOURS.length ? null : "6 3" };
      parts.push(one.points.length > 1 ? svg("path", { d: path, ...style }, svg("title", {}, one.name))
        : svg("circle", { cx: px(one.points[0][0]), cy: py(one.points[0][1]), r: 3, fill: colour }));
    });
    holder.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, parts));
    legend.replaceChildren(...shown.map((one, index) => html("span", {},
      html("i", { style: `background:${COLOURS[index % COLOURS.length]}` }), `${one.name} ${number(one.points.at(-1)[1])}`)));
  }
  draw(series);
  const chooser = choice && choice.length > 1 ? html("select", { change: (event) => {
    const one = choice[event.target.value];
    draw(one ? [...series.slice(0, 1), one] : series);
  } }, html("option", { value: "" }, "all classes"), choice.map((one, index) => html("option", { value: index }, one.name))) : null;
  return html("div", { class: "chart" }, html("h3", {}, title), chooser, holder, legend);
}

function bars({ title, x, bars: entries }) {
  const width = 420, height = 24 * entries.length + 20, most = Math.max(1, ...entries.map(([, count]) => count));
  const rows = entries.map(([name, count], index) => [
    svg("text", { x: 110, y: 24 * index + 15, "text-anchor": "end" }, name),
    svg("rect", { x: 116, y: 24 * index + 3, height: 17, width: 240 * count / most, fill: COLOURS[0] }),
    svg("text", { x: 120 + 240 * count / most, y: 24 * index + 15 }, count)]);
  return html("div", { class: "chart" }, html("h3", {}, title),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, rows.flat(), svg("text", { x: 110, y: height - 4, "text-anchor": "end" }, x)));
}

const chart = (one, marks) => (one.bars ? bars(one) : lines(one, marks));

function matrix({ rows, columns, cells, note }) {
  const short = (name) => (name.length > 22 ? `${name.slice(0, 21)}…` : name);
  const body = rows.map((name, i) => {
    const total = cells[i].reduce((a, b) => a + b, 0) || 1;
    return html("tr", {}, html("th", { title: name }, short(name)), cells[i].map((count, j) => html("td", {
      title: `${name} → ${columns[j]}: ${count}`,
      style: count ? `background:${name === columns[j] ? "rgba(0,158,115," : "rgba(213,94,0,"}${(0.12 + 0.8 * count / total).toFixed(2)})` : null,
    }, count || "")));
  });
  return html("div", {}, html("h3", {}, "Confusion: truth in rows, prediction in columns"),
    note ? html("div", { class: "quiet" }, note) : null,
    html("div", { class: "scroll whole" }, html("table", { class: "matrix" },
      html("thead", {}, html("tr", {}, html("td"), columns.map((name) => html("th", { title: name }, short(name))))), html("tbody", {}, body))));
}

// ------------------------------------------------------------------------------------------------ the gallery

function overlaps(a, b) {
  return a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
}

// Labels stand where they cover no other: above their box, in it or below it, at its left or right, else anywhere.
function placeLabels(frame, item) {
  const wide = frame.clientWidth, high = frame.clientHeight, taken = [];
  if (!wide || !item.size[0]) return;
  const scale = [wide / item.size[0], high / item.size[1]];
  for (const label of frame.querySelectorAll(".label")) {
    const box = label.box.map((value, index) => value * scale[index % 2]), w = label.offsetWidth, h = 15;
    const x = (value) => Math.max(0, Math.min(value, wide - w)), spots = [];
    for (const y of [box[1] - h, box[1] + 2, box[3] + 1, box[3] - h - 2]) spots.push([box[0], y], [box[2] - w, y]);
    for (let y = 0; y < high - h; y += h) spots.push([box[0], y], [box[2] + 2, y], [box[0] - w - 2, y], [0, y], [wide - w, y]);
    const areas = spots.filter(([, y]) => y >= 0 && y <= high - h).map(([left, y]) => ({ x: x(left), y, w, h }));
    const free = areas.find((area) => !taken.some((other) => overlaps(area, other))) || areas[0] || { x: 0, y: 0, w, h };
    taken.push(free);
    label.style.left = `${free.x}px`;
    label.style.top = `${free.y}px`;
  }
}

function frame(path, item, state, first) {
  const hidden = ["found", "true", "labels"].filter((name) => !state[name]).map((name) => ` no${name}`).join("");
  const small = item.size[0] && Math.max(...item.size) <= 128 ? " small" : "";
  const node = html("div", { class: `frame${hidden}${small}` });
  const broken = () => node.replaceChildren(html("div", { class: "broken" }, "this image cannot be shown"));
  if (!path) { broken(); return node; }
  const shape = first && item.size[0] ? `aspect-ratio: ${item.size[0]} / ${item.size[1]}` : null; // before it is loaded, too
  node.append(html("img", { src: path, style: shape, loading: "lazy", alt: item.id, error: broken, load: () => placeLabels(node, item) }));
  if (!first || !item.boxes.length) return node;
  const shown = item.boxes.filter(([, , , , score]) => score < 0 || score >= state.score);
  node.append(svg("svg", { viewBox: `0 0 ${item.size[0]} ${item.size[1]}`, preserveAspectRatio: "none" },
    shown.map(([[x0, y0, x1, y1], kind, fate]) => svg("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: `${kind} ${fate}` }))));
  for (const [box, kind, fate, label, score] of shown) {
    if (kind === "true" && fate !== "missed") continue;
    if (!state.large && (fate === "hit" || fate === "crowd")) continue; // small tiles name what is wrong, the large one all
    const words = fate === "missed" ? `missed: ${label}` : score < 0 ? label : `${label}  ${score.toFixed(2)}`;
    const node_ = html("span", { class: `label ${kind} ${fate}` }, words);
    node_.box = box;
    node.append(node_);
  }
  return node;
}

function tile(item, state, large) {
  state = { ...state, large };
  const images = item.images.length ? item.images : [""];
  const node = html("div", { class: large ? "large" : "tile" },
    html("div", { class: "images", click: large ? null : () => enlarge(item, state) }, images.map((path, index) => frame(path, item, state, index === 0))),
    html("div", { class: "line" }, Object.entries(item.tags).map(([name, count]) => html("span", { class: "tag" }, count > 1 ? `${count} ${name}` : name))),
    item.lines.slice(0, large ? 99 : 6).map(([words, right]) => html("div", { class: `line ${right === null ? "" : right ? "right" : "wrong"}` }, words)),
    html("div", { class: "sample quiet" }, `${item.id} · error ${number(item.error)}`));
  node.item = item;
  return node;
}

function enlarge(item, state) {
  const box = html("dialog", { click: (event) => event.target === box && box.close(), close: () => box.remove() },
    tile(item, state, true), html("p", {}, html("button", { click: () => box.close() }, "close")));
  document.body.append(box);
  box.showModal();
  box.querySelectorAll(".frame").forEach((node) => placeLabels(node, item));
}

function gallery(part) {
  const state = { tag: "", class: "", score: 0, found: true, true: true, labels: true, worst: true, shown: AT_ONCE };
  const grid = html("div", { class: "gallery" }), count = html("span", { class: "quiet count" });
  const more = html("button", { class: "more", click: () => { state.shown += AT_ONCE; draw(); } }, "show more");
  const boxes = part.items.some((item) => item.boxes.length), scores = part.items.some((item) => item.score >= 0);
  function draw() {
    let chosen = part.items.filter((item) => (!state.tag || item.tags[state.tag]) && (!state.class || item.classes.includes(state.class)) &&
      (!state.score || item.score >= state.score));
    if (!state.worst) chosen = [...chosen].reverse();
    grid.replaceChildren(...chosen.slice(0, state.shown).map((item) => tile(item, state, false)));
    grid.querySelectorAll(".frame").forEach((node) => placeLabels(node, node.closest(".tile").item));
    count.textContent = `${chosen.length} of ${part.items.length}`;
    more.hidden = chosen.length <= state.shown;
  }
  function toggle(key, value, words, off) {
    const pressed = () => state[key] === value;
    const button = html("button", { "data-filter": `${key}:${value}`, "aria-pressed": pressed(), click: () => {
      state[key] = pressed() ? off : value;
      state.shown = AT_ONCE;
      bar.querySelectorAll(`button[data-filter^="${key}:"]`).forEach((other) => other.setAttribute("aria-pressed", other.isOn()));
      draw();
    } }, words);
    button.isOn = pressed;
    return button;
  }
  const classes = [...new Set(part.items.flatMap((item) => item.classes))].sort();
  const bar = html("div", { class: "controls" },
    part.mistakes.map(([name, total]) => toggle("tag", name, `${name} (${total})`, "")),
    classes.length > 1 ? html("select", { class: "classes", change: (event) => { state.class = event.target.value; draw(); } },
      html("option", { value: "" }, "all classes"), classes.map((name) => html("option", { value: name }, name))) : null,
    scores ? html("label", {}, "score from ", html("input", { type: "range", class: "score", min: 0, max: 1, step: 0.05, value: 0,
      input: (event) => { state.score = Number(event.target.value); draw(); } })) : null,
    boxes ? [["found", "found boxes"], ["true", "true boxes"], ["labels", "labels"]].map(([key, words]) => toggle(key, true, words, false)) : null,
    toggle("worst", true, "worst first", false), count);
  const legend = boxes ? html("div", { class: "legend" }, [["good", "hit"], ["confused", "confused: another class"], ["low", "low overlap (IoU below 0.5)"], ["false", "false: nothing there"], ["missed", "missed"]]
    .map(([colour, words]) => html("span", {}, html("i", { style: `background:var(--${colour})` }), words)), html("span", {}, "solid: found · dashed: true")) : null;
  draw();
  return html("div", { class: "part-gallery" }, html("h3", {}, "Gallery, by error"), html("div", { class: "quiet" }, `Error: ${part.error}.`), legend, bar, grid, html("p", {}, more));
}

// ------------------------------------------------------------------------------------------------ the page

function facts(rows) {
  return html("div", { class: "quiet" }, rows.map(([name, value]) => `${name}: ${number(value)}`).join(" · "));
}

function section(title, id, ...children) {
  return html("section", { id }, html("h2", {}, title), children);
}

function page() {
  const names = REPORT.parts.map((part, index) => [part.title, `part${index}`]);
  document.title = `${REPORT.name}: report`;
  const cards = REPORT.headline.map(([name, value, base, words]) => html("div", { class: "card" }, html("span", {}, name),
    html("b", {}, value.toFixed(3)), html("span", { class: "quiet" }, base === null ? "" : `${words} ${base.toFixed(3)}`)));
  document.getElementById("page").append(
    html("h1", {}, REPORT.name), facts(REPORT.facts),
    html("nav", {}, html("a", { href: "#training" }, "training"), names.map(([title, id]) => html("a", { href: `#${id}` }, title))),
    REPORT.warning ? html("p", { class: "warning" }, REPORT.warning) : "",
    html("div", { class: "cards" }, cards),
    REPORT.figures.length ? html("details", {}, html("summary", {}, "all figures"), table({ title: "", columns: ["figure", "value"], rows: REPORT.figures })) : "",
    section("Training", "training", REPORT.curves.length ? html("div", { class: "charts" }, REPORT.curves.map((one) => chart(one, REPORT.marks))) : "nothing was recorded"),
    ...REPORT.parts.map((part, index) => section(part.title, `part${index}`, facts(part.facts),
      part.notes.map((note) => html("p", { class: "quiet" }, note)),
      html("div", { class: "tables" }, part.tables.filter((one) => one.rows.length).map(table)),
      html("div", { class: "charts" }, part.charts.map((one) => chart(one))),
      part.matrix ? matrix(part.matrix) : null,
      part.items.length ? gallery(part) : null)));
}

page();
