// Keep Gradio's client from losing submissions to its queue. This runs before Gradio's scripts.
//
// The server ends the stream of answers as soon as none is due, and the client counts on the stream until it has read
// that it ended: what it submits in between would never be answered. So a submission counts as accepted only once the
// stream names it or has ended. The client cancels a submission by its id, which it does not know until then.
(() => {
  const request = window.fetch, submitted = new Map();  // the id of each function's last submission, as a promise
  let stream = null;  // the one that the client counts on

  class Stream extends EventTarget {
    ids = new Set();

    end() {
      if (stream === this) stream = null;
      this.dispatchEvent(new Event("end"));
    }

    async read(body) {
      const reader = body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ;) {
        const { value, done } = await reader.read();
        if (done) return;
        const lines = (text + value).split("\n");
        text = lines.pop();
        for (const id of lines.map((line) => /"event_id":"(\w+)"/.exec(line)?.[1]).filter(Boolean)) {
          this.ids.add(id);
          this.dispatchEvent(new Event(id));
        }
      }
    }

    names(id) {
      return this.ids.has(id) || new Promise((resolve) => {
        for (const type of [id, "end"]) this.addEventListener(type, resolve);
      });
    }
  }

  const openStream = async (resource, options) => {
    const opened = stream = new Stream();
    (resource.signal ?? options?.signal)?.addEventListener("abort", () => opened.end());  // the client has read the end
    try {
      const answer = await request(resource, options), [gradios, ours] = answer.body.tee();
      opened.read(ours).catch(() => {}).then(() => setTimeout(() => opened.end(), 1000));
      return new Response(gradios, answer);
    } catch (error) {
      opened.end();
      throw error;
    }
  };

  const submit = async (resource, options) => {
    const answering = request(resource, options);
    const id = answering.then((answer) => answer.clone().json()).then((body) => body.event_id).catch(() => "");
    submitted.set(JSON.parse(options.body).fn_index, id);
    const answer = await answering;
    if (stream && answer.ok) await stream.names(await id);
    return answer;
  };

  const cancel = async (resource, options) => {
    const body = JSON.parse(options.body);
    body.event_id ??= await submitted.get(body.fn_index) ?? "";
    return request(resource, { ...options, body: JSON.stringify(body) });
  };

  const routes = { "/queue/data": openStream, "/queue/join": submit, "/cancel": cancel, "/reset": cancel };
  window.fetch = (resource, options) => {
    const { pathname } = new URL(resource.url ?? resource, location);
    const route = Object.keys(routes).find((end) => pathname.endsWith(end));
    return (routes[route] ?? request)(resource, options);
  };
})();
