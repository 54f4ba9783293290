// Answer each submission to Gradio's queue. The server ends the stream of answers as soon as none is due, and Gradio's
// client counts on the stream until it has read that it ended. What is submitted in between would never be answered, so
// a submission counts as accepted only once the stream names it or has ended. This runs before Gradio's scripts.
(() => {
  const request = window.fetch;
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

  window.fetch = async (resource, options) => {
    const { pathname } = new URL(resource.url ?? resource, location);
    if (pathname.endsWith("/queue/data")) return openStream(resource, options);
    const answer = await request(resource, options);
    if (stream && answer.ok && pathname.endsWith("/queue/join")) {
      await stream.names((await answer.clone().json()).event_id);
    }
    return answer;
  };
})();
