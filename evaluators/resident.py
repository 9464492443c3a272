"""The public name of the resident model that `Engine` takes."""

from evaluators.engine.resident import Resident as Resident
