"""Headers of variants as a test says they are, in place of the hub's."""

import threading

from octavo.checkpoint.header import CheckpointHeader
from octavo.errors import OctavoError
from octavo.hub.hub_files import HubVariant
from tests.ui.fakes import make_model


class FakeInspect:
    """Every variant fits, but those whose error or size a test has set."""

    def __init__(self) -> None:
        self.errors: dict[str, OctavoError] = {}
        self.num_parameters: dict[str, float] = {}
        self.gate: threading.Event | None = None
        self.read: list[str] = []

    def __call__(
        self, _hub: object, _repository: object, variant: HubVariant, *_rest: object
    ) -> CheckpointHeader:
        self.read.append(variant.label)
        if self.gate is not None:
            self.gate.wait(60)
        if variant.label in self.errors:
            raise self.errors[variant.label]
        num_parameters = int(self.num_parameters.get(variant.label, 1e9))
        return make_model(num_parameters=num_parameters)  # type: ignore[return-value]
