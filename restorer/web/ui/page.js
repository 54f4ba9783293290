// What Gradio has no event for: a photo from the clipboard, a spot of the picture by mouse or keyboard, names
// for what it leaves nameless, and a focus and a view that follow what happens.
() => {
  const one = (selector) => document.querySelector(selector);

  const pick = async (name, files) => {
    if (name === "#upload") one("#upload [aria-label=Clear]")?.click();  // a filled one takes no other
    for (let wait = 0; wait < 40; wait++) {
      const field = one(`${name} input[type=file]`);
      if (field) {
        field.files = files;
        field.dispatchEvent(new Event("change", { bubbles: true }));
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (!files?.length) return;
    event.preventDefault();
    pick(one("#uploads")?.offsetParent ? "#uploads" : "#upload", files);
  });

  // The picture as it is drawn within its element (object-fit: contain)
  const drawn = (image) => {
    const box = image.getBoundingClientRect();
    const fit = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const width = image.naturalWidth * fit, height = image.naturalHeight * fit;
    return { left: box.left + (box.width - width) / 2, top: box.top + (box.height - height) / 2, width, height };
  };
  const see = (selector) => {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    one(selector)?.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
  };
  const take = (around, x, y) => {
    const name = around.id === "slider" ? "spot" : "place";
    const field = one(`#${name} textarea, #${name} input`);
    field.value = `${x.toFixed(4)},${y.toFixed(4)}`;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    see(name === "spot" ? "#view" : "#detail");
  };

  let pressed = null;
  document.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; }, true);
  document.addEventListener("pointerup", (event) => {
    const around = event.target.closest?.("#slider, #before"), image = around?.querySelector("img");
    const other = event.target.closest?.("button")?.querySelector("img") === null;  // of the toolbar
    if (!image || !pressed || other || event.button !== 0) return;
    if (Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4) return;  // the handle was drawn
    const box = drawn(image);
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    if (x >= 0 && x <= 1 && y >= 0 && y <= 1) take(around, x, y);
  }, true);

  // The same with the arrow keys and Enter: a mark shows where
  const mark = Object.assign(document.createElement("div"), { id: "crosshair", hidden: true });
  document.body.append(mark);
  let spot = [0.5, 0.5];
  const place = (around) => {
    const box = drawn(around.querySelector("img"));
    mark.style.left = `${box.left + spot[0] * box.width}px`;
    mark.style.top = `${box.top + spot[1] * box.height}px`;
    mark.hidden = false;
  };
  const within = (value) => Math.min(Math.max(value, 0), 1);
  document.addEventListener("focusout", () => { mark.hidden = true; });
  addEventListener("scroll", () => { mark.hidden = true; }, true);
  const steps = { ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowRight: [1, 0] };
  const ways = { ArrowLeft: "left", ArrowUp: "up", ArrowDown: "down", ArrowRight: "right" };
  document.addEventListener("keydown", (event) => {
    const at = event.target, step = steps[event.key];
    if (at.matches?.("#before, #slider") && at.querySelector("img")) {
      if (event.key === "Enter") take(at, ...spot);
      else if (step) spot = [within(spot[0] + 0.05 * step[0]), within(spot[1] + 0.05 * step[1])];
      else return;
      event.preventDefault();
      place(at);
    } else if (step && at.closest?.("#closer") && !at.matches("input, textarea")) {
      event.preventDefault();
      one(`#go-${ways[event.key]}`)?.click();
    }
  });

  // Names for people who do not see the page, and one group for the sizes
  const names = {
    "#before img": "The photo", "#slider img": "Before and after", "#view img": "A part at 100 %",
    "#detail img": "A detail, before and after", "#faces img": "A face, before and after",
    "#samples img": "A photo to try", "#gallery img": "A restored photo", "#sheet img": "The detail by one model",
  };
  let told = "", focused = null;
  document.addEventListener("focusin", (event) => { focused = event.target.closest("#start, #stop, #start-all, #stop-all"); });
  const settle = () => {
    for (const [selector, name] of Object.entries(names)) {
      for (const image of document.querySelectorAll(selector)) {
        if (!image.alt) image.alt = name;
      }
    }
    for (const [selector, name] of [["#before", "Choose a spot for a detail"], ["#slider", "Choose a spot to see at 100 %"]]) {
      const around = one(selector);
      if (around && !around.hasAttribute("tabindex")) {
        around.tabIndex = 0;
        around.setAttribute("role", "group");
        around.setAttribute("aria-label", `${name}: arrow keys, then Enter`);
      }
    }
    document.querySelectorAll("#samples button, #sheet button, #gallery button").forEach((button) => {
      const caption = button.querySelector(".caption-label")?.textContent.trim();
      const file = button.querySelector("img")?.src.split("/").pop().split(".")[0];
      const name = caption || (button.closest("#samples") && file);
      if (name && button.ariaLabel !== name) button.ariaLabel = name;
    });
    document.querySelectorAll('[aria-label="common.upload"]').forEach((field) => { field.ariaLabel = "Upload"; });
    for (const group of ["outscale", "preset"]) {
      document.querySelectorAll(`#${group} input`).forEach((input) => { if (input.name !== group) input.name = group; });
    }
    for (const selector of ["#said", "#told", "#taken"]) {
      const around = one(selector);
      if (around && !around.hasAttribute("role")) around.setAttribute("role", "status");
    }
    // The button that had the focus has gone: the one in its place gets it
    if (focused && document.activeElement === document.body && !focused.offsetParent) {
      const all = focused.id.endsWith("-all") ? "-all" : "";
      const next = [`#stop${all}`, `#start${all}`].map(one).find((button) => button?.offsetParent && !button.disabled);
      next?.focus({ preventScroll: true });
    }
    const now = one("#told")?.offsetParent ? one("#told").textContent : "";
    if (now && !told) see("#slider");
    told = now;
  };
  let due = false;
  new MutationObserver(() => {
    if (due) return;
    due = true;
    setTimeout(() => { due = false; settle(); }, 100);
  }).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["class", "src"] });
  settle();
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#start")) setTimeout(() => see(one("#before")?.offsetParent ? "#before" : "#slider"), 400);
  });
}
