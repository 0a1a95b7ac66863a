// Has plotly draw a figure, again when it or its place changed, and reports the cells that are clicked.

const WHOLE_SCREEN = {
  name: "Fullscreen",
  title: "Fullscreen",
  icon: { width: 24, height: 24, path: "M3 3h7v2H5v5H3zM14 3h7v7h-2V5h-5zM3 14h2v5h5v2H3zM19 14h2v7h-7v-2h5z" },
  click: (place) => (document.fullscreenElement ? document.exitFullscreen() : place.requestFullscreen()),
};

// A picture at twice the size of the page, with the title that the page shows above the figure.
const picture = (format) => ({
  name: `Save as ${format.toUpperCase()}`,
  title: `Save as ${format.toUpperCase()}`,
  icon: { width: 24, height: 24, path: format === "png" ? PHOTO : CURVE },
  click: (place) => {
    const { title, file } = places.get(place).wanted;
    const { width, height } = place.getBoundingClientRect();
    const margin = { ...place.layout.margin, t: (place.layout.margin?.t ?? 0) + 40 };
    const heading = { text: title, x: 0, xref: "container", y: 1, yref: "container", yanchor: "top", pad: { l: 12, t: 12 } };
    const layout = { ...place.layout, title: heading, margin, height: height + 40, width };
    const options = { format, filename: file, scale: format === "png" ? 2 : 1, width, height: height + 40 };
    window.Plotly.downloadImage({ data: place.data, layout }, options);
  },
});
const PHOTO = "M4 6h4l2-2h4l2 2h4v13H4zM12 9a4 4 0 1 0 0 8a4 4 0 0 0 0-8z";
const CURVE = "M3 3h5v5H3zM16 16h5v5h-5zM6 8h2c0 6 4 10 8 10v2C9 20 6 14 6 8z";

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
    const pictures = [picture("png"), picture("svg")];
    const config = wanted.only_pictures
      ? { ...wanted.config, modeBarButtons: [pictures] }
      : { ...wanted.config, modeBarButtonsToAdd: [...pictures, WHOLE_SCREEN] };
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
