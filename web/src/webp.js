// WebP photos whose EXIF orientation is not the usual one: Chromium turns JPEG and PNG, not these.

const ORIENTATION_TAG = 0x0112;
const ENTRY_BYTES = 12; // of a TIFF directory
// [a, b, c, d, e, f] of setTransform by orientation, for a picture of the size (width, height).
const TURNS = {
  2: (width) => [-1, 0, 0, 1, width, 0],
  3: (width, height) => [-1, 0, 0, -1, width, height],
  4: (width, height) => [1, 0, 0, -1, 0, height],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (width, height) => [0, 1, -1, 0, height, 0],
  7: (width, height) => [0, -1, -1, 0, height, width],
  8: (width) => [0, -1, 1, 0, 0, width],
};

/**
 * The file itself, or for a WebP that its EXIF orientation turns, a PNG of the upright picture.
 *
 * A file that cannot be read is given back as it is: the network's side says what is wrong.
 */
export async function uprightFile(file) {
  if (!isWebp(new Uint8Array(await file.slice(0, 12).arrayBuffer()))) return file;
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    const turn = TURNS[takeOrientation(bytes)];
    return turn ? new File([await turned(bytes, turn)], file.name, { type: "image/png" }) : file;
  } catch {
    return file;
  }
}

async function turned(bytes, turn) {
  const bitmap = await createImageBitmap(new Blob([bytes]), { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const matrix = turn(width, height);
  const isLying = matrix[0] === 0; // its sides change places
  const canvas = new OffscreenCanvas(isLying ? height : width, isLying ? width : height);
  const context = canvas.getContext("2d", { alpha: false });
  context.setTransform(...matrix);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.convertToBlob({ type: "image/png" });
}

function isWebp(bytes) {
  return textAt(bytes, 0) === "RIFF" && textAt(bytes, 8) === "WEBP";
}

/** The EXIF orientation, 1 if there is none. Its chunk is made one that no browser knows. */
function takeOrientation(bytes) {
  const view = new DataView(bytes.buffer);
  for (let start = 12; start + 8 <= bytes.length;) {
    const size = view.getUint32(start + 4, true);
    if (textAt(bytes, start) === "EXIF") {
      bytes.set([0x78, 0x78, 0x78, 0x78], start); // xxxx
      const prefix = textAt(bytes, start + 8) === "Exif" ? 6 : 0; // as JPEG has it
      return orientationOf(view, start + 8 + prefix);
    }
    start += 8 + size + (size % 2); // chunks begin at even places
  }
  return 1;
}

/** The orientation in the TIFF data at `start`. */
function orientationOf(view, start) {
  const isLittle = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, isLittle);
  for (let index = 0; index < view.getUint16(directory, isLittle); index++) {
    const entry = directory + 2 + ENTRY_BYTES * index;
    if (view.getUint16(entry, isLittle) === ORIENTATION_TAG) {
      return view.getUint16(entry + 8, isLittle);
    }
  }
  return 1;
}

function textAt(bytes, start) {
  return String.fromCharCode(...bytes.subarray(start, start + 4));
}
