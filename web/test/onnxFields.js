// Parts of ONNX files.

/** A protobuf field that holds bytes, shorter than 128. */
export function field(number, content) {
  return Buffer.concat([Buffer.from([(number << 3) | 2, content.length]), Buffer.from(content)]);
}

/** An entry of an ONNX file's metadata. */
export function entry(key, value) {
  return field(14, Buffer.concat([field(1, Buffer.from(key)), field(2, Buffer.from(value))]));
}
