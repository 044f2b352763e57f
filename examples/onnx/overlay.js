// Draw the panoptic result of a PNG by a model of `refine export`, without Python:
//   npm install && node overlay.js model.onnx image.png overlay.png
const fs = require("fs");
const ort = require("onnxruntime-node");
const { PNG } = require("pngjs");

async function main(modelPath, imagePath, outPath) {
  const png = PNG.sync.read(fs.readFileSync(imagePath)); // RGBA
  const pixels = png.width * png.height;
  const planes = new Uint8Array(3 * pixels); // red, green, blue
  for (let p = 0; p < pixels; p++) for (let c = 0; c < 3; c++) planes[c * pixels + p] = png.data[4 * p + c];

  const model = await ort.InferenceSession.create(modelPath);
  const image = new ort.Tensor("uint8", planes, [3, png.height, png.width]);
  const wanted = ["segment_ids", "segments_category_id", "segments_isthing", "segments_score", "segments_area"];
  const found = await model.run({ image }, wanted); // thresholds have defaults, and can be given as float64 tensors

  const ids = found.segment_ids.data;
  const color = (id) => [(id * 97) % 256, (id * 57 + 80) % 256, (id * 31 + 160) % 256];
  for (let y = 0; y < png.height; y++) {
    for (let x = 0; x < png.width; x++) {
      const p = y * png.width + x;
      if (ids[p] === 0) continue; // void
      const edge = (x > 0 && ids[p - 1] !== ids[p]) || (y > 0 && ids[p - png.width] !== ids[p]);
      color(ids[p]).forEach((value, c) => {
        png.data[4 * p + c] = edge ? 255 : (png.data[4 * p + c] + value) >> 1;
      });
    }
  }
  fs.writeFileSync(outPath, PNG.sync.write(png));
  for (let n = 0; n < found.segments_area.data.length; n++) {
    const kind = found.segments_isthing.data[n] ? "thing" : "stuff";
    const score = found.segments_score.data[n].toFixed(2);
    console.log(`${n + 1}: category ${found.segments_category_id.data[n]}, ${kind}, score ${score}, ${found.segments_area.data[n]} pixels`);
  }
}

main(...process.argv.slice(2)).catch((error) => { console.error(error.message); process.exit(1); });
