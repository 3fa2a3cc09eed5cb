"""Turn trained weights into what the package ships: SavedModel, TFLite file and model card.

python ship.py RUN/model.keras -o savedmodels/NAME --quality quality.md --whole whole.md
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import liverseg_tf as ls
from liverseg_tf.files import write_text

CARD = """# {name}

Liver and liver tumours in portal-venous CT: a {backbone} U-Net on single axial slices at {size} px, shipped with
liverseg_tf {version}.

**Not a medical device.** For research and teaching only; no result may guide the care of a patient.

## Intended use and limits

- Contrast-enhanced (portal-venous) CT of adults in Hounsfield units. Other phases, unenhanced CT, children, livers
  after surgery and MRI were not tested.
- Input: raw HU; windows {windows}. Values below 4 HU look alike to it, as they did in its training slices.
- Output: background, liver, tumour. Metastases and primary tumours are not told apart; cysts count as liver, as its
  annotators had it.

## Data, credits and licence

- 615 slices of 120 patients of Task03 of the Medical Segmentation Decathlon (Simpson et al. 2019, arXiv 1902.09063;
  CC BY-SA 4.0). A fifth of the patients was kept out of the last training.
- **Tumours**: the radiologists' masks of Task03 for 97 of these patients (CC BY-SA 4.0). Their voxel positions were
  taken from a public copy cut around each lesion (that of the ULS23 challenge) and put back onto the slices by case,
  position and spacing. In the other 23 patients what is dark in the liver was left undecided.
- Slices without liver: TCIA Pancreatic-CT-CBCT-SEG (CC BY 4.0), TCGA-LUAD and TCGA-LUSC on TCIA (CC BY 3.0), Task06 of
  the Decathlon (CC BY-SA 4.0).
- Self-labelled slices of one CT each of HCC-TACE-Seg and of Colorectal-Liver-Metastases on TCIA (both CC BY 4.0).

The weights are under **CC BY-SA 4.0**, as the Decathlon's data are.

**Task03 holds patients of LiTS's training set.** Scores on LiTS training cases look better than they are.

## Recipe

`examples/shipped_model/`; what was tried, with seeds, in `docs/shipped_model.md`.

## Quality on real labels

Patients kept out of the last training, slice by slice and without any clean-up (`evaluate.py --fold 0`); intervals of
95 % by bootstrap over patients. The weights that it started from had seen most of these patients' slices, with the
liver's label and without their tumours': new patients will score lower. Sizes are of the disc of the same area, at
nominal spacing; a patient has four slices on average, so there are fewer false lesions than on a whole CT.

{quality}
## Quality on whole CTs

Two patients that it was not trained on, all slices, default post-processing. Measured by
`examples/shipped_model/measure.py` on {date}. Case 44 is 3D-IRCADb 17 (two large tumours), case 203 is from CHAOS
(a healthy donor). Two patients say little: measure it on your own data with `liverseg evaluate`.

{table}
## Known failures

- Tumours come out too small or not at all where they are as dense as the liver; calcified ones in part.
- Contents of stomach, bowel and gallbladder, the heart above the dome and effusion beside the liver can be taken for
  tumour, less often than by earlier weights.
- Focal fat beside the falciform ligament can pass for a tumour; so can dark vessels and fissures.
- Outlines are worst at the left lobe beside heart and stomach, which can be taken for liver, and in the dome.
- Whether the inferior vena cava beside the liver is counted in differs between data sets; here it mostly is.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help=".keras file of train.py")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--quality", type=Path, required=True, help="tables that evaluate.py wrote")
    parser.add_argument("--whole", type=Path, required=True, help="table that measure.py wrote")
    args = parser.parse_args()
    config = ls.load_model(args.model).liverseg_config
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "source")
        source.mkdir()
        shutil.copy(args.model, source / "model.keras")
        card = CARD.format(
            name=args.output.name,
            backbone=config.backbone,
            size=config.image_size,
            version=ls.__version__,
            windows=", ".join(map(str, config.channels.windows)),
            date=time.strftime("%Y-%m-%d"),
            quality=args.quality.read_text(),
            table=args.whole.read_text(),
        )
        write_text(source / "model_card.md", card)
        ls.export(source, args.output, "savedmodel", "float16", progress=print)
        ls.export(source, args.output, "tflite", "int8", progress=print)
    write_text(args.output / "model_card.md", card)
    print(f"{args.output}: {sum(f.stat().st_size for f in args.output.rglob('*') if f.is_file()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
