// Imports scripts of Streamlit's own, which lie beside the one that the page began with, and has plotly draw figures
// twice where nobody sees them: one after the other, whenever the browser is idle. What is there already is not done again.
export default function ({ data, parentElement }) {
  const start = document.querySelector("script[type=module][src]");
  if (!start || window.Plotly) return;
  const idle = window.requestIdleCallback ?? ((call) => setTimeout(call, 500));
  const tasks = [
    ...data.files.map((file) => () => import(new URL(file, start.src).href)),
    ...[...data.figures, ...data.figures].map((figure) => () => draw(figure, parentElement)),
  ];
  const next = () => tasks.length && idle(() => tasks.shift()().catch(() => {}).then(next));
  next();
}

async function draw({ data, layout }, parentElement) {
  if (!parentElement.isConnected) return; // the page was left
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
