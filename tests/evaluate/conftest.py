from tests.train.conftest import uninterrupted  # noqa: F401  the run that is evaluated
