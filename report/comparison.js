"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.order;
      const number = head.classList.contains("number");
      const compare = (a, b) => {
        const x = key(a), y = key(b);
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const order = number ? Number(x) - Number(y) : x.localeCompare(y);
        return down ? -order : order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  }
}
// A number that is chosen says where it stands in results.json; arrows go from cell to cell.
const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
for (const sheet of document.querySelectorAll(".sheet")) {
  const shown = sheet.querySelector("output");
  let last = sheet.querySelector("td[data-json]");
  if (last) last.tabIndex = 0;
  sheet.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-json]");
    if (cell) cell.focus();
  });
  sheet.addEventListener("focusin", (event) => {
    const cell = event.target.closest("[data-json]");
    if (!cell) return;
    shown.textContent = cell.dataset.json;
    if (!last) return;
    last.tabIndex = -1; // Tab leaves the table; it comes back to the last cell
    cell.tabIndex = 0;
    last = cell;
  });
  sheet.addEventListener("keydown", (event) => {
    let cell = event.target.closest("td");
    const step = steps[event.key];
    if (!cell || !step) return;
    do {
      const row = cell.closest("tbody").rows[cell.parentElement.sectionRowIndex + step[0]];
      cell = row && row.cells[cell.cellIndex + step[1]];
    } while (cell && cell.dataset.json === undefined);
    if (cell) cell.focus();
    event.preventDefault();
  });
}
