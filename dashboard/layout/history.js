// A page keeps one history entry. What Streamlit pushes for the same page replaces that entry. When it opens another
// page, it first gives the entry that is left the next page's query; that entry gets its own one back.
const MOST_MS = 30000; // between a click on a link and the next page, on a slow server

export default function () {
  if (window.workbenchHistory) return;
  window.workbenchHistory = true;
  const push = history.pushState.bind(history);
  const replace = history.replaceState.bind(history);
  let left = null; // the address of the page when a link to another page was clicked, or its query was emptied

  const leave = () => (left = { href: location.href, path: location.pathname, at: Date.now() });
  const isRecent = () => left && left.path === location.pathname && Date.now() - left.at < MOST_MS;

  document.addEventListener(
    "click",
    (event) => {
      const link = event.target.closest?.("a[href]");
      if (!link || event.metaKey || event.ctrlKey || event.shiftKey || link.target === "_blank") return;
      const target = new URL(link.href);
      if (target.origin === location.origin && target.pathname !== location.pathname) leave();
    },
    true,
  );
  history.pushState = (state, title, url) => {
    const target = new URL(url ?? "", location.href);
    if (target.pathname === location.pathname) {
      if (!target.search && location.search && !isRecent()) leave();
      return replace(state, title, url);
    }
    if (isRecent()) replace(history.state, "", left.href);
    left = null;
    return push(state, title, url);
  };
  window.addEventListener("popstate", () => (left = null));
}
