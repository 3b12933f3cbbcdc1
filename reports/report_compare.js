// Two runs compared on the same images. The figures are the maker's (report_compare.py); here they are only shown.

const ATTACK_NAMES = { pgd: "PGD", autoattack: "AutoAttack" };

/** Runs that can be compared under the chosen attack. */
function comparable() {
  const pairs = current().pairs[byId("attack").value] || {};
  const ids = new Set(Object.keys(pairs).flatMap((key) => key.split("-")));
  return current().lines.filter((line) => ids.has(line.id));
}

function compareChoices() {
  options("attack", Object.keys(current().pairs).map((attack) => [attack, ATTACK_NAMES[attack]]));
  const lines = comparable().map((line) => [line.id, line.name]);
  options("first", lines);
  options("second", lines);
  if (lines.length > 1 && byId("first").value === byId("second").value) byId("second").value = lines[1][0];
}

/** [ε, n, first, second, only first, only second, low, high, p], turned round where the second run comes first. */
function pairsOf(first, second) {
  const all = current().pairs[byId("attack").value] || {};
  const straight = all[`${first}-${second}`];
  if (straight) return straight;
  const turned = all[`${second}-${first}`] || [];
  return turned.map(([eps, n, a, b, onlyA, onlyB, low, high, p]) => [eps, n, b, a, onlyB, onlyA, -high, -low, p]);
}

function cell(tag, text, className) {
  return Object.assign(document.createElement(tag), { textContent: text, className: className || "" });
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(1)}`;
const pValue = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(3));

function comparisonTable(rows, names) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  const titles = ["ε", names[0], names[1], "difference", "95 % interval", "only first", "only second", "p"];
  titles.forEach((title) => head.append(Object.assign(cell("th", title), { scope: "col" })));
  const body = table.createTBody();
  for (const [eps, , a, b, onlyA, onlyB, low, high, p] of rows) {
    const row = body.insertRow();
    const texts = [radius(eps), (100 * a).toFixed(1), (100 * b).toFixed(1), signed(a - b),
      `${signed(low)} to ${signed(high)}`, onlyA, onlyB, pValue(p)];
    texts.forEach((text) => row.append(cell("td", String(text))));
  }
  const counts = [...new Set(rows.map((row) => row[1]))].join(", ");
  const caption = `Accuracies in % of the same ${counts} images, differences in points. Only first: images on which the first `
    + "run stands and the second falls. p: McNemar, exact, two-sided.";
  return [table, cell("p", caption, "explained")];
}

function drawComparison() {
  const ids = [byId("first").value, byId("second").value];
  const names = ids.map((id) => (current().lines.find((line) => line.id === id) || { name: "" }).name);
  const rows = pairsOf(...ids);
  const why = comparable().length < 2
    ? "Not evaluated: it takes two runs that were attacked on the same images, with their flags stored."
    : "Choose two different runs that were attacked at the same ε.";
  const [table, caption] = rows.length ? comparisonTable(rows, names) : [cell("p", why, "none"), ""];
  byId("pairs").replaceChildren(table);
  byId("pairs-said").replaceChildren(caption);
  byId("plot-pairs").hidden = !rows.length;
  document.querySelector("#compare .tools").hidden = comparable().length < 2;
  if (!rows.length) return;
  const trace = {
    x: rows.map((r) => current().scale * r[0]), y: rows.map((r) => 100 * (r[2] - r[3])), mode: "markers",
    marker: { size: 9, color: colour("--s0") }, showlegend: false,
    error_y: {
      type: "data", symmetric: false, color: colour("--s0"), thickness: 1.6, width: 4,
      array: rows.map((r) => 100 * (r[7] - (r[2] - r[3]))), arrayminus: rows.map((r) => 100 * (r[2] - r[3] - r[6])),
    },
    hovertemplate: "ε %{x:.3g}: %{y:+.1f} points<extra></extra>",
  };
  const zero = { type: "line", x0: 0, x1: 1, xref: "paper", y0: 0, y1: 0, line: { color: colour("--soft"), width: 1 } };
  draw("pairs", [trace], axis(`${current().norm} radius ε${unit()}`), axis("first − second [points]"),
    { shapes: [zero], legend: false });
}
