// From files and frames to pixels.

const MAX_TILE = 4096; // pixels; a canvas of this side is within the limits of all browsers

/** A file that is no picture, or none that this browser can read. */
export class UnreadablePhoto extends Error {}

/**
 * Picture (see pillow.js) of a file, upright as its EXIF orientation says.
 *
 * The pixels are those that Pillow decodes: a colour profile is not applied, transparency is laid
 * on black.
 */
export async function readPhoto(file) {
  let bitmap;
  try {
    // Upright by default; older browsers refuse the file if the orientation is asked for by name.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch (error) {
    throw new UnreadablePhoto(error.message);
  }
  return pixelsOf(bitmap);
}

/**
 * Picture of an ImageBitmap, which is used up.
 *
 * It is read through a canvas of one tile: beyond a browser's largest canvas there is no error, all
 * pixels are transparent black.
 */
export function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  const data = new Uint8ClampedArray(4 * width * height);
  const canvas = new OffscreenCanvas(Math.min(width, MAX_TILE), Math.min(height, MAX_TILE));
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  for (let top = 0; top < height; top += MAX_TILE) {
    for (let left = 0; left < width; left += MAX_TILE) {
      const columns = Math.min(MAX_TILE, width - left);
      const rows = Math.min(MAX_TILE, height - top);
      context.fillRect(0, 0, columns, rows); // black, for what is transparent
      context.drawImage(bitmap, -left, -top);
      const tile = context.getImageData(0, 0, columns, rows).data;
      for (let row = 0; row < rows; row++) {
        data.set(tile.subarray(4 * columns * row, 4 * columns * (row + 1)),
                 4 * (width * (top + row) + left));
      }
    }
  }
  bitmap.close();
  return { width, height, data };
}
