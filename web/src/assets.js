// What the build packs into the page: gzip, then base64, in pieces, so that the page can show how
// much of it has arrived.

/** The facts that the build writes into the page: { model, pieces, sampleName }. */
export function readFacts() {
  return JSON.parse(document.getElementById("facts").textContent);
}

/**
 * Waits until everything packed is there.
 *
 * @param pieces number of pieces that will arrive.
 * @param onProgress called with the share that has arrived, 0..1.
 * @returns { name: base64 text } of everything packed.
 */
export async function arrival(pieces, onProgress) {
  const observer = new MutationObserver(() => onProgress(arrivedPieces().length / pieces));
  observer.observe(document.body, { childList: true });
  await parsed();
  observer.disconnect();
  const arrived = arrivedPieces();
  if (arrived.length < pieces) {
    throw new Error("the page is incomplete: only a part of the file has arrived");
  }
  const packed = {};
  for (const piece of arrived) {
    const { packed: name } = piece.dataset;
    packed[name] = (packed[name] ?? "") + piece.textContent;
    piece.remove(); // its memory is wanted for photos
  }
  return packed;
}

function arrivedPieces() {
  return document.querySelectorAll("script[data-packed]");
}

function parsed() {
  if (document.readyState !== "loading") return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener("DOMContentLoaded", resolve, { once: true });
  });
}

/** Bytes of something packed. */
export async function unpack(base64) {
  const stream = new Blob([fromBase64(base64)]).stream();
  const unpacked = stream.pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

function fromBase64(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // newer browsers: faster
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
