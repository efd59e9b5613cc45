"""What a manifest is told, for tests of the engine."""


class Told(dict):
    """A recipe or a result without types."""

    def to_json(self):
        return dict(self)
