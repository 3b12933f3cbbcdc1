// What happens when: the controls wired to the parts.

function drawTicked() {
  setSlider();
  drawRobustness();
  drawScatter();
  drawMargins();
  drawTraining();
  drawPasses();
}

function drawAll() {
  drawTicked();
  drawComparison();
}

/** Show one benchmark: its table, its choices, its pictures. */
function choose(key) {
  state.key = key;
  state.check = null;
  for (const part of document.querySelectorAll("#results [data-benchmark]")) part.hidden = part.dataset.benchmark !== key;
  filterRows();
  scatterChoices();
  quantityChoices();
  compareChoices();
  galleryChoices();
  drawAll();
}

/** The runs of this benchmark alone; the one that was chosen stays if it is among them. */
function galleryChoices() {
  const select = byId("gallery");
  for (const option of select.options) option.hidden = option.disabled = option.dataset.of !== state.key;
  const there = [...select.options].filter((option) => !option.disabled);
  const full = there.find((option) => document.querySelector(`[data-gallery="${option.value}"] img`));
  if (there.length && !there.includes(select.selectedOptions[0])) select.value = (full || there[0]).value;
  showGallery();
}

function showGallery() {
  for (const part of document.querySelectorAll("[data-gallery]")) part.hidden = part.dataset.gallery !== byId("gallery").value;
}

/** Open the run that a link leads to. */
function openLinked() {
  const target = location.hash.startsWith("#run-") && byId(location.hash.slice(1));
  if (target) target.open = true;
}

function listen(id, event, react) {
  byId(id).addEventListener(event, react);
}

function start() {
  setTheme("system");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    setTheme(byId("theme").dataset.theme);
    drawAll();
  });
  listen("theme", "click", () => { nextTheme(); drawAll(); });
  document.querySelectorAll('input[name="benchmark"]').forEach((radio) =>
    radio.addEventListener("change", () => choose(radio.value)));
  document.querySelectorAll(".results thead button").forEach((button) =>
    button.addEventListener("click", () => sortBy(button.closest("th"))));
  document.querySelectorAll("input[data-run]").forEach((box) => box.addEventListener("change", drawTicked));
  listen("filter", "input", filterRows);
  listen("with-published", "change", filterRows);
  listen("all", "click", () => tickAll(true));
  listen("none", "click", () => tickAll(false));
  listen("scatter-at", "change", drawScatter);
  listen("quantity", "change", drawTraining);
  listen("attack", "change", () => { compareChoices(); drawComparison(); });
  listen("first", "change", drawComparison);
  listen("second", "change", drawComparison);
  listen("epoch", "input", () => { stopPlaying(); state.check = Number(byId("epoch").value); drawMargins(); });
  listen("play", "click", play);
  listen("gallery", "change", showGallery);
  addEventListener("hashchange", openLinked);
  openLinked();
  if (!state.key) return;
  choose(state.key);
  loadPlotly().then(drawAll, (error) => {
    document.querySelectorAll(".plot").forEach((place) => place.replaceChildren(cell("p", `No pictures: ${error}`, "empty")));
  }).finally(() => { document.documentElement.dataset.ready = "yes"; });
}

start();
