// The tables: sorting by a column, filtering by text, ticks.

/** A cell's value: a number, text, or null where there is none. */
function valueOf(row, column) {
  const text = row.cells[column].dataset.v;
  if (text === undefined || text === "") return null;
  return column === 0 ? text : Number(text);
}

/** By this column, first from the largest (names: from A); again: the other way. What is missing stays last. */
function sortBy(header) {
  const table = header.closest("table");
  const headers = [...header.parentElement.cells];
  const column = headers.indexOf(header);
  const was = header.getAttribute("aria-sort");
  const descending = was === null ? column > 0 : was === "ascending";
  headers.forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, column) }));
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    const order = typeof a.value === "number" ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true });
    return descending ? -order : order;
  });
  body.append(...rows.map(({ row }) => row));
}

/** Hide the rows without the text, and published ones where they are not wanted. */
function filterRows() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const withPublished = byId("with-published").checked;
  let shown = 0;
  const rows = [...tableInView().querySelectorAll("tbody tr")];
  for (const row of rows) {
    const text = row.cells[0].textContent.toLowerCase();
    const wanted = withPublished || !row.classList.contains("published");
    row.hidden = !(wanted && words.every((word) => text.includes(word)));
    shown += !row.hidden;
  }
  byId("shown").textContent = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
}

function tickAll(value) {
  for (const row of tableInView().querySelectorAll("tbody tr:not([hidden])")) {
    const box = row.querySelector("input[data-run]");
    if (box) box.checked = value;
  }
  drawTicked();
}
