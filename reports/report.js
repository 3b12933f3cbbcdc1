"use strict";
// The page's state and what its parts share. Names of runs reach the page as text alone, never as HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 7;
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const MARKERS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down"];
const BY_KEY = Object.fromEntries(DATA.benchmarks.map((benchmark) => [benchmark.key, benchmark]));
const state = { key: DATA.benchmarks.length ? DATA.benchmarks[0].key : null, check: null, timer: null };

const byId = (id) => document.getElementById(id);
const current = () => BY_KEY[state.key];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Plotly reads some tags in text: a name keeps its own characters. */
function plain(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** The look of a line by its number in the table. */
function look(number) {
  return {
    colour: colour(`--s${number % COLOURS}`),
    dash: DASHES[Math.floor(number / COLOURS) % DASHES.length],
    marker: MARKERS[number % MARKERS.length],
  };
}

function faded(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

/** The table in view, and the lines ticked in it, each with its number. */
const tableInView = () => document.querySelector(`#results [data-benchmark="${CSS.escape(state.key)}"]`);
function ticked() {
  const boxes = tableInView().querySelectorAll("input[data-run]:checked");
  const ids = new Set([...boxes].map((box) => box.dataset.run));
  return current().lines.map((line, number) => ({ line, number })).filter(({ line }) => ids.has(line.id));
}

const unit = () => (current().scale === 255 ? " [1/255]" : "");
const radius = (eps) => `${Number((current().scale * eps).toPrecision(3))}${current().scale === 255 ? "/255" : ""}`;

function axis(title, more = {}) {
  return {
    title: { text: title, font: { size: 13 }, standoff: 8 }, gridcolor: colour("--rule"), zeroline: false,
    linecolor: colour("--rule"), tickfont: { size: 12 }, automargin: true, fixedrange: true, ...more,
  };
}

/** plotly.js out of the page: base64 and gzip undone, as the page asks no network for anything. */
async function loadPlotly() {
  const bytes = Uint8Array.from(atob(byId("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

/** Draw, or say why there is nothing to draw. */
function draw(name, traces, x, y, more = {}) {
  if (!window.Plotly) return; // it is still on its way
  const place = byId(`plot-${name}`);
  if (!traces.length) {
    Plotly.purge(place);
    place.replaceChildren(Object.assign(document.createElement("p"), { className: "empty", textContent: more.empty }));
    return;
  }
  if (place.querySelector(".empty")) place.replaceChildren();
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, dragmode: false,
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("--ink"), size: 13 },
    margin: { l: 48, r: 12, t: 8, b: 44 }, xaxis: x, yaxis: y, shapes: more.shapes || [], annotations: more.annotations || [],
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--ink") },
    showlegend: more.legend !== false && traces.filter((t) => t.showlegend !== false).length <= 12, hovermode: more.hover || "closest",
    legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0, font: { size: 12 } },
    hoverlabel: { bgcolor: colour("--paper"), bordercolor: colour("--rule"), font: { color: colour("--ink") } },
  };
  Plotly.react(place, traces, layout, {
    responsive: true, displaylogo: false, modeBarButtons: [["toImage"]], displayModeBar: innerWidth < 640 ? false : "hover",
  });
}

/** Fill a <select> with [value, text] pairs; keeps what was chosen where that is still there. */
function options(id, pairs, wanted) {
  const select = byId(id);
  const before = wanted !== undefined ? wanted : select.value;
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

function nextTheme() {
  const order = ["system", "light", "dark"];
  setTheme(order[(order.indexOf(byId("theme").dataset.theme || "system") + 1) % 3]);
}

function setTheme(name) {
  const button = byId("theme");
  button.dataset.theme = name;
  button.textContent = `Theme: ${name}`;
  const dark = name === "dark" || (name === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
