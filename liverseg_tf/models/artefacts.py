"""Models on disk: the JSON manifest of exported models, version folders, and the folds of a cross-validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liverseg_tf.config import ModelConfig
from liverseg_tf.errors import ConfigError, ModelError
from liverseg_tf.files import sha256_of
from liverseg_tf.ownership import write_text
from liverseg_tf.strict_json import to_json

# Where the manifest is in a SavedModel. TensorFlow Serving ignores this folder.
SAVEDMODEL_MANIFEST = Path("assets.extra", "liverseg_model.json")
FOLDS = "folds.json"


@dataclass(frozen=True)
class Manifest:
    """The manifest of an exported model.

    Attributes:
        config: what the model expects.
        card: model card: intended use, input, output, origin, versions.
        sha256: SHA-256 in hexadecimal of each file of the model, by the file's path relative to the model's folder.
    """

    config: ModelConfig
    card: dict[str, Any]
    sha256: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON text for a file beside the model."""
        content = {"config": self.config.to_dict(), "card": self.card, "sha256": self.sha256}
        return to_json(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest.

        Raises:
            ModelError: if the file is missing, or is not the manifest of an exported model.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            raise ModelError(
                f"{path}: is missing; expected what `liverseg export` writes with every artefact; keep them together"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: expected the JSON of an exported model, it can't be read ({error})") from None
        try:
            config, card, sha256 = (content[key] for key in ("config", "card", "sha256"))
            if not (isinstance(card, dict) and isinstance(sha256, dict) and sha256):
                raise TypeError("card and sha256 are objects")
            return cls(ModelConfig.from_dict(config, f"{path}: config"), card, sha256)
        except (KeyError, TypeError) as error:
            raise ModelError(f"{path}: expected config, card and sha256 of an exported model ({error})") from None
        except ConfigError as error:
            raise ModelError(str(error)) from None

    def check_files(self, folder: str | Path) -> None:
        """Check that the model's files are those that were exported, by their SHA-256.

        Raises:
            ModelError: naming the first file that is missing, incomplete or different.
        """
        for name, expected in self.sha256.items():
            path = Path(folder) / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ModelError(f"{folder}: its JSON names a file outside the folder ({name!r}); that is no export")
            if path.exists() and not path.is_file():
                raise ModelError(f"{path}: expected a file; export the model again")
            try:
                got = sha256_of(path)
            except OSError as error:
                raise ModelError(f"{path}: can't be read ({error.strerror}); export the model again") from None
            if got != expected:
                raise ModelError(
                    f"{path}: is not the file that was exported (SHA-256 {got[:12]}, expected {str(expected)[:12]}): "
                    "cut or exchanged; copy or export it again"
                )


def version_folders(folder: Path) -> list[Path]:
    """The version folders of a model, oldest first."""
    found = [p for p in folder.iterdir() if p.name.isascii() and p.name.isdigit() and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name))


def looks_like_savedmodel(folder: Path) -> bool:
    """Tell whether a folder is a SavedModel, or holds version folders that are SavedModels."""
    return (
        (folder / "saved_model.pb").exists() or (folder / SAVEDMODEL_MANIFEST).exists() or bool(version_folders(folder))
    )


def version_folder(path: Path) -> Path:
    """The SavedModel at `path`: the folder itself, or its newest version.

    Raises:
        ModelError: if there is no such folder.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: expected the folder of a SavedModel; there is none")
    if (path / "saved_model.pb").is_file() or not version_folders(path):
        return path
    return version_folders(path)[-1]


def write_folds(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the record that makes a folder a cross-validation: a row for each `fold_folder`, in order."""
    numbered = [{"fold": index, **row} for index, row in enumerate(rows)]
    write_text(folder / FOLDS, to_json(numbered, indent=2) + "\n", "run")


def fold_folder(folder: Path, index: int) -> Path:
    """The run folder of a fold, counted from 0."""
    return folder / f"fold-{index}"


def folds_of(model: Any) -> list[Any]:
    """The model alone, as a list; for the folder of a cross-validation its run folders.

    Raises:
        ModelError: if the record of the cross-validation can't be read.
    """
    if not isinstance(model, (str, Path)) or not (Path(model) / FOLDS).is_file():
        return [model]
    try:
        rows = json.loads((Path(model) / FOLDS).read_text("utf-8"))
        return [fold_folder(Path(model), int(row["fold"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{model}: expected the folds of a cross-validation ({error})") from None
