// Gradio reloads a page that loses the connection during a request. An idle one notices here that its session ended
// with the server's process, and one that was still loading that a part is missing; both are reloaded, unless results
// would be lost that can still be downloaded. This runs before the page is complete.
(() => {
  const { root, api_prefix: prefix, app_id: appId } = window.gradio_config;
  const notice = Object.assign(document.createElement("div"), { id: "restarted", hidden: true });
  notice.setAttribute("role", "alert");
  notice.innerHTML = 'The server was restarted. Download your results, then <a href="">reload the page</a>.';
  document.body.append(notice);
  let incomplete = false;
  addEventListener("vite:preloadError", () => {  // a second reload would not help
    incomplete = performance.getEntriesByType("navigation")[0].type !== "reload";
  });
  setInterval(async () => {
    const answer = await fetch(`${root}${prefix}/app_id`).catch(() => null);
    if (!answer?.ok || (!incomplete && (await answer.json()).app_id === appId)) return;
    if (document.querySelector("#download, #download-all, #download-one")) notice.hidden = false;
    else location.reload();
  }, 5000);
})();
