// From files and frames to pixels.

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
    bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none",
      imageOrientation: "from-image",
    });
  } catch (error) {
    throw new UnreadablePhoto(error.message);
  }
  return pixelsOf(bitmap);
}

/** Picture of an ImageBitmap, which is used up. */
export function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}
