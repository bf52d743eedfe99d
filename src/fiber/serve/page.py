"""The page: one file without anything from elsewhere. Text from outside enters it as text, never as HTML."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fiber</title>
<link rel="icon" href="data:,">
<style nonce="NONCE">
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 1.5rem auto; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.3rem; margin: 0 0 1rem; }
main { display: grid; grid-template-columns: minmax(16rem, 3fr) minmax(18rem, 2fr); gap: 1.5rem; align-items: start; }
@media (max-width: 50rem) { main { grid-template-columns: 1fr; } }
#drop { position: relative; border: 2px dashed #888; border-radius: 6px; min-height: 18rem; display: grid;
  place-items: center; cursor: pointer; background: #fafafa; overflow: hidden; }
#drop.over { border-color: #0072b2; background: #eef6fb; }
#invite { color: #555; padding: 1rem; text-align: center; }
#invite:empty { display: none; }
#stage { position: relative; display: none; line-height: 0; width: min(100%, calc(80vh * var(--ratio, 1))); }
#stage.shown { display: block; }
#shown { width: 100%; height: auto; }
#boxes, #heat { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
#heat { mix-blend-mode: multiply; }
#boxes rect { fill: none; stroke-width: 2.5; vector-effect: non-scaling-stroke; }
.tag { position: absolute; font-size: .8rem; line-height: 1.25; padding: 0 .25rem; white-space: nowrap;
  pointer-events: none; transform: translateY(-100%); }
.tag.low { transform: none; }
form { display: grid; gap: .6rem; }
#text { padding: .45rem; font: inherit; }
select, button { font: inherit; padding: .4rem .7rem; }
#ask { background: #0072b2; color: white; border: 0; border-radius: 4px; }
#ask:disabled { background: #888; }
#least { display: flex; gap: .5rem; align-items: center; }
#least[hidden] { display: none; }
#threshold { flex: 1; }
#error { color: #a40000; font-weight: 600; }
#found { border-collapse: collapse; margin-top: 1rem; width: 100%; }
#found td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; }
#words { margin-top: .6rem; }
#words button { margin: 0 .3rem .3rem 0; }
#words button.on { background: #0072b2; color: white; }
.hint { color: #555; font-size: .9rem; margin: 0; }
</style>
</head>
<body>
<h1>fiber: <span id="name"></span></h1>
<main>
<div id="drop" tabindex="0" role="button" aria-label="choose an image">
  <span id="invite">Drop an image here, or click to choose one</span>
  <div id="stage"><img id="shown" alt="the chosen image"><canvas id="heat"></canvas><svg id="boxes"
    preserveAspectRatio="none"></svg><div id="tags"></div></div>
</div>
<div>
<input id="file" type="file" accept="image/*" hidden>
<form id="form">
  <select id="verb" aria-label="what to do"></select>
  <p class="hint" id="hint"></p>
  <input id="text" aria-label="text" maxlength="2000" autocomplete="off">
  <label id="least">least score <input id="threshold" type="range" min="0" max="1" step="0.01" value="0.3">
    <output id="level">0.30</output></label>
  <button id="ask">Ask</button>
  <button id="look" type="button">What each word looked at</button>
</form>
<div id="error" role="alert"></div>
<div id="words"></div>
<table id="found"></table>
</div>
</main>
<script nonce="NONCE">
"use strict";
const HINTS = {
  detect: "Classes, with commas between them; empty: those the model was trained on.",
  ground: "A sentence; mark phrases with [brackets], or let them be found.",
  refer: "An expression that means one object: the left dog.",
  answer: "A question about the image.",
  caption: "No text is needed.",
  match: "A text, or several with semicolons between them.",
};
const EXAMPLES = {
  ground: "[a red circle] left of [two dogs]", refer: "the left dog", answer: "how many dogs are there?",
  match: "two dogs; a red circle",
};
const VERBS = {
  detect: "Detect objects", ground: "Ground the phrases of a sentence", refer: "Find what an expression means",
  answer: "Answer a question", caption: "Describe the image", match: "Match texts",
};
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000"];
const at = (id) => document.getElementById(id);
let file = null, classes = "";

function show(error) { at("error").textContent = error || ""; }
function clear() {
  for (const name of ["boxes", "tags", "found", "words"]) at(name).replaceChildren();
  darken(null); show("");
}
function choose(chosen) {
  clear();
  file = chosen || null;
  if (!file) return;
  at("invite").textContent = "";
  at("stage").className = "shown";
  at("shown").onload = ({ target }) =>
    at("stage").style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
  at("shown").onerror = () => { at("stage").className = ""; at("invite").textContent = file.name; };
  at("shown").src = URL.createObjectURL(file);
}
async function post(path, query) {
  if (!file) throw new Error("choose an image first");
  const answer = await fetch(path + "?" + new URLSearchParams(query), { method: "POST", body: file });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}
function row(colour, words) {
  const line = at("found").insertRow();
  words.forEach((word, n) => {
    const cell = line.insertCell();
    if (n === 0 && colour) {
      const swatch = document.createElement("span");
      swatch.className = "swatch"; swatch.style.background = colour; cell.append(swatch);
    }
    cell.append(word);
  });
}
function draw(found) {
  const svg = at("boxes"), kinds = [];
  svg.setAttribute("viewBox", `0 0 ${found.width} ${found.height}`);
  for (const region of found.regions || []) {
    const kind = region.span ? region.span.join() : region.label;
    if (!kinds.includes(kind)) kinds.push(kind);
    const colour = COLOURS[kinds.indexOf(kind) % COLOURS.length], [x0, y0, x1, y1] = region.box;
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0, stroke: colour })
      .forEach(([key, value]) => box.setAttribute(key, value));
    svg.append(box);
    tag(region, colour, x0 / found.width, y0 / found.height);
    row(colour, [region.label, region.score.toFixed(2), region.box.join(", ")]);
  }
  for (const one of found.texts || []) row("", [one.text, one.score.toFixed(3)]);
  for (const one of found.matches || []) row("", [one.text,
    one.probability === null ? "" : "fits " + one.probability.toFixed(3),
    one.similarity === null ? "" : "similarity " + one.similarity.toFixed(3)]);
  if (!at("found").rows.length) row("", [at("least").hidden ? "nothing found" :
    `nothing found with a score of at least ${at("level").value}: lower it, or name other things`]);
}
function tag(region, colour, left, top) {
  const words = document.createElement("span");
  words.className = top < 0.06 ? "tag low" : "tag"; // no room above a box at the upper edge
  words.textContent = `${region.label} ${region.score.toFixed(2)}`;
  const dark = ["#0072b2", "#009e73", "#d55e00", "#000000"].includes(colour);
  Object.assign(words.style, { left: `${100 * left}%`, top: `${100 * top}%`, background: colour,
    color: dark ? "white" : "black" });
  at("tags").append(words);
}
function darken(word) {
  const canvas = at("heat"), pen = canvas.getContext("2d");
  if (!word) { canvas.width = canvas.width; return; }
  canvas.width = word.columns; canvas.height = word.rows;
  const light = Uint8Array.from(atob(word.light), (c) => c.charCodeAt(0));
  const image = pen.createImageData(word.columns, word.rows);
  light.forEach((value, n) => image.data.set(Array(3).fill(50 + 205 * value / 255).concat(255), 4 * n));
  pen.putImageData(image, 0, 0);
}
function busy(on) {
  at("ask").disabled = at("look").disabled = on;
  at("ask").textContent = on ? "Asking …" : "Ask";
  document.body.dataset.state = on ? "busy" : "idle";
}
async function guarded(work) {
  clear(); busy(true);
  try { await work(); } catch (error) { show(error.message); }
  busy(false);
}
at("drop").addEventListener("click", () => at("file").click());
at("drop").addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") at("file").click(); });
at("file").addEventListener("change", () => choose(at("file").files[0]));
at("drop").addEventListener("dragover", (e) => { e.preventDefault(); at("drop").className = "over"; });
at("drop").addEventListener("dragleave", () => { at("drop").className = ""; });
at("drop").addEventListener("drop", (e) => {
  e.preventDefault(); at("drop").className = ""; choose(e.dataTransfer.files[0]);
});
at("verb").addEventListener("change", () => {
  const verb = at("verb").value;
  at("hint").textContent = HINTS[verb];
  at("text").placeholder = verb === "detect" ? classes : EXAMPLES[verb] || "";
  at("least").hidden = !["detect", "ground"].includes(verb);
  at("text").hidden = at("look").hidden = verb === "caption";
});
at("threshold").addEventListener("input", () => { at("level").value = (+at("threshold").value).toFixed(2); });
at("form").addEventListener("submit", (e) => {
  e.preventDefault();
  const verb = at("verb").value, threshold = at("least").hidden ? "0" : at("threshold").value;
  guarded(async () => draw(await post("/ask", { verb, text: at("text").value, threshold })));
});
at("look").addEventListener("click", () => guarded(async () => {
  const found = await post("/heat", { text: at("text").value.replace(/[\\[\\]]/g, "") });
  for (const word of found.words) {
    const button = document.createElement("button");
    button.textContent = word.word;
    button.addEventListener("click", () => {
      for (const other of at("words").children) other.className = other === button ? "on" : "";
      darken(word);
    });
    at("words").append(button);
  }
  if (at("words").firstChild) at("words").firstChild.click();
}));
fetch("/about").then((answer) => answer.json()).then((about) => {
  at("name").textContent = about.name;
  for (const verb of about.verbs) at("verb").add(new Option(VERBS[verb], verb));
  if (about.threshold !== null) at("threshold").value = about.threshold;
  at("threshold").dispatchEvent(new Event("input"));
  classes = about.categories.slice(0, 6).join(", ");
  at("verb").dispatchEvent(new Event("change"));
  document.body.dataset.state = "idle";
});
</script>
</body>
</html>
"""
