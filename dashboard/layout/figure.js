// Has plotly draw a figure, again when it or its place changed, and reports the cells that are clicked.

const WHOLE_SCREEN = {
  name: "Fullscreen",
  title: "Fullscreen",
  icon: { width: 24, height: 24, path: "M3 3h7v2H5v5H3zM14 3h7v7h-2V5h-5zM3 14h2v5h5v2H3zM19 14h2v7h-7v-2h5z" },
  click: (place) => (document.fullscreenElement ? document.exitFullscreen() : place.requestFullscreen()),
};

// Of each place on a page: what it shall show, what it shows, and the drawings in their order.
const places = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  const place = parentElement.querySelector(".workbench-figure");
  for (let around = place.parentElement; around !== parentElement; around = around.parentElement)
    around.style.display = "contents"; // so that a height of 100% is that of the card
  place.classList.toggle("stretch", data.stretch);
  place.style[data.stretch ? "minHeight" : "height"] = `${data.height}px`;
  place.setAttribute("aria-label", data.title);

  const state = places.get(place) ?? { drawn: {}, pending: 0, work: Promise.resolve() };
  places.set(place, state);
  state.wanted = data;
  state.choose = (cell) => setTriggerValue("chosen", cell);
  const draw = () => {
    place.ariaBusy = "true";
    state.pending += 1;
    state.work = state.work
      .then(() => bring(place, state))
      .catch((error) => report(place, state, error))
      .then(() => (place.ariaBusy = String((state.pending -= 1) > 0)));
  };
  if (!state.watch) {
    state.watch = new ResizeObserver(draw);
    state.watch.observe(place);
  }
  draw();
  return () => {
    state.watch.disconnect();
    places.delete(place);
    window.Plotly?.purge(place);
  };
}

async function bring(place, state) {
  const plotly = await read(state.wanted.code);
  await turn(place);
  const { wanted, drawn } = state;
  const [width, height] = [place.clientWidth, place.clientHeight];
  if (!width || !height) return; // not to be seen; it is asked for again when it is
  if (drawn.figure !== wanted.figure) {
    const { data, layout } = JSON.parse(wanted.figure);
    if (wanted.chosen) Object.assign(data.at(-1), at(wanted.chosen));
    const config = { ...wanted.config, modeBarButtonsToAdd: [WHOLE_SCREEN] };
    await plotly.react(place, data, { ...layout, width, height }, config);
    if (!drawn.figure) place.on("plotly_click", ({ points }) => click(place, state, [points[0].x, points[0].y]));
  } else {
    if (drawn.width !== width || drawn.height !== height) await plotly.relayout(place, { width, height });
    if (!same(drawn.chosen, wanted.chosen)) await mark(place, wanted.chosen);
  }
  state.drawn = { figure: wanted.figure, chosen: wanted.chosen, width, height };
}

// What is out of sight waits until the browser has nothing else to do, a second at most.
const idle = window.requestIdleCallback ?? ((call) => setTimeout(call, 200));
const turn = (place) => new Promise((go) => (inSight(place) ? go() : idle(go, { timeout: 1000 })));

function inSight(place) {
  const { top, bottom } = place.getBoundingClientRect();
  return bottom > 0 && top < window.innerHeight;
}

const at = ([x, y]) => ({ x: [x], y: [y] });
const same = (one, other) => String(one) === String(other);
const mark = (place, [x, y]) => window.Plotly.restyle(place, { x: [[x]], y: [[y]] }, [place.data.length - 1]);

function click(place, state, cell) {
  if (!state.drawn.chosen || same(state.drawn.chosen, cell)) return;
  state.drawn.chosen = cell;
  mark(place, cell);
  state.choose(cell);
}

// The script that the page began with is two folders below the dashboard's address, which may have a path.
let code;
function read(path) {
  const start = document.querySelector("script[type=module][src]");
  code ??= import(new URL(`../../${path}`, start.src).href).then(() => window.Plotly);
  code.catch(() => (code = undefined));
  return code;
}

function report(place, state, error) {
  console.error(error);
  state.drawn = {};
  window.Plotly?.purge(place);
  place.textContent = `This figure could not be drawn: ${error.message}. Reload the page.`;
}
