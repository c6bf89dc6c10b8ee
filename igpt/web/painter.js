// A picture at the model's size whose pixels can be hidden with the pointer.
// The value is {"side": S, "pixels": base64 of S * S * 3 bytes, "hidden": S * S characters 0 or 1}.
const state = { side: 0, pixels: null, hidden: [], to: 1, painting: false };

function read(text) {
  if (!text) return;
  const value = JSON.parse(text);
  state.side = value.side;
  state.pixels = Uint8Array.from(atob(value.pixels), (c) => c.charCodeAt(0));
  state.hidden = Array.from(value.hidden, Number);
}

function show() {
  const canvas = element.querySelector("canvas");
  if (!canvas || !state.side) return;
  const side = state.side;
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    const grey = ((i % side) + Math.floor(i / side)) % 2 ? 200 : 168;
    for (let c = 0; c < 3; c++)
      picture.data[4 * i + c] = state.hidden[i] ? grey : state.pixels[3 * i + c];
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

function pixelAt(event) {
  const box = element.querySelector("canvas").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * state.side);
  const y = Math.floor(((event.clientY - box.top) / box.height) * state.side);
  const inside = x >= 0 && y >= 0 && x < state.side && y < state.side;
  return inside ? [x, y] : null;
}

function paint(event) {
  const place = pixelAt(event);
  if (!place) return;
  const reach = Math.floor(state.side / 16); // a brush of an eighth of the picture
  for (let dy = -reach; dy <= reach; dy++)
    for (let dx = -reach; dx <= reach; dx++) {
      const [x, y] = [place[0] + dx, place[1] + dy];
      if (x >= 0 && y >= 0 && x < state.side && y < state.side)
        state.hidden[y * state.side + x] = state.to;
    }
  show();
}

element.addEventListener("pointerdown", (event) => {
  if (event.target.tagName !== "CANVAS" || !state.side) return;
  const [x, y] = pixelAt(event) || [0, 0];
  state.to = state.hidden[y * state.side + x] ? 0 : 1; // from a hidden pixel on, it uncovers
  state.painting = true;
  event.target.setPointerCapture(event.pointerId);
  event.preventDefault();
  paint(event);
});
element.addEventListener("pointermove", (event) => state.painting && paint(event));
element.addEventListener("pointerup", () => {
  if (!state.painting) return;
  state.painting = false;
  props.value = JSON.stringify({
    side: state.side,
    pixels: btoa(String.fromCharCode(...state.pixels)),
    hidden: state.hidden.join(""),
  });
});
watch("value", () => {
  read(props.value);
  show();
});
read(props.value);
show();
