// What Gradio has no event for: a photo from the clipboard, a click on a spot of the picture, the arrow keys.
() => {
  const pick = async (files) => {
    document.querySelector("#upload [aria-label=Clear]")?.click();  // a filled one takes no other
    for (let wait = 0; wait < 40; wait++) {
      const field = document.querySelector("#upload input[type=file]");
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
    if (files?.length) { event.preventDefault(); pick(files); }
  });

  // The picture as it is drawn within its element (object-fit: contain)
  const drawn = (image) => {
    const box = image.getBoundingClientRect();
    const fit = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const width = image.naturalWidth * fit, height = image.naturalHeight * fit;
    return { left: box.left + (box.width - width) / 2, top: box.top + (box.height - height) / 2, width, height };
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
    if (x < 0 || x > 1 || y < 0 || y > 1) return;
    const name = around.id === "slider" ? "spot" : "place";
    const field = document.querySelector(`#${name} textarea, #${name} input`);
    field.value = `${x.toFixed(4)},${y.toFixed(4)}`;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    document.querySelector(name === "spot" ? "#view" : "#detail")?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }, true);

  const ways = { ArrowLeft: "left", ArrowUp: "up", ArrowDown: "down", ArrowRight: "right" };
  document.addEventListener("keydown", (event) => {
    const way = ways[event.key];
    if (!way || !event.target.closest?.("#closer") || event.target.matches("input, textarea")) return;
    event.preventDefault();
    document.querySelector(`#go-${way}`)?.click();
  });
}
