// Files that are dropped or pasted. A folder stands for the photos in it and in the folders below.

import { emptyFolderWords, folderProblem } from "./words.js";

// Of the files that are taken from a folder. A browser cannot read some of these; the card says so.
export const IMAGE_ENDINGS = [
  ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff",
  ".gif", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm",
  ".tga", ".heic", ".heif"];

/**
 * The files of a drop or of the clipboard. To be called within the event: they are gone afterwards.
 *
 * @param transfer DataTransfer, or null.
 * @returns promise of { photos, problems }: list of { file, name }, those of a folder in the order
 *     of their names, each with the folders before it, "trip/day 1/a.jpg"; and a sentence for each
 *     folder that has no photo or cannot be read.
 */
export async function filesOf(transfer) {
  const items = [...(transfer?.items ?? [])].filter(({ kind }) => kind === "file");
  const found = await Promise.all(items.map(filesOfItem));
  return { photos: found.flatMap(({ photos = [] }) => photos),
           problems: found.flatMap(({ problem = [] }) => problem) };
}

async function filesOfItem(item) {
  const entry = item.webkitGetAsEntry?.();
  if (!entry?.isDirectory) {
    const file = item.getAsFile();
    return file ? { photos: [{ file, name: file.name }] } : {};
  }
  try {
    // In a page that is opened from a disk, Chromium reads folders by handles only; Firefox and
    // Safari give none for what is dropped.
    const folder = item.getAsFileSystemHandle ? fromHandle(await item.getAsFileSystemHandle())
      : fromEntry(entry);
    const photos = await photosBelow(folder, folder.name);
    return photos.length ? { photos } : { problem: emptyFolderWords(entry.name) };
  } catch (error) {
    return { problem: folderProblem(entry.name, error) };
  }
}

async function photosBelow(folder, path) {
  const children = await folder.children();
  const photos = [];
  for (const child of children.sort((one, other) => (one.name < other.name ? -1 : 1))) {
    const name = `${path}/${child.name}`;
    if (child.isFolder) photos.push(...await photosBelow(child, name));
    else if (hasImageEnding(name)) photos.push({ file: await child.file(), name });
  }
  return photos;
}

function hasImageEnding(name) {
  return IMAGE_ENDINGS.includes(name.slice(name.lastIndexOf(".")).toLowerCase());
}

/** A FileSystemHandle as { name, isFolder, file, children }; the last two are functions. */
function fromHandle(handle) {
  return {
    name: handle.name,
    isFolder: handle.kind === "directory",
    file: () => handle.getFile(),
    async children() {
      const found = [];
      for await (const child of handle.values()) found.push(fromHandle(child));
      return found;
    },
  };
}

/** The same of a FileSystemEntry. */
function fromEntry(entry) {
  const promised = (object, method) =>
    new Promise((resolve, reject) => { object[method](resolve, reject); });
  return {
    name: entry.name,
    isFolder: entry.isDirectory,
    file: () => promised(entry, "file"),
    async children() {
      const reader = entry.createReader();
      const found = [];
      for (;;) { // it gives some of them at a time, in the end none
        const some = await promised(reader, "readEntries");
        if (!some.length) return found;
        found.push(...some.map(fromEntry));
      }
    },
  };
}
