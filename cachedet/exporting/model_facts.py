"""What an exported model says of itself: all that is needed to use it, and where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cachedet.detector.boxes import Postprocess
from cachedet.errors import ExportError
from cachedet.exporting.detection_graph import Outputs, Preprocess
from cachedet.structures import CategoryMap, Preprocessing

KEY = "cachedet"  # of the text among the metadata of a file
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The metadata of an exported model."""

    outputs: Outputs
    preprocess: Preprocess
    has_masks: bool
    categories: CategoryMap
    image_size: int  # long side in pixels that images are resized to
    pad_multiple: int  # of the sides of the input
    preprocessing: Preprocessing
    postprocess: Postprocess
    opset: int | None  # of ONNX; None in a program of torch
    provenance: dict[str, Any]  # backbone, weights, store, config, versions

    def to_text(self) -> str:
        """JSON."""
        return json.dumps(
            {
                "format": _FORMAT,
                "outputs": self.outputs,
                "preprocess": self.preprocess,
                "has_masks": self.has_masks,
                "categories": {
                    "ids": list(self.categories.ids),
                    "names": list(self.categories.names),
                },
                "image_size": self.image_size,
                "pad_multiple": self.pad_multiple,
                "preprocessing": self.preprocessing.to_json(),
                "postprocess": vars(self.postprocess),
                "opset": self.opset,
                "provenance": self.provenance,
            }
        )

    @classmethod
    def from_text(cls, text: str | None, *, where: str) -> ModelFacts:
        """Raises ExportError where `where`, a file, has none or those of another version."""
        if text is None:
            raise ExportError(
                f"{where} was not written by `cachedet export`: it does not say its classes, its "
                "image size and how its boxes are meant; export the run again"
            )
        try:
            values = json.loads(text)
            if values.pop("format") != _FORMAT:
                raise ExportError(
                    f"{where} was exported by another version of cachedet; export the run again"
                )
            categories = values.pop("categories")
            return cls(
                **values
                | {
                    "categories": CategoryMap(
                        ids=tuple(categories["ids"]), names=tuple(categories["names"])
                    ),
                    "preprocessing": Preprocessing.from_json(values["preprocessing"]),
                    "postprocess": Postprocess(**values["postprocess"]),
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ExportError):
                raise
            raise ExportError(
                f"{where} says things of itself that cannot be read ({error!r}); export the run "
                "again"
            ) from error
