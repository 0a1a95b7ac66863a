// Imports scripts, named from the one that the page began with, once the browser is idle, and has plotly draw figures
// twice where nobody sees them, one after the other. What is there already is not done again.
export default function ({ data, parentElement }) {
  const start = document.querySelector("script[type=module][src]");
  if (!start || window.Plotly) return;
  const idle = window.requestIdleCallback ?? ((call) => setTimeout(call, 500));
  const figures = [...data.figures, ...data.figures];
  const next = () => figures.length && idle(() => draw(figures.shift(), parentElement).catch(() => {}).then(next));
  idle(() => Promise.allSettled(data.files.map((file) => import(new URL(file, start.src).href))).then(next));
}

async function draw(figure, parentElement) {
  if (!parentElement.isConnected) return; // the page was left
  const { data, layout } = JSON.parse(figure);
  const unseen = document.createElement("div");
  unseen.style.cssText = "position: fixed; left: -2000px; width: 600px; height: 400px; visibility: hidden";
  parentElement.append(unseen);
  try {
    await window.Plotly.newPlot(unseen, data, layout);
    window.Plotly.purge(unseen);
  } finally {
    unseen.remove();
  }
}
