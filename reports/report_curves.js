// Accuracy against ε, and clean against robust accuracy.

const NOTHING = "Nothing to draw: tick runs in the table that were evaluated.";

/** [ε, accuracy, low, high] from the clean images on, in the benchmark's unit and per cent. */
function curve(line) {
  const points = line.clean ? [[0, ...line.clean]] : [];
  for (const [eps, ...figure] of line.robust) points.push([eps, ...figure]);
  return points.map(([eps, ...figure]) => [current().scale * eps, ...figure.slice(0, 3).map((v) => (v === null ? null : 100 * v))]);
}

function band(points, hex, group, alpha) {
  const known = points.filter((point) => point[2] !== null && point[3] !== null);
  return {
    x: [...known.map((p) => p[0]), ...known.map((p) => p[0]).reverse()],
    y: [...known.map((p) => p[3]), ...known.map((p) => p[2]).reverse()],
    fill: "toself", fillcolor: faded(hex, alpha), line: { width: 0 }, mode: "lines", hoverinfo: "skip",
    showlegend: false, legendgroup: group, name: "band",
  };
}

function drawRobustness() {
  const traces = [];
  const lines = ticked().filter(({ line }) => line.robust.length);
  for (const { line, number } of lines) {
    const points = curve(line);
    const style = look(number);
    if (points.some((p) => p[2] !== null)) traces.push(band(points, style.colour, line.id, lines.length > 8 ? 0.07 : 0.16));
    traces.push({
      x: points.map((p) => p[0]), y: points.map((p) => p[1]), mode: "lines+markers", legendgroup: line.id,
      name: plain(line.name) + (line.published ? " (published)" : ""),
      line: { color: style.colour, dash: style.dash, width: 2.2 },
      marker: { symbol: style.marker + (line.published ? "-open" : ""), size: 7, color: style.colour },
      customdata: points.map((p) => (p[2] === null ? "" : ` [${p[2].toFixed(1)}, ${p[3].toFixed(1)}]`)),
      hovertemplate: "ε %{x:.3g}: %{y:.1f} %%{customdata}<extra>%{fullData.name}</extra>",
    });
  }
  draw("robustness", traces, axis(`${current().norm} radius ε${unit()}`, { rangemode: "tozero" }),
    axis("accuracy [%]", { range: [-2, 102] }), { empty: NOTHING });
}

/** [value, low, high] of the accuracy that is chosen, or null. */
function robustAt(line, choice) {
  if (choice === "average") return line.average;
  if (choice === "autoattack") return line.autoattack.length ? line.autoattack[0].slice(1, 4) : null;
  const found = line.robust.find(([eps]) => eps === Number(choice));
  return found ? found.slice(1, 4) : null;
}

function errors(figures) {
  const known = figures.every((f) => f[1] !== null && f[2] !== null);
  return {
    type: "data", symmetric: false, thickness: 1, width: 3, visible: known,
    array: figures.map((f) => 100 * (f[2] - f[0])), arrayminus: figures.map((f) => 100 * (f[0] - f[1])),
  };
}

/** One point a run: the ticked ones in their colours, the others grey. */
function drawScatter() {
  const choice = byId("scatter-at").value;
  const chosen = new Set(ticked().map(({ line }) => line.id));
  const traces = [];
  current().lines.forEach((line, number) => {
    const robust = robustAt(line, choice);
    if (!robust || !line.clean) return;
    const style = look(number);
    const isTicked = chosen.has(line.id);
    const hex = isTicked ? style.colour : colour("--soft");
    traces.push({
      x: [100 * line.clean[0]], y: [100 * robust[0]], mode: "markers", showlegend: isTicked, opacity: isTicked ? 1 : 0.55,
      name: plain(line.name) + (line.published ? " (published)" : ""),
      marker: { symbol: style.marker + (line.published ? "-open" : ""), size: isTicked ? 11 : 8, color: hex, line: { width: 1.5, color: hex } },
      error_x: { ...errors([line.clean]), color: hex }, error_y: { ...errors([robust]), color: hex },
      hovertemplate: "clean %{x:.1f} %, robust %{y:.1f} %<extra>%{fullData.name}</extra>",
    });
  });
  draw("scatter", traces, axis("clean accuracy [%]"), axis("robust accuracy [%]"), { empty: NOTHING });
}

function scatterChoices() {
  const benchmark = current();
  const pairs = [["average", "AvgRobAcc"]];
  for (const eps of benchmark.radii) pairs.push([String(eps), `ε = ${radius(eps)}`]);
  if (benchmark.lines.some((line) => line.autoattack.length)) pairs.push(["autoattack", "AutoAttack"]);
  options("scatter-at", pairs);
}
