// Tokens as words, shaded by one head's attention. Text reaches the page by textContent only.

const BLUE = "47, 91, 215";

// Row i of a causal pattern holds keys 0 to i; rows follow each other as little-endian 16-bit shares of 65535.
function unpack(base64, count) {
  const raw = atob(base64);
  const bytes = Uint8Array.from(raw, (char) => char.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return (query, key) =>
    key > query || query >= count ? null : view.getUint16((query * (query + 1) + 2 * key), true) / 65535;
}

function build(strip, data) {
  strip.replaceChildren();
  const spans = data.tokens.map((text, index) => {
    const span = document.createElement("span");
    span.className = "token";
    span.textContent = text;
    span.dataset.index = index;
    strip.append(span);
    if (text.endsWith("↵")) strip.append(document.createElement("br"));
    return span;
  });
  return spans;
}

function plain(data, strip, readout) {
  if (strip.dataset.id !== data.id) build(strip, data).forEach((span) => span.classList.add("boxed"));
  strip.dataset.id = data.id;
  readout.textContent = "Point at a token for its id.";
  strip.onmouseover = (event) => {
    const span = event.target.closest?.(".token");
    if (span) readout.textContent = `token ${span.dataset.index} “${span.textContent}” is id ${data.ids[span.dataset.index]}`;
  };
  strip.dataset.ready = data.id;
}

// Only the strip scrolls: scrollIntoView would move the page too.
function reveal(strip, span) {
  const [outer, inner] = [strip.getBoundingClientRect(), span.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) strip.scrollTop += inner.top - outer.top - outer.height / 2;
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const strip = parentElement.querySelector(".strip");
  const readout = parentElement.querySelector(".readout");
  const count = data.tokens.length;
  if (data.mode === "plain") {
    plain(data, strip, readout);
    return;
  }
  const weight = unpack(data.weights, count);
  const looks = data.mode === "looks";
  const between = (from, other) => (looks ? weight(from, other) : weight(other, from));

  const same = strip.dataset.id === data.id && strip.children.length > 0;
  const spans = same ? [...strip.querySelectorAll(".token")] : build(strip, data);
  strip.dataset.id = data.id;

  function show(from) {
    let best = -1;
    let most = 0;
    for (let other = 0; other < count; other++) {
      const w = between(from, other);
      if (w !== null && w > most) [best, most] = [other, w];
    }
    for (let other = 0; other < count; other++) {
      const w = between(from, other);
      const shade = w === null || most === 0 ? 0 : Math.sqrt(w / Math.max(most, 0.05));
      const span = spans[other];
      // Never so blue that the text on it could not be read, in either theme.
      span.style.backgroundColor = shade < 0.04 ? "transparent" : `rgba(${BLUE}, ${(0.7 * shade).toFixed(3)})`;
      span.classList.toggle("outside", w === null);
      span.classList.toggle("chosen", other === from);
    }
    const name = (index) => `${index + data.start} “${data.tokens[index]}”`;
    const verb = looks ? "looks most at" : "is looked at most by";
    readout.textContent = best < 0 ? `token ${name(from)}` : `token ${name(from)} ${verb} ${name(best)} (${most.toFixed(2)})`;
  }

  const indexOf = (event) => {
    const span = event.target.closest?.(".token");
    return span ? Number(span.dataset.index) : null;
  };
  strip.onmouseover = (event) => {
    const index = indexOf(event);
    if (index !== null) show(index);
  };
  strip.onmouseleave = () => show(data.chosen);
  strip.onclick = (event) => {
    const index = indexOf(event);
    if (index !== null && index !== data.chosen) setTriggerValue("chosen", index + data.start);
  };
  strip.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = Math.min(count - 1, Math.max(0, data.chosen + step));
    if (next !== data.chosen) setTriggerValue("chosen", next + data.start);
  };
  show(data.chosen);
  const ready = `${data.id}/${data.chosen}/${data.mode}`;
  if (strip.dataset.ready !== ready) reveal(strip, spans[data.chosen]);
  strip.dataset.ready = ready;
}
