// A header of a plain table sorts its rows: numbers from the largest, texts from A; a second time the other way round.
// Missing values stay last.
const HEADER = ".read-table[data-sortable] th";

export default function () {
  if (window.workbenchTableSort) return;
  window.workbenchTableSort = true;
  document.addEventListener("click", ({ target }) => sort(target.closest?.(HEADER)));
  document.addEventListener("keydown", (event) => {
    const header = event.target.closest?.(HEADER);
    if (!header || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    sort(header);
  });
}

function sort(header) {
  if (!header) return;
  const table = header.closest("table");
  const at = header.cellIndex;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, value: value(row.cells[at]) }));
  const isNumber = rows.some(({ value }) => typeof value === "number");
  const before = header.getAttribute("aria-sort");
  const ascending = before === "none" ? !isNumber : before === "descending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const sign = ascending ? 1 : -1;
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    return sign * (isNumber ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true }));
  });
  body.append(...rows.map(({ row }) => row));
}

function value(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.dataset.missing !== undefined ? null : cell.textContent;
}
