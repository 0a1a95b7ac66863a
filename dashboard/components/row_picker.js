// Marks the open row of a card's table, and reports the row that a click or Enter chooses; arrow keys move among rows.
// Below it stand the buttons that turn the pages of a list that has several.

const watched = new WeakSet();

export default function ({ data, parentElement, setTriggerValue }) {
  const card = parentElement.closest(`.st-key-${data.card}`);
  card.dataset.chosen = data.chosen;
  const choose = (row) => {
    const at = rows(card).indexOf(row);
    if (!card.isConnected || at < 0 || at === Number(card.dataset.chosen)) return;
    card.dataset.chosen = at;
    mark(card);
    setTriggerValue("chosen", at);
  };
  card.onclick = ({ target }) => choose(target.closest("tbody tr"));
  card.onkeydown = (event) => {
    const row = event.target.closest("tbody tr");
    const near = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling }[event.key];
    if (!row || !(near || event.key === "Enter" || event.key === " ")) return;
    event.preventDefault();
    if (near) near.focus();
    else choose(row);
  };
  browse = (step) => choose(rows(card)[Number(card.dataset.chosen) + step]);
  if (!listens) document.addEventListener("keydown", browseByKey);
  listens = true;
  if (!watched.has(card)) new MutationObserver(() => mark(card)).observe(card, { childList: true, subtree: true });
  watched.add(card);
  mark(card);
  reveal(card);
  turning(parentElement.querySelector(".turning"), data, (first) => setTriggerValue("turned", first));
}

// j and k open the next and the previous row, wherever the focus is, but not while something is typed.
let browse = null;
let listens = false;

function browseByKey(event) {
  const step = { j: 1, k: -1 }[event.key];
  const typing = event.target.closest?.("input, textarea, select, [contenteditable=true]");
  if (!step || typing || event.metaKey || event.ctrlKey || event.altKey) return;
  browse(step);
}

const rows = (card) => [...card.querySelectorAll("tbody tr")];

function mark(card) {
  card.querySelector("table")?.setAttribute("role", "grid");
  const open = Number(card.dataset.chosen);
  rows(card).forEach((row, at) => {
    row.ariaSelected = String(open === at);
    row.tabIndex = Math.max(open, 0) === at ? 0 : -1;
    for (const cell of row.querySelectorAll(".long")) cell.title = cell.textContent;
  });
}

// Only the table scrolls: scrollIntoView would move the page too.
function reveal(card) {
  const [place, row] = [card.querySelector(".read-table"), card.querySelector("tr[aria-selected=true]")];
  if (!row) return;
  const [outer, inner] = [place.getBoundingClientRect(), row.getBoundingClientRect()];
  const head = card.querySelector("thead").offsetHeight;
  if (inner.top < outer.top + head || inner.bottom > outer.bottom) place.scrollTop += inner.top - outer.top - head;
}

function turning(place, { first, count, total, page }, turn) {
  const [back, on] = place.querySelectorAll("button");
  back.hidden = on.hidden = total <= page;
  back.disabled = first === 0;
  on.disabled = first + count >= total;
  back.onclick = () => turn(Math.max(0, first - page));
  on.onclick = () => turn(first + page);
  const numbered = (number) => number.toLocaleString("en");
  const listed = total > page ? `${numbered(first + 1)} to ${numbered(first + count)} of ${numbered(total)}` : `n = ${total}`;
  place.querySelector("span").textContent = `${listed}. Choose a row to open it; j and k open the next and the previous.`;
}
