"""`compare`: registers scans of one patient and follows their lesions."""

from __future__ import annotations

import csv
import hashlib
import io
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liverseg_tf.data.dicom.formats import PRODUCTS, parse_formats
from liverseg_tf.data.dicom.segmentation import lesion_tracking, liver_tracking
from liverseg_tf.data.dicom.writing import uid_of
from liverseg_tf.data.nifti import is_nifti_name, read_comment
from liverseg_tf.data.reading import is_segmentation_file, is_volume_name, read_volume
from liverseg_tf.data.volume import CTVolume, MaskVolume, check_same_voxels
from liverseg_tf.dicom_objects.findings import lesion_tracking_uid, liver_tracking_uid
from liverseg_tf.errors import ConfigError
from liverseg_tf.evaluation.lesion_axes import numbered_lesions
from liverseg_tf.evaluation.measure import FLAGS, Measurement, measure
from liverseg_tf.files import csv_cell
from liverseg_tf.followup.lesions import Cloud, Link, find_fragments, link_lesions
from liverseg_tf.followup.page import build_page
from liverseg_tf.followup.registration import Registration, register
from liverseg_tf.followup.response import Response, choose_targets, respond
from liverseg_tf.labels import BACKGROUND, LIVER_CLASSES, ClassSet
from liverseg_tf.ownership import claim, write_text
from liverseg_tf.provenance import NOT_A_MEDICAL_DEVICE, versions
from liverseg_tf.strict_json import to_json
from liverseg_tf.wording import counted

if TYPE_CHECKING:
    from liverseg_tf.inference.predictor import Predictor

Source = str | Path | CTVolume | MaskVolume
Progress = Callable[[int, int, str], None]

JSON_NAME, LESIONS_NAME, SCANS_NAME, PAGE_NAME = "comparison.json", "lesions.csv", "scans.csv", "comparison.html"
# A lesion counts as resected if less than this share of its position is still liver.
_LEFT_OF_PLACE = 0.3
_NAMESPACE = uuid.UUID("5b1f0c1e-8a37-4a0e-9a55-2f3b6d1c7e90")


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan of the patient.

    Attributes:
        name: its file's name.
        day: days since the first scan, or None.
        mask, ct: the compared volumes; the CT may be None.
        measurement: of the mask, as `measure` gives it.
        registration: from its positions to those of the first scan; None for the first.
        tracking_uids: of its lesions, as `measure` numbers them: those in its SEG, else those that `predict` gives
            to lesions of its DICOM series; None without either.
        model, model_sha256: what its mask was predicted with; "" and None if it was given.
        liver_tracking_uid: of the liver, from the same source.
    """

    name: str
    day: float | None
    mask: MaskVolume
    ct: CTVolume | None
    measurement: Measurement
    registration: Registration | None
    tracking_uids: tuple[str | None, ...] = ()
    model: str = ""
    model_sha256: str | None = None
    liver_tracking_uid: str | None = None

    @property
    def specks(self) -> dict[int, int]:
        """Numbers of its lesions that count as a part of another (`find_fragments`)."""
        return find_fragments(numbered_lesions(self.mask.organ_labels)[0])

    def to_first(self, places_mm: np.ndarray) -> np.ndarray:
        """Positions (N, 3) in this scan -> the same positions in the first scan, RAS+ mm."""
        return np.asarray(places_mm, np.float64) if self.registration is None else self.registration(places_mm)

    def from_first(self, places_mm: np.ndarray) -> np.ndarray:
        """Positions (N, 3) in the first scan -> the same positions in this scan, RAS+ mm."""
        return np.asarray(places_mm, np.float64) if self.registration is None else self.registration.back(places_mm)

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        found, named = self.measurement.statistics, self.mask.classes.named
        fit = None if self.registration is None else self.registration.to_dict()
        return {
            "name": self.name,
            "day": self.day,
            named("liver_volume_ml"): found.liver_volume_ml,
            named("tumour_volume_ml"): found.tumour_volume_ml,
            "lesion_count": found.lesion_count,
            "speck_count": len(self.specks),
            "volume_is_lower_bound": self.measurement.volume_is_lower_bound,
            "flags": {named(name): named(FLAGS[name]) for name in self.measurement.flags},
            "registration": fit and {named(k): named(v) if isinstance(v, str) else v for k, v in fit.items()},
        }


@dataclass(frozen=True)
class Sighting:
    """State of a lesion in one scan.

    Attributes:
        event: `first`, `kept`, `split`, `merged`, `new`, `vanished`, `seen again`, `absent` (not yet, or still not),
            `resected` (its position is no longer in the liver) or `outside` (its position is outside the CT).
        numbers: its numbers in this scan, as in `measure`; several if it split, or has specks (`find_fragments`).
        merged_into: id of the lesion that holds it now, or None.
        volume_ml, long_axis_mm, short_axis_mm: sums over `numbers`, of axes without specks; 0 if nothing is seen; None
            if unknown (`outside`) or counted with `merged_into`.
        center_mm: in the scan's own RAS+ coordinates, of the largest part; None where nothing is seen.
        share, distance_mm, confidence: of the weakest `Link` to the earlier scans; None without a link.
        volume_sd_ml: standard deviation of `volume_ml` that is due to voxels alone, by `volume_sd`.
    """

    event: str
    numbers: tuple[int, ...] = ()
    merged_into: int | None = None
    volume_ml: float | None = 0.0
    long_axis_mm: float | None = 0.0
    short_axis_mm: float | None = 0.0
    center_mm: tuple[float, float, float] | None = None
    share: float | None = None
    distance_mm: float | None = None
    confidence: float | None = None
    volume_sd_ml: float | None = 0.0


@dataclass(eq=False)
class Track:
    """One lesion over time.

    Attributes:
        id: counted from 1, first the first scan's lesions in its order; further scans don't change it.
        tracking_uid: DICOM UID, the same in each later comparison: that of the scan that first shows the lesion
            (`Scan.tracking_uids`), else computed from the first scan's mask and the id.
        is_target: whether it is in RECIST's sum.
        sightings: one for each scan.
    """

    id: int
    tracking_uid: str
    is_target: bool
    sightings: list[Sighting] = field(default_factory=list)
    _clouds: list[Cloud] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with changes of volume and long axis since it was first seen and since the previous scan.

        A change of volume has a limit, within which 95 % of changes lie that are due to voxels alone, and a trend:
        `larger`, `smaller` or `within limit`.
        """
        seen: list[Sighting] = []
        rows = []
        for one in self.sightings:
            row: dict[str, Any] = dict(vars(one))
            for name in ("volume_ml", "long_axis_mm"):
                value = getattr(one, name)
                for what, other in (("first", seen[:1]), ("previous", seen[-1:])):
                    base = getattr(other[0], name) if other else None
                    row[f"{name.rsplit('_', 1)[0]}_change_from_{what}"] = (
                        None if value is None or not base else value / base - 1
                    )
            for what, other in (("first", seen[:1]), ("previous", seen[-1:])):
                limit = _limit(other[0], one) if other else None
                row[f"volume_change_limit_from_{what}"] = limit
                row[f"volume_trend_from_{what}"] = _trend(row[f"volume_change_from_{what}"], limit)
            if one.numbers or (seen and one.event == "vanished"):
                seen.append(one)
            rows.append(row)
        return {"id": self.id, "tracking_uid": self.tracking_uid, "is_target": self.is_target, "sightings": rows}


def _limit(base: Sighting, one: Sighting) -> float | None:
    """Twice the standard deviation of the quotient of two volumes."""
    if not base.volume_ml or one.volume_ml is None or base.volume_sd_ml is None or one.volume_sd_ml is None:
        return None
    quotient = one.volume_ml / base.volume_ml
    return 2 * float(np.hypot(one.volume_sd_ml, quotient * base.volume_sd_ml)) / base.volume_ml


def _trend(change: float | None, limit: float | None) -> str | None:
    if change is None or limit is None:
        return None
    return "within limit" if abs(change) <= limit else "larger" if change > 0 else "smaller"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scans of one patient, compared.

    Attributes:
        scans: in time.
        lesions: over time.
        responses: RECIST 1.1's arithmetic, one for each scan.

    Examples:
        >>> found = compare("LiTS/segmentation-0.nii.gz", "LiTS/segmentation-0.nii.gz", days=(0, 90))
        >>> found.difference_count, [scan.day for scan in found.scans]
        (0, [0.0, 90.0])
        >>> [path.name for path in found.save("followed")]
        ['comparison.json', 'lesions.csv', 'scans.csv', 'comparison.html']
    """

    scans: tuple[Scan, ...]
    lesions: tuple[Track, ...]
    responses: tuple[Response, ...]

    @property
    def classes(self) -> ClassSet:
        """What the masks' values are."""
        return self.scans[0].mask.classes

    @property
    def difference_count(self) -> int:
        """Number of lesions that differ at all from the previous scan."""
        return sum(
            a.volume_ml != b.volume_ml or b.event not in ("kept", "absent")
            for lesion in self.lesions
            for a, b in zip(lesion.sightings, lesion.sightings[1:], strict=False)
        )

    def __repr__(self) -> str:
        last = self.responses[-1]
        return (
            f"Comparison({counted(len(self.scans), 'scan')}, {counted(len(self.lesions), 'lesion')}, "
            f"{counted(self.difference_count, 'difference')}; "
            f"{last.category}: {last.reason})"
        )

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, for JSON."""
        return {
            "scans": [scan.to_dict() for scan in self.scans],
            "lesions": [lesion.to_dict() for lesion in self.lesions],
            "responses": [one.to_dict() for one in self.responses],
            "difference_count": self.difference_count,
            "versions": versions(),
            "note": f"{NOT_A_MEDICAL_DEVICE} RECIST's arithmetic only: a radiologist decides on targets and new "
            "lesions.",
        }

    def tracking(self, scan: int) -> dict[int, tuple[str, str]]:
        """Name and tracking UID of each lesion of a scan, by its number in that scan.

        They are the same in all scans. If a lesion split, its largest part keeps them; the UIDs of the other parts are
        computed from them.
        """
        found = {}
        for track in self.lesions:
            for part, number in enumerate(track.sightings[scan].numbers, start=1):
                if part == 1:
                    found[number] = (f"Lesion {track.id}", track.tracking_uid)
                else:
                    found[number] = (f"Lesion {track.id} part {part}", uid_of("part", track.tracking_uid, part))
        return found

    def save_objects(
        self, folder: str | Path, formats: Sequence[str], *, inputs: Sequence[str | Path] = (), overwrite: bool = False
    ) -> list[Path]:
        """Write each scan's mask as DICOM objects; liver and lesions keep their tracking UIDs and names over all scans.

        Args:
            folder: made if missing; the files are named `scan-1_seg.dcm`, `scan-2_seg_sr.dcm` and so on.
            formats: as `write_dicom_objects`.
            inputs: files that must not be replaced; the scans' own never are.
            overwrite: replace files that this library did not make.

        Returns:
            What was written, each proven as `write_dicom_objects` does.

        Raises:
            ConfigError: for unknown formats, or a scan whose CT is no DICOM series.
            OutputError: as `write_dicom_objects`.
        """
        from liverseg_tf.dicom_objects.findings import Findings
        from liverseg_tf.dicom_objects.objects import write_objects

        wanted = parse_formats(",".join(formats), tuple(PRODUCTS))
        jobs = []
        for number, scan in enumerate(self.scans):
            if scan.ct is None or scan.ct.series is None:
                raise ConfigError(
                    f"format: {scan.name} has no DICOM series; give the CTs as DICOM, and their masks with masks="
                )
            if not scan.mask.classes.is_liver:
                raise ConfigError(f"format: {scan.name} is of a {scan.mask.classes.organ}; DICOM objects are of livers")
            labels, tracking = scan.mask.labels, self.tracking(number)
            liver = self.scans[0].liver_tracking_uid
            jobs.append(Findings(labels, scan.ct, scan.model, scan.model_sha256, tracking, liver))
        protected, written = [*map(Path, inputs), *_files(self.scans)], list[Path]()
        for number, findings in enumerate(jobs, start=1):
            paths = object_paths(folder, number, wanted)
            write_objects(findings, paths, inputs=protected, overwrite=overwrite)
            written.extend(paths.values())
        return written

    def save(self, folder: str | Path, *, inputs: Sequence[str | Path] = (), overwrite: bool = False) -> list[Path]:
        """Write `comparison.json`, `lesions.csv` (a row for each lesion and scan), `scans.csv`, and `comparison.html`.

        The page shows two scans side by side if all have CTs; otherwise only tables and curves.

        Args:
            folder: made if missing.
            inputs: files that must not be replaced; the scans' own never are.
            overwrite: replace files that this library did not make.

        Returns:
            What was written.

        Raises:
            OutputError: if something may not or can't be written; nothing is written then.
        """
        folder = Path(folder)
        inputs = [*inputs, *_files(self.scans)]
        texts = {JSON_NAME: to_json(self.to_dict(), indent=1) + "\n"}
        texts[LESIONS_NAME], texts[SCANS_NAME] = self.tables()
        texts[PAGE_NAME] = build_page(self, f"{self.scans[0].name} and later")
        for name in texts:
            claim(folder / name, "comparison", inputs=inputs, overwrite=overwrite)
        for name, text in texts.items():
            write_text(folder / name, text, "comparison", inputs=inputs, overwrite=overwrite)
        return [folder / name for name in texts]

    def tables(self) -> tuple[str, str]:
        """Two CSV texts: a row for each lesion and scan, and a row for each scan."""
        lesions = [
            {"lesion": lesion["id"], "scan": number, "name": scan.name, "day": scan.day, "target": lesion["is_target"]}
            | {**row, "numbers": " ".join(map(str, row["numbers"]))}
            | {"center_mm": "" if row["center_mm"] is None else " ".join(f"{c:.1f}" for c in row["center_mm"])}
            for lesion in (track.to_dict() for track in self.lesions)
            for number, (scan, row) in enumerate(zip(self.scans, lesion["sightings"], strict=True), start=1)
        ]
        scans = []
        for number, (scan, response) in enumerate(zip(self.scans, self.responses, strict=True), start=1):
            row = scan.to_dict()
            fit = row.pop("registration") or {}
            row["flags"] = " ".join(row["flags"])
            scans.append({"scan": number, **row, "residual_mm": fit.get("residual_mm"), **response.to_dict()})
        return _csv(lesions, ["lesion", "scan"]), _csv(scans, ["scan"])


def object_paths(folder: str | Path, scan: int, formats: Sequence[str]) -> dict[str, Path]:
    """Paths of a scan's DICOM objects; scans are counted from 1."""
    return {name: Path(folder, f"scan-{scan}_seg{PRODUCTS[name][0]}") for name in formats}


def compare(
    before: Source,
    after: Source,
    *more: Source,
    masks: Sequence[str | Path | MaskVolume] | None = None,
    days: Sequence[float] | None = None,
    model: Any = None,
    classes: ClassSet | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare scans of one patient: growing, shrinking, new and vanished lesions.

    Every later scan is registered to the first (`register`), and its lesions are linked to the known ones. All
    measurements are taken on a scan's own mask; nothing is resampled.

    Args:
        before, after, more: scans in time: CTs (files, DICOM folders, `CTVolume`), or masks (files that hold 0, 1 and 2
            alone, DICOM SEGs, `MaskVolume`), which are compared by the liver's shape. A SEG
            without its CT is taken to have no liver in the slices that it lacks.
        masks: the CTs' masks, in their order; without them the CTs are segmented.
        days: of each scan, counted from any day, ascending; for the growth curve.
        model: as `Predictor` takes it, for CTs without masks.
        classes: what the values of mask files are; by default the classes stored in them, else liver and tumour.
        progress: called with steps done, their number, and what is being done.

    Returns:
        A `Comparison`, whose `save` writes the page and tables.

    Raises:
        RegistrationError: if the livers of two scans can't be registered: different patients, or a flipped scan.
        ConfigError: for another number of masks or days than scans, days that don't ascend, or masks of several organs.
        InputFileError, GeometryError, LabelError: as `CTVolume.load` and `MaskVolume.load`.
        MissingDependencyError: without the extra `[compare]`.

    Examples:
        >>> labels = np.zeros((60, 60, 40), np.uint8)
        >>> labels[10:50, 10:50, 5:35] = 1
        >>> labels[20:26, 20:26, 15:20] = 2
        >>> from liverseg_tf.data.volume import Geometry
        >>> scan = MaskVolume(labels, Geometry.from_spacing(labels.shape, (3, 3, 3)))
        >>> found = compare(scan, scan)
        >>> found.difference_count, found.lesions[0].sightings[1].event, found.responses[1].category
        (0, 'kept', 'SD')
    """
    sources = [before, after, *more]
    tell = progress or (lambda done, total, what: None)
    for given, name in ((masks, "masks"), (days, "days")):
        if given is not None and len(given) != len(sources):
            raise ConfigError(f"{name}: expected one for each of {len(sources)} scans, got {len(given)}")
    if days is not None and any(b <= a for a, b in zip(days, days[1:], strict=False)):
        raise ConfigError(f"days: expected ascending numbers, the scans in time. Received: {list(days)}")
    scans: list[Scan] = []
    predictor: list[Any] = []
    for number, source in enumerate(sources):
        tell(number, len(sources), "reading")
        ct, mask, used = _load(source, None if masks is None else masks[number], model, predictor, classes)
        registration = None
        if scans and mask.classes != scans[0].mask.classes:
            first, other = (", ".join(one.classes.names[1:]) for one in (scans[0].mask, mask))
            raise ConfigError(
                f"masks: expected all of one organ, got {first} and then {other}; compare each organ separately"
            )
        if scans:
            tell(number, len(sources), "registering")
            registration = register(scans[0].mask, mask, scans[0].ct, ct)
        day = None if days is None else float(days[number] - days[0])
        name = Path(ct.path if ct is not None and ct.path else mask.path or f"scan {number + 1}").name
        measured = measure(mask, ct)
        made_with = ("", None) if used is None else (used.name, used.sha256)
        uids, liver_uid = _tracking_uids(mask, ct, measured), _liver_uid(mask, ct)
        scans.append(Scan(name, day, mask, ct, measured, registration, uids, *made_with, liver_uid))
    tell(len(sources), len(sources), "comparing")
    tracks = _follow(scans)
    return Comparison(tuple(scans), tuple(tracks), tuple(_responses(scans, tracks)))


def _load(
    source: Source,
    mask: str | Path | MaskVolume | None,
    model: Any,
    predictor: list[Any],
    classes: ClassSet | None,
) -> tuple[CTVolume | None, MaskVolume, Predictor | None]:
    """CT, mask, and what predicted the mask."""
    if isinstance(source, MaskVolume):
        return None, source, None
    if mask is None and isinstance(source, (str, Path)) and _is_mask(source, classes):
        return None, MaskVolume.load(source, classes=classes), None
    ct = source if isinstance(source, CTVolume) else CTVolume.load(source)
    if mask is not None:
        mask = mask if isinstance(mask, MaskVolume) else MaskVolume.load(mask, classes=classes, like=ct)
        check_same_voxels(ct.geometry, mask.geometry, (ct.name, mask.path or "mask"))
        return ct, mask, None
    from liverseg_tf.inference.predictor import Predictor

    if not predictor:
        predictor.append(model if isinstance(model, Predictor) else Predictor(model))
    predicted = MaskVolume(predictor[0].predict(ct).labels, ct.geometry, classes=predictor[0].config.classes)
    return ct, predicted, predictor[0]


def _tracking_uids(mask: MaskVolume, ct: CTVolume | None, measured: Measurement) -> tuple[str | None, ...]:
    """`Scan.tracking_uids`."""
    found: list[str | None] = [None] * len(measured.lesions)
    if ct is not None and ct.series is not None and ct.series.uid:
        found = [lesion_tracking_uid(ct.series.uid, lesion.statistics) for lesion in measured.lesions]
    numbered, box = numbered_lesions(mask.organ_labels)
    if box is None or mask.path is None or not is_segmentation_file(mask.path):
        return tuple(found)
    which, uids = lesion_tracking(mask.path, (mask.geometry.shape, mask.geometry.affine))
    which = mask.geometry.to_canonical(which)[box]
    taken: set[str] = set()
    for index, lesion in enumerate(measured.lesions):
        most = int(np.bincount(which[numbered == lesion.statistics.number]).argmax())
        if most and uids[most - 1] not in taken:  # one segment in two pieces is two lesions here
            taken.add(uids[most - 1])
            found[index] = uids[most - 1]
    return tuple(found)


def _liver_uid(mask: MaskVolume, ct: CTVolume | None) -> str | None:
    """`Scan.liver_tracking_uid`."""
    known = liver_tracking(mask.path) if mask.path is not None and is_segmentation_file(mask.path) else None
    if known is None and ct is not None and ct.series is not None and ct.series.uid:
        return liver_tracking_uid(ct.series.uid)
    return known


def _is_mask(path: str | Path, classes: ClassSet | None) -> bool:
    if is_segmentation_file(path):
        return True
    if not is_volume_name(path) or not Path(path).is_file():
        return False
    stored = read_volume(path)
    stored_classes = ClassSet.from_json(read_comment(path)) if is_nifti_name(path) else None
    return bool(stored.voxels.min() >= 0 and stored.voxels.max() < len(classes or stored_classes or LIVER_CLASSES))


def _clouds(scan: Scan) -> tuple[dict[int, Cloud], dict[int, int]]:
    """A scan's lesions by index as clouds in the first scan's space, and the lesion that each speck belongs to."""
    numbered, box = numbered_lesions(scan.mask.organ_labels)
    if box is None:
        return {}, {}
    specks = {speck - 1: host - 1 for speck, host in find_fragments(numbered).items()}
    offset = np.array([b.start for b in box])
    affine = scan.mask.geometry.canonical_affine
    half_mm = float(np.mean(scan.mask.spacing_mm)) / 2
    places = np.argwhere(numbered)
    lesion_of = numbered[tuple(places.T)]
    mm = scan.to_first((places + offset) @ affine[:3, :3].T + affine[:3, 3])
    clouds = {
        index: Cloud.of(mm[lesion_of == lesion.statistics.number], lesion.statistics.volume_ml, half_mm)
        for index, lesion in enumerate(scan.measurement.lesions)
        if index not in specks
    }
    return clouds, specks


def _follow(scans: Sequence[Scan]) -> list[Track]:
    clouds, specks = _clouds(scans[0])
    axes = [lesion.axes.long_axis_mm for lesion in scans[0].measurement.lesions]
    targets = choose_targets(axes, scans[0].mask.spacing_mm[2])
    seed = hashlib.sha256(np.ascontiguousarray(scans[0].mask.labels).tobytes()).hexdigest()
    tracks: list[Track] = []

    def begin(scan: int, lesion: int, cloud: Cloud, specks: dict[int, int]) -> Track:
        number = len(tracks) + 1
        uids = scans[scan].tracking_uids
        known = uids[lesion] if uids else None
        if any(
            track.tracking_uid == known for track in tracks
        ):  # another lesion has it, and no link to that one was found
            known = None
        uid = known or f"2.25.{uuid.uuid5(_NAMESPACE, f'{seed} {number}').int}"
        track = Track(number, uid, scan == 0 and lesion in targets)
        track.sightings = [Sighting("absent") for _ in range(scan)]
        track.sightings.append(_seen("new" if scan else "first", scans[scan], [lesion], [], specks))
        track._clouds = [cloud]
        tracks.append(track)
        return track

    for lesion, cloud in clouds.items():
        begin(0, lesion, cloud, specks)
    for number, scan in enumerate(scans[1:], start=1):
        clouds, specks = _clouds(scan)
        now, lesions = list(clouds.values()), list(clouds)
        open_parts = [(track, cloud) for track in tracks for cloud in track._clouds]
        assert scan.registration is not None
        links = link_lesions([cloud for _, cloud in open_parts], now, scan.registration.residual_mm)
        by_lesion: dict[int, list[tuple[Track, Link]]] = {}
        for link in links:
            by_lesion.setdefault(link.now, []).append((open_parts[link.before][0], link))
        # a merged lesion continues the largest of its parts
        lead = {
            j: max((t for t, _ in found), key=lambda t: sum(c.volume_ml for c in t._clouds))
            for j, found in by_lesion.items()
        }
        known = list(tracks)
        for track in known:
            own = sorted(j for j, holder in lead.items() if holder is track)
            given = [(j, link) for j, found in by_lesion.items() for t, link in found if t is track]
            track.sightings.append(_sighting(track, scan, own, given, lead, lesions, specks))
            if own:
                track._clouds = [now[j] for j in own]
            elif given:
                track._clouds = []  # it is now a part of another
        for j, lesion in enumerate(lesions):
            if j not in lead:
                begin(number, lesion, now[j], specks)
    return tracks


def _sighting(
    track: Track,
    scan: Scan,
    own: list[int],
    given: list[tuple[int, Link]],
    lead: dict[int, Track],
    lesions: list[int],
    specks: dict[int, int],
) -> Sighting:
    links = [link for j, link in given]
    last = track.sightings[-1]
    if last.merged_into is not None:
        return Sighting(
            "merged",
            merged_into=last.merged_into,
            volume_ml=None,
            long_axis_mm=None,
            short_axis_mm=None,
            volume_sd_ml=None,
        )
    if own:
        is_whole = last.numbers and len(own) <= len(track._clouds)
        event = "seen again" if not last.numbers else "kept" if is_whole else "split"
        return _seen(event, scan, [lesions[j] for j in own], [link for link in links if link.now in own], specks)
    if given:
        into = lead[given[0][0]]
        figures = _seen("merged", scan, [lesions[given[0][0]]], links, {})
        return Sighting(
            "merged",
            (),
            into.id,
            None,
            None,
            None,
            figures.center_mm,
            figures.share,
            figures.distance_mm,
            figures.confidence,
            None,
        )
    if not last.numbers:
        return Sighting(
            "absent" if last.event in ("vanished", "absent") else last.event,
            volume_ml=last.volume_ml,
            volume_sd_ml=last.volume_sd_ml,
        )
    return _lost(track, scan)


def _seen(event: str, scan: Scan, lesions: list[int], links: list[Link], specks: dict[int, int]) -> Sighting:
    measured = [scan.measurement.lesions[j] for j in lesions]
    whole = measured + [scan.measurement.lesions[j] for j, host in specks.items() if host in lesions]
    weakest = min(links, key=lambda link: link.confidence, default=None)
    return Sighting(
        event,
        tuple(one.statistics.number for one in whole),
        None,
        sum(one.statistics.volume_ml for one in whole),
        sum(one.axes.long_axis_mm for one in measured),
        sum(one.axes.short_axis_mm for one in measured),
        measured[0].statistics.center_mm,
        None if weakest is None else weakest.share,
        None if weakest is None else weakest.distance_mm,
        None if weakest is None else weakest.confidence,
        float(np.linalg.norm([one.volume_sd_ml for one in whole])),
    )


def _lost(track: Track, scan: Scan) -> Sighting:
    """Why a lesion is not seen: it vanished, was resected with a part of the liver, or is outside the CT."""
    points = np.concatenate([cloud.points_mm for cloud in track._clouds])
    to_index = np.linalg.inv(scan.mask.geometry.canonical_affine)
    index = np.rint(scan.from_first(points) @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
    there = ((index >= 0) & (index < scan.mask.shape)).all(axis=1)
    if there.mean() < _LEFT_OF_PLACE and not scan.mask.is_cropped:
        return Sighting("outside", volume_ml=None, long_axis_mm=None, short_axis_mm=None, volume_sd_ml=None)
    labels = scan.mask.organ_labels[tuple(index[there].T)]
    if np.count_nonzero(labels != BACKGROUND) < _LEFT_OF_PLACE * len(index):
        return Sighting("resected")
    return Sighting("vanished")


def _responses(scans: Sequence[Scan], tracks: Sequence[Track]) -> list[Response]:
    targets = [track for track in tracks if track.is_target]
    sums: list[float | None] = []
    others, new, doubts = [], [], []
    for number, scan in enumerate(scans):
        axes = [track.sightings[number].long_axis_mm for track in targets]
        events = {track.sightings[number].event for track in tracks if track.is_target}
        sums.append(float(sum(axis or 0.0 for axis in axes)) if targets else None)
        here = [track for track in tracks if len(track.sightings) > number and track.sightings[number].numbers]
        began = [track.sightings[0].event == "first" for track in here]
        others.append(sum(first and not t.is_target for t, first in zip(here, began, strict=True)))
        new.append(len(here) - sum(began))
        beyond, named = scan.measurement.volume_is_lower_bound, scan.mask.classes.named
        doubt = named("the liver extends beyond the CT, where lesions may be") if beyond else None
        if events & {"outside", "resected"}:
            doubt = named("a target is outside the CT or in a resected part of the liver")
        doubts.append(doubt)
    return respond(sums, others, new, doubts)


def _files(scans: Sequence[Scan]) -> list[Path]:
    return [path for s in scans for path in (s.mask.path, *(s.ct.files if s.ct is not None else ())) if path]


def _csv(rows: Sequence[dict[str, Any]], names: list[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else names, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()
