// Training curves, robust accuracy against passes, and the margins by epoch with their slider.

const QUANTITIES = {
  "val robust_acc": ["robust accuracy, validation", 100], "val clean_acc": ["clean accuracy, validation", 100],
  "val mean_margin": ["mean margin, validation", 0], "train mean_eps": ["mean ε of the batch", 0],
  "train clean_loss": ["clean loss", 1], "train mma_loss": ["MMA loss", 1], "train adv_loss": ["adversarial loss", 1],
  "train lr": ["learning rate", 1], "test robust_acc": ["robust accuracy, test", 100],
  "test clean_acc": ["clean accuracy, test", 100], "test mean_margin": ["mean margin, test", 0],
};

/** A unit of 0 stands for the benchmark's: margins and radii. */
const factorOf = (key) => QUANTITIES[key][1] || current().scale;
const titleOf = (key) => QUANTITIES[key][0] + ({ 100: " [%]", 0: unit() }[QUANTITIES[key][1]] || "");

function trainingTraces(key, against) {
  const traces = [];
  for (const { line, number } of ticked()) {
    const found = (DATA.training[line.id] || {})[key];
    const each = DATA.passes_a_step[line.id];
    if (!found || (against === "passes" && !found.passes && !each)) continue;
    const style = look(number);
    const few = found.step.length <= 40;
    traces.push({
      x: found[against] || found.step.map((step) => each * step), y: found.value.map((value) => factorOf(key) * value), name: plain(line.name),
      mode: few ? "lines+markers" : "lines", line: { color: style.colour, dash: style.dash, width: 2 },
      marker: { symbol: style.marker, size: 5, color: style.colour },
      hovertemplate: `${against} %{x:.4s}: %{y:.4g}<extra>%{fullData.name}</extra>`,
    });
  }
  return traces;
}

function drawTraining() {
  const key = byId("quantity").value;
  const traces = key ? trainingTraces(key, "step") : [];
  const y = key ? axis(titleOf(key), { rangemode: key === "train lr" ? "tozero" : "normal" }) : axis("");
  draw("training", traces, axis("optimizer step", { rangemode: "tozero" }), y,
    { empty: "Nothing to draw: the ticked runs have not logged this." });
}

function drawPasses() {
  const traces = trainingTraces("val robust_acc", "passes");
  const eps = current().test_eps;
  const at = eps.length === 1 ? ` at ε = ${radius(eps[0])}` : "";
  draw("passes", traces, axis("passes", { type: "log", exponentformat: "SI" }),
    axis(`robust accuracy${at} [%]`, { rangemode: "tozero" }), { empty: "Nothing to draw: the ticked runs have no checks." });
}

/** Only what some run of the benchmark has logged. */
function quantityChoices() {
  const there = new Set(current().lines.flatMap((line) => Object.keys(DATA.training[line.id] || {})));
  options("quantity", Object.keys(QUANTITIES).filter((key) => there.has(key)).map((key) => [key, titleOf(key)]));
}

// --- margins ---------------------------------------------------------------------------------------------------------

const withMargins = () => ticked().filter(({ line }) => DATA.margins[line.id]);

function epochsShown() {
  return [...new Set(withMargins().flatMap(({ line }) => DATA.margins[line.id].epochs))].sort((a, b) => a - b);
}

/** The slider's range for the ticked runs; stays at the last epoch until it is moved. */
function setSlider() {
  const epochs = epochsShown();
  const slider = byId("epoch");
  const atEnd = state.check === null || state.check >= Number(slider.max);
  slider.max = Math.max(epochs.length - 1, 0);
  slider.value = atEnd ? slider.max : Math.min(state.check, epochs.length - 1);
  state.check = Number(slider.value);
  slider.disabled = byId("play").disabled = epochs.length < 2;
}

/** The run's last check at or before this epoch; null before its first. */
function checkAt(found, epoch) {
  const number = found.epochs.filter((e) => e <= epoch + 1e-9).length - 1;
  return number < 0 ? null : number;
}

function drawMargins() {
  const epoch = epochsShown()[state.check];
  const traces = [];
  const shapes = [];
  const annotations = [];
  let top = 0;
  for (const { line, number } of withMargins()) {
    const found = DATA.margins[line.id];
    const style = look(number);
    const scale = current().scale;
    const width = (scale * found.top) / found.shares[0].length;
    top = Math.max(top, ...found.shares.flat());
    const check = checkAt(found, epoch);
    if (check === null) continue;
    const median = Number((scale * found.median[check]).toPrecision(3));
    traces.push({
      x: [...found.shares[check].keys(), found.shares[check].length].map((i) => i * width), mode: "lines",
      y: [...found.shares[check], 0], fill: "tozeroy",
      fillcolor: faded(style.colour, 0.18), line: { color: style.colour, dash: style.dash, width: 2, shape: "hv" },
      name: `${plain(line.name)}: median ${median}, ${found.wrong[check].toFixed(1)} % misclassified`,
      hovertemplate: "margin %{x:.3g}: %{y:.1f} % of the images<extra></extra>",
    });
    if (found.d_max !== null) {
      shapes.push({
        type: "line", x0: scale * found.d_max, x1: scale * found.d_max, y0: 0, y1: 1, yref: "paper",
        line: { color: style.colour, width: 1.2, dash: "dot" },
      });
      annotations.push({
        x: scale * found.d_max, y: 1, yref: "paper", xanchor: "right", yanchor: "top", showarrow: false,
        text: "d<sub>max</sub> ", font: { size: 12, color: style.colour },
      });
    }
  }
  byId("epoch-said").textContent = traces.length ? `${Number(epoch.toFixed(1))}` : "";
  byId("epoch").setAttribute("aria-valuetext", traces.length ? `epoch ${epoch}` : "none");
  draw("margins", traces, axis(`margin: ${current().norm} distance${unit()}`, { rangemode: "tozero" }),
    axis("training images [%]", { range: [0, 1.08 * top] }),
    { shapes, annotations, empty: "Nothing to draw: only MMA and OMMA training record margins (margins.npy)." });
}

/** Step through the epochs once, or stop. */
function play() {
  const button = byId("play");
  if (state.timer !== null) return stopPlaying();
  if (state.check >= Number(byId("epoch").max)) state.check = -1;
  button.textContent = "Stop";
  state.timer = setInterval(() => {
    if (state.check >= Number(byId("epoch").max)) return stopPlaying();
    byId("epoch").value = state.check += 1;
    drawMargins();
  }, 250);
}

function stopPlaying() {
  clearInterval(state.timer);
  state.timer = null;
  byId("play").textContent = "Play";
}
