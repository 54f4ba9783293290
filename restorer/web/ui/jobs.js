// Follow jobs by their event streams, remember them across reloads, and reload the page when its server was restarted.
// This runs before the page is complete.
(() => {
  const { root, api_prefix: prefix, app_id: appId } = window.gradio_config;
  const one = (selector) => document.querySelector(selector);

  // This tab's own memory first; a new tab shows what the last one showed. A frame may have no storage
  const KEY = "neural-image-restore", STORAGES = ["sessionStorage", "localStorage"];
  const OTHER = `${KEY}-other`;  // the job of another tab, which a new photo in this one must not cancel
  const recall = () => {
    for (const storage of STORAGES) {
      try {
        const text = window[storage].getItem(KEY);
        if (text && storage === "localStorage") sessionStorage.setItem(OTHER, JSON.parse(text).job ?? "");
        if (text) return text;
      } catch { /* no storage */ }
    }
    return "";
  };
  const ownJob = (id) => {
    try {
      return id === sessionStorage.getItem(OTHER) ? "" : id;
    } catch {  // no storage
      return id;
    }
  };
  const remember = (changes) => {
    const before = JSON.parse(recall() || "{}");
    const text = JSON.stringify({ ...before, ...changes });
    for (const storage of STORAGES) {
      try {
        window[storage].setItem(KEY, text);
      } catch { /* no storage */ }
    }
  };
  const rememberPhoto = (photo) => {
    // A job that is being followed belongs to this photo
    if (photo !== JSON.parse(recall() || "{}").photo) remember(streams.job ? { photo } : { photo, job: "" });
  };

  // The hidden fields by which the server learns of changes, and the elements that show progress
  const FIELDS = { job: "#ended", batch: "#batch-changed" }, BARS = { job: "#progress", batch: "#progress-all" };
  const STOPS = { job: "#stop", batch: "#stop-all" }, LOST = 60000;
  const send = (selector, value) => {
    const input = one(`${selector} textarea, ${selector} input`);
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const duration = (seconds) => seconds < 90 ? `${Math.max(1, Math.round(seconds))} s`
    : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
  const describe = (status, first) => {
    const { done, total } = status.progress, ahead = status.queue_position, activity = status.activity;
    if (status.status === "queued") return ahead ? `Waiting: ${ahead} ahead in the queue` : "Starting";
    if (activity) return activity[0].toUpperCase() + activity.slice(1);
    if (!done) return "Preparing";
    const rate = first && done > first.done ? (Date.now() - first.time) / (done - first.done) : 0;
    const left = rate ? ` · about ${duration(rate * (total - done) / 1000)} left` : "";
    return `${Math.floor(100 * done / total)} %${left}`;
  };
  const show = (kind, text, share = 0) => {
    const element = one(BARS[kind]);
    if (!element) return;
    element.classList.toggle("running", Boolean(text));
    const bar = element.querySelector("[role=progressbar]");
    bar.firstElementChild.style.width = `${100 * share}%`;
    bar.ariaValueNow = Math.round(100 * share);
    const label = element.querySelector("p");
    if (label.textContent !== text) label.textContent = text;
  };

  const streams = {};
  let lostAt = 0;
  const follow = (kind, id) => {
    remember({ [kind]: id });
    streams[kind]?.close();
    delete streams[kind];
    show(kind, "");
    if (id) connect(kind, id);
  };
  const connect = (kind, id) => {
    const stream = streams[kind] = new EventSource(`${root}/status/${id}/events`);
    let first = null, finished = -1, share = 0;
    const count = (status) => status.results.length + status.errors.length;
    const end = (event) => {
      if (streams[kind] !== stream) return;
      stream.close();
      delete streams[kind];
      show(kind, "");
      // A stopped batch that was continued ends again, with other figures
      send(FIELDS[kind], `${id} end ${event ? count(JSON.parse(event.data)) : finished}`);
      // The answer can be lost with the connection; a reloaded page shows the result
      setTimeout(() => !streams[kind] && one(STOPS[kind])?.checkVisibility() && location.reload(), LOST);
    };
    stream.onmessage = ({ data }) => {
      const status = JSON.parse(data), { done, total } = status.progress;
      if (!first && done) first = { time: Date.now(), done };
      share = done / total;
      show(kind, describe(status, first), share);
      if (kind === "batch" && count(status) !== finished) send(FIELDS[kind], `${id} ${count(status)}`);
      finished = count(status);
    };
    stream.addEventListener("end", end);
    stream.onerror = async () => {
      lostAt = Date.now();
      if (streams[kind] === stream) show(kind, "Connection lost, reconnecting", share);
      if (stream.readyState !== EventSource.CLOSED) return;  // it connects again
      const answer = await fetch(`${root}/status/${id}`).catch(() => null);
      if (answer?.status === 404) end();  // the job is deleted
      else if (streams[kind] === stream) setTimeout(() => streams[kind] === stream && connect(kind, id), 3000);
    };
  };
  addEventListener("beforeunload", (event) => {
    const running = Object.values(streams).some((stream) => stream.readyState === EventSource.OPEN);
    if (running && Date.now() - lostAt > 15000) event.preventDefault();
  });

  // Gradio reloads a page that loses the connection during a request. An idle one notices here that its session ended
  // with the server's process or that it must sign in again, and one that was still loading that a part is missing
  let incomplete = false;
  addEventListener("vite:preloadError", () => {  // a second reload would not help
    incomplete = performance.getEntriesByType("navigation")[0].type !== "reload";
  });
  setInterval(async () => {
    const answer = await fetch(`${root}${prefix}/app_id`).catch(() => null);
    const signedOut = answer?.status === 401;
    if (!signedOut && (!answer?.ok || (!incomplete && (await answer.json()).app_id === appId))) return;
    lostAt = Date.now();
    location.reload();
  }, 5000);

  window.restorer = { recall, remember, rememberPhoto, follow, ownJob };
})();
