// Imports a script of Streamlit's own, which lies beside the one that the page began with, once the browser is idle.
export default function ({ data }) {
  const start = document.querySelector("script[type=module][src]");
  if (!start) return;
  const idle = window.requestIdleCallback ?? ((call) => setTimeout(call, 500));
  idle(() => import(new URL(data.file, start.src).href).catch(() => {}));
}
