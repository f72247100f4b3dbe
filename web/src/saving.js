// Results to files and to the clipboard.

import { unsavedWords } from "./words.js";

/** Saves a blob or a text as a file; folders in its name become a part of the name. */
export function saveFile(name, content, type = "text/plain") {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name.replaceAll("/", "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may ask where to first
}

/**
 * The picture on a canvas as a file's content.
 *
 * @throws Error if the browser makes none: a canvas has a largest size.
 */
export async function pictureBlob(canvas, type, quality) {
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, type, quality); });
  if (!blob) throw new Error(unsavedWords(canvas));
  return blob;
}

/** Copies a text; true where the browser let it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // pages without https have no clipboard
  }
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

/** A file's name without its ending. */
export function stem(name) {
  return name.replace(/\.[^./]+$/, "");
}
