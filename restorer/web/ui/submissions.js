// Keep Gradio's client from losing answers of its queue. This runs before Gradio's scripts.
//
// The server closes its event stream when no event is pending. Until the client has read that, it opens no new stream,
// so an event that is submitted in between would get no answer. The client therefore reads one stream that never ends,
// fed by as many streams of the server as the pending events need.
//
// The client cancels an event by its id. A request that is sent before the id is known waits for it here.
(() => {
  const request = window.fetch;
  const pending = new Set();  // ids of events that have not completed
  const completed = new Set();  // ids of events that completed before the answer to their submission arrived
  const submitted = new Map();  // the id of each function's last event, as a promise
  let output = null;  // the client's stream
  let source = null, connected = false;  // the arguments of a request for a stream of the server; whether one is open

  // Pass on the lines of one stream of the server, but the one that says that it ends
  const pass = async (body) => {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader(), encoder = new TextEncoder();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (text + value).split("\n");
      text = lines.pop();
      const passed = lines.filter((line) => !line.includes('"msg":"close_stream"'));
      for (const line of passed.filter((one) => one.includes('"msg":"process_completed"'))) {
        const id = /"event_id":"(\w+)"/.exec(line)?.[1];
        if (!pending.delete(id)) completed.add(id);
      }
      output.enqueue(encoder.encode(passed.map((line) => `${line}\n`).join("")));
    }
  };

  const connect = async () => {
    connected = true;
    try {
      const answer = await request(...source);
      if (!answer.ok) throw answer;
      feed(answer.body);
    } catch (error) {
      connected = false;
      throw error;
    }
  };

  const feed = async (body) => {
    try {
      await pass(body);
      connected = false;
      if (pending.size) await connect();
    } catch (error) {
      connected = false;
      output.error(error);  // Gradio's client reloads the page
    }
  };

  const openStream = async ({ url, headers, credentials }) => {
    const body = new ReadableStream({ start: (controller) => { output = controller; } });
    source = [url, { headers, credentials }];
    try {
      if (!connected) await connect();
    } catch (error) {
      if (error instanceof Response) return error;
      throw error;
    }
    return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
  };

  const expect = (id) => {
    if (!id || completed.delete(id)) return;
    pending.add(id);
    if (source && !connected) connect().catch((error) => output.error(error));
  };

  const submit = (resource, options) => {
    const answering = request(resource, options);
    const id = answering.then((answer) => answer.clone().json()).then((body) => body.event_id).catch(() => "");
    submitted.set(JSON.parse(options.body).fn_index, id);
    id.then(expect);
    return answering;
  };

  const cancel = async (resource, options) => {
    const body = JSON.parse(options.body);
    body.event_id ??= await submitted.get(body.fn_index) ?? "";
    return request(resource, { ...options, body: JSON.stringify(body) });
  };

  const routes = { "/queue/data": openStream, "/queue/join": submit, "/cancel": cancel, "/reset": cancel };
  window.fetch = async (resource, options) => {
    const path = String(resource.url ?? resource).split("?")[0];
    const route = Object.keys(routes).find((end) => path.endsWith(end));
    return (routes[route] ?? request)(resource, options);
  };
})();
