// The metadata of an ONNX file: the page's facts about the age network come from there.

import { createHash } from "node:crypto";

// The entry of the checksum as it stands in a file: the key, a tag, the length 64.
const CHECKSUM_MARK = Buffer.from("content_sha256\x12@");
const CHECKSUM_LENGTH = 64; // hexadecimal digits
const METADATA_PROPS = 14; // field of onnx.ModelProto, a list of StringStringEntryProto
const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

/**
 * @param bytes an ONNX file.
 * @returns { key: value } of its metadata_props, all texts.
 */
export function onnxMetadata(bytes) {
  const entries = [];
  for (const { field, content } of protobufFields(bytes)) {
    if (field === METADATA_PROPS) {
      const [key = "", value = ""] = entryOf(content);
      entries.push([key, value]);
    }
  }
  return Object.fromEntries(entries);
}

/** Whether an ONNX file that has a checksum in its metadata is not as it was written. */
export function isDamaged(bytes) {
  return !bytes.equals(withChecksum(bytes));
}

/**
 * A file's bytes with the place of the checksum, if there is one, filled in: that of the file with
 * zeros in its place, see utils/onnx_network.py.
 */
export function withChecksum(bytes) {
  const mark = bytes.indexOf(CHECKSUM_MARK);
  if (mark < 0) return bytes;
  const start = mark + CHECKSUM_MARK.length;
  const parts = [bytes.subarray(0, start), Buffer.alloc(CHECKSUM_LENGTH, "0"),
                 bytes.subarray(start + CHECKSUM_LENGTH)];
  parts[1] = Buffer.from(createHash("sha256").update(Buffer.concat(parts)).digest("hex"));
  return Buffer.concat(parts);
}

function entryOf(bytes) {
  const texts = [];
  for (const { field, content } of protobufFields(bytes)) {
    texts[field - 1] = Buffer.from(content).toString("utf8"); // 1 is the key, 2 the value
  }
  return texts;
}

/** Fields of one protobuf message, those within them left packed. */
function* protobufFields(bytes) {
  let at = 0;

  function varint() {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= bytes.length) throw new Error("not an ONNX file, or an incomplete one");
      const byte = bytes[at++];
      value += (byte & 127) * scale; // sizes exceed 32 bits; a shift would not do
      if (byte < 128) return value;
    }
  }

  while (at < bytes.length) {
    const tag = varint();
    const wire = tag & 7;
    let content = null;
    if (wire === VARINT) varint();
    else if (wire === FIXED64) at += 8;
    else if (wire === FIXED32) at += 4;
    else if (wire === BYTES) {
      const length = varint();
      content = bytes.subarray(at, at + length);
      at += length;
    } else throw new Error(`not an ONNX file: a field of unknown type ${wire}`);
    if (at > bytes.length) throw new Error("not an ONNX file, or an incomplete one");
    yield { field: Math.floor(tag / 8), content };
  }
}
